"""docs/kubernetes.md names what exists, and its patches do to the manifests what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import manifests
import msgspec
import pytest

from snapd.config import Settings
from snapd.config.settings import environment_variables
from snapd.metrics import Metrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "kubernetes.md").read_text()
NEW_IMAGE = "registry.example/mooncake-snapd:0.2.0-mooncake"


def test_every_metric_exists() -> None:
    exposed = Metrics().exposition().decode()
    known = set(re.findall(r"^# HELP (\S+)", exposed, re.MULTILINE))
    named = set(re.findall(r"\bsnapd_[a-z_]+", TEXT))
    assert named
    assert named <= known


def test_every_setting_exists() -> None:
    known = {
        name
        for field in msgspec.structs.fields(Settings)
        for name in environment_variables(field.name)
    }
    assert set(re.findall(r"\b(?:SNAPD|MOONCAKE)_[A-Z_]+", TEXT)) <= known


def test_every_file_exists_and_every_manifest_is_named() -> None:
    links = [ROOT / "docs" / link for link in re.findall(r"\]\(([^)#]+)\)", TEXT)]
    paths = [ROOT / path for path in re.findall(r"`((?:tests|tools|k8s)/[\w/.-]+)`", TEXT)]
    assert [path for path in [*links, *paths] if not path.exists()] == []
    shown = {path for path in paths if path.suffix == ".yaml"}
    assert shown == {path for path in manifests.FILES if path.parent == manifests.KUBERNETES}


def test_every_log_line_is_in_the_code() -> None:
    [lines] = re.findall(r"grep -E '([^']+)'", TEXT)
    code = "".join(path.read_text() for path in (ROOT / "snapd").rglob("*.py"))
    assert [line for line in lines.split("|") if f'"{line}' not in code] == []
    assert "adopted=" in code


def json_after(command: str) -> Any:
    found = re.search(rf"{command}.*?-p '(.*?)'\n", TEXT, re.DOTALL)
    assert found, command
    return json.loads(found[1])


def value_at(document: Any, path: str) -> Any:
    for step in path.strip("/").split("/"):
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


@pytest.mark.parametrize("name", ["rbg-store", "rbg-aggregated", "rbg-prefill-decode"])
def test_the_patch_of_a_group_changes_two_images(name: str) -> None:
    group = manifests.objects(manifests.KUBERNETES / f"{name}.yaml")[0]
    replaced = 0
    for step in json_after("kubectl patch rolebasedgroup"):
        before = value_at(group, step["path"])
        if step["op"] == "test":
            assert before == step["value"]
        else:
            assert step["op"] == "replace"
            # The one kind of change that the controller makes in place.
            assert re.fullmatch(r".*/template/spec/containers/[01]/image", step["path"])
            assert before.split(":")[0] == step["value"].split(":")[0]
            assert step["value"] == NEW_IMAGE
            replaced += 1
    assert replaced == 2


@pytest.mark.parametrize("command", ["kubectl patch pod", "kubectl patch statefulset"])
def test_the_patches_without_groups_change_two_images(command: str) -> None:
    spec = json_after(command)["spec"]
    changed = spec.get("template", {"spec": spec})["spec"]["containers"]
    assert changed == [{"name": name, "image": NEW_IMAGE} for name in ("store", "snapd")]
    service, stateful = manifests.objects(manifests.KUBERNETES / "mooncake-sidecar.yaml")
    assert service["metadata"]["name"] == stateful["metadata"]["name"] == "mooncake-store"
    assert stateful["spec"]["updateStrategy"] == {"type": "OnDelete"}
    names = {one["name"] for one in stateful["spec"]["template"]["spec"]["containers"]}
    assert names == {"store", "snapd"}


def test_the_sizes_in_the_table_are_those_of_the_manifests() -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith("| for 64 GiB"))
    numbers = [float(number) for number in re.findall(r"([0-9.]+) GiB", row)][1:]
    found = []
    for file, names in (
        ("mooncake-sidecar", ("snapd", "store")),
        ("bundled-pod", ("store", "snapd")),
    ):
        [pod] = [one for one in manifests.snapd_pods() if one.file.stem == file]
        found.append(manifests.size(pod.volume("shm")["emptyDir"]["sizeLimit"]))
        for name in names:
            container = pod.container(name)
            assert container is not None
            found.append(manifests.memory_limit(container))
    assert numbers == [one / manifests.GIB for one in found]
