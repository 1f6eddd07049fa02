"""Labels of clients on real processes: each reads its own, whatever dies, and nobody another's."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite, block
from fault_ledger import FaultClass, case

from snapd.blocks.labels import label_number, label_tag, label_text
from snapd.client import MooncakeDistributedStore

BF16 = label_text({"model_path": "m", "dtype": "bfloat16", "weight_version": 1})
FP8 = label_text({"model_path": "m", "dtype": "fp8_e4m3", "weight_version": 1})
LABELS = (BF16, FP8, "")
KEYS = [f"page-{number}" for number in range(12)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[DaemonSite]:
    with DaemonSite(tmp_path) as one:
        yield one


def client_of(site: DaemonSite, label: str) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    arguments = {
        "local_hostname": "test",
        "metadata_server": "",
        "master_server_addr": f"unix:{site.runtime}",
        "fingerprint": label,
    }
    assert client.setup(arguments) == 0
    return client


def content(label: str, key: str) -> bytes:
    """Equal keys of two labels have other bytes, of another size."""
    return block(f"{label_number(label):016x}/{key}", size=4000 + LABELS.index(label))


def put_all(site: DaemonSite) -> None:
    for label in LABELS:
        client = client_of(site, label)
        assert [client.put(key, content(label, key)) for key in KEYS] == [0] * len(KEYS)
        client.close()


def check_all(site: DaemonSite, lost: tuple[str, ...] = ()) -> None:
    """Each label reads exactly its own bytes; those that are `lost`, nothing."""
    for label in LABELS:
        client = client_of(site, label)
        expected = [b"" if label in lost else content(label, key) for key in KEYS]
        assert [client.get(key) for key in KEYS] == expected, label
        assert client.batch_is_exist(KEYS) == [int(bool(value)) for value in expected], label
        assert client.get_size(KEYS[0]) == (len(expected[0]) or -704), label
        client.close()


def wipe_node(site: DaemonSite) -> None:
    site.kill_store()
    site.kill_daemon()
    site.wipe_segment()


def drop_manifests(site: DaemonSite) -> None:
    for manifest in (site.repository / "manifests").iterdir():
        manifest.unlink()


def test_models_side_by_side_read_their_own_after_each_death(site: DaemonSite) -> None:
    site.start()
    put_all(site)
    check_all(site)
    site.flushed()
    site.snapshot()
    with case(FaultClass.KILL, "labels: store killed, segment adopted"):
        site.kill_store()
        site.start_store()
        site.wait_ready()
        check_all(site)
    with case(FaultClass.KILL, "labels: daemon killed"):
        site.kill_daemon()
        site.start_daemon()
        check_all(site)
    with case(FaultClass.KILL, "labels: node lost, only the repository left"):
        wipe_node(site)
        site.start()
        check_all(site)
        on_disk = {one["label"]: one["blocks"] for one in site.status()["fingerprint"]["on_disk"]}
        assert on_disk == dict.fromkeys(LABELS, len(KEYS))
    with case(FaultClass.KILL, "labels: node lost, manifests too"):
        wipe_node(site)
        drop_manifests(site)
        site.start()
        check_all(site)
        labels = {one["label"] for one in site.status()["fingerprint"]["on_disk"]}
        assert labels == set(LABELS), "packs alone do not say the labels"
    with case(FaultClass.KILL, "labels: node lost after a removal under one label"):
        client = client_of(site, BF16)
        assert client.batch_remove(KEYS, True) == [0] * len(KEYS)
        client.close()
        wipe_node(site)
        site.start()
        check_all(site, lost=(BF16,))


def test_a_label_that_only_a_dead_store_heard_is_called_by_its_number(site: DaemonSite) -> None:
    site.start_store()
    client = client_of(site, BF16)
    assert client.put("page", content(BF16, "page-0")) == 0
    client.close()
    with case(FaultClass.KILL, "labels: store killed before a daemon asked for the label's text"):
        site.kill_store()
        site.start_store()
        site.start_daemon()
        site.flushed()
        site.snapshot()
        on_disk = [one["label"] for one in site.status()["fingerprint"]["on_disk"]]
        assert on_disk == [f"xxh3_64={label_number(BF16):016x}"]
        wipe_node(site)
        site.start()
        assert client_of(site, BF16).get("page") == content(BF16, "page-0")
        for other in (FP8, "", on_disk[0]):
            assert client_of(site, other).get("page") == b""


def test_a_client_of_another_label_gets_misses_and_is_told_once(
    site: DaemonSite, caplog: pytest.LogCaptureFixture
) -> None:
    site.start_store()
    mine = client_of(site, BF16)
    assert mine.put("page", content(BF16, "page-0")) == 0
    caplog.set_level(logging.WARNING)
    for label in (FP8, ""):
        caplog.clear()
        other = client_of(site, label)
        assert [other.get("page"), other.is_exist("page"), other.get_size("page")] == [b"", 0, -704]
        assert other.remove("page", True) == -704
        (line,) = caplog.records
        assert "the store has no blocks of this fingerprint" in line.message
        assert vars(line)["snapd_fields"] == {"fingerprint": label or "none", "other_blocks": 1}
        assert site.logged("only others have") == 1 + (FP8, "").index(label)
        other.close()
    assert mine.get("page") == content(BF16, "page-0")
    caplog.clear()
    again = client_of(site, BF16)
    assert not caplog.messages, "its blocks are there"
    again.close()
    mine.close()


def test_a_key_that_ends_like_a_tag_is_refused(site: DaemonSite) -> None:
    site.start_store()
    mine, none = client_of(site, BF16), client_of(site, "")
    assert mine.put("page", b"mine") == 0
    forged = "page" + label_tag(BF16).decode()
    for client in (mine, none):
        assert client.put(forged, b"forged") == -400
        assert client.batch_put_from([forged], [0], [0]) == [-400]
        assert (client.get(forged), client.is_exist(forged), client.remove(forged)) == (
            b"",
            0,
            -704,
        )
        assert client.put("page\x1f and no tag", b"fine") == 0
        assert client.get("page\x1f and no tag") == b"fine"
    assert mine.get("page") == b"mine"
    longest = "k" * (1024 - 17)
    assert [mine.put(longest, b"x"), mine.put(longest + "k", b"x")] == [0, -400]
    assert none.put(longest + "k", b"x") == 0
    mine.close()
    none.close()


def test_new_weights_while_running_leave_nothing_to_find(site: DaemonSite) -> None:
    site.start()
    client = client_of(site, BF16)
    for key in KEYS:
        assert client.put(key, content(BF16, key)) == 0
    assert client.set_fingerprint(FP8) == 0
    assert client.batch_is_exist(KEYS) == [0] * len(KEYS)
    assert client.put(KEYS[0], content(FP8, KEYS[0])) == 0, "an old block must not stand in its way"
    site.flushed()
    site.snapshot()
    with case(FaultClass.KILL, "labels: killed after an update of the weights"):
        wipe_node(site)
        site.start()
        assert [client.get(key) for key in KEYS] == [content(FP8, KEYS[0])] + [b""] * 11
    assert client.set_fingerprint("x" * 1025) == -600
    assert client.set_fingerprint("\ud800") == -600
    assert client.get(KEYS[0]) == content(FP8, KEYS[0]), "a refused label changed something"
    site.kill_store()
    assert client.set_fingerprint(BF16) == -900
    site.start_store()
    site.wait_ready()
    assert client.get(KEYS[1]) == content(BF16, KEYS[1]), "the label must hold without a store"
    assert client.get(KEYS[0]) == content(BF16, KEYS[0])
    assert site.ask("/purge?prefix=page-0", "POST")[0] == 200
    for label in (BF16, FP8):
        assert client.set_fingerprint(label) == 0
        assert client.is_exist(KEYS[0]) == 0, "purge is about every label"
    client.close()
    assert client.set_fingerprint(BF16) == -600


def test_a_label_changes_under_threads_that_read(site: DaemonSite) -> None:
    """A call finds what the label has that was in force when it began, or nothing."""
    site.start_store()
    values = {label: content(label, "page-0") for label in (BF16, FP8)}
    for label, value in values.items():
        writer = client_of(site, label)
        assert writer.put("page", value) == 0
        writer.close()
    client = client_of(site, BF16)
    stopping = threading.Event()
    found: list[set[bytes]] = [set(), set()]

    def read(mine: set[bytes]) -> None:
        while not stopping.is_set():
            mine.add(client.get("page"))

    threads = [threading.Thread(target=read, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            label = (FP8, BF16)[number % 2]
            assert client.set_fingerprint(label) == 0
            assert client.get("page") == values[label], number
    finally:
        stopping.set()
        for thread in threads:
            thread.join(10)
    assert all(mine <= {b"", *values.values()} for mine in found)
    assert set.union(*found) >= set(values.values())
    with open("/proc/self/maps", encoding="ascii") as maps:
        mapped = [line for line in maps if site.segment_path in line]
    assert len(mapped) <= 2, "each label has a mapping of its own"
    client.close()


@pytest.mark.parametrize("manifests", [False, pytest.param(True, marks=pytest.mark.long)])
def test_clear_takes_every_label_and_nothing_comes_back(site: DaemonSite, manifests: bool) -> None:
    site.start()
    put_all(site)
    site.flushed()
    site.snapshot()
    client = client_of(site, BF16)
    left = "manifests" if manifests else "packs alone"
    with case(FaultClass.KILL, f"labels: node lost after a remove_all, {left}"):
        assert client.remove_all(True) == len(LABELS) * len(KEYS)
        wipe_node(site)
        if not manifests:
            drop_manifests(site)
        site.start()
        check_all(site, lost=LABELS)
    client.close()


def test_the_setting_and_its_order(site: DaemonSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start_store()
    monkeypatch.setenv("SNAPD_FINGERPRINT", BF16)
    address = f"unix:{site.runtime}"
    by_setting, by_keyword = MooncakeDistributedStore(), MooncakeDistributedStore()
    assert by_setting.setup("h", "", 0, 0, "tcp", "", address) == 0
    assert by_keyword.setup("h", "", 0, 0, "tcp", "", address, fingerprint="") == 0
    assert by_setting.put("page", b"labelled") == 0
    assert by_keyword.get("page") == b""
    assert client_of(site, BF16).get("page") == b"labelled"
    refused = MooncakeDistributedStore()
    assert refused.setup("h", "", 0, 0, "tcp", "", address, fingerprint="x" * 1025) == -600
    with pytest.raises(TypeError, match="fingerprint"):
        refused.setup("h", "", 0, 0, "tcp", "", address, fingerprint=7)  # type: ignore[call-overload]
    by_setting.close()
    by_keyword.close()


_PUTTER = """
import sys
from snapd.client import MooncakeDistributedStore
client = MooncakeDistributedStore()
address, label = sys.argv[1:]
assert client.setup("t", "", 0, 0, "tcp", "", address, fingerprint=label) == 0
number = 0
while True:
    for key in range(20):
        client.put(f"page-{key}", (f"{label}/{key}/".encode() * 400)[:4096])
        value = client.get(f"page-{key}")
        assert value in (b"", (f"{label}/{key}/".encode() * 400)[:4096]), (label, key, value[:60])
    if number == 0:
        print("going", flush=True)
    number += 1
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
def test_two_models_at_work_through_kills_never_see_each_other(
    site: DaemonSite, rounds: int
) -> None:
    """Two processes put and check equal keys while store and daemon are killed under them."""
    site.start()
    arguments = [sys.executable, "-c", _PUTTER, f"unix:{site.runtime}"]
    workers = [
        subprocess.Popen([*arguments, label], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for label in (BF16, FP8)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"going\n", worker.communicate()
        for round_number in range(rounds):
            with case(
                FaultClass.KILL, f"labels: store killed under two models, round {round_number}"
            ):
                site.kill_store()
                site.start_store()
                site.wait_ready()
            with case(FaultClass.KILL, f"labels: daemon killed under two models, {round_number}"):
                site.kill_daemon()
                site.start_daemon()
            assert all(worker.poll() is None for worker in workers), [
                worker.communicate() for worker in workers if worker.poll() is not None
            ]
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        site.flushed()
        site.snapshot()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    wipe_node(site)
    site.start()
    for label in (BF16, FP8):
        client = client_of(site, label)
        found = client.get_batch([f"page-{key}" for key in range(20)])
        whole = [(f"{label}/{key}/".encode() * 400)[:4096] for key in range(20)]
        assert found == whole
        client.close()
