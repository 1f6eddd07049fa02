"""`Labelling`: under which label a rank reads and writes, while weights may change at any moment.

SGLang records other weights first and flushes its caches after that. In between its backup thread
may still write pages that the old weights computed, and nothing that it passes tells them from new
ones. So pages are read under the label of the weights that are served, and written only if the host
pool was cleared under the same ones: everything in the pool was computed since then. A write that
has begun ends under its label; whoever would have to change it meanwhile gets misses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from snapd.config import event

_SWITCH_SECONDS_MAX = 0.5
"""A lookup that has to change the label waits so long for a write to end, then it is a miss."""

_MIXED = object()

_log = logging.getLogger(__name__)


class Labelling:
    """Safe for use by many threads."""

    def __init__(
        self, weights: Callable[[], Any], take: Callable[[Any, dict[str, Any]], None]
    ) -> None:
        """`weights` gives the version that is served now. `take` makes a label of it and of the
        pools by name, and has the store use it; it is called with nothing being written."""
        self._weights = weights
        self._take = take
        self._changing = threading.Lock()
        """Held while something is written and while the label changes."""
        self._pools: dict[str, Any] = {}
        self._labelled: Any = None
        self._cleared: Any = None
        """The weights that were served when the host pool was cleared last; `_MIXED` once others
        have been served since."""
        self._unwatch: Callable[[], None] = _nothing
        self._is_dropping = False

    def add_pool(self, name: str, pool: Any) -> None:
        """A host pool; the label is another one from now on. Before anything is read or written,
        or, if later, beside pools that are."""
        with self._changing:
            if not self._pools:
                self._watch(pool)
            self._pools[name] = pool
            self._change()

    def reading(self) -> bool:
        """Whether the label in force is that of the weights that are served; if not, what is looked
        up counts as missing."""
        if self._weights() == self._labelled:
            return True
        if not self._changing.acquire(timeout=_SWITCH_SECONDS_MAX):
            return False
        try:
            if self._weights() != self._labelled:
                self._change()
        finally:
            self._changing.release()
        return True

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Whether what is in the host pool may be written now; the label stays as long."""
        with self._changing:
            if self._weights() != self._labelled:
                self._change()
            may = bool(self._cleared == self._labelled)
            if not may and not self._is_dropping:
                event(
                    _log,
                    logging.WARNING,
                    "pages are not stored until SGLang flushes its cache: they may be of the "
                    "weights before",
                    weights=self._labelled,
                )
            self._is_dropping = not may
            yield may

    def close(self) -> None:
        """Let go of the pool; idempotent."""
        unwatch, self._unwatch = self._unwatch, _nothing
        unwatch()

    def _change(self) -> None:
        """The caller holds the lock."""
        self._labelled = self._weights()
        if self._cleared != self._labelled:
            self._cleared = _MIXED
        self._take(self._labelled, self._pools)

    def _watch(self, pool: Any) -> None:
        """Notice when SGLang clears the pool. It tells its storage nothing of a flush, but it stops
        its storage threads, empties their queues and then clears the pool, in its one scheduler
        thread; pages of the next request come after that."""
        clear = pool.clear
        self._cleared = self._weights()

        def watched() -> None:
            clear()
            self._cleared = self._weights()

        def unwatch() -> None:
            pool.clear = clear

        pool.clear = watched
        self._unwatch = unwatch


def _nothing() -> None:
    """Nothing is watched."""
