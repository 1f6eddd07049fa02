"""A backup beside a real daemon, the host is lost, a restore: clients find what they put."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator

import pytest
from cli_site import Site, new_site
from fault_ledger import FaultClass, case

from snapd.client import MooncakeDistributedStore
from snapd.daemon.supervise import store_process_id


@pytest.fixture
def site() -> Iterator[Site]:
    with new_site() as one:
        yield one


def client_of(site: Site) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    arguments = {
        "local_hostname": "localhost",
        "metadata_server": "",
        "master_server_addr": f"unix:{site.runtime_dir}",
    }
    assert client.setup(arguments) == 0
    return client


def data_of(number: int) -> bytes:
    return b"%d stays what it is " % number * 2000


class Putter:
    """Puts keys until it is told to stop."""

    def __init__(self, site: Site) -> None:
        self._client = client_of(site)
        self._stop = threading.Event()
        self.last = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._client.put(f"busy-{self.last % 400}", data_of(self.last % 400))
            self.last += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def lose_the_host(site: Site) -> None:
    """Memory and disk are gone."""
    store = store_process_id(str(site.runtime_dir / "store.sock"))
    assert site.stop_daemon() == 0
    if store is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(store, signal.SIGKILL)
    site.segment.unlink(missing_ok=True)
    shutil.rmtree(site.repository)


@pytest.mark.long
def test_a_host_is_lost_and_its_backup_serves_again(site: Site) -> None:
    site.start_daemon()
    client = client_of(site)
    kept = {f"keep-{number}": data_of(number) for number in range(40)}
    for key, data in kept.items():
        assert client.put(key, data) == 0
    assert client.put("gone", b"x" * 5000) == 0
    assert site.snapctl("snapshot").code == 0
    assert client.remove("gone", True) == 0
    client.close()
    place = f"{site.root}/place/"
    putter = Putter(site)
    try:
        # The daemon flushes, commits and prunes while these run.
        for _ in range(3):
            done = site.snapctl("backup", place, "--keep", "2", "--json")
            assert done.code == 0, done
            assert site.snapctl("snapshot").code == 0
    finally:
        putter.stop()
    assert putter.last > 50
    assert done.document["packs_there"] >= 1
    refused = site.snapctl("restore", place, "--force")
    assert (refused.code, "locked" in refused.err) == (5, True), refused
    with case(FaultClass.KILL, "host lost, restored from a backup"):
        lose_the_host(site)
        assert site.snapctl("restore", place).code == 0
        assert site.snapctl("verify", "--all").code == 0
        site.start_daemon()
        again = client_of(site)
        try:
            assert [key for key, data in kept.items() if again.get(key) != data] == []
            assert again.is_exist("gone") == 0
            for number in range(400):
                if again.is_exist(f"busy-{number}") == 1:
                    assert again.get(f"busy-{number}") == data_of(number)
        finally:
            again.close()
