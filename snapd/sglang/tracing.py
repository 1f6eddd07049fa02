"""`ChainTrace`: page lookups of SGLang, as the daemon wants to hear of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from snapd.blocks.keys import U64
from snapd.blocks.pages import page_id, page_ids_of_hashes


class LookupSink(Protocol):
    """Where lookups go: `snapd.client.trace.Tracer`. Never blocks, never raises."""

    def lookup(
        self, pages: Sequence[int] | U64, *, parent: int = 0, depth: int = 0, hits: int
    ) -> None:
        """Pages of a chain, in its order, of which the first `hits` were there."""


class ChainTrace:
    """Tells a sink the page hashes that SGLang passes, and what came before them if it says so."""

    def __init__(self, sink: LookupSink | None) -> None:
        """`sink` None: nothing is told."""
        self._sink = sink
        self.label = 0
        """Number of the label that keys have in the store, 0 without one."""

    def lookup(self, hashes: Sequence[str], extra_info: Any, hits: int) -> None:
        """One call of SGLang's: `hashes` in chain order, `extra_info` its
        `HiCacheStorageExtraInfo` or None."""
        if self._sink is None or not hashes:
            return
        # In 0.5.6 a call without a prefix says (None,) instead of None.
        before = [key for key in getattr(extra_info, "prefix_keys", None) or () if key]
        parent = page_id(before[-1], self.label) if before else 0
        self._sink.lookup(
            page_ids_of_hashes(hashes, self.label), parent=parent, depth=len(before), hits=hits
        )
