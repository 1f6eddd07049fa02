"""The store and labels: who may put which key, what is told, bounded, and left on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from daemon_kit import LocalDaemon
from fault_ledger import FaultClass, case
from store_kit import Daemon, LocalStore, content, key_batch, shared_memory_path

from snapd.blocks.labels import label_number, label_tag
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import ProtocolError
from snapd.store import labels as store_labels
from snapd.store.labels import LABELS_MAX
from snapd.wire import messages as m

MINE, THEIRS = "model=m dtype=bf16", "model=m dtype=fp8"


@pytest.fixture
def store() -> Iterator[LocalStore]:
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def hello(store: LocalStore, label: str, role: str = "client") -> Any:
    connection, _ = store.connect()
    return connection, store.send(connection, m.Hello(m.PROTOCOL_VERSION, role, "x", label))


def texts(store: LocalStore, *labels: str) -> list[str]:
    connection, call = store.connect()
    call(m.Hello(m.PROTOCOL_VERSION, "daemon", "x"), m.HelloReply)
    call(m.Attach(b"d"), m.Attached)
    numbers = np.array([label_number(one) for one in labels], np.uint64)
    found: list[str] = call(m.LabelsOf(numbers.tobytes()), m.Labels).texts
    store.engine.connection_lost(connection)
    return found


def test_a_client_puts_keys_of_its_own_label_only(store: LocalStore) -> None:
    keys = [b"key", b"key" + label_tag(MINE), b"key" + label_tag(THEIRS)]
    for own, label in enumerate(("", MINE, THEIRS)):
        client = store.client(label=label)
        with case(FaultClass.NEIGHBOUR, f"labels: keys of others put under label {own}"):
            codes = client.reserve(keys, [10, 10, 10])[0].tolist()
            assert codes == [0 if at == own else -400 for at in range(3)]


def test_a_greeting_tells_how_many_blocks_there_are(store: LocalStore) -> None:
    def counts(label: str) -> tuple[int, int]:
        connection, reply = hello(store, label)
        store.engine.connection_lost(connection)
        return reply.label_blocks, reply.other_blocks

    assert [counts(one) for one in ("", MINE)] == [(0, 0), (0, 0)]
    tag = label_tag(MINE)
    store.client(label=MINE).put({b"%d" % n + tag: content(n, 100) for n in range(5)})
    store.client().put({b"plain": b"x"})
    store.advance(2)
    assert [counts(one) for one in ("", MINE, THEIRS)] == [(1, 5), (5, 1), (0, 6)]
    store.restart()
    daemon = Daemon(store)
    daemon.register({b"cold" + label_tag(THEIRS): b"12"})
    daemon.ready()
    assert [counts(one) for one in ("", MINE, THEIRS)] == [(1, 6), (5, 2), (1, 6)]
    assert hello(store, MINE, role="operator")[1].label_blocks == 0


def test_labels_too_long_or_with_a_number_taken_are_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with case(FaultClass.NEIGHBOUR, "labels: one of more than 1024 characters"):
        connection, reply = hello(store, "x" * 1025)
        assert isinstance(reply, m.Failure)
        assert "1024" in reply.message
        with pytest.raises(ProtocolError, match="hello"):
            store.send(connection, m.Exist(key_batch([b"k"])))
    assert isinstance(hello(store, "ü" * 1024)[1], m.HelloReply)
    # Two texts with one number: nobody has found any, so here all texts have the same.
    monkeypatch.setattr(store_labels, "label_number", lambda _: 7)
    with case(FaultClass.NEIGHBOUR, "labels: two with the same number"):
        assert isinstance(hello(store, MINE)[1], m.HelloReply)
        connection, reply = hello(store, THEIRS)
        assert isinstance(reply, m.Failure)
        assert "number of another" in reply.message
        store.engine.connection_lost(connection)
        assert isinstance(hello(store, MINE)[1], m.HelloReply)


def test_texts_are_kept_of_clients_that_are_there_and_of_the_last_ones(store: LocalStore) -> None:
    staying, _ = hello(store, MINE)
    with case(FaultClass.NEIGHBOUR, "labels: thousands of them, one after another"):
        for number in range(LABELS_MAX + 50):
            connection, reply = hello(store, f"label={number}")
            assert isinstance(reply, m.HelloReply)
            store.engine.connection_lost(connection)
    told = texts(store, MINE, "label=0", "label=60", f"label={LABELS_MAX + 49}", "never said")
    assert told == [MINE, "", "label=60", f"label={LABELS_MAX + 49}", ""]
    store.engine.connection_lost(staying)
    for number in range(LABELS_MAX + 1):
        connection, _ = hello(store, f"other={number}")
        store.engine.connection_lost(connection)
    assert texts(store, MINE) == [""]


def test_only_a_daemon_asks_for_labels_and_not_for_nonsense(store: LocalStore) -> None:
    connection, _ = hello(store, MINE)
    reply = store.send(connection, m.LabelsOf(bytes(8)))
    assert isinstance(reply, m.Failure)
    daemon = Daemon(store)
    with pytest.raises(ProtocolError):
        daemon.call(m.LabelsOf(b"123"), m.Labels)
    many = np.arange(5000, dtype=np.uint64).tobytes()
    assert len(daemon.call(m.LabelsOf(many), m.Labels).texts) == LABELS_MAX


def test_a_label_that_its_key_does_not_carry_keeps_a_block_on_the_disk() -> None:
    """As Mooncake's blocks are: an unlabelled client of this store must not find them."""
    disk = SimulatedDisk(1)
    blocks = {b"plain": content(1, 5000), b"labelled": content(2, 5000)}
    tagged = {b"tagged" + label_tag(MINE): content(3, 5000)}
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        session = daemon.session
        assert session is not None
        store.client().put(blocks)
        store.client(label=MINE).put(tagged)
        source = session.open_source()
        table = source.describe(np.flatnonzero(source.scan().sequence))
        labelled = [key == b"labelled" for key in table.keys.to_list()]
        label = daemon.repository.fingerprint(THEIRS)
        table = table.with_columns(
            fingerprint=np.where(labelled, label, table.fingerprint),
            incarnation=np.ones(len(table)),
        )
        writer = daemon.repository.begin_pack()
        writer.append(table, source.buffers(table))
        writer.seal()
        source.close()
        daemon.commit()
        daemon.close()
        store.close()
    with shared_memory_path() as path:
        store = LocalStore(path, global_segment_size=1 << 22)
        daemon = LocalDaemon(store, disk)
        daemon.attach()
        client = store.client()
        everything = [*blocks, *tagged]
        with case(FaultClass.OTHER_VERSION, "labels: a repository that Mooncake's blocks are in"):
            assert client.exist(everything) == [1, 0, 1]
            daemon.warm()
            assert client.get(everything) == [blocks[b"plain"], None, *tagged.values()]
            daemon.flush()
            daemon.commit()
            assert daemon.repository.catalog.live_totals()[0] == 3, "it stays on the disk"
        daemon.close()
        store.close()
