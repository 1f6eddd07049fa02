"""Listing keys page by page, on the engine and a real segment."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from store_kit import Daemon, LocalStore, StoreClient, shared_memory_path

from snapd.blocks.labels import label_tag
from snapd.client import requests
from snapd.errors import ProtocolError
from snapd.store import listing
from snapd.wire import messages as m


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    monkeypatch.setattr(listing, "PAGE_KEYS_MAX", 50)
    with shared_memory_path() as path:
        local = LocalStore(path)
        yield local
        local.close()


def link_of(client: StoreClient, label: str = "") -> Any:
    """What `requests` needs of a link."""
    return SimpleNamespace(call=client.call, options=SimpleNamespace(tag=label_tag(label)))


def test_every_key_is_in_one_page(store: LocalStore) -> None:
    client = store.client()
    keys = [b"key %d" % number for number in range(120)]
    client.put(dict.fromkeys(keys, b"x"))
    client.remove(keys[:10])
    client.reserve([b"unfinished"], [5])
    pages, first = [], 0
    while not pages or first:
        pages.append(client.call(m.ListKeys(first), m.Listed))
        first = pages[-1].next
    found = [m.decode_keys(page.keys).to_list() for page in pages]
    assert list(map(len, found)) == [50, 50, 10]
    assert sorted(key for page in found for key in page) == sorted(keys[10:])
    assert [page.complete for page in pages] == [True] * 3


def test_names_of_a_label_come_without_its_tag(store: LocalStore) -> None:
    keys = [b"key %d" % number for number in range(60)]
    for label in ("a", ""):
        client = store.client(label=label)
        client.put({key + label_tag(label): b"x" for key in keys})
    for label, expected in (("a", keys), ("", keys), ("b", [])):
        found = requests.names(link_of(client, label))
        assert (sorted(found.names), found.complete) == (sorted(expected), True)


def test_a_slot_outside_the_table_is_refused(store: LocalStore) -> None:
    client = store.client()
    for first in (-1, 257):
        with pytest.raises(ProtocolError):
            client.call(m.ListKeys(first), m.Listed)
    assert client.call(m.ListKeys(256), m.Listed).next == 0


def cold_store(store: LocalStore) -> tuple[Daemon, Any, Any]:
    """60 cold keys, and the slots and sequences of them."""
    daemon = Daemon(store)
    blocks = {b"cold %d" % number: b"y" * 100 for number in range(60)}
    codes, slots, sequences = daemon.register(blocks)
    assert not codes.any()
    return daemon, slots, sequences


def test_until_the_disk_is_known_a_listing_is_not_complete(store: LocalStore) -> None:
    daemon, _, _ = cold_store(store)
    client = store.client()
    assert not requests.names(link_of(client)).complete
    daemon.ready()
    found = requests.names(link_of(client))
    assert (len(found.names), found.complete) == (60, True)


@pytest.mark.parametrize("moves", [1, 2, 3])
def test_a_key_that_moves_between_two_pages_is_looked_for_again(
    store: LocalStore, moves: int
) -> None:
    daemon, slots, sequences = cold_store(store)
    daemon.ready()
    client = store.client()

    def fill(row: int) -> None:
        cold = slots[row : row + 1], sequences[row : row + 1]
        _, new, numbers, offsets = daemon.fill_start(*cold)
        daemon.write(int(offsets[0]), b"y" * 100)
        assert daemon.fill_end(cold, (new, numbers), [0]) == [0]

    pending = [lambda row=row: fill(row) for row in range(59, 59 - moves, -1)]

    def call(request: m.Request, reply_type: type[Any]) -> Any:
        if isinstance(request, m.ListKeys) and request.first and pending:
            pending.pop()()
        return client.call(request, reply_type)

    link = SimpleNamespace(call=call, options=SimpleNamespace(tag=b""))
    found = requests.names(link)  # type: ignore[arg-type]
    assert pending == []
    assert found.complete == (moves < 3)
    assert len(set(found.names)) == 60 or not found.complete
