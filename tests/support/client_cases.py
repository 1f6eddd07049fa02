"""The client's contract as one table: calls, what they return here, and what the wheel returns.

Every expected value was seen on `mooncake-transfer-engine-non-cuda==0.3.13.post1` first. A step
with `wheel=` is a deliberate difference and carries its reason. The module needs NumPy only,
because the wheel's interpreter imports it too (`client_driver.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BUFFER_BYTES = 1 << 16
"""Length of each of the buffers "a" and "b", which are not registered when a case starts."""

CRASH = "the process is killed"
"""Outcome of a call that ends the process with a signal."""


@dataclass(frozen=True)
class At:
    """Address of a byte of a buffer, as an argument."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True)
class Step:
    """One call. `expected` is the repr of what it returns, or the name of the exception's type."""

    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    expected: str
    wheel: str
    """What the wheel does; the same unless `reason` says why not."""
    reason: str


@dataclass(frozen=True)
class Case:
    """Steps on a client that is set up and a store that is empty; with `fresh`, on a client that is
    not set up, in a process of its own."""

    name: str
    steps: tuple[Step, ...]
    fresh: bool = False


class Raises:
    """An expected exception, by the name of its type."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return self.kind.__name__


TYPE_ERROR = Raises(TypeError)
_SAME = object()


def call(
    method: str, *arguments: Any, gives: Any, wheel: Any = _SAME, why: str = "", **keywords: Any
) -> Step:
    """A step. `wheel` is another outcome there, with the reason for the difference in `why`."""
    if (wheel is _SAME) != (why == ""):
        raise ValueError(f"{method}: a difference needs a reason, and only a difference does")
    there = gives if wheel is _SAME else wheel
    return Step(method, arguments, keywords, _outcome(gives), _outcome(there), why)


def _outcome(value: Any) -> str:
    return value if value is CRASH else repr(value)


def config(**values: Any) -> tuple[str, dict[str, Any]]:
    """A `ReplicateConfig` with these attributes; enums by name."""
    return ("ReplicateConfig", values)


FIRST_WINS = "a put never replaces bytes, not even within one batch"
NO_SESSION = "an error code, where the wheel dereferences a null pointer"
ANY_BYTES = "whatever has bytes, as for `put`"
NOTHING_PUT = "nothing was stored, and the code says so"
CODE_FOR_EACH = "a code for each key"
TRUNCATES = "the wheel takes the number of items for the number of bytes"
NO_EMPTY_BYTES = "no value for no key"
KEY_LIMIT = "a key has at most 1024 bytes, so that a slot's length field and one page hold it"
NULL_POINTER = "a null pointer cannot be read or written"
NO_LEASE = "asking for a size is not a read; it does not keep a key from being removed"
ONE_TENANT = "the bundled store has one tenant; mixing the keys of several would disclose them"
NO_NETWORK = "nothing listens on a port, so the name is the one given"

_LONG = "L" * 1024

CASES = (
    Case(
        "put, get and ask",
        (
            call("put", "k", b"value", gives=0),
            call("get", "k", gives=b"value"),
            call("get_size", "k", gives=5),
            call("is_exist", "k", gives=1),
            call("batch_is_exist", ["k"], gives=[1]),
            call("get_batch", ["k"], gives=[b"value"]),
            call("put", key="k2", value=b"by keyword", gives=0),
            call("get", key="k2", gives=TYPE_ERROR),
            call("health_check", gives=0),
        ),
    ),
    Case(
        "a put of a key that exists keeps its bytes",
        (
            call("put", "k", b"old", gives=0),
            call("put", "k", b"newer", gives=0),
            call("get", "k", gives=b"old"),
            call("put_batch", ["k", "j"], [b"newer", b"j"], gives=0),
            call("get_batch", ["k", "j"], gives=[b"old", b"j"]),
        ),
    ),
    Case(
        "a missing key",
        (
            call("get", "gone", gives=b""),
            call("get_batch", ["gone", "too"], gives=[b"", b""]),
            call("get_size", "gone", gives=-704),
            call("is_exist", "gone", gives=0),
            call("batch_is_exist", ["gone"], gives=[0]),
            call("remove", "gone", gives=-704),
            call("remove", "gone", True, gives=-704),
            call("batch_remove", ["gone"], gives=[-704]),
            call("get_into", "gone", At("a"), 10, gives=-704),
            call("batch_get_into", ["gone"], [At("a")], [10], gives=[-704]),
        ),
    ),
    Case(
        "an empty key",
        (
            call("put", "", b"x", gives=-600),
            call("upsert", "", b"x", gives=-600),
            call("put_from", "", At("a"), 5, gives=-600),
            call("get", "", gives=b""),
            call("get_size", "", gives=-704),
            call("is_exist", "", gives=0),
            call("remove", "", gives=-704),
            call("get_into", "", At("a"), 10, gives=-704),
            call("put_batch", ["", "k"], [b"1", b"2"], gives=-600),
            call("batch_is_exist", ["", "k"], gives=[0, 1]),
        ),
    ),
    Case(
        "an empty value",
        (
            call("put", "k", b"", gives=-600),
            call("upsert", "k", b"", gives=-600),
            call("is_exist", "k", gives=0),
            call("put_batch", ["k", "j"], [b"", b"2"], gives=-600),
            call("batch_is_exist", ["k", "j"], gives=[0, 0]),
            call("batch_put_from", ["k", "j"], [At("a"), At("a")], [0, 4], gives=[-600, 0]),
            call("batch_is_exist", ["k", "j"], gives=[0, 1]),
        ),
    ),
    Case(
        "keys up to the limit, and over it",
        (
            call("put", _LONG, b"x", gives=0),
            call("get", _LONG, gives=b"x"),
            call("put", _LONG + "L", b"x", gives=-400, wheel=0, why=KEY_LIMIT),
            call("upsert", _LONG + "L", b"x", gives=-400, wheel=0, why=KEY_LIMIT),
            call("is_exist", _LONG + "L", gives=0, wheel=1, why=KEY_LIMIT),
            call("get", _LONG + "L", gives=b"", wheel=b"x", why=KEY_LIMIT),
            call("remove", _LONG + "L", True, gives=-704, wheel=0, why=KEY_LIMIT),
            call("is_exist", _LONG, gives=1),
        ),
    ),
    Case(
        "kinds of keys",
        (
            call("put", "é", b"u", gives=0),
            call("get", "é".encode(), gives=b"u"),
            call("put", b"\xff\xfe", b"raw", gives=0),
            call("get", b"\xff\xfe", gives=b"raw"),
            call("put", "a\0b", b"x", gives=0),
            call("batch_is_exist", ["a\0b", "a"], gives=[1, 0]),
            call("put", 5, b"x", gives=TYPE_ERROR),
            call("put", None, b"x", gives=TYPE_ERROR),
            call("put", "\ud800", b"x", gives=TYPE_ERROR),
            call("get", 5, gives=TYPE_ERROR),
            call("is_exist", 5, gives=TYPE_ERROR),
            call("batch_is_exist", ["a", 5], gives=TYPE_ERROR),
            call("get_size", 5, gives=TYPE_ERROR),
            call("remove", 5, gives=TYPE_ERROR),
            call("put_from", 5, At("a"), 5, gives=TYPE_ERROR),
        ),
    ),
    Case(
        "kinds of batches",
        (
            call("put", "k", b"x", gives=0),
            call("batch_is_exist", [], gives=[]),
            call("batch_is_exist", ("k", "gone"), gives=[1, 0]),
            call("batch_is_exist", np.array(["k", "gone"]), gives=[1, 0]),
            call("batch_is_exist", "k", gives=TYPE_ERROR),
            call("batch_is_exist", {"k"}, gives=TYPE_ERROR),
            call("batch_is_exist", {"k": 1}, gives=TYPE_ERROR),
            call("batch_is_exist", {"k": 1}.keys(), gives=TYPE_ERROR),
            call("batch_is_exist", None, gives=TYPE_ERROR),
            call("get_batch", [], gives=[], wheel=[b""], why=NO_EMPTY_BYTES),
            call("put_batch", [], [], gives=0),
            call("batch_remove", [], gives=[]),
            call("batch_put_from", [], [], [], gives=[]),
            call("batch_get_into", [], [], [], gives=[]),
        ),
    ),
    Case(
        "kinds of values",
        (
            call("put", "bytearray", bytearray(b"abc"), gives=0),
            call("get", "bytearray", gives=b"abc"),
            call("put", "memoryview", memoryview(b"abcd"), gives=0),
            call("get", "memoryview", gives=b"abcd"),
            call("put", "uint8", np.arange(4, dtype=np.uint8), gives=0),
            call("get", "uint8", gives=b"\0\1\2\3"),
            call("put", "int16", np.arange(3, dtype=np.int16), gives=0),
            call("get", "int16", gives=b"\0\0\1\0\2\0", wheel=b"\0\0\1", why=TRUNCATES),
            call("put", "rows", np.arange(6, dtype=np.uint8).reshape(2, 3), gives=0),
            call("get", "rows", gives=bytes(range(6))),
            call("put", "columns", np.arange(4, dtype=np.uint8).reshape(2, 2).T, gives=0),
            call(
                "get",
                "columns",
                gives=b"\0\2\1\3",
                wheel=b"\0\1\2\3",
                why="the items in C order, as bytes() gives them, not as they happen to lie",
            ),
            call("put", "steps", memoryview(b"abcdefgh")[::2], gives=0),
            call(
                "get",
                "steps",
                gives=b"aceg",
                wheel=b"abcd",
                why="the items of a strided view, not what lies between them",
            ),
            call("put", "k", "text", gives=TYPE_ERROR),
            call("put", "k", None, gives=TYPE_ERROR),
            call("put", "k", 5, gives=TYPE_ERROR),
            call("put_batch", ["k"], ["text"], gives=TYPE_ERROR),
            call("upsert", "k", "text", gives=TYPE_ERROR),
            call("is_exist", "k", gives=0),
        ),
    ),
    Case(
        "batches with mixed results",
        (
            call("put_batch", ["p", "q"], [b"1", b"2"], gives=0),
            call("get_batch", ["p", "gone", "q"], gives=[b"1", b"", b"2"]),
            call("batch_is_exist", ["p", "gone", "", "p"], gives=[1, 0, 0, 1]),
            call("fill", "a", 0, bytes(range(16)), gives=None),
            call(
                "batch_put_from",
                ["m", "p", "zero", "", "n"],
                [At("a")] * 5,
                [4, 4, 0, 4, 4],
                gives=[0, 0, -600, -600, 0],
            ),
            call(
                "batch_get_into",
                ["m", "gone", "p", "", "n"],
                [At("b", 10 * row) for row in range(5)],
                [10, 10, 0, 4, 4],
                gives=[4, -704, -600, -704, 4],
            ),
            call("read", "b", 0, 4, gives=bytes(range(4))),
            call("read", "b", 40, 4, gives=bytes(range(4))),
        ),
    ),
    Case(
        "lists of different lengths",
        (
            call("put_batch", ["a", "b"], [b"1"], gives=-600),
            call("put_batch", ["a"], [b"1", b"2"], gives=-600),
            call("batch_put_from", ["a", "b"], [At("a")], [4, 4], gives=[-600, -600]),
            call("batch_put_from", ["a", "b"], [At("a")] * 2, [4], gives=[-600, -600]),
            call("batch_put_from", ["a"], [At("a")] * 2, [4, 4], gives=[-600]),
            call("batch_get_into", ["a", "b"], [At("a")], [4, 4], gives=[-600, -600]),
            call("batch_get_into", ["a", "b"], [At("a")] * 2, [4], gives=[-600, -600]),
            call("batch_get_into", ["a"], [At("a")] * 2, [4, 4], gives=[-600]),
            call("batch_is_exist", ["a", "b"], gives=[0, 0]),
        ),
    ),
    Case(
        "a key twice in one batch",
        (
            call("put_batch", ["d", "d"], [b"1", b"2"], gives=0),
            call("get", "d", gives=b"1"),
            call("fill", "a", 0, bytes(range(16)), gives=None),
            call("batch_put_from", ["e", "e"], [At("a"), At("a", 1)], [4, 4], gives=[0, 0]),
            call("get", "e", gives=bytes(range(4)), wheel=bytes(range(1, 5)), why=FIRST_WINS),
            call(
                "batch_get_into",
                ["d", "d"],
                [At("b"), At("b", 100)],
                [10, 10],
                gives=[1, 1],
            ),
            call("read", "b", 100, 2, gives=b"1\0"),
            call("batch_remove", ["d", "d"], gives=[-706, -706]),
            call("batch_remove", ["d", "d"], True, gives=[0, -704]),
        ),
    ),
    Case(
        "registering buffers",
        (
            call("register_buffer", At("a"), 65536, gives=0),
            call("register_buffer", At("a"), 65536, gives=-600),
            call("register_buffer", At("a", 4096), 65536, gives=-600),
            call("register_buffer", At("b"), 0, gives=-600),
            call("register_buffer", 0, 4096, gives=-600),
            call("register_buffer", At("b"), -5, gives=TYPE_ERROR),
            call("register_buffer", -1, 5, gives=TYPE_ERROR),
            call("register_buffer", 1.5, 5, gives=TYPE_ERROR),
            call("register_buffer", 1 << 70, 5, gives=TYPE_ERROR),
            call("register_buffer", At("b"), np.int64(4096), gives=0),
            call("unregister_buffer", At("a", 100), gives=-600),
            call("unregister_buffer", At("a"), gives=0),
            call("unregister_buffer", At("a"), gives=-600),
            call("unregister_buffer", At("b"), gives=0),
        ),
    ),
    Case(
        "memory at an address, registered or not",
        (
            call("fill", "a", 0, bytes(range(16)), gives=None),
            call("put_from", "unregistered", At("a"), 10, gives=0),
            call("get_into", "unregistered", At("b"), 100, gives=10),
            call("read", "b", 0, 10, gives=bytes(range(10))),
            call("register_buffer", At("a"), 1024, gives=0),
            call("put_from", "k", At("a"), 10, gives=0),
            call("put_from", "k", At("a", 1), 5, gives=0),
            call("get", "k", gives=bytes(range(10))),
            call("put_from", "past its end", At("a", 1020), 10, gives=0),
            call("get_into", "k", At("b", 100), 10, gives=10),
            call("get_into", "k", At("b", 200), 1000, gives=10),
            call("read", "b", 200, 12, gives=bytes(range(10)) + b"\0\0"),
            call("put_from", "k0", At("a"), -1, gives=TYPE_ERROR),
            call("put_from", "k0", 0, 5, gives=-600, wheel=0, why=NULL_POINTER),
            call("get_into", "k", 0, 10, gives=-600, wheel=10, why=NULL_POINTER),
            call("put_from", "k1", 1.5, 5, gives=TYPE_ERROR),
            call("batch_put_from", ["k2"], [At("a")], (4,), gives=[0]),
            call("unregister_buffer", At("a"), gives=0),
        ),
    ),
    Case(
        "a buffer too small",
        (
            call("put", "k", bytes(range(10)), gives=0),
            call("get_into", "k", At("b", 300), 9, gives=-600),
            call("read", "b", 300, 10, gives=bytes(10)),
            call("get_into", "k", At("b"), 0, gives=-600),
            call("batch_get_into", ["k", "k"], [At("b"), At("b", 20)], [9, 10], gives=[-600, 10]),
        ),
    ),
    Case(
        "blocks in several places",
        (
            call("fill", "a", 0, bytes(range(64)), gives=None),
            call(
                "batch_put_from_multi_buffers",
                ["k", "j"],
                [[At("a"), At("a", 10)], [At("a", 20)]],
                [[4, 4], [8]],
                gives=[0, 0],
            ),
            call("get", "k", gives=b"\0\1\2\3\x0a\x0b\x0c\x0d"),
            call("get", "j", gives=bytes(range(20, 28))),
            call("batch_put_from_multi_buffers", ["k"], [[At("a", 1)]], [[4]], gives=[0]),
            call("get_size", "k", gives=8),
            call(
                "batch_get_into_multi_buffers",
                ["k", "j"],
                [[At("b"), At("b", 10)], [At("b", 20)]],
                [[3, 5], [8]],
                gives=[8, 8],
            ),
            call("read", "b", 0, 4, gives=b"\0\1\2\0"),
            call("read", "b", 10, 6, gives=b"\3\x0a\x0b\x0c\x0d\0"),
            call("read", "b", 20, 9, gives=bytes(range(20, 28)) + b"\0"),
            call(
                "batch_get_into_multi_buffers",
                ["k"] * 4,
                [[At("b", 100)], [At("b", 100)], [At("b", 100)], []],
                [[7], [9], [100], []],
                gives=[-600, -800, -800, -600],
            ),
            call("read", "b", 100, 8, gives=bytes(8)),
            call(
                "batch_get_into_multi_buffers",
                ["k", "gone", ""],
                [[At("b"), At("b", 50), At("b", 60)], [At("b")], [At("b")]],
                [[4, 0, 4], [8], [8]],
                gives=[8, -704, -704],
            ),
            call("read", "b", 60, 5, gives=b"\x0a\x0b\x0c\x0d\0"),
            call("batch_get_into_multi_buffers", ["k"], [[At("b")]], [[8]], True, gives=[8]),
            call(
                "batch_get_into_multi_buffers",
                keys=["k"],
                all_buffer_ptrs=[[0]],
                all_sizes=[[8]],
                prefer_alloc_in_same_node=False,
                gives=[-600],
                wheel=[8],
                why=NULL_POINTER,
            ),
            call(
                "batch_put_from_multi_buffers",
                ["none", "zero", "zeros", "ok", ""],
                [[], [At("a")], [At("a")] * 2, [At("a")] * 2, [At("a")]],
                [[], [0], [0, 0], [4, 0], [4]],
                gives=[-600, -600, -600, 0, -600],
            ),
            call(
                "batch_put_from_multi_buffers",
                ["uneven", "even"],
                [[At("a")] * 2, [At("a")]],
                [[4], [4]],
                gives=[-600, -600],
            ),
            call(
                "batch_put_from_multi_buffers",
                ["null"],
                [[At("a"), 0]],
                [[4, 4]],
                gives=[-600],
                wheel=[0],
                why=NULL_POINTER,
            ),
            call("get", "ok", gives=bytes(range(4))),
            call("batch_put_from_multi_buffers", ["c"], [[At("a")]], [[4]], config(), gives=[0]),
            call("batch_put_from_multi_buffers", ["n"], [[At("a")]], [[4]], None, gives=TYPE_ERROR),
        ),
    ),
    Case(
        "kinds of lists of places",
        (
            call("batch_put_from_multi_buffers", [], [], [], gives=[]),
            call("batch_get_into_multi_buffers", [], [], [], gives=[]),
            call(
                "batch_put_from_multi_buffers", ["k", "j"], [[At("a")]], [[4]] * 2, gives=[-600] * 2
            ),
            call(
                "batch_put_from_multi_buffers", ["k", "j"], [[At("a")]] * 2, [[4]], gives=[-600] * 2
            ),
            call("batch_put_from_multi_buffers", ["k"], [[At("a")]] * 2, [[4]] * 2, gives=[-600]),
            call(
                "batch_get_into_multi_buffers", ["k", "j"], [[At("a")]], [[4]] * 2, gives=[-600] * 2
            ),
            call(
                "batch_get_into_multi_buffers", ["k", "j"], [[At("a")]] * 2, [[4]], gives=[-600] * 2
            ),
            call("batch_put_from_multi_buffers", "k", [[At("a")]], [[4]], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], [At("a")], [[4]], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], [[At("a")]], [4], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], [[-1]], [[4]], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], [[At("a")]], [[4.0]], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], ["a"], [[4]], gives=TYPE_ERROR),
            call("batch_put_from_multi_buffers", ["k"], None, [[4]], gives=TYPE_ERROR),
            call("is_exist", "k", gives=0),
            call(
                "batch_put_from_multi_buffers",
                ("k",),
                ((At("a"), At("a", 4)),),
                np.array([[4, 4]]),
                gives=[0],
            ),
            call("get_size", "k", gives=8),
        ),
    ),
    Case(
        "values in parts",
        (
            call("put_parts", "k", b"ab", b"", b"cd", gives=0),
            call("get", "k", gives=b"abcd"),
            call("put_parts", "k", b"zz", gives=0),
            call("get", "k", gives=b"abcd"),
            call("put_parts", "mixed", bytearray(b"abc"), memoryview(b"de"), gives=0),
            call("get", "mixed", gives=b"abcde"),
            call("put_parts", "array", np.arange(3, dtype=np.uint8), b"z", gives=0),
            call("get", "array", gives=b"\0\1\2z"),
            call("put_parts", "none", gives=0),
            call("put_parts", "none", b"", b"", gives=0),
            call("put_parts", key="none", gives=0),
            call("is_exist", "none", gives=0),
            call("put_parts", "", gives=0),
            call("put_parts", "", b"x", gives=-600),
            call("put_parts", "one", b"a", config=config(), gives=0),
            call("put_parts", "k2", b"a", config(), gives=TYPE_ERROR),
            call("put_parts", "k2", "text", gives=TYPE_ERROR),
            call("put_parts", "k2", [b"a", b"b"], gives=TYPE_ERROR),
            call("put_parts", 5, b"x", gives=TYPE_ERROR),
            call("put_parts", "k2", config=None, gives=TYPE_ERROR),
            call("put_parts", "k2", b"a", bogus=1, gives=TYPE_ERROR),
            call("put_parts", gives=TYPE_ERROR),
            call(
                "put_parts",
                "rows",
                np.arange(4, dtype=np.uint8).reshape(2, 2),
                b"z",
                gives=0,
                wheel=Raises(RuntimeError),
                why=ANY_BYTES,
            ),
            call("get", "rows", gives=b"\0\1\2\3z", wheel=b"", why=ANY_BYTES),
            call("upsert_parts", "k", b"xyz", b"", b"w", gives=0),
            call("get", "k", gives=b"xyzw"),
            call("upsert_parts", "new", b"n", gives=0),
            call("get", "new", gives=b"n"),
            call("upsert_parts", "k", gives=0),
            call("upsert_parts", "k", b"", gives=0),
            call("get", "k", gives=b"xyzw"),
            call("upsert_parts", "", b"x", gives=-600),
            call("upsert_parts", "k", "text", gives=TYPE_ERROR),
            call("upsert_parts", "k", b"q", config=config(), gives=0),
            call("get", "k", gives=b"q"),
        ),
    ),
    Case(
        "values in buffers",
        (
            call("put", "k", b"0123456789", gives=0),
            call("buffer_of", "k", gives=(b"0123456789", 10, 10, b"0123456789", b"23", False)),
            call("get_buffer", "gone", gives=None),
            call("get_buffer", "", gives=None),
            call("buffer_of", b"k", gives=(b"0123456789", 10, 10, b"0123456789", b"23", False)),
            call("get_buffer", 5, gives=TYPE_ERROR),
            call("get_buffer", key="k", gives=TYPE_ERROR),
            call("buffers_of", ["k", "gone", "k", ""], gives=[b"0123456789", None] * 2),
            call("batch_get_buffer", [], gives=[]),
            call("batch_get_buffer", "k", gives=TYPE_ERROR),
            call("batch_get_buffer", [5], gives=TYPE_ERROR),
            call("batch_get_buffer", keys=["k"], gives=TYPE_ERROR),
            call("buffer_outlives", "k", b"abcdefghij", gives=(b"0123456789", b"abcdefghij")),
            call("buffer_byte", "k", 0, gives=97),
        ),
    ),
    Case(
        "ranges of values",
        (
            call("put", "k", bytes(range(100, 120)), gives=0),
            call("put", "j", b"0123456789", gives=0),
            call(
                "get_into_ranges", [At("b")], [["k"]], [[[0]]], [[[2]]], [[[3]]], gives=[[[-600]]]
            ),
            call("register_buffer", At("b"), 4096, gives=0),
            call(
                "get_into_ranges",
                [At("b"), At("b", 100)],
                [["k", "j"], ["j"]],
                [[[0, 10], [20]], [[0]]],
                [[[2, 5], [0]], [[5]]],
                [[[3, 4], [5]], [[5]]],
                gives=[[[3, 4], [5]], [[5]]],
            ),
            call("read", "b", 0, 26, gives=b"fgh" + bytes(7) + b"ijkl" + bytes(6) + b"01234\0"),
            call("read", "b", 100, 6, gives=b"56789\0"),
            call(
                "get_into_ranges",
                [At("b")],
                [["gone", "k", "", "k"]],
                [[[0], [30], [0], [40]]],
                [[[0], [0], [0], [18]]],
                [[[5], [2], [2], [2]]],
                gives=[[[-704], [2], [-704], [2]]],
            ),
            call("read", "b", 30, 3, gives=b"de\0"),
            call("read", "b", 40, 3, gives=b"vw\0"),
            call(
                "get_into_ranges",
                [At("b")],
                [["k"]],
                [[[50, 50, 50, 60, 50, 50]]],
                [[[16, 20, 25, 1, 0, 1 << 63]]],
                [[[5, 1, 5, 2, 0, 1 << 63]]],
                gives=[[[-600, -600, -600, 2, 0, -600]]],
            ),
            call("read", "b", 50, 12, gives=bytes(10) + b"ef"),
            call(
                "get_into_ranges",
                [At("b", 5)],
                [["k"]],
                [[[4090, 4091, 4091, 4092, 1 << 63]]],
                [[[0, 0, 0, 0, 0]]],
                [[[1, 1, 0, 0, 1]]],
                gives=[[[1, -600, 0, -600, -600]]],
            ),
            call("get_into_ranges", [], [], [], [], [], gives=[]),
            call("get_into_ranges", [At("b")], [[]], [[]], [[]], [[]], gives=[[]]),
            call("get_into_ranges", [At("b")], [["k"]], [[[]]], [[[]]], [[[]]], gives=[[[]]]),
            call("get_into_ranges", [0], [["k"]], [[[0]]], [[[0]]], [[[1]]], gives=[[[-600]]]),
            call(
                "get_into_ranges", [At("a")], [["k"]], [[[0]]], [[[0]]], [[[1]]], gives=[[[-600]]]
            ),
            call(
                "get_into_ranges",
                buffer_ptrs=[0],
                all_keys=[["k"]],
                all_dst_offsets=[[[0]]],
                all_src_offsets=[[[0]]],
                all_sizes=[[[1]]],
                gives=[[[-600]]],
            ),
            call("unregister_buffer", At("b"), gives=0),
        ),
    ),
    Case(
        "ranges in lists that do not fit together",
        (
            call("put_batch", ["k", "j"], [bytes(20), bytes(10)], gives=0),
            call("register_buffer", At("b"), 4096, gives=0),
            *(
                call("get_into_ranges", *lists, gives=answer)
                for lists, answer in (
                    (([At("b")], [["k"]], [[[0, 1]]], [[[0]]], [[[1]]]), [[[-600, -600]]]),
                    (([At("b")], [["k"]], [[[0]]], [[[0, 1]]], [[[1]]]), [[[-600]]]),
                    (([At("b")], [["k"]], [[[0]]], [[[0]]], [[[1, 1]]]), [[[-600]]]),
                    (([At("b")], [["k", "j"]], [[[0]]], [[[0]]], [[[1]]]), [[[-600], [-600]]]),
                    (([At("b")], [["k"]], [[[0], [1]]], [[[0], [1]]], [[[1], [1]]]), [[[-600]]]),
                    (([At("b")] * 2, [["k"]], [[[0]]], [[[0]]], [[[1]]]), [[[-600]], [[-600]]]),
                    (([At("b")], [["k"], ["k"]], [[[0]]], [[[0]]], [[[1]]]), [[[-600]]]),
                    (([At("b")], [["k"]], [[[0]], [[0]]], [[[0]]], [[[1]]]), [[[-600]]]),
                    (
                        ([At("b")], [["k", "j"]], [[[0], []]], [[[0, 1], []]], [[[], []]]),
                        [[[-600], []]],
                    ),
                    (([At("b")], "k", [[[0]]], [[[0]]], [[[1]]]), TYPE_ERROR),
                    (([At("b")], ["k"], [[[0]]], [[[0]]], [[[1]]]), TYPE_ERROR),
                    (([At("b")], [["k"]], [[0]], [[[0]]], [[[1]]]), TYPE_ERROR),
                    (([At("b")], [["k"]], [[[-1]]], [[[0]]], [[[1]]]), TYPE_ERROR),
                    ((At("b"), [["k"]], [[[0]]], [[[0]]], [[[1]]]), TYPE_ERROR),
                )
            ),
            call("unregister_buffer", At("b"), gives=0),
        ),
    ),
    Case(
        "upserts from memory and of batches",
        (
            call("fill", "a", 0, bytes(range(64)), gives=None),
            call("upsert_from", "u", At("a"), 4, gives=0),
            call("upsert_from", "u", At("a", 1), 5, gives=0),
            call("get", "u", gives=bytes(range(1, 6))),
            call("upsert_from", "u", At("a"), 0, gives=-600, wheel=0, why=NOTHING_PUT),
            call("put_from", "zero", At("a"), 0, gives=-600, wheel=0, why=NOTHING_PUT),
            call("batch_is_exist", ["u", "zero"], gives=[1, 0]),
            call("upsert_from", "", At("a"), 4, gives=-600),
            call("upsert_from", "u", 0, 4, gives=-600, wheel=0, why=NULL_POINTER),
            call("upsert_from", "u", At("a"), 4, config(), gives=0),
            call("upsert_from", "u", At("a"), 4, config=None, gives=TYPE_ERROR),
            call("upsert_from", key="u", buffer_ptr=At("a"), size=9, gives=0),
            call("get", "u", gives=bytes(range(9))),
            call("batch_upsert_from", ["v", "w"], [At("a"), At("a", 10)], [4, 4], gives=[0, 0]),
            call("batch_upsert_from", ["v", "w"], [At("a", 1), At("a", 11)], [5, 3], gives=[0, 0]),
            call("get_batch", ["v", "w"], gives=[bytes(range(1, 6)), bytes(range(11, 14))]),
            call(
                "batch_upsert_from", ["v", "", "x"], [At("a")] * 3, [0, 4, 4], gives=[-600, -600, 0]
            ),
            call("batch_upsert_from", ["v", "w"], [At("a")], [4, 4], gives=[-600, -600]),
            call("batch_upsert_from", ["v"], [At("a")] * 2, [4, 4], gives=[-600]),
            call("batch_upsert_from", [], [], [], gives=[]),
            call("batch_upsert_from", ["v"], [At("a")], [4], None, gives=TYPE_ERROR),
            call("batch_upsert_from", ["e", "e"], [At("a"), At("a", 1)], [4, 4], gives=[0, 0]),
            call("get", "e", gives=bytes(range(1, 5))),
            call("upsert_batch", ["v", "new"], [b"one", b"two"], gives=0),
            call("get_batch", ["v", "new"], gives=[b"one", b"two"]),
            call("upsert_batch", ["v", "new"], [b"uno"], gives=-600),
            call("upsert_batch", ["v"], [b"uno", b"due"], gives=-600),
            call("upsert_batch", ["v", "other"], [b"", b"x"], gives=-600),
            call("get_batch", ["v", "other"], gives=[b"one", b""]),
            call("upsert_batch", ["", "other"], [b"1", b"x"], gives=-600),
            call("get", "other", gives=b"x"),
            call("upsert_batch", [], [], gives=0),
            call("upsert_batch", ["v"], ["text"], gives=TYPE_ERROR),
            call("upsert_batch", keys=["v"], values=[b"named"], config=config(), gives=0),
            call("get", "v", gives=b"named"),
            call("upsert_batch", ["d", "d"], [b"1", b"2"], gives=0),
            call(
                "get",
                "d",
                gives=b"2",
                wheel=b"1",
                why="the last one of a batch, as in `batch_upsert_from`",
            ),
            call("is_exist", "v", gives=1),
            call("upsert", "v", b"under a lease", gives=0),
            call("get", "v", gives=b"under a lease"),
        ),
    ),
    Case(
        "removing by a pattern",
        (
            call("put_batch", [f"ab{n}" for n in range(5)], [b"x"] * 5, gives=0),
            call("put_batch", [f"cd{n}" for n in range(5)], [b"x"] * 5, gives=0),
            call("remove_by_regex", "^ab[01]$", gives=2),
            call("batch_is_exist", ["ab0", "ab1", "ab3"], gives=[0, 0, 1]),
            call("remove_by_regex", "b2", gives=1),
            call("remove_by_regex", "nothing", gives=0),
            call("remove_by_regex", "ab[34]", gives=1),
            call("remove_by_regex", "ab3", True, gives=1),
            call("remove_by_regex", regex_pattern="ab3", force=False, gives=0),
            call("remove_by_regex", "cd\\d$", gives=5),
            call("remove_by_regex", b"cd", gives=0),
            call("remove_by_regex", 5, gives=TYPE_ERROR),
            call("remove_by_regex", None, gives=TYPE_ERROR),
            call(
                "put_batch", ["x\ny", "é", "A", "zfoo", "foo1", "f(o", "t\t"], [b"1"] * 7, gives=0
            ),
            *(
                call("remove_by_regex", pattern, gives=-600)
                for pattern in (
                    "[",
                    "(",
                    ")",
                    "*",
                    "(?i)a",
                    "(?<=z)foo",
                    "(?P<n>f)oo",
                    "a{2,1}",
                    "[[:no:]]",
                )
            ),
            *(
                call("remove_by_regex", pattern, gives=count)
                for pattern, count in (
                    ("x.y", 0),
                    ("^y", 0),
                    ("x$", 0),
                    ("x[\\s\\S]y", 1),
                    ("^.$", 1),
                    ("^..$", 2),
                    ("\\Azfoo\\Z", 0),
                    ("[[:digit:]]", 1),
                    ("f\\x28o", 1),
                    ("foo(?!1)", 1),
                    ("", 0),
                    (".*", 0),
                )
            ),
            call("put_batch", ["aa", "abab", "b-", "c]", "d^"], [b"1"] * 5, gives=0),
            *(
                call("remove_by_regex", pattern, gives=count)
                for pattern, count in (
                    ("^(ab)\\1$", 1),
                    ("a{2}", 1),
                    ("b[a\\-]", 1),
                    ("c[\\]]", 1),
                    ("d[\\^]", 1),
                )
            ),
            call("put", "last", b"1", gives=0),
            call(
                "remove_by_regex",
                "a**",
                gives=-600,
                wheel=1,
                why="a repeat of a repeat is no pattern",
            ),
            call("put", "last", b"1", gives=0),
            call("remove_by_regex", ".*", gives=1),
        ),
    ),
    Case(
        "soft pins and their time",
        (
            *(
                step
                for action, ttl, code in (
                    ("ENABLE", None, 0),
                    ("ENABLE", 0, 0),
                    ("ENABLE", 5, 0),
                    ("ENABLE", 86_400_000, 0),
                    ("ENABLE", 86_400_001, -600),
                    ("DISABLE", None, 0),
                    ("DISABLE", 0, -600),
                    ("DISABLE", 5, -600),
                    ("PRESERVE", None, 0),
                    ("PRESERVE", 0, -600),
                    ("PRESERVE", 5, -600),
                )
                for step in (
                    call(
                        "put",
                        f"{action}{ttl}",
                        b"x",
                        config(soft_pin_action=action, soft_pin_ttl_ms=ttl),
                        gives=code,
                    ),
                    call(
                        "upsert",
                        f"{action}{ttl}",
                        b"x",
                        config(soft_pin_action=action, soft_pin_ttl_ms=ttl),
                        gives=code,
                    ),
                    call("is_exist", f"{action}{ttl}", gives=int(code == 0)),
                )
            ),
            call(
                "batch_put_from",
                ["k", "j"],
                [At("a")] * 2,
                [4] * 2,
                config(soft_pin_ttl_ms=5),
                gives=[-600] * 2,
            ),
            call("put_batch", ["k"], [b"x"], config(soft_pin_ttl_ms=5), gives=-600),
            call("put", "DISABLENone", b"x", config(soft_pin_ttl_ms=5), gives=-600),
            call("put", "k", b"x", config(soft_pin_ttl_ms=-1), gives=TYPE_ERROR),
            call("put", "k", b"x", config(soft_pin_ttl_ms=1 << 64), gives=TYPE_ERROR),
            call(
                "put", "both", b"x", config(soft_pin_action="ENABLE", with_hard_pin=True), gives=0
            ),
            call("put", "k", b"x", config(replica_num=0), gives=-600),
            call("put", "two", b"x", config(replica_num=2), gives=0),
            call("put", "there", b"x", config(preferred_segments=["nowhere"]), gives=0),
        ),
    ),
    Case(
        "groups",
        (
            call("put", "g", b"x", config(group_ids=["a"]), gives=0),
            call("put", "two", b"x", config(group_ids=["a", "b"]), gives=-600),
            call("put", "none", b"x", config(group_ids=[]), gives=-600),
            call("put", "empty", b"x", config(group_ids=[""]), gives=0),
            call("put_batch", ["h", "i"], [b"1", b"2"], config(group_ids=["a", "b"]), gives=0),
            call("put_batch", ["j", "k"], [b"1", b"2"], config(group_ids=["a"]), gives=-600),
            call("put_batch", ["m", "", "n"], [b"1"] * 3, config(group_ids=["a"] * 3), gives=-600),
            call("batch_is_exist", ["two", "none", "j", "k", "m", "n"], gives=[0, 0, 0, 0, 1, 1]),
            call(
                "batch_put_from",
                ["o", "p"],
                [At("a")] * 2,
                [4, 0],
                config(group_ids=["a", "b"]),
                gives=[0, -600],
            ),
            call(
                "batch_put_from",
                ["q", "r"],
                [At("a")] * 2,
                [4, 4],
                config(group_ids=["a"]),
                gives=[-600] * 2,
            ),
            call(
                "batch_put_from_multi_buffers",
                ["s", "t"],
                [[At("a")]] * 2,
                [[4]] * 2,
                config(group_ids=["a", "b"]),
                gives=[0, 0],
            ),
            call(
                "batch_put_from_multi_buffers",
                ["s", "t"],
                [[At("a")]] * 2,
                [[4]] * 2,
                config(group_ids=["a"]),
                gives=[-600] * 2,
            ),
            call("put_parts", "u", b"x", config=config(group_ids=["a"]), gives=0),
            call("put_parts", "v", b"x", config=config(group_ids=["a", "b"]), gives=-600),
            call("put_from", "v", At("a"), 4, config(group_ids=["a", "b"]), gives=-600),
            call("put", "g", b"y", config(group_ids=["z"]), gives=0),
            call("upsert", "g", b"y", config(group_ids=["z"]), gives=-600),
            call("upsert", "g", b"y", config(group_ids=[""]), gives=-600),
            call("get", "g", gives=b"x"),
            call("upsert", "g", b"yy", gives=0),
            call("upsert", "g", b"z", config(group_ids=["a"]), gives=0),
            call("get", "g", gives=b"z"),
            call("upsert", "empty", b"y", config(group_ids=["a"]), gives=-600),
            call("upsert", "empty", b"y", config(group_ids=[""]), gives=0),
            call(
                "batch_upsert_from",
                ["g", "w"],
                [At("a")] * 2,
                [4] * 2,
                config(group_ids=["b"] * 2),
                gives=[-600, 0],
            ),
            call("upsert_batch", ["g", "y"], [b"1", b"2"], config(group_ids=["b"] * 2), gives=-600),
            call("get_batch", ["g", "y"], gives=[b"z", b"2"]),
            call("put", "k", b"x", config(group_ids="a"), gives=TYPE_ERROR),
            call("put", "k", b"x", config(group_ids=[5]), gives=TYPE_ERROR),
            call("copied_groups", ("a", "b"), gives=(["a", "b"], None)),
        ),
    ),
    Case(
        "upsert",
        (
            call("upsert", "k", b"one", gives=0),
            call("get", "k", gives=b"one"),
            call("upsert", "k", b"two", gives=0),
            call("get", "k", gives=b"two"),
            call("upsert", "k", b"three", gives=0),
            call("get", "k", gives=b"three"),
            call("upsert", "k", b"", gives=-600),
            call("get", "k", gives=b"three"),
            call("get_size", "k", gives=5),
        ),
    ),
    Case(
        "remove, with and without a lease",
        (
            call("put", "k", b"x", gives=0),
            call("remove", "k", gives=0),
            call("is_exist", "k", gives=0),
            call("put", "k", b"again", gives=0),
            call("is_exist", "k", gives=1),
            call("remove", "k", gives=-706),
            call("get", "k", gives=b"again"),
            call("remove", "k", True, gives=0),
            call("remove", "k", True, gives=-704),
            call("get", "k", gives=b""),
            call("put", "read", b"x", gives=0),
            call("get", "read", gives=b"x"),
            call("remove", "read", gives=-706),
            call("remove", key="read", force=True, gives=0),
            call("put", "sized", b"x", gives=0),
            call("get_size", "sized", gives=1),
            call("remove", "sized", gives=0, wheel=-706, why=NO_LEASE),
        ),
    ),
    Case(
        "batch_remove with mixed results",
        (
            call("put_batch", ["free", "leased"], [b"1", b"2"], gives=0),
            call("is_exist", "leased", gives=1),
            call("batch_remove", ["free", "gone", "leased", ""], gives=[0, -704, -706, -704]),
            call("batch_remove", keys=["leased"], force=True, gives=[0]),
            call("batch_is_exist", ["free", "leased"], gives=[0, 0]),
        ),
    ),
    Case(
        "clearing replicas",
        (
            call("put_batch", ["a", "b", "c", "leased"], [b"1"] * 4, gives=0),
            call("is_exist", "leased", gives=1),
            call("batch_replica_clear", ["a", "gone", "", "leased"], gives=["a"]),
            call("batch_is_exist", ["a", "leased"], gives=[0, 1]),
            call("batch_replica_clear", ["b"], "nowhere", gives=[]),
            call("batch_replica_clear", keys=["b", "b"], segment_name="", gives=["b"]),
            call("batch_replica_clear", [b"c"], gives=["c"]),
            call("batch_replica_clear", [], gives=[]),
            call("batch_replica_clear", "c", gives=TYPE_ERROR),
            call("batch_replica_clear", ["c"], 5, gives=TYPE_ERROR),
        ),
    ),
    Case(
        "remove_all counts",
        (
            call("remove_all", gives=0),
            call("put_batch", ["a", "b", "c"], [b"1", b"2", b"3"], gives=0),
            call("is_exist", "b", gives=1),
            call("remove_all", gives=2),
            call("batch_is_exist", ["a", "b", "c"], gives=[0, 1, 0]),
            call("remove_all", True, gives=1),
            call("is_exist", "b", gives=0),
            call("remove_all", force=True, gives=0),
            call("put", "a", b"new", gives=0),
            call("get", "a", gives=b"new"),
        ),
    ),
    Case(
        "configurations",
        (
            call("put", "hard", b"x", config(with_hard_pin=True), gives=0),
            call("put", "soft", b"x", config=config(soft_pin_action="ENABLE"), gives=0),
            call(
                "put",
                "ttl",
                b"x",
                config(soft_pin_action="ENABLE", soft_pin_ttl_ms=5),
                gives=0,
            ),
            call("put", "off", b"x", config(soft_pin_action="DISABLE"), gives=0),
            call("put_from", "from", At("a"), 5, config(replica_num=1), gives=0),
            call("put", "k", b"x", None, gives=TYPE_ERROR),
            call("put", "k", b"x", 5, gives=TYPE_ERROR),
            call("put", "k", b"x", config(replica_num=-1), gives=TYPE_ERROR),
            call("put", "k", b"x", config(soft_pin_action=1), gives=TYPE_ERROR),
            call("put", "k", b"x", config(soft_pin_ttl_ms="x"), gives=TYPE_ERROR),
            call("put", "k", b"x", config(preferred_segments="x"), gives=TYPE_ERROR),
            call("put", "k", b"x", config(bogus=1), gives=Raises(AttributeError)),
            call("is_exist", "k", gives=0),
            call("remove", "hard", gives=0),
        ),
    ),
    Case(
        "a block larger than the store",
        (
            call("put_from_new", "k", 1 << 29, gives=-200),
            call("is_exist", "k", gives=0),
        ),
    ),
    Case(
        "names that do not exist",
        (call("no_such_method", gives=Raises(AttributeError)),),
    ),
    *(
        Case(f"not set up: {step.method}", (step,), fresh=True)
        for step in (
            call("put", "k", b"x", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("put_batch", ["k"], [b"x"], gives=-600, wheel=CRASH, why=NO_SESSION),
            call("upsert", "k", b"x", gives=-600),
            call("get", "k", gives=b""),
            call(
                "get_batch",
                ["k", "j"],
                gives=[b"", b""],
                wheel=[b""],
                why="a value for each key",
            ),
            call("get_size", "k", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("is_exist", "k", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("batch_is_exist", ["k", "j"], gives=[-600] * 2, wheel=CRASH, why=NO_SESSION),
            call("register_buffer", At("a"), 4096, gives=-600, wheel=CRASH, why=NO_SESSION),
            call("unregister_buffer", At("a"), gives=-600, wheel=CRASH, why=NO_SESSION),
            call("put_from", "k", At("a"), 10, gives=-600),
            call("get_into", "k", At("a"), 10, gives=-600, wheel=CRASH, why=NO_SESSION),
            call(
                "batch_put_from", ["k"], [At("a")], [1], gives=[-600], wheel=CRASH, why=NO_SESSION
            ),
            call(
                "batch_get_into", ["k"], [At("a")], [1], gives=[-600], wheel=CRASH, why=NO_SESSION
            ),
            call(
                "batch_put_from_multi_buffers",
                ["k"],
                [[At("a")]],
                [[1]],
                gives=[-600],
                wheel=[],
                why=CODE_FOR_EACH,
            ),
            call(
                "batch_get_into_multi_buffers",
                ["k"],
                [[At("a")]],
                [[1]],
                gives=[-600],
                wheel=CRASH,
                why=NO_SESSION,
            ),
            call("put_parts", "k", b"x", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("upsert_parts", "k", b"x", gives=-600),
            call("upsert_batch", ["k"], [b"x"], gives=-600),
            call("upsert_from", "k", At("a"), 4, gives=-600),
            call("batch_upsert_from", ["k"], [At("a")], [4], gives=[-600]),
            call("get_buffer", "k", gives=None, wheel=CRASH, why=NO_SESSION),
            call("batch_get_buffer", ["k", "j"], gives=[None] * 2, wheel=CRASH, why=NO_SESSION),
            call(
                "get_into_ranges",
                [At("a")],
                [["k"]],
                [[[0]]],
                [[[0]]],
                [[[1]]],
                gives=[[[-600]]],
                wheel=CRASH,
                why=NO_SESSION,
            ),
            call("remove_by_regex", "k", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("batch_replica_clear", ["k"], gives=[]),
            call("remove", "k", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("batch_remove", ["k", "j"], gives=[-600] * 2, wheel=CRASH, why=NO_SESSION),
            call("remove_all", gives=-600, wheel=CRASH, why=NO_SESSION),
            call("get_hostname", gives="", wheel=CRASH, why=NO_SESSION),
            call("health_check", gives=1),
            call("close", gives=0),
            call("setup", gives=TYPE_ERROR),
            call("setup", "host", gives=TYPE_ERROR),
            call("setup", {}, gives=-600),
            call("setup", {"local_hostname": "127.0.0.1"}, gives=-600),
        )
    ),
    Case(
        "setup, close, setup again",
        (
            call("setup_again", gives=0),
            call("get_host", gives="127.0.0.1"),
            call("health_check", gives=0),
            call("put", "k", b"x", gives=0),
            call("register_buffer", At("a"), 4096, gives=0),
            call("setup_again", gives=0),
            call("register_buffer", At("a"), 4096, gives=0),
            call("get", "k", gives=b"x"),
            call("close", gives=0),
            call("close", gives=0),
            call("health_check", gives=1),
            call("get", "k", gives=b""),
            call("put_from", "k", At("a"), 10, gives=-600),
            call("setup_again", gives=0),
            call("unregister_buffer", At("a"), gives=-600),
            call("get", "k", gives=b"x"),
            call("setup_dictionary", gives=0),
            call("get", "k", gives=b"x"),
            call("setup_dictionary", global_segment_size="abc", gives=-600),
            call("setup_dictionary", unknown_key="1", gives=0),
            call("setup_dictionary", local_buffer_size="50%", gives=-600),
            call("setup_dictionary", local_buffer_size="", gives=-600),
            call("setup_dictionary", local_buffer_size="16777216", gives=0),
            call("setup_dictionary", local_buffer_size="16MB", gives=0),
            call("setup_dictionary", local_buffer_size="16 mb", gives=0),
            call("setup_dictionary", local_buffer_size="16.5M", gives=0),
            call("is_exist", "k", gives=1),
            call("host_has_port", gives=False, wheel=True, why=NO_NETWORK),
            call("setup_dictionary", tenant_id="other", gives=-600, wheel=0, why=ONE_TENANT),
        ),
        fresh=True,
    ),
    Case(
        "after close",
        (
            call("setup_again", gives=0),
            call("put", "k", b"x", gives=0),
            call("close", gives=0),
            call("is_exist", "k", gives=-600, wheel=CRASH, why=NO_SESSION),
        ),
        fresh=True,
    ),
)
"""All cases. `fill`, `read`, `put_from_new`, `setup_again`, `setup_dictionary`, `get_host` and
`host_has_port` are steps of the driver, not methods of the client; nor are
`buffer_of`, `buffers_of`, `buffer_outlives`, `buffer_byte` and `copied_groups`."""

SEEN_APART = (
    (
        "batch_get_into_multi_buffers with more buffers than sizes, or fewer",
        "-600",
        "reads past the end of a list",
        "lists of different lengths are an error",
    ),
    (
        "get_batch of a key that is named twice",
        "its bytes, twice",
        "the first time bytes of other keys",
        "never a wrong byte",
    ),
    (
        "setup, nothing listens",
        "-900 after 1 s",
        "-1 after 90 s",
        "a caller that starts before its store can decide for itself how long to wait",
    ),
    (
        "any call while the store is away",
        "-900, after 1 s at first and at once from then on",
        "-900, after 4.3 s each",
        "a cache that is away must not hold the requests that it should speed up",
    ),
    (
        "health_check while the store is away",
        "-900",
        "0",
        "it is asked in order to find out",
    ),
)
"""Differences that take too long for the table, or vary: situation, here, there, why."""


def differences() -> list[tuple[str, str, str, str]]:
    """Every deliberate difference: what is called, what it gives here, what there, and why."""
    in_table = [
        (f"{case.name}: `{describe(step)}`", f"`{step.expected}`", f"`{step.wheel}`", step.reason)
        for case in CASES
        for step in case.steps
        if step.reason
    ]
    return [*in_table, *SEEN_APART]


def render_differences() -> str:
    """The list as a table in Markdown."""
    head = "| call | snapd | mooncake.store | why |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"
        for row in differences()
    )


def describe(step: Step) -> str:
    """A call as text, long arguments cut."""
    arguments = [_shorten(repr(argument)) for argument in step.arguments]
    arguments += [f"{name}={value!r}" for name, value in step.keywords.items()]
    return f"{step.method}({', '.join(arguments)})"


def _shorten(text: str) -> str:
    return text if len(text) < 80 else f"{text[:20]}… ({len(text)} characters)"


if __name__ == "__main__":
    print(render_differences(), end="")
