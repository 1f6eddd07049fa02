"""The manifests in k8s/ are valid, name what exists, and their sizes and times fit each other."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import msgspec
import pytest
import role_based_group
import yaml
from manifests import GIB, MIB, PodSpec, environment, memory_limit, size, snapd_command

from snapd.cli.snapd import COMMANDS
from snapd.config import Settings, load_settings
from snapd.config.settings import environment_variables
from snapd.formats.segment import Geometry
from snapd.store.main import slot_count

ROOT = Path(__file__).parents[2]
KUBERNETES_VERSIONS = ("1.31", "1.37")
"""The newest is the newest that the checker knows."""

GRACE_MARGIN_SECONDS = 15
"""systemd's units leave as much between the flush's limit and SIGKILL."""

MOONCAKE_VARIABLES = {
    "MOONCAKE_MASTER",
    "MOONCAKE_TE_META_DATA_SERVER",
    "MOONCAKE_PROTOCOL",
    "MOONCAKE_LOCAL_HOSTNAME",
    "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "MOONCAKE_LOCAL_BUFFER_SIZE",
}
KNOWN = {
    name for field in msgspec.structs.fields(Settings) for name in environment_variables(field.name)
}
PODS = manifests.pods()
SNAPD_PODS = manifests.snapd_pods()
GROUPS = [
    pytest.param(one, id=file.stem)
    for file in manifests.FILES
    for one in manifests.objects(file)
    if one["kind"] == "RoleBasedGroup"
]
every_pod = pytest.mark.parametrize("pod", PODS, ids=str)
every_snapd_pod = pytest.mark.parametrize("pod", SNAPD_PODS, ids=str)
every_group = pytest.mark.parametrize("group", GROUPS)


def test_there_are_all_the_deployments() -> None:
    assert {file.stem for file in manifests.FILES} == {
        *("bundled-pod", "mooncake-sidecar", "mooncake-sidecar-plain"),
        *("rbg-store", "rbg-aggregated", "rbg-prefill-decode", "podmonitor", "prometheusrule"),
    }
    assert len(SNAPD_PODS) == 6
    assert len(GROUPS) == 3


# --- valid for a cluster ------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("file", manifests.FILES, ids=lambda file: file.stem)
def test_what_kubernetes_knows_is_valid(file: Path, version: str) -> None:
    for one in manifests.objects(file):
        if one["apiVersion"] in ("v1", "apps/v1"):
            kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@every_pod
def test_every_pod_would_be_valid_by_itself(pod: PodSpec, version: str) -> None:
    # A RoleBasedGroup's definition leaves what is in its templates to whom the pods are given.
    one = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "labels": pod.labels},
        "spec": pod.spec,
    }
    kubernetes_validate.validate(one, version, strict=True)


def test_the_checker_refuses_what_is_not_valid() -> None:
    [pod] = manifests.objects(manifests.KUBERNETES / "bundled-pod.yaml")
    wrong = {**pod, "spec": {**pod["spec"], "terminationGracePeriod": 45}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[-1], strict=True)


@every_group
def test_every_group_is_valid(group: Mapping[str, Any]) -> None:
    jsonschema.validate(group, role_based_group.GROUP)
    wrong = {**group, "spec": {**group["spec"], "replicas": 1}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, role_based_group.GROUP)


@every_group
def test_every_group_is_what_its_definition_says(group: Mapping[str, Any]) -> None:
    definition = os.environ.get("SNAPD_TEST_RBG_CRD")
    schema = (
        role_based_group.full_schema(Path(definition)) if definition else role_based_group.GROUP
    )
    jsonschema.Draft7Validator(schema).validate(group)
    misspelt = [{**role, "rollout": {}} for role in group["spec"]["roles"]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**group, "spec": {"roles": misspelt}})


# --- one thing fits the other -------------------------------------------------------------------


@every_pod
def test_mounts_ports_and_probes_name_what_is_there(pod: PodSpec) -> None:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    used = set()
    for container in [*pod.spec.get("initContainers", []), *pod.containers]:
        used |= {mount["name"] for mount in container.get("volumeMounts", [])}
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            for how in ("httpGet", "tcpSocket"):
                assert how not in probe or probe[how]["port"] in ports
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")
    assert used == volumes


@pytest.mark.parametrize("file", manifests.FILES, ids=lambda file: file.stem)
def test_selectors_find_their_pods(file: Path) -> None:
    here = [pod for pod in PODS if pod.file == file]
    for one in manifests.objects(file):
        if one["kind"] == "StatefulSet":
            assert one["spec"]["selector"]["matchLabels"].items() <= here[0].labels.items()
        if one["kind"] == "Service":
            selector = dict(one["spec"]["selector"])
            # The controller of groups sets these labels itself.
            group = selector.pop("rbg.workloads.x-k8s.io/group-name", None)
            role = selector.pop("rbg.workloads.x-k8s.io/role-name", None)
            assert group is None or group == one["metadata"]["name"]
            [pod] = [
                pod
                for pod in here
                if role in (None, pod.name) and selector.items() <= pod.labels.items()
            ]
            ports = {port["name"] for one in pod.containers for port in one.get("ports", [])}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports


def test_prometheus_finds_every_daemon() -> None:
    [monitor] = manifests.objects(manifests.KUBERNETES / "monitoring" / "podmonitor.yaml")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for pod in SNAPD_PODS:
        assert monitor["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()
        daemon = pod.container("snapd")
        assert daemon is not None
        assert endpoint["port"] in {port["name"] for port in daemon["ports"]}
    assert re.search("snapd", monitor["metadata"]["name"])  # what the alert SnapdDown looks for


def test_the_rules_of_the_operator_are_the_alert_rules() -> None:
    [rule] = manifests.objects(manifests.KUBERNETES / "monitoring" / "prometheusrule.yaml")
    alerts = yaml.safe_load((ROOT / "monitoring" / "alerts.yaml").read_text())
    assert rule["spec"] == alerts, (
        "renew it: .venv/bin/python tools/prometheus_rule.py > k8s/monitoring/prometheusrule.yaml"
    )
    assert rule["kind"] == "PrometheusRule"


# --- snapd as it is -----------------------------------------------------------------------------


def settings_of(container: Mapping[str, Any]) -> Settings:
    changes = {"store": "mooncake"} if "mooncake-store" in snapd_command(container) else {}
    return load_settings(None, environment(container), changes)


@every_snapd_pod
def test_commands_and_settings_exist(pod: PodSpec) -> None:
    for container in pod.containers:
        command = snapd_command(container)
        if command:
            assert command[0] in COMMANDS
            settings_of(container)  # raises for what is not a setting or not a value of it
        for name in environment(container):
            assert name in MOONCAKE_VARIABLES | KNOWN, name


@every_snapd_pod
def test_the_daemon_listens_where_it_is_asked(pod: PodSpec) -> None:
    daemon = pod.container("snapd")
    assert daemon is not None
    settings = settings_of(daemon)
    host, _, port = settings.http.rpartition(":")
    assert host == "0.0.0.0"
    assert daemon["ports"] == [{"name": "metrics", "containerPort": int(port)}]
    assert daemon["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert daemon["readinessProbe"]["httpGet"]["path"] == "/readyz"
    routes = (ROOT / "snapd" / "daemon" / "http.py").read_text()
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert f'web.get("{daemon[kind]["httpGet"]["path"]}"' in routes


@every_snapd_pod
def test_the_containers_share_what_they_must_and_nothing_else(pod: PodSpec) -> None:
    daemon, store = pod.container("snapd"), pod.container("store")
    assert daemon is not None
    assert store is not None
    mounts = [
        {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
        for one in (daemon, store)
    ]
    settings = settings_of(daemon)
    for path in ("/dev/shm", settings.runtime_dir):
        assert mounts[0][path] == mounts[1][path]
    repository = mounts[0][settings.persistent_path]
    assert settings.persistent_path not in mounts[1]
    assert pod.volume(repository)["hostPath"]["type"] == "DirectoryOrCreate"
    assert pod.volume(mounts[0]["/dev/shm"])["emptyDir"]["medium"] == "Memory"
    assert str(Path(settings.segment_path).parent) == "/dev/shm"


@every_snapd_pod
def test_two_users_of_one_group(pod: PodSpec) -> None:
    security = pod.spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsGroup"] == security["fsGroup"]
    daemon, store = pod.container("snapd"), pod.container("store")
    assert daemon is not None
    assert store is not None
    users = {one["securityContext"]["runAsUser"] for one in (daemon, store)}
    assert len(users) == 2
    assert 0 not in users
    for one in (daemon, store):
        own = one["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not snapd_command(one) or settings_of(one).group_shared
    # kubelet makes a missing hostPath directory root's.
    [first] = pod.spec["initContainers"]
    user, group = str(daemon["securityContext"]["runAsUser"]), str(security["runAsGroup"])
    assert first["command"][:6] == ["install", "-d", "-o", user, "-g", group]
    assert first["command"][-1] == settings_of(daemon).persistent_path


@every_snapd_pod
def test_the_last_flush_fits_the_grace_period(pod: PodSpec) -> None:
    grace = pod.spec["terminationGracePeriodSeconds"]
    for container in pod.containers:
        if snapd_command(container):
            assert grace >= settings_of(container).grace_sec + GRACE_MARGIN_SECONDS
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook:
            waits = [int(number) for number in re.findall(r"timeout(?:=|\()(\d+)", hook[-1])]
            assert waits
            assert all(wait + GRACE_MARGIN_SECONDS <= grace for wait in waits)


@every_snapd_pod
def test_one_node_has_one_of_them(pod: PodSpec) -> None:
    [term] = pod.spec["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= pod.labels.items()


# --- memory -------------------------------------------------------------------------------------


def page_table_bytes(mapped_bytes: int) -> int:
    return 2 * MIB * math.ceil(mapped_bytes / GIB)


@every_snapd_pod
def test_memory_limits_hold_the_segments(pod: PodSpec) -> None:
    # The sums of docs/kubernetes.md.
    daemon, store = pod.container("snapd"), pod.container("store")
    assert daemon is not None
    assert store is not None
    settings = settings_of(daemon)
    slots = slot_count(settings)
    data = settings.global_segment_size
    shared = size(pod.volume("shm")["emptyDir"]["sizeLimit"])
    if settings.store == "mooncake":
        files = 2 * (data + 64 * 1024)
        own = 512 * MIB + max(0, slots - 100_000) * 1536
        assert memory_limit(daemon) >= files + page_table_bytes(files) + own
        assert memory_limit(store) >= GIB + page_table_bytes(files)
        assert not snapd_command(store) or settings_of(store).store == "mooncake"
        assert environment(store)["MOONCAKE_GLOBAL_SEGMENT_SIZE"] == "0"
        assert shared >= files
    else:
        file = Geometry.plan(bytes(16), data, slots).file_bytes
        assert memory_limit(store) >= file + page_table_bytes(file) + 512 * MIB + 250 * slots
        assert memory_limit(daemon) >= page_table_bytes(file) + 150 * 1000**2 + 250 * slots
        assert settings_of(store).global_segment_size == data
        assert shared >= file + 8 * GIB
    for container in pod.containers:
        # What is asked for is what is used: shared memory cannot be given back under pressure.
        assert size(container["resources"]["requests"]["memory"]) == memory_limit(container)


def test_engines_bring_no_memory_of_their_own() -> None:
    engines = [
        environment(one)
        for pod in PODS
        for one in pod.containers
        if "--hicache-storage-backend=mooncake" in one.get("args", [])
    ]
    assert len(engines) == 2
    assert {one["MOONCAKE_GLOBAL_SEGMENT_SIZE"] for one in engines} == {"0"}


# --- groups -------------------------------------------------------------------------------------


@every_group
def test_roles_reach_their_master(group: Mapping[str, Any]) -> None:
    roles = manifests.roles(group)
    assert {name for role in roles.values() for name in role.get("dependencies", [])} <= set(roles)
    master = roles["mooncake-master"]
    [container] = master["standalonePattern"]["template"]["spec"]["containers"]
    flags = dict(flag.lstrip("-").split("=") for flag in container["command"][1:])
    host = f"s-{group['metadata']['name']}-mooncake-master"
    asked = 0
    for role in roles.values():
        for one in role["standalonePattern"]["template"]["spec"]["containers"]:
            variables = environment(one)
            if "MOONCAKE_MASTER" not in variables:
                continue
            asked += 1
            assert variables["MOONCAKE_MASTER"] == f"{host}:{flags['rpc_port']}"
            assert variables["MOONCAKE_TE_META_DATA_SERVER"] == (
                f"http://{host}:{flags['http_metadata_server_port']}/metadata"
            )
    assert asked >= 2
    assert flags["metrics_port"] == "9003"  # where the daemon looks, unless it is told otherwise
    ports = {str(port["port"]) for port in master["servicePorts"]}
    assert {flags[f"{name}_port"] for name in ("rpc", "http_metadata_server", "metrics")} == ports


@every_group
def test_every_role_is_updated_in_place(group: Mapping[str, Any]) -> None:
    for name, role in manifests.roles(group).items():
        update = role["rolloutStrategy"]["rollingUpdate"]
        assert update["type"] == "InPlaceIfPossible", name
        assert update["maxUnavailable"] == 1
    # A template shared by roles would update them together, the master among them.
    assert "roleTemplates" not in group["spec"]
