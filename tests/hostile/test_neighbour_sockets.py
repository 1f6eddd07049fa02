"""A client that misuses its socket: memory, descriptors and time of the store stay bounded."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_site import DaemonSite
from fault_ledger import FaultClass, case
from neighbour_kit import (
    closed_by_peer,
    connect,
    frame,
    hello,
    memory_bytes,
    neighbourhood,
    raw_socket,
    send_until_closed,
    until,
)
from store_kit import StoreProcess, key_batch, shared_memory_path

from snapd.errors import SnapdError
from snapd.wire import messages as m
from snapd.wire.connection import Connection
from snapd.wire.framing import FRAME_MAGIC

SEED = 20261122
PER_PROCESS_MAX = 256


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    with shared_memory_path() as path:
        process = StoreProcess(path, tmp_path, SNAPD_LEASE_SEC="0.05")
        process.start()
        yield process
        process.kill()


def process_of(store: StoreProcess) -> int:
    assert store.process is not None
    return store.process.pid


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def test_a_client_that_reads_no_replies(store: StoreProcess) -> None:
    query = frame(2, m.Query(key_batch([b"a"] * 20_000)))
    before = memory_bytes(process_of(store))
    with (
        neighbourhood(store, SEED),
        case(FaultClass.NEIGHBOUR, "socket: a client that reads no replies"),
        raw_socket(store.socket, 5.0) as raw,
    ):
        raw.sendall(hello())
        send_until_closed(raw, query, 60)
        assert memory_bytes(process_of(store)) - before < 100 * 2**20
        assert closed_by_peer(raw), "it had 32 MiB of replies coming"


def test_clients_that_send_most_of_a_large_frame(store: StoreProcess) -> None:
    """Half frames of all connections together are bounded; whoever holds most goes first."""
    length = 15 * 2**20
    data = FRAME_MAGIC.to_bytes(4, "little") + bytes(4) + (length + 1).to_bytes(8, "little")
    data += bytes(length)
    before = memory_bytes(process_of(store))
    with (
        neighbourhood(store, SEED + 1),
        case(FaultClass.NEIGHBOUR, "socket: 40 clients with 15 MiB of a frame each"),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(40):
            raw = stack.enter_context(raw_socket(store.socket))
            send_until_closed(raw, data, 1)
            assert memory_bytes(process_of(store)) - before < 400 * 2**20


def test_who_is_slow_inside_a_message_is_given_up_and_nobody_else(store: StoreProcess) -> None:
    """One byte a second, silence before the first message; but not a silence between messages, and
    not somebody whose next message has always begun already."""
    slow, silent, idle, busy = (raw_socket(store.socket) for _ in range(4))
    request = frame(2, m.Exist(key_batch([b"a"])))
    with slow, silent, idle, busy, neighbourhood(store, SEED + 2):
        idle.sendall(hello())
        assert idle.recv(65_536)
        busy.sendall(hello() + request[:20])
        began, ended = time.monotonic(), False
        with (
            case(FaultClass.NEIGHBOUR, "socket: one byte a second"),
            case(FaultClass.NEIGHBOUR, "socket: never between messages"),
        ):
            for byte in hello()[:7]:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    slow.sendall(bytes([byte]))
                for _ in range(10):
                    busy.sendall(request[20:] + request[:20])
                    assert busy.recv(65_536)
                    time.sleep(0.09)
            ended = closed_by_peer(slow)
        assert ended
        with case(FaultClass.NEIGHBOUR, "socket: silence before the first message"):
            assert closed_by_peer(silent)
        assert 5 < time.monotonic() - began < 15
        with case(FaultClass.NEIGHBOUR, "socket: silence between messages"):
            idle.sendall(frame(2, m.Stats()))
            assert idle.recv(65_536)


def test_a_close_in_the_middle_of_every_kind_of_message(store: StoreProcess) -> None:
    messages = [
        m.Exist(key_batch([b"a"])),
        m.Remove(key_batch([b"a"])),
        m.GetStart(key_batch([b"a"]), 9),
    ]
    messages += [m.PutStart(key_batch([b"a"]), bytes(8)), m.Stats(), m.PutEnd(b"", b"", b"")]
    with neighbourhood(store, SEED + 3):
        for message in messages:
            data = frame(2, message)
            for cut in sorted({1, 8, 16, len(data) // 2, len(data) - 1, len(data)}):
                name = f"socket: close after {cut} bytes of {type(message).__name__}"
                with case(FaultClass.NEIGHBOUR, name), raw_socket(store.socket) as raw:
                    raw.sendall(hello() + data[:cut])
    client = store.client()
    until("they are gone", lambda: client.stats().clients == 1)
    client.close()


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.long)])
def test_connecting_again_and_again(store: StoreProcess, count: int) -> None:
    with neighbourhood(store, SEED + 4):
        before = descriptors(process_of(store))
        with case(FaultClass.NEIGHBOUR, f"socket: {count} connections one after another"):
            for number in range(count):
                with raw_socket(store.socket) as raw:
                    if number % 3 == 0:
                        raw.sendall(hello())
            until("all are gone", lambda: descriptors(process_of(store)) <= before + 1)


def test_a_process_that_forgets_its_connections_shuts_nobody_out(store: StoreProcess) -> None:
    """Beyond its share it is refused in words; the share comes back when it closes some."""
    with case(FaultClass.NEIGHBOUR, "socket: a process with too many connections"):
        theirs: list[Connection] = []
        for _ in range(PER_PROCESS_MAX):
            theirs.append(store.connect())
            theirs[-1].call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
        theirs.append(store.connect())
        with pytest.raises(SnapdError, match=r"process \d+ has 256 connections"):
            theirs[-1].call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
        other = subprocess.run(
            [sys.executable, "-c", ANOTHER_CLIENT, *support(), store.socket],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (other.stdout.strip(), other.returncode) == ("value", 0), other.stderr
        for connection in theirs:
            connection.close()
        until("it may connect again", lambda: answers(store))


ANOTHER_CLIENT = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from neighbour_kit import connect
    client = connect("unix:" + sys.argv[2])
    assert client.put("k", b"value") == 0
    print(client.get("k").decode())
    client.close()
    """
)


def support() -> list[str]:
    return [str(Path(__file__).parents[1] / "support")]


def answers(store: StoreProcess) -> bool:
    with contextlib.suppress(SnapdError), contextlib.closing(store.connect()) as connection:
        connection.call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
        return True
    return False


def test_out_of_descriptors_the_store_goes_on_for_those_it_has(
    tmp_path: Path,
) -> None:
    with shared_memory_path() as path:
        store = StoreProcess(path, tmp_path, SNAPD_LEASE_SEC="0.05")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        store.start()
        resource.prlimit(process_of(store), resource.RLIMIT_NOFILE, (40, 40))
        try:
            with (
                case(FaultClass.NEIGHBOUR, "socket: connections until accept fails with EMFILE"),
                neighbourhood(store, SEED + 5) as witness,
                contextlib.ExitStack() as stack,
            ):
                for _ in range(100):
                    stack.enter_context(raw_socket(store.socket)).sendall(hello())
                done = len(witness.seconds)
                time.sleep(1.5)
                assert len(witness.seconds) > done + 50
                stack.close()
                client = connect(f"unix:{tmp_path}")
                assert client.put("after", b"value") == 0
                client.close()
        finally:
            store.kill()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


# --- who may connect ------------------------------------------------------------------------------

STRANGER = textwrap.dedent(
    """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from snapd.wire.connection import Connection
    from snapd.wire import messages as m
    os.setgroups([int(g) for g in sys.argv[4].split(",") if g])
    os.setgid(int(sys.argv[3]))
    os.setuid(65534)
    connection = Connection(sys.argv[2])
    try:
        connection.call(m.Hello(m.PROTOCOL_VERSION, "client", "x"), m.HelloReply)
        print("served")
    except Exception as error:
        print(error)
    """
)


def as_stranger(path: str, group: int, groups: str = "") -> str:
    answer = subprocess.run(
        [sys.executable, "-c", STRANGER, *support(), path, str(group), groups],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return answer.stdout.strip() + answer.stderr[-300:]


def open_path(path: Path) -> None:
    """Let everybody through to a socket, as somebody's chmod might."""
    for parent in path.parents:
        if os.stat(parent).st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    path.chmod(0o666)


@pytest.mark.parametrize("shared", [False, True])
def test_a_process_of_another_user_is_refused_in_words(tmp_path: Path, shared: bool) -> None:
    with shared_memory_path() as path:
        store = StoreProcess(path, tmp_path, SNAPD_GROUP_SHARED=str(shared).lower())
        store.start()
        try:
            open_path(Path(store.socket))
            ours = os.getegid()
            with case(FaultClass.NEIGHBOUR, f"peer: another user and group, shared {shared}"):
                assert "user 65534 is refused" in as_stranger(store.socket, 65534)
            with case(FaultClass.NEIGHBOUR, f"peer: another user of our group, shared {shared}"):
                answer = as_stranger(store.socket, ours)
                assert answer == "served" if shared else "is refused" in answer
            with case(FaultClass.NEIGHBOUR, f"peer: our group among others, shared {shared}"):
                answer = as_stranger(store.socket, 65534, f"12345,{ours}")
                assert answer == "served" if shared else "is refused" in answer
            assert os.stat(path).st_mode & 0o777 == (0o660 if shared else 0o600)
        finally:
            store.kill()


def test_the_control_socket_refuses_another_user(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, socket, sys
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(sys.argv[1])
        raw.sendall(b"POST /snapshot HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b""
        while part := raw.recv(65536):
            answer += part
        print(answer.decode())
        """
    )
    with DaemonSite(tmp_path / "site") as site:
        site.start()
        path = site.runtime / "snapd.sock"
        assert os.stat(path).st_mode & 0o777 == 0o600
        open_path(path)
        with case(FaultClass.NEIGHBOUR, "peer: another user on the control socket"):
            answer = subprocess.run(
                [sys.executable, "-c", script, str(path)],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert " 403 " in answer.stdout, answer
            assert "user 65534 is refused" in answer.stdout
        assert site.ask("/healthz")[0] == 200


def test_nobody_listens_on_the_network(store: StoreProcess) -> None:
    with raw_socket(store.socket) as raw:
        assert raw.family == socket.AF_UNIX
    inodes = {
        os.readlink(f"/proc/{process_of(store)}/fd/{name}")
        for name in os.listdir(f"/proc/{process_of(store)}/fd")
        if os.path.lexists(f"/proc/{process_of(store)}/fd/{name}")
    }
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = Path(f"/proc/{process_of(store)}/net/{table}").read_text().splitlines()[1:]
        assert not {f"socket:[{row.split()[9]}]" for row in rows} & inodes
