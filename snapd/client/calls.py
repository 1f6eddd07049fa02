"""What every call on keys goes through: which of them a store can hold, and what the rest gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapd.blocks.keys import I64
from snapd.client.memory import BufferRegistry
from snapd.client.options import put_options
from snapd.client.replicate import ReplicateConfig
from snapd.client.session import ClientSession
from snapd.client.transfer import Sources
from snapd.wire.codes import ReturnCode

DEFAULT_CONFIG = ReplicateConfig()
"""Shared by all calls without a configuration; nobody writes to it."""

OK = int(ReturnCode.OK)
INVALID_KEY = int(ReturnCode.INVALID_KEY)
INVALID_PARAMS = int(ReturnCode.INVALID_PARAMS)
NOT_FOUND = int(ReturnCode.OBJECT_NOT_FOUND)
_ALREADY_EXISTS = int(ReturnCode.OBJECT_ALREADY_EXISTS)
"""Plain numbers, because callers print and compare what they get."""


class Calls:
    """The session that calls use, if there is one, the memory that they registered, and what the
    caller named his host."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None
        self._buffers = BufferRegistry()
        self._hostname = ""

    def _put(
        self, names: list[bytes], sources: Sources, config: ReplicateConfig, *, upsert: bool
    ) -> list[int]:
        """A code for each key; a key that exists is a success."""
        options, session = put_options(config, len(names), upsert=upsert), self._session
        if session is None or options is None:
            return [INVALID_PARAMS] * len(names)
        rows = session.usable_rows(names)
        refused = [INVALID_PARAMS] * len(names)
        for row in set(range(len(names))).difference(rows) if len(rows) < len(names) else ():
            refused[row] = INVALID_KEY if names[row] else INVALID_PARAMS
        if unusable := sources.unusable():
            rows = [row for row in rows if row not in unusable]
        codes = session.put(pick(names, rows), sources.take(rows), options.take(rows))
        codes[codes == _ALREADY_EXISTS] = OK
        return _spread(rows, codes, refused)

    def _ask(
        self,
        names: list[bytes],
        question: Callable[[ClientSession, Sequence[int]], I64],
        absent: int,
    ) -> list[int]:
        """Answers to `question` about the keys that can exist; `absent` for the others."""
        session = self._session
        if session is None:
            return [INVALID_PARAMS] * len(names)
        rows = session.usable_rows(names)
        return _spread(rows, question(session, rows), [absent] * len(names))


def pick(names: list[bytes], rows: Sequence[int]) -> list[bytes]:
    """The names at `rows`, which ascend."""
    return names if len(rows) == len(names) else [names[row] for row in rows]


def _spread(rows: Sequence[int], answers: I64, others: list[int]) -> list[int]:
    """`answers` at their `rows`, and `others` where there is no answer."""
    values: list[int] = answers.tolist()
    if len(rows) == len(others):
        return values
    for row, value in zip(rows, values, strict=True):
        others[row] = value
    return others
