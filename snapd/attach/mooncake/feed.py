"""`MooncakeFeed`: removals as the looks at the master find them. Its reader's thread does them."""

from __future__ import annotations

from collections.abc import Callable

from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.looker import Looker
from snapd.attach.port import Changes


class MooncakeFeed:
    """A `Feed` over the looks of one session."""

    def __init__(
        self, attachment: Attachment, looker: Looker, on_durable: Callable[[], None]
    ) -> None:
        """`on_durable` is called when everything that was told is durable."""
        self._attachment = attachment
        self._looker = looker
        self._on_durable = on_durable

    def changes(self, ack: int, wait_ms: int) -> Changes:
        """What is not acknowledged; when that is nothing, look at the store as soon as it is time.
        Raises ProtocolError as well, when the master's answer cannot be used."""
        log = self._attachment.inventory.changes
        self._attachment.check_current()
        log.acknowledge(ack)
        if log.is_empty:
            self._on_durable()
            self._looker.look_if_due(self._attachment, wait_ms / 1000)
        return log.batch()

    def close(self) -> None:
        """Nothing to close."""
