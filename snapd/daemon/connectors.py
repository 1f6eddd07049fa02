"""`open_connector`: the adapter of the store that the settings name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from snapd.attach.connect import BundledConnector
from snapd.attach.labels import LabelIds
from snapd.attach.mooncake.connect import MooncakeConnector, MooncakeObserver
from snapd.attach.mooncake.fingerprint import Fingerprints
from snapd.attach.port import Connector
from snapd.config import Settings
from snapd.daemon.supervise import store_socket
from snapd.repository import Repository

_LAST_FLUSH_SECONDS = 10.0


def open_connector(
    settings: Settings,
    repository: Repository,
    observer: MooncakeObserver,
    flush_soon: Callable[[], Future[None]],
    fingerprints: Fingerprints | None,
) -> Connector:
    """A connector; nothing is asked of a store yet. `flush_soon` is the flusher's, `fingerprints`
    what `open_fingerprints` gave."""
    if fingerprints is None:
        labels = LabelIds(lambda: repository.fingerprints, repository.fingerprint)
        return BundledConnector(
            store_socket(settings), labels, offloads=settings.enable_ssd_offload
        )
    return MooncakeConnector(
        settings,
        observer,
        repository.disk,
        write_last=lambda: flush_soon().result(_LAST_FLUSH_SECONDS),
        fingerprint=fingerprints.at_look,
    )


def open_fingerprints(
    settings: Settings, repository: Repository, stopping: threading.Event
) -> Fingerprints | None:
    """The label of Mooncake's blocks, not learned yet; None with the bundled store, whose clients
    say it themselves."""
    if settings.store == "bundled":
        return None
    return Fingerprints(settings.fingerprint, settings.sglang_url, repository.fingerprint, stopping)
