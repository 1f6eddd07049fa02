"""An in-place upgrade, rehearsed: the containers of k8s/bundled-pod.yaml on this machine, each with
mounts, processes and IPC of its own and a user of its own, one image after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import manifests
import pytest
from pod_machine import Container, PodMachine
from pod_rehearsal import Rehearsal

COUNT = 512
OLD, NEW = "0.1.0", "0.2.0-rehearsal"
CHANGES = {"MOONCAKE_GLOBAL_SEGMENT_SIZE": "64mb"}
GAP_SECONDS_MAX = 90.0
"""Far above what is seen (docs/kubernetes.md), for busy machines."""


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    [pod] = [one for one in manifests.snapd_pods() if one.file.stem == "bundled-pod"]
    with PodMachine(tmp_path, pod, CHANGES) as machine:
        for version in (OLD, NEW):
            machine.build(version)
        made = Rehearsal(machine)
        try:
            yield made
        finally:
            if made.client is not None:
                made.disconnect()


def check_what_is_shared(machine: PodMachine, store: Container, daemon: Container) -> None:
    """The network, and what the manifest mounts into both; and who they are."""
    ours, theirs = store.namespaces(), daemon.namespaces()
    assert {kind for kind in ours if ours[kind] == theirs[kind]} == {"net"}
    whoami = "import os; print(os.getpid() != 1, os.getuid(), os.getgid(), os.getgroups())"
    for name, user in (("store", 10002), ("snapd", 10001)):
        said = machine.execute(name, ["python3", "-c", whoami]).stdout
        assert said == f"True {user} 10001 [10001]\n"
        first = machine.execute(name, ["cat", "/proc/1/cmdline"]).stdout
        assert first.split("\0")[1].startswith("/opt/mooncake-snapd/bin/snapd")
        refused = machine.execute(name, ["touch", "/etc/mine"])
        assert "Read-only file system" in refused.stderr
    assert machine.execute("store", ["ls", "/var/lib/mooncake-snapd"]).returncode != 0
    listed = machine.execute("snapd", ["stat", "-c", "%U:%a", "/var/lib/mooncake-snapd"]).stdout
    assert listed.strip().endswith(":700")


def test_the_cache_survives_each_container(rehearsal: Rehearsal) -> None:
    machine = rehearsal.machine
    check_what_is_shared(machine, *rehearsal.start(OLD))
    client = rehearsal.connect(OLD)
    assert client.ask(f"put 0 {COUNT}") == {"put": 0}
    before = client.ask(f"read {COUNT}")
    assert before == {"there": COUNT, "rate": 0.8, "wrong": 0}

    seen = rehearsal.replace("snapd", version=NEW, count=COUNT)
    assert seen["rate"] == 1.0  # whether the daemon is there is nothing to the store
    assert seen["wrong"] == 0
    assert client.ask(f"read {COUNT}") == before

    seen = rehearsal.replace("store", version=NEW, count=COUNT)
    assert seen["wrong"] == 0
    assert seen["longest_gap_seconds"] < GAP_SECONDS_MAX
    assert client.ask(f"read {COUNT}") == before
    assert f"adopted={COUNT}" in machine.log("store")
    assert machine.metric("snapd_warmup_bytes_total") == 0  # nothing was read from the disk

    # An image that both have is patched into both, and they go at once. Here: the way back.
    seen = rehearsal.replace("store", "snapd", version=OLD, count=COUNT)
    assert seen["wrong"] == 0
    assert seen["longest_gap_seconds"] < GAP_SECONDS_MAX
    assert client.ask(f"read {COUNT}") == before
    assert machine.metric("snapd_warmup_bytes_total") == 0


@pytest.mark.long
def test_a_new_pod_finds_its_cache_on_the_disk(rehearsal: Rehearsal) -> None:
    machine = rehearsal.machine
    rehearsal.start(OLD)
    client = rehearsal.connect(OLD)
    assert client.ask(f"put 0 {COUNT}") == {"put": 0}
    before = client.ask(f"read {COUNT}")
    assert client.ask(f"put {COUNT} 64") == {"put": 0}  # nobody waits for these to be flushed
    took = machine.stop("store", "snapd")
    assert max(took.values()) < 20
    rehearsal.disconnect()

    machine.recreate()
    rehearsal.start(NEW)
    client = rehearsal.connect(NEW)
    assert client.ask(f"read {COUNT}") == before
    assert client.ask(f"read {COUNT + 64}")["there"] == COUNT + 64
    assert "Warm up from persistent path: /var/lib/mooncake-snapd" in machine.log("snapd")
