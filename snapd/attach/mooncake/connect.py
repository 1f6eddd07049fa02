"""`MooncakeConnector`: attaches to Mooncake's master and this host's store services."""

from __future__ import annotations

from collections.abc import Callable

from snapd.attach.mooncake.host import MooncakeHost, MooncakeObserver
from snapd.attach.mooncake.store import MooncakeStore
from snapd.attach.port import AttachedStore
from snapd.config import Settings
from snapd.disk import Disk


class MooncakeConnector:
    """A `Connector`. For the thread of the `Keeper`."""

    def __init__(
        self,
        settings: Settings,
        observer: MooncakeObserver,
        disk: Disk,
        *,
        write_last: Callable[[], None],
        fingerprint: Callable[[], int],
    ) -> None:
        """See `MooncakeHost`; nothing is asked of anybody yet."""
        self._host = MooncakeHost(
            settings, observer, disk, write_last=write_last, fingerprint=fingerprint
        )

    def attach(self, previous: AttachedStore | None) -> MooncakeStore:
        """A session with what lives and answers now. Raises as `MooncakeHost.attach`."""
        return MooncakeStore(self._host, self._host.attach())

    def close(self) -> None:
        """End connections and children; what is mounted stays so."""
        self._host.close()


__all__ = ["MooncakeConnector", "MooncakeObserver"]
