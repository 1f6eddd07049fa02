"""The offset trap: a segment mounted after another gets its address and endpoint, and what the
master says of a key does not tell them apart. Nothing may ever be copied from the wrong file.

The test does what the daemon never would: it takes away the daemon's segment through the store
service, mounts a file of its own in the same place, fills it, and takes that away again, so that
the daemon's next segment follows. Clients put all the time. Every block that any pack names, at any
moment, must have the bytes of its key.

Clients put a few keys at a time, because one that puts many into a segment that goes away goes on
writing to its addresses for seconds, longer than they stay empty here (`mooncake_reuse_sec` is far
longer in production). With 128 at a time, keys had the bytes of others in Mooncake itself.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
from fault_ledger import FaultClass, case
from mooncake_driver import WRONG
from mooncake_packs import packed_versions
from mooncake_site import MooncakeClient, MooncakeSite

from snapd.attach.mooncake.files import create_segment_file
from snapd.attach.mooncake.service import StoreService
from snapd.errors import SegmentError

BLOCKS = 200
SEGMENT_BYTES = 16 << 20
BATCH = 4
"""Keys that are put at a time: as many as a client of Mooncake writes at once."""


class Load:
    """A client that puts keys of many names, each once, until it is told to stop."""

    def __init__(self, client: MooncakeClient, size: int) -> None:
        self._client = client
        self._size = size
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            keys = [f"load-{self.rounds}-{number}" for number in range(BLOCKS // 4)]
            self._client.put(
                keys, size=self._size, batch=BATCH
            )  # refused while there is no segment
            self._client.remove(keys[::2], force=True)
            self.rounds += 1


def remount(site: MooncakeSite, service: StoreService, number: int) -> bool:
    """Put a file of ours in the place of the daemon's segment, with other keys in it, and take it
    away again; whether it had the address of the daemon's."""
    ours = site.segments()
    service.unmount([one["segment_id"] for one in ours])
    file = create_segment_file(f"{site.stem}-foreign", SEGMENT_BYTES, group_shared=False)
    try:
        mounted = service.mount(file.name, file.size_bytes)
        listed = {one["segment_id"]: one["base_address"] for one in site.segments()}
        same = listed[mounted.segment_ids[0]] in {one["base_address"] for one in ours}
        client = site.client()
        client.put([f"foreign-{number}-{key}" for key in range(BLOCKS)], size=5000, batch=BATCH)
        client.close()
        service.unmount(mounted.segment_ids)
        return same
    finally:
        file.unlink()
        file.close()


def check(directory: Path, rounds: int) -> None:
    with MooncakeSite(
        directory,
        segment_bytes=SEGMENT_BYTES,
        http="",
        poll_sec=0.02,
        flush_sec=0.02,
        snapshot_interval_sec=0.5,
        mooncake_reuse_sec=4,
    ) as site:
        site.start()
        site.start_daemon()
        service = StoreService(site.store_url())
        same, seen = 0, 0

        def check_packs() -> int:
            """How many keys are in packs, after a snapshot; all have their own bytes."""
            site.snapd.snapshot()
            found = packed_versions(site.snapd.repository, every_row=True)
            wrong = [key for key, version in found.items() if version == WRONG]
            assert not wrong, f"{len(wrong)} of {len(found)} keys have other bytes: {wrong[:5]}"
            return len(found)

        with Load(site.client(), 5000) as load:
            for number in range(rounds):
                client = site.client()
                client.put(
                    [f"kept-{number}-{key}" for key in range(BLOCKS)], size=5000, batch=BATCH
                )
                client.close()
                seen += check_packs()
                with case(FaultClass.NEIGHBOUR, f"remount at an address seen before, {number}"):
                    # Refused where the daemon was faster, and has mounted its next file already.
                    with contextlib.suppress(SegmentError):
                        same += remount(site, service, number)
                    site.until("attached", lambda: site.status()["store"]["up"])
                    site.until("ready", lambda: site.snapd.ask("/readyz")[0] == 200)
                    seen += check_packs()
        assert load.rounds > rounds
        assert seen + check_packs() > rounds * BLOCKS // 2
        assert same > 0, "no segment had the address of the one before: the test tests nothing"
        service.close()


def test_nothing_is_copied_from_the_wrong_file(tmp_path: Path) -> None:
    check(tmp_path, rounds=2)


@pytest.mark.long
def test_nothing_is_ever_copied_from_the_wrong_file(tmp_path: Path) -> None:
    check(tmp_path, rounds=30)
