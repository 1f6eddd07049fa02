"""The bundled store's adapter against a real store process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import xxhash
from daemon_site import DaemonSite, block, put_all, wrong_keys

from snapd.attach.connect import BundledConnector, BundledStore
from snapd.attach.labels import LabelIds
from snapd.attach.port import Feed, Sink, Source
from snapd.blocks import BlockTable, KeyColumn
from snapd.errors import SnapdError, StoreUnavailableError
from snapd.formats.segment import SlotState
from snapd.wire.codes import ReturnCode


class Attachment(ExitStack):
    """A store process, and this test attached to it as its daemon."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.site = self.enter_context(DaemonSite(directory))
        self.site.start_store()
        self.connector = BundledConnector(
            str(self.site.runtime / "store.sock"), LabelIds(dict, lambda _: 0)
        )
        self.store: BundledStore = self.connector.attach(None)
        self.callback(self.store.view.close)
        self.callback(self.store.control.close)

    def source(self) -> Source:
        return self.enter_context(closing(self.store.source()))

    def sink(self) -> Sink:
        return self.enter_context(closing(self.store.sink()))

    def feed(self) -> Feed:
        return self.enter_context(closing(self.store.feed()))


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attachment]:
    with Attachment(tmp_path) as attachment:
        yield attachment


def published(source: Source) -> BlockTable:
    return source.describe(np.flatnonzero(source.scan().sequence))


def cold_table(names: list[str]) -> BlockTable:
    keys = KeyColumn.from_list([name.encode() for name in names])
    bytes_of = [block(name) for name in names]
    return BlockTable.for_keys(keys, keys.hashes()).with_columns(
        size=np.array([len(one) for one in bytes_of]),
        checksum=np.array([xxhash.xxh3_64_intdigest(one) for one in bytes_of], np.uint64),
    )


def test_a_listing_has_the_bytes_that_were_put(attached: Attachment) -> None:
    put_all(attached.site.client(), ["a", "b", "c"])
    source = attached.source()
    table = published(source)
    assert sorted(table.keys.to_list()) == [b"a", b"b", b"c"]
    for row, buffer in enumerate(source.buffers(table)):
        name, size = table.keys[row].decode(), int(table.size[row])
        assert bytes(buffer[:size]) == block(name)
        assert len(buffer) == 8192
        assert not any(buffer[size:])
        assert xxhash.xxh3_64_intdigest(buffer[:size]) == int(table.checksum[row])
    assert source.still(table).all()


def test_what_was_removed_or_replaced_is_not_still_there(attached: Attachment) -> None:
    client = attached.site.client()
    put_all(client, ["removed", "replaced", "kept"])
    source = attached.source()
    table = published(source)
    assert client.remove("removed", True) == 0
    assert client.upsert("replaced", block("replaced", 2)) == 0
    still = dict(zip(table.keys.to_list(), source.still(table).tolist(), strict=True))
    assert still == {b"removed": False, b"replaced": False, b"kept": True}
    assert sorted(published(source).keys.to_list()) == [b"kept", b"replaced"]


def test_a_block_in_the_slot_of_a_removed_one_is_not_taken_for_it(attached: Attachment) -> None:
    client = attached.site.client()
    put_all(client, ["a"])
    source, feed = attached.source(), attached.feed()
    table = published(source)
    assert client.remove("a", True) == 0
    number, others = 0, 0
    while attached.store.view.slots["state"][table.slot[0]] != SlotState.PUBLISHED:
        assert others < 200_000, "the slot was never used again"
        number = feed.changes(number, 0).number or number
        put_all(client, [f"other {others + count}" for count in range(512)])
        others += 512
    assert source.still(table).tolist() == [False]


def test_a_remove_all_empties_the_listing(attached: Attachment) -> None:
    client = attached.site.client()
    put_all(client, ["a", "b"])
    source = attached.source()
    table = published(source)
    assert client.remove_all(True) == 2
    assert not source.scan().sequence.any()
    assert not source.still(table).any()


def test_a_listing_outlives_the_store_and_pins_are_then_nothing(attached: Attachment) -> None:
    put_all(attached.site.client(), ["a"])
    source = attached.source()
    with source.pinned(published(source)) as held:
        assert held.all()
    attached.site.kill_store()
    table = published(source)
    with source.pinned(table) as held:
        assert not held.any()
        assert bytes(source.buffers(table)[0][:5000]) == block("a")
    assert source.still(table).all()
    with pytest.raises(StoreUnavailableError):
        attached.sink()


def test_a_cold_block_is_loaded_and_served(attached: Attachment) -> None:
    sink, source = attached.sink(), attached.source()
    table = cold_table(["x", "y"])
    answer = sink.register_cold(table)
    assert answer.codes.tolist() == [0, 0]
    sink.cold_ready()
    client = attached.site.client()
    assert client.batch_is_exist(["x", "y", "z"]) == [1, 1, 0]
    assert np.flatnonzero(source.scan().cold).tolist() == sorted(answer.slots.tolist())
    fill = sink.reserve(answer.slots, answer.sequences, table.size, demand=True)
    assert fill.codes.tolist() == [0, 0]
    for buffer, name in zip(fill.buffers, ["x", "y"], strict=True):
        buffer[:5000] = block(name)
        buffer[5000:] = bytes(len(buffer) - 5000)
    codes = sink.publish(fill, np.array([0, ReturnCode.TRANSFER_FAIL], np.int32))
    assert codes.tolist() == [0, 0]
    assert wrong_keys(client, ["x"]) == []
    assert client.is_exist("y") == 1, "a failed load leaves the block cold"


def test_a_cold_fill_never_replaces_a_newer_block(attached: Attachment) -> None:
    sink = attached.sink()
    table = cold_table(["x"])
    answer = sink.register_cold(table)
    sink.cold_ready()
    fill = sink.reserve(answer.slots, answer.sequences, table.size, demand=False)
    client = attached.site.client()
    assert client.upsert("x", block("x", 2)) == 0
    fill.buffers[0][:5000] = block("x", 1)
    assert sink.publish(fill, np.zeros(1, np.int32)).tolist() == [ReturnCode.OBJECT_NOT_FOUND]
    assert wrong_keys(client, ["x"], version=2) == []


def test_a_second_daemon_is_refused_and_another_life_is_noticed(attached: Attachment) -> None:
    with pytest.raises(SnapdError, match="another daemon"):
        BundledConnector(attached.connector.path, LabelIds(dict, lambda _: 0)).attach(None)
    attached.site.kill_store()
    attached.site.start_store()
    with pytest.raises(StoreUnavailableError, match="started again"):
        attached.sink()


def test_events_come_until_they_are_acknowledged(attached: Attachment) -> None:
    client = attached.site.client()
    put_all(client, ["a"])
    assert client.remove("a", True) == 0
    feed = attached.feed()
    first = feed.changes(0, 0)
    assert first.keys.to_list() == [b"a"]
    assert feed.changes(0, 0).keys.to_list() == [b"a"], "not acknowledged: given again"
    assert len(feed.changes(first.number, 0)) == 0
