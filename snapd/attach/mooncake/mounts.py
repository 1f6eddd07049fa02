"""`Mounts`: our files, mounted by the store services of this host, life after life.

The rules, each paid for by somebody: a file is mounted once and never again. While the master lists
a segment that died, its file must not be mounted anew. After a restart of the master a store
service registers its segment by itself, with the master believing that it is empty: so a new file
is mounted first, the old segment is unmounted then, and only then nobody writes into the old file.
Where a file was, no other one is for a while (`addresses`). And a service is not asked to mount
while its master does not answer: where that failed it would never again mount anything.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

from snapd.attach.backoff import Backoff
from snapd.attach.mooncake.addresses import Addresses
from snapd.attach.mooncake.files import PAGE_BYTES, SegmentFile, create_segment_file
from snapd.attach.mooncake.layout import Layout, LiveSegment, lay_out
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.service import StoreService
from snapd.attach.mooncake.stores import Life, Store, record_of
from snapd.attach.mooncake.watch import ProcessWatch
from snapd.config import Settings, event
from snapd.errors import SegmentError, SnapdError, StoreUnavailableError

_LISTED_SECONDS_MAX = 10.0
_LISTED_POLL_SECONDS = 0.02
_SERVICE_SECONDS_MAX = 10.0
_REFUSALS_TOLD = 3
_SMALLER_EIGHTHS_MAX = 4
_REFUSED_SECONDS = 60.0
"""Between tries in a store that refuses, while others are attached."""
MOUNT_FAILURES = ("refused", "away", "waits", "collides", "ambiguous")
"""Why a file is not mounted now: the service refuses; does not reach its master; the place must
stay empty; it came to lie in such a place; the master lists something else there."""
_logger = logging.getLogger(__name__)


class MountObserver(Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""

    def mount_failed(self, reason: str) -> None:
        """One of `MOUNT_FAILURES`."""


class Mounts:
    """The stores of one daemon; for one thread, except where said."""

    def __init__(
        self, settings: Settings, admin: MasterAdmin, memory: Memory, observer: MountObserver
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._admin = admin
        self._memory = memory
        self.stem = os.path.basename(settings.segment_path)
        self.stores = [
            Store(
                number,
                url,
                StoreService(url, timeout_seconds=_SERVICE_SECONDS_MAX),
                ProcessWatch(url),
                Addresses(settings.mooncake_reuse_sec, time.monotonic),
                Backoff(_logger, f"mount a segment in {url}", first_seconds=0.25),
            )
            for number, url in enumerate(settings.mooncake_stores)
        ]
        self.old_files: set[int] = set()
        """Numbers of files whose segments died, and that are kept to put blocks back from."""

    @property
    def layout(self) -> Layout:
        """Of everything that is mounted now."""
        return Layout(tuple(one for store in self.stores for one in store.live))

    def bury(self, store: Store) -> dict[str, int]:
        """Its segments are dead; their ids, with the number of their file, which is kept."""
        dead = {one.segment.segment_id: one.file for one in store.live}
        self.old_files |= set(dead.values())
        store.to_unmount |= set(dead)
        store.live = ()
        return dead

    def mount_missing(self, life: Life, make_room: Callable[[], None]) -> None:
        """Mount a new file in every store that has none and answers. `make_room` is called, once,
        when shared memory is too small for it beside the old files; they are dropped then.

        Raises the last error if no store has anything mounted after that.
        """
        error: SnapdError | None = None
        for store in self.stores:
            if store.live or (self.layout.live and time.monotonic() < store.not_before):
                continue
            store.wait_seconds = _REFUSED_SECONDS if store.refusals >= _REFUSALS_TOLD else 0.0
            try:
                if not store.service.alive():
                    raise StoreUnavailableError(f"no Mooncake store service answers at {store.url}")
                if not store.service.reaches_master():
                    raise StoreUnavailableError(
                        f"the Mooncake store service at {store.url} does not reach the master yet"
                    )
                self._mount(store, life, make_room)
                store.backoff.succeeded()
            except SnapdError as caught:
                error = caught
                wait_seconds = max(store.backoff.failed(caught), store.wait_seconds)
                store.not_before = time.monotonic() + wait_seconds
        if not self.layout.live:
            raise error or StoreUnavailableError("mooncake_stores names no store service")

    def joins(self) -> Store | None:
        """A store without a mount that answers, so that it is time to attach again."""
        for store in self.stores:
            if not store.live and time.monotonic() >= store.not_before and store.service.alive():
                return store
        return None

    @property
    def old_ids(self) -> frozenset[str]:
        """Segments of earlier lives that must not be there any more before anything is put."""
        return frozenset(name for store in self.stores for name in store.to_unmount)

    def inherit_noted(self, noted: Mapping[str, Iterable[str]]) -> set[str]:
        """Segments of the daemon before, by store URL, of which no file may be left: those that
        are not mounted any more as far as we know. Their stores may have them still."""
        live = {name for store in self.stores for name in store.segment_ids}
        for store in self.stores:
            store.to_unmount |= set(noted.get(store.url, ())) - live
        return {name for ids in noted.values() for name in ids} - live

    def let_go(self, segment_ids: Set[str]) -> None:
        """These are not ours after all."""
        for store in self.stores:
            store.to_unmount -= segment_ids

    def to_note(self, listed: Sequence[MasterSegment]) -> dict[str, list[str]]:
        """By store URL, what a daemon after us has to know as ours: what is mounted, and what the
        master lists of the lives before."""
        ids = {one.segment_id for one in listed}
        return {
            store.url: [*store.segment_ids, *sorted(store.to_unmount & ids)]
            for store in self.stores
        }

    def unmount_old(self, listed: Sequence[MasterSegment]) -> None:
        """Unmount segments of earlier lives that a store service has registered again."""
        ids = {one.segment_id for one in listed}
        for store in self.stores:
            again = sorted(store.to_unmount & ids)
            if not again or not store.live:
                continue
            try:
                store.service.unmount(again)
            except SegmentError:
                continue  # a new process does not know them: the master forgets them by itself
            except SnapdError as error:
                event(_logger, logging.WARNING, "cannot unmount an old segment", error=error)
                continue
            store.to_unmount -= set(again)
            store.addresses.given_up(again)
            event(_logger, logging.INFO, "unmounted old segments", segments=len(again))

    def drop_old_files(self) -> list[int]:
        """Delete the files whose segments died; their numbers."""
        numbers = sorted(self.old_files)
        for number in numbers:
            file = self._memory.put_away(number)
            if file is not None:
                file.unlink()
                file.close()
        self.old_files.clear()
        return numbers

    def write_records(self, life: Life) -> None:
        """Note in every mounted file how far all durable knowledge goes. May be called by another
        thread than all else, if by one only. Raises SegmentError."""
        for store in self.stores:
            live = store.live
            file = self._memory.get(live[0].file) if live else None
            if file is not None:
                file.write_record(record_of(store.url, live, life))

    def close(self) -> None:
        """Close connections. What is mounted stays mounted."""
        for store in self.stores:
            store.service.close()
            store.watch.close()

    # --- inside -----------------------------------------------------------------------------------

    def _mount(self, store: Store, life: Life, make_room: Callable[[], None]) -> None:
        """Crash argument: until the second record is written the file says that it is mounted
        nowhere. A daemon that finds it so has the store unmount whatever has its size and is in no
        record, and removes the file. Nothing durable depends on it: its blocks were put within that
        moment, and are lost with it.
        """
        file = self._next_file(store, make_room)
        file.write_record(record_of(store.url, (), life))
        try:
            mounted = store.service.mount(file.name, file.size_bytes)
        except SegmentError:
            store.spare = file
            self._refused(store)
            raise
        except SnapdError:
            # It may be mounted or not, so it must not be mounted again.
            file.unlink()
            file.close()
            raise
        number = self._memory.add(file)
        store.to_unmount |= set(mounted.segment_ids)
        try:
            live = self._settle(store, mounted.segment_ids, number)
            file.write_record(record_of(store.url, live, life))
        except SnapdError:
            self.old_files.add(number)
            raise
        store.to_unmount -= set(mounted.segment_ids)
        store.live = live
        store.refusals = 0
        self._unmount_unseen(store)
        event(
            _logger,
            logging.INFO,
            "mounted a segment",
            store=store.url,
            file=file.name,
            bytes=file.size_bytes,
            segments=len(live),
        )

    def _next_file(self, store: Store, make_room: Callable[[], None]) -> SegmentFile:
        """A file that may be mounted now. Raises StoreUnavailableError when none may."""
        if store.has_ended():  # a new process has addresses of its own
            store.refusals = 0
        if store.refusals:
            # Below what is mapped nothing can be mounted any more; where that was, it can.
            self._unmount_unseen(store)
        wanted = self._settings.global_segment_size
        # Other memory of the store may have come to lie where the old file was: a smaller one fits.
        wanted -= wanted // 8 * min(max(0, store.refusals - 1), _SMALLER_EIGHTHS_MAX)
        wanted += -wanted % PAGE_BYTES
        wanted = store.addresses.size_beside(wanted) or wanted
        file, store.spare = store.spare, None
        if file is not None and file.size_bytes != wanted:
            file.unlink()
            file.close()
            file = None
        file = file or self._create(wanted, make_room)
        store.spare = file
        # Making a large file takes its time, and may have had the old one unmounted.
        if (seconds := store.addresses.wait_seconds(file.size_bytes)) > 0:
            store.wait_seconds = seconds
            self._observer.mount_failed("waits")
            raise StoreUnavailableError(
                f"{store.url} mounts nothing for {seconds:.0f} s: clients may still use addresses "
                f"where a new file would come to lie (mooncake_reuse_sec)"
            )
        store.watch.begin()
        if not store.service.reaches_master():
            self._observer.mount_failed("away")
            raise StoreUnavailableError(
                f"the Mooncake store service at {store.url} does not reach its master"
            )
        store.spare = None
        return file

    def _settle(
        self, store: Store, segment_ids: Sequence[str], number: int
    ) -> tuple[LiveSegment, ...]:
        """What was mounted, once the master lists it, if it lies where it may.

        Raises StoreUnavailableError if not: it stays among those to be unmounted then.
        """
        listed = self._wait_until_listed(segment_ids)
        live = lay_out(listed, segment_ids, number, store.number)
        segments = [one.segment for one in live]
        if store.addresses.collides(segments):
            store.addresses.mapped(segments)
            self._unmount_unseen(store)
            self._observer.mount_failed("collides")
            raise StoreUnavailableError(
                f"{store.url} mounted a file where another one was just before: clients may still "
                f"use those addresses"
            )
        store.addresses.mapped(segments)
        if Layout(live).is_ambiguous(listed):
            # It stays mapped until the next one is, which lies elsewhere for that.
            self._observer.mount_failed("ambiguous")
            raise StoreUnavailableError(
                f"{store.url} mounted a file at addresses of a segment that is not there any more "
                f"and that Mooncake's master still lists: mounting another one"
            )
        return live

    def _refused(self, store: Store) -> None:
        self._observer.mount_failed("refused")
        store.refusals += 1
        if store.refusals == _REFUSALS_TOLD:
            event(
                _logger,
                logging.ERROR,
                "a Mooncake store service refuses to mount anything: if this goes on, start it "
                "again, because one that failed to reach its master once may never do",
                store=store.url,
                refusals=store.refusals,
            )

    def _unmount_unseen(self, store: Store) -> None:
        """A master that was started again does not list the old segment until the store registers
        it, within seconds, and then two segments of one name are there: puts go to both, and a
        master that unmounts one of them may not call the other alive any more. So the store is told
        before that; to unmount what the master does not know succeeds. A store that is new itself
        refuses, and has nothing to unmount."""
        for name in sorted(store.to_unmount):
            try:
                store.service.unmount([name])
            except SegmentError:
                store.addresses.may_be_given_up([name])
                continue  # `unmount_old` tries again should it be listed
            except SnapdError:
                store.addresses.may_be_given_up(sorted(store.to_unmount))
                return
            store.addresses.given_up([name])
            store.to_unmount.discard(name)

    def _create(self, size_bytes: int, make_room: Callable[[], None]) -> SegmentFile:
        group_shared = self._settings.group_shared

        def create() -> SegmentFile:
            return create_segment_file(self.stem, size_bytes, group_shared=group_shared)

        held = [store for store in self.stores if store.to_unmount and not store.live]
        try:
            return create()
        except SegmentError as error:
            if not self.old_files and not held:
                raise
            event(
                _logger,
                logging.WARNING,
                "no room for a new segment file beside the old one: blocks are put back from "
                "disk only",
                error=error,
            )
            make_room()
            # After the death of the master alone the store services hold the old files' memory,
            # which has no name any more, until they unmount it.
            for store in held:
                self._unmount_unseen(store)
            return create()

    def _wait_until_listed(self, segment_ids: Sequence[str]) -> list[MasterSegment]:
        """All that the master lists."""
        deadline = time.monotonic() + _LISTED_SECONDS_MAX
        wanted = set(segment_ids)
        while True:
            listed = self._admin.segments()
            found = [one for one in listed if one.segment_id in wanted]
            if len(found) == len(wanted) and all(one.is_ok for one in found):
                return listed
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"Mooncake's master does not list the segments that were just mounted: "
                    f"{', '.join(segment_ids)}"
                )
            time.sleep(_LISTED_POLL_SECONDS)
