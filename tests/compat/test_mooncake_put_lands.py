"""A put that was answered is in the store's memory: what a look finds listed may be hashed.

Mooncake's transfers over TCP once ended when their bytes were in the sender's socket. Then a put of
a few kilobytes would not have waited for a store that is stopped.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from client_wheel import PYTHON_VARIABLE
from fault_ledger import FaultClass, case
from mooncake_site import MooncakeSite

OLD_PYTHON_VARIABLE = "SNAPD_TEST_MOONCAKE_OLD_PYTHON"
KEYS = [f"landed-{number}" for number in range(8)]
SIZE = 5000
SECONDS = 1.5


@pytest.mark.parametrize("variable", [PYTHON_VARIABLE, OLD_PYTHON_VARIABLE])
def test_a_put_into_a_stopped_store_ends_when_its_bytes_are_there(
    tmp_path: Path, variable: str
) -> None:
    with MooncakeSite(tmp_path, python=os.environ[variable], client_ttl=30) as site:
        site.start()
        site.start_daemon()
        client = site.client()
        client.put_all(["opens-the-connections"], size=SIZE)
        codes: list[list[int]] = []
        put = threading.Thread(target=lambda: codes.append(client.put(KEYS, size=SIZE)))
        with case(FaultClass.STOP, f"a put into a stopped store, {variable}"):
            site.stores[0].send_signal(signal.SIGSTOP)
            put.start()
            put.join(SECONDS)
            was_answered = not put.is_alive()
            site.stores[0].send_signal(signal.SIGCONT)
            put.join(60)
        assert not was_answered, "the put was answered while nothing could receive its bytes"
        assert codes == [[0] * len(KEYS)]
        assert client.wrong(KEYS) == []
