"""`Labels`: what clients call their labels, and how many blocks have which.

A block's label is in its key (`snapd.blocks.labels`), so nothing here decides what anybody reads.
Texts are kept for the daemon, which writes them to disk, and counts for the one line that tells why
everything is a miss.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64
from snapd.blocks.labels import LABEL_LENGTH_MAX, label_number, label_tag, short_numbers
from snapd.config import event
from snapd.formats.segment import SlotState
from snapd.store.blocks import BlockStore
from snapd.wire import messages as m
from snapd.wire.codes import ReturnCode

_LOG = logging.getLogger(__name__)

LABELS_MAX = 1024
"""Most texts that are kept of clients that are gone."""

_COUNT_SECONDS = 1.0
"""Age of a count that is still given, unless it found nothing: counting a million slots takes some
milliseconds, and each connection of a client is greeted."""

_NOTICE_SECONDS = 60.0
"""A client of one label that comes again and again is spoken of so often."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a label's text comes to."""

    number: int = 0
    tag: bytes = b""
    """What its keys have behind them."""
    short: int = 0
    """Its number in a slot."""

    @classmethod
    def of(cls, text: str) -> Label:
        """The label of this text."""
        number = label_number(text)
        short = short_numbers(np.array([number], np.uint64))
        return cls(number, label_tag(text), int(short[0]))


UNLABELLED = Label()


@dataclass(slots=True)
class _Known:
    text: str
    clients: int = 0
    noticed_at: float = float("-inf")


class Labels:
    """Labels by their numbers, those of clients that are connected and the last ones beside."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._known: dict[int, _Known] = {}
        """Least lately said first."""
        self._counts: I64 = np.zeros(1 << 16, np.int64)
        """Served blocks by their label's short number."""
        self._counted_at = float("-inf")

    def enter(self, text: str) -> Label | m.Failure:
        """A client says its label. A refusal, if it is too long or has another one's number."""
        if len(text) > LABEL_LENGTH_MAX:
            return _refusal(f"a fingerprint has at most {LABEL_LENGTH_MAX} characters")
        label = Label.of(text)
        known = self._known.pop(label.number, None) or _Known(text)
        self._known[label.number] = known
        if known.text != text:
            return _refusal("this fingerprint has the number of another one: change its text")
        known.clients += 1
        self._forget_oldest()
        return label

    def leave(self, label: Label) -> None:
        """A client of this label is gone; its text is kept for a while."""
        self._known[label.number].clients -= 1

    def texts(self, request: m.LabelsOf) -> m.Labels:
        """What labels are called. Raises ProtocolError."""
        numbers = m.decode_column(request.numbers, np.uint64)[:LABELS_MAX].tolist()
        return m.Labels([self._known[n].text if n in self._known else "" for n in numbers])

    def count(self, label: Label, name: str, now: float) -> tuple[int, int]:
        """About how many blocks have this label, and how many do not, for the greeting of a client.

        Where it finds nothing although there is something, that is said: its keys may be there
        under another label, and it cannot know.
        """
        if now - self._counted_at > _COUNT_SECONDS or not self._counts[label.short]:
            self._count(now)
        own = int(self._counts[label.short])
        others = int(self._counts.sum()) - own
        known = self._known[label.number]
        if not own and others and now - known.noticed_at > _NOTICE_SECONDS:
            known.noticed_at = now
            event(
                _LOG,
                logging.WARNING,
                "a client's fingerprint has no blocks here, only others have: its keys are misses",
                client=name,
                fingerprint=known.text or "none",
                other_blocks=others,
            )
        return own, others

    def _count(self, now: float) -> None:
        book = self._blocks.book
        served = (book.state == SlotState.PUBLISHED) | (book.state == SlotState.COLD)
        short = book.records["fingerprint"][served]
        self._counts, self._counted_at = np.bincount(short, minlength=1 << 16), now

    def _forget_oldest(self) -> None:
        """Those of clients are bounded by the connections that there may be."""
        gone = [number for number, known in self._known.items() if not known.clients]
        for number in gone[: max(0, len(gone) - LABELS_MAX)]:
            del self._known[number]


def _refusal(why: str) -> m.Failure:
    return m.Failure(ReturnCode.INVALID_PARAMS, why)
