"""The tag that carries a label in a key: against a plain oracle, at its limits, and forged."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.attach.labels import LabelIds
from snapd.blocks import KEY_BYTES_MAX, KeyColumn, page_id, page_ids
from snapd.blocks.labels import (
    TAG_BYTES,
    label_number,
    label_numbers,
    label_tag,
    label_text,
    number_as_label,
    number_of_recorded,
    short_numbers,
    tagged_with,
    without_tags,
)
from snapd.client.names import encode_names, split_batch, strip_tag, usable_rows
from snapd.errors import RefusedError, StoreUnavailableError
from snapd.wire.messages import decode_keys

TAGGED = re.compile(rb".+\x1f([0-9a-f]{16})\Z", re.DOTALL)
LABELS = ["", "model=m dtype=bf16", "model=m dtype=fp8", "ünï"]

names = st.binary(min_size=1, max_size=40)
tails = st.sampled_from(
    [
        b"",
        b"\x1f",
        label_tag("a"),
        label_tag("a")[:-1],
        label_tag("a").upper(),
        label_tag("a")[1:],
        label_tag("a") + b"x",
        b"\x1f" + b"0" * 16,
        b"\x1f" + b"f" * 16,
        b"\x1f" + b"g" * 16,
        b"\x1e" + label_tag("a")[1:],
        label_tag("a") + label_tag("b"),
    ]
)
keys = st.lists(st.builds(lambda name, tail: name + tail, names, tails) | tails.filter(bool))


def number_of(key: bytes) -> int:
    found = TAGGED.match(key)
    return int(found[1], 16) if found else 0


@given(keys)
def test_numbers_are_those_of_a_plain_reading(some: list[bytes]) -> None:
    column = KeyColumn.from_list(some)
    expected = [number_of(key) for key in some]
    assert label_numbers(column).tolist() == expected
    for label in ("", "a", "b"):
        tagged = tagged_with(column, label_tag(label)).tolist()
        assert tagged == [number == label_number(label) for number in expected]
    stripped = [key[:-TAG_BYTES] if number_of(key) else key for key in some]
    assert without_tags(column).to_list() == stripped
    part = column.take(np.arange(len(some))[::-1])
    assert label_numbers(part).tolist() == expected[::-1]


@given(st.lists(names, min_size=1), st.sampled_from(LABELS))
def test_names_come_back_as_they_went(some: list[bytes], label: str) -> None:
    column = decode_keys(encode_names(some, label_tag(label)))
    assert column.to_list() == [name + label_tag(label) for name in some]
    assert tagged_with(column, label_tag(label)).all() or any(map(number_of, some))
    if label:
        assert [strip_tag(key) for key in column.to_list()] == some


@given(keys, st.sampled_from(LABELS))
def test_no_name_that_can_be_used_is_a_key_of_another_label(some: list[bytes], label: str) -> None:
    rows = list(usable_rows(some, label_tag(label)))
    assert rows == [row for row, name in enumerate(some) if name and not forged(name)]
    column = decode_keys(encode_names([some[row] for row in rows], label_tag(label)))
    assert (label_numbers(column) == label_number(label)).all()


def forged(name: bytes) -> bool:
    return bool(re.search(rb"\x1f[0-9a-f]{16}\Z", name))


def test_an_empty_batch_is_empty() -> None:
    for label in LABELS:
        assert len(decode_keys(encode_names([], label_tag(label)))) == 0
        assert list(usable_rows([], label_tag(label))) == []


def test_the_longest_name_leaves_room_for_the_tag() -> None:
    tag = label_tag("a")
    longest = b"k" * (KEY_BYTES_MAX - len(tag))
    assert list(usable_rows([longest, longest + b"k", b""], tag)) == [0]
    assert list(usable_rows([longest + tag[:0], b"k" * KEY_BYTES_MAX], b"")) == [0, 1]
    many = [longest] * 20_000
    for part in split_batch(many):
        batch = encode_names(many[part], tag)
        assert len(batch.heap) + len(batch.lengths) < 16 * 2**20 - 4096


def test_a_label_says_its_values_in_one_order() -> None:
    values = {"model_path": "a b/c", "dtype": "bf16", "tp_size": 4, "is_mla": False, "none": None}
    assert label_text(values) == "dtype=bf16 is_mla=false model_path=a%20b/c tp_size=4"
    assert label_text(dict(reversed(values.items()))) == label_text(values)
    assert label_text({}) == label_text({"a": "", "b": "{}"}) == ""
    assert label_text({"a": "x" * 2000}).startswith("xxh3_128=")
    assert label_text({"a": "x" * 2000}) != label_text({"a": "x" * 2001})


def test_numbers_short_and_named() -> None:
    numbers = np.array([0, 1, 0x10000, 0xABCD_0000_1234], np.uint64)
    assert short_numbers(numbers).tolist() == [0, 1, 1, 0x1234]
    number = label_number("x")
    assert number_of_recorded(number_as_label(number)) == number == number_of_recorded("x")
    assert number_as_label(0) == ""
    for text in ("xxh3_64=12", "xxh3_64=" + "G" * 16, "xxh3_64=" + "0" * 17, "xxh3_64=" + "é" * 16):
        assert number_of_recorded(text) == label_number(text)


def test_pages_of_two_labels_are_two_pages() -> None:
    page = "0123456789abcdef" * 4
    keys = [f"m_{page}_0_k".encode() + label_tag(label) for label in LABELS]
    ids = page_ids(KeyColumn.from_list([*keys, b"no page" + label_tag("a")])).tolist()
    assert ids[:-1] == [page_id(page, label_number(label)) for label in LABELS]
    assert ids[:-1] == [page_id(key) for key in keys]
    assert ids[0] == page_id(page)
    assert len(set(ids)) == len(LABELS) + 1
    assert ids[-1] == page_id(b"no page" + label_tag("a")) == page_id("no page", 7) == 0


# --- ids in the repository ------------------------------------------------------------------------


class Table:
    """A repository's table of labels, with room for `room`."""

    def __init__(self, room: int = 100) -> None:
        self.labels: dict[int, str] = {}
        self.room = room

    def number(self, label: str) -> int:
        for one, known in self.labels.items():
            if known == label:
                return one
        if len(self.labels) >= self.room:
            raise RefusedError("full")
        self.labels[len(self.labels) + 1] = label
        return len(self.labels)

    def ids(self) -> LabelIds:
        return LabelIds(lambda: dict(self.labels), self.number)


def column(*labels: str) -> KeyColumn:
    return KeyColumn.from_list([b"%d" % n + label_tag(label) for n, label in enumerate(labels)])


def test_ids_are_asked_for_once_and_follow_the_keys() -> None:
    table, asked = Table(), []

    def ask(numbers: list[int]) -> list[str]:
        asked.append(numbers)
        return [{label_number("a"): "a", label_number("b"): "b"}.get(n, "") for n in numbers]

    ids = table.ids()
    assert ids.of(column("", ""), ask).tolist() == [0, 0]
    assert asked == []
    first = ids.of(column("a", "", "b", "a", "gone"), ask).tolist()
    by_id = {0: ""} | table.labels
    assert [by_id[one] for one in first] == [
        "a",
        "",
        "b",
        "a",
        number_as_label(label_number("gone")),
    ]
    assert ids.of(column("a", "", "b", "a", "gone"), ask).tolist() == first
    assert len(asked) == 1
    assert table.ids().of(column("gone", "a"), ask).tolist() == [first[4], first[0]]
    assert len(asked) == 1, "a new daemon knows them from the repository"


def test_without_a_store_labels_are_called_by_their_numbers() -> None:
    def ask(numbers: list[int]) -> list[str]:
        raise StoreUnavailableError("away")

    table = Table()
    assert table.ids().of(column("a", "b"), ask).tolist() in ([1, 2], [2, 1])
    assert set(table.labels.values()) == {number_as_label(label_number(one)) for one in "ab"}


def test_a_full_table_leaves_blocks_unlabelled(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(room=1)
    ids = table.ids()
    assert ids.of(column("a"), lambda numbers: ["a"]).tolist() == [1]
    assert ids.of(column("b", "a"), lambda numbers: ["b"]).tolist() == [0, 1]
    assert "left blocks unlabelled on the disk" in caplog.text
