"""An in-place upgrade beside real Mooncake, rehearsed: the containers of k8s/mooncake-sidecar.yaml
on this machine, each with mounts, processes and IPC of its own and a user of its own. The master
runs beside them in the pod's network."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import manifests
import pytest
from pod_machine import PodMachine
from pod_rehearsal import Rehearsal

COUNT = 256
OLD, NEW = "0.1.0", "0.2.0-rehearsal"
MASTER = "127.0.0.1:50051"
CHANGES = {
    "MOONCAKE_MASTER": MASTER,
    "MOONCAKE_TE_META_DATA_SERVER": "http://127.0.0.1:8080/metadata",
    "SNAPD_GLOBAL_SEGMENT_SIZE": "64mb",
}


def master_command(python: Path) -> list[str]:
    """The master's container of the manifests, by the wheel's binary."""
    [pod] = [one for one in manifests.pods() if str(one) == "rbg-store/mooncake-master"]
    [container] = pod.containers
    name, *flags = container["command"]
    [binary] = python.parents[1].glob(f"lib/python*/site-packages/mooncake/{name}")
    return [str(binary), *flags]


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    python = Path(os.environ["SNAPD_TEST_MOONCAKE_PYTHON"]).absolute()
    [pod] = [one for one in manifests.snapd_pods() if one.file.stem == "mooncake-sidecar"]
    with PodMachine(tmp_path, pod, CHANGES, python=python) as machine:
        for version in (OLD, NEW):
            machine.build(version)
        machine.run_beside(master_command(python))
        made = Rehearsal(machine, master=MASTER)
        try:
            yield made
        finally:
            if made.client is not None:
                made.disconnect()


def test_the_master_knows_the_flags_of_the_manifests() -> None:
    binary, *flags = master_command(Path(os.environ["SNAPD_TEST_MOONCAKE_PYTHON"]).absolute())
    text = subprocess.run(
        [binary, "--help"], capture_output=True, text=True, check=False, timeout=60
    ).stdout
    known = set(re.findall(r"^\s+-(\w+) \(", text, re.MULTILINE))
    assert {flag.lstrip("-").split("=")[0] for flag in flags} <= known


@pytest.mark.long
def test_mooncakes_cache_survives_each_container(rehearsal: Rehearsal) -> None:
    machine = rehearsal.machine
    rehearsal.start(OLD)
    client = rehearsal.connect(OLD)
    assert client.ask(f"put 0 {COUNT}") == {"put": 0}
    before = client.ask(f"read {COUNT}")
    assert before == {"there": COUNT, "rate": 0.8, "wrong": 0}

    seen = rehearsal.replace("snapd", version=NEW, count=COUNT)
    assert seen["rate"] == 1.0
    assert client.ask(f"read {COUNT}") == before
    assert "adopted a mounted segment" in machine.log("snapd")

    # The daemon knows what the old memory holds; a new one beside a new store has only the disk.
    for names, version, result in (
        (("store",), NEW, "from_memory"),
        (("store", "snapd"), OLD, "loaded"),
    ):
        seen = rehearsal.replace(*names, version=version, count=COUNT)
        assert seen["wrong"] == 0
        machine.until("all back", lambda: client.ask(f"read {COUNT}") == before)
        assert machine.metric("snapd_warmup_blocks_total", f'result="{result}"') == COUNT
