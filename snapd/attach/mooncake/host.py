"""`MooncakeHost`: what this host has in Mooncake and what is known of it, session after session."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import xxhash

from snapd.attach.mooncake.adopt import UNKNOWN_FILE, adopt
from snapd.attach.mooncake.attachment import Attachment
from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.inventory import ColdPolicy, Inventory
from snapd.attach.mooncake.layout import Layout, LiveSegment
from snapd.attach.mooncake.life import Activity, same_life
from snapd.attach.mooncake.looker import Looker, LookObserver
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.mounts import MountObserver, Mounts
from snapd.attach.mooncake.notes import MountNotes
from snapd.attach.mooncake.poll import Poll
from snapd.attach.mooncake.putting import Putters
from snapd.attach.mooncake.stores import Life
from snapd.config import Settings, event
from snapd.config.settings import admin_address
from snapd.disk import Disk
from snapd.errors import DiskError, SnapdError, StoreUnavailableError
from snapd.plans.residency import Residency

_BYTES_A_SLOT = 16_384
"""Of segment memory, where `segment_blocks_max` does not say how many slots there are."""
_LIFE_ID_BYTES = 16
_logger = logging.getLogger(__name__)


class MooncakeObserver(LookObserver, MountObserver, Protocol):
    """Who counts; see `snapd.metrics.Metrics`."""


class MooncakeHost:
    """Keeps what outlives a session: files, inventory, what is known of the master's life. For the
    thread of the `Keeper`, except where a store hands parts of it to others."""

    def __init__(
        self,
        settings: Settings,
        observer: MooncakeObserver,
        disk: Disk,
        *,
        write_last: Callable[[], None],
        fingerprint: Callable[[], int],
    ) -> None:
        """`disk` is the repository's, for a note; `write_last` brings to disk what only an old file
        has, before that file goes; `fingerprint` names what the clients put at present."""
        self.settings = settings
        self.memory = Memory()
        self.admin = MasterAdmin(admin_address(settings))
        self.mounts = Mounts(settings, self.admin, self.memory, observer)
        slots = settings.segment_blocks_max or max(
            1, len(self.mounts.stores) * settings.global_segment_size // _BYTES_A_SLOT
        )
        self.inventory = Inventory(slots)
        self.residency = Residency(slots)
        poll_admin = MasterAdmin(admin_address(settings))
        self.poll = Poll(poll_admin, self.inventory, self.memory, fingerprint)
        self.looker = Looker(self.poll, settings.poll_sec, observer)
        self.putters = Putters(settings)
        self._notes = MountNotes(disk)
        self._write_last = write_last
        self._daemon_id = secrets.token_bytes(_LIFE_ID_BYTES)
        """A part of every incarnation's name, because sequences begin again with this process."""
        self._life: Life | None = None
        """The master's, as far as all durable knowledge accounts for it."""
        self._life_counters: Counters | None = None
        """The newest counters of the master's life, whoever saw them."""
        self._adopted_life: Life | None = None
        """Where the daemon before stopped to account for this life; None if it is not known."""
        self._dead: dict[str, int] = {}
        self._died_alone: set[int] = set()
        self._to_lose: set[int] = set()
        """Files whose blocks are in the inventory still, though their segments are dead."""
        self._some_died = False
        """Whether a segment died before this process first knew all that is to be put back."""
        self._recorded: Life | None = None
        self._record_lock = threading.Lock()
        """Guards what the records say; taken before the looker's, never after."""

    def attach(self) -> Attachment:
        """Find out what lives, and mount what does not. What died is still in the inventory after
        this, until `begin`, so that it can be written.

        Raises StoreUnavailableError when the master or every store service is away, ProtocolError
        when one of them answers nonsense, SegmentError when no segment can be mounted.
        """
        # Before `now` is read, or what a look reads meanwhile would seem to be from a later life.
        seen = [self._life_counters, self.poll.newest]
        now, listed = self.admin.counters(), self.admin.segments()
        with self._record_lock:
            if self._life is None:
                self._life = self._enter(now, listed)
            elif not all(same_life(before, now) for before in seen if before is not None):
                self._life = self._master_died(now)
            self._life_counters = now
            self._bury_dead(listed)
            life = self._life
        self.mounts.mount_missing(life, self._make_room)
        listed = self.admin.segments()
        self.mounts.unmount_old(listed)
        self._write_note(listed)
        layout = self.mounts.layout
        ids = map(str.encode, layout.segment_ids)
        name = b"\0".join([self._daemon_id, life.life_id, *ids])
        return Attachment(
            boot_id=xxhash.xxh3_128_digest(name),
            layout=layout,
            dead=dict(self._dead),
            old_ids=self.mounts.old_ids,
            died_alone=frozenset(self._died_alone),
            store_urls=tuple(store.url for store in self.mounts.stores),
            admin_address=admin_address(self.settings),
            inventory=self.inventory,
            memory=self.memory,
        )

    def close(self) -> None:
        """End connections and children; what is mounted stays so."""
        self.putters.close()
        self.mounts.close()
        self.admin.close()

    # --- called by `MooncakeStore` ----------------------------------------------------------------

    def begin(self, attachment: Attachment) -> None:
        """The session begins: what died is lost, and the store is looked at. Raises as `look`."""
        first = not self.inventory.was_registered
        with self.residency.lock:
            lost = self.inventory.lose(np.array(sorted(self._to_lose), np.int64))
            self.residency.forget(lost)
            deleted = [one for one in self._to_lose if self.memory.get(one) is None]
            self.inventory.forget_files(np.array(deleted, np.int64))
            self._to_lose.clear()
            self.inventory.begin(attachment.boot_id, ColdPolicy.LOST if first else ColdPolicy.KNOWN)
        self.looker.begin_session()
        if not self.settings.enable_warmup:
            self.drop_old_files()
        look = self.looker.look(attachment)
        if first and self.inventory.cold_policy is ColdPolicy.LOST:
            self.inventory.cold_policy = self._first_policy()
        if self.inventory.cold_policy is ColdPolicy.REMOVED:
            event(
                _logger,
                logging.WARNING,
                "keys were removed meanwhile, nobody knows which: what is not listed is dropped",
            )
        event(
            _logger,
            logging.INFO,
            "looked at Mooncake's master",
            keys=look.listed,
            blocks=look.new,
            lost=len(lost),
            seconds=look.seconds,
        )

    def check_noted(self, listed: list[MasterSegment]) -> None:
        """Raises StoreUnavailableError when segments that we wait for are not dead: keys in them
        belong to somebody else, and nothing is waited for in the next session."""
        if alive := self._notes.outlived(listed):
            self.mounts.let_go(alive)
            self._dead = {name: at for name, at in self._dead.items() if name not in alive}
            event(
                _logger,
                logging.WARNING,
                "segments that are noted as ours are listed for too long to be dead: another "
                "daemon has them",
                segments=len(alive),
            )
            raise StoreUnavailableError("attaching again: segments noted as ours are others'")

    def watched(self, now: Counters) -> bool:
        """Take note of counters; whether they are of the life that we know."""
        if self._life_counters is not None and not same_life(self._life_counters, now):
            return False
        self._life_counters = now
        return True

    def write_records(self) -> None:
        """Everything told is durable: note in the files how far that goes. Raises SegmentError."""
        with self._record_lock:
            counters = self.looker.durable_counters()
            if counters is None or self._life is None:
                return
            self._life = replace(self._life, counters=counters)
            if self._life != self._recorded:
                self.mounts.write_records(self._life)
                self._recorded = self._life

    def whole(self) -> None:
        """Everything that was lost is back, as far as there is room."""
        self.drop_old_files()
        with self._record_lock:
            if self._life is not None:
                self._life = replace(self._life, is_whole=True)

    def drop_old_files(self) -> None:
        """Delete the files whose segments died."""
        numbers = self.mounts.drop_old_files()
        self.inventory.forget_files(np.array(numbers, np.int64))
        self._died_alone -= set(numbers)
        if numbers:
            event(_logger, logging.INFO, "deleted old segment files", files=len(numbers))

    # --- inside -----------------------------------------------------------------------------------

    def _enter(self, now: Counters, listed: list[MasterSegment]) -> Life:
        """The first attach of this process."""
        adopted = adopt(self.mounts, self.memory, now, listed)
        life = adopted.life
        if life is None and adopted.is_newer_life:
            # What its clients removed before we came counts as well.
            life = replace(_new_life(now), since=Counters.at_birth(), counters=Counters.at_birth())
        self._adopted_life = life
        self._dead |= adopted.dead | self._find_noted(listed)
        self._some_died = not adopted.adopted or bool(self._dead)
        if life is None:
            self.poll.begin_life(now, known=False)
            return _new_life(now)
        self.poll.begin_life(life.counters, known=True)
        return replace(life, is_whole=life.is_whole and not self._some_died)

    def _find_noted(self, listed: list[MasterSegment]) -> dict[str, int]:
        """Dead segments of the daemon before that the master has not noticed yet, and that no file
        in shared memory is left of. Until it does, keys in them seem to live elsewhere."""
        noted = self.mounts.inherit_noted(self._notes.read())
        dead = {one.segment_id for one in listed} & noted
        self._notes.wait_for(dead)
        return dict.fromkeys(dead, UNKNOWN_FILE)

    def _write_note(self, listed: list[MasterSegment]) -> None:
        try:
            self._notes.write(self.mounts.to_note(listed))
        except DiskError as error:
            event(
                _logger,
                logging.WARNING,
                "cannot note which segments are ours: if this node loses its memory and is back "
                "at once, nothing is put back",
                error=error,
            )

    def _first_policy(self) -> ColdPolicy:
        """What the daemon before had on disk and nobody lists now: lost, gone or removed?

        Its segments went on without it: then it is gone. Some of them died, or it was still putting
        blocks back: then it may be lost. But if anything was removed or rewritten meanwhile, it may
        be that, too; and what was put back may have been evicted since, with newer bytes that
        nobody saw.
        """
        life = self._adopted_life
        if life is None:
            return ColdPolicy.LOST
        now = self.admin.counters()
        activity = Activity(life.counters, now)
        if activity.may_have_removed or activity.may_have_removed_unseen:
            return ColdPolicy.REMOVED
        whole_life = Activity(life.since, now)
        nothing_left = not (whole_life.may_have_moved or whole_life.may_have_removed_unseen)
        waits = self._some_died or (not life.is_whole and nothing_left)
        return ColdPolicy.LOST if waits else ColdPolicy.GONE

    def _master_died(self, now: Counters) -> Life:
        """All keys are gone. What was in our files is there still, until somebody puts again."""
        event(_logger, logging.WARNING, "Mooncake's master was started again: its keys are gone")
        last = self._life_counters
        self._adopted_life = None
        for store in self.mounts.stores:
            self._to_lose |= set(self.mounts.bury(store).values())
        self._doubt(self.looker.end_life(np.array(sorted(self._to_lose), np.int64), last or now))
        self._dead.clear()
        return _new_life(now)

    def _bury_dead(self, listed: list[MasterSegment]) -> None:
        """Segments that are not listed any more, or that the master forgot in between, or whose
        store service is gone."""
        files: set[int] = set()
        for store in self.mounts.stores:
            forgotten = not self.poll.forgotten.isdisjoint(one.file for one in store.live)
            ended = store.live and (not _are_listed(store.live, listed) or store.has_ended())
            if not (ended or forgotten):
                continue
            event(_logger, logging.WARNING, "a Mooncake store died", store=store.url)
            dead = self.mounts.bury(store)
            files |= set(dead.values())
            if not forgotten:
                self._dead |= dead
                self._died_alone |= set(dead.values())
            # Else it is listed, not dead, and written to until it is unmounted.
        if files:
            assert self._life is not None
            self._life = replace(self._life, is_whole=False)
            self._some_died = True
            self._to_lose |= files
            self._doubt(self.looker.end_segments(np.array(sorted(files), np.int64), self._dead))

    @staticmethod
    def _doubt(blocks: int) -> None:
        if blocks:
            event(
                _logger,
                logging.WARNING,
                "keys were removed just before the end, nobody knows which: blocks are dropped",
                blocks=blocks,
            )

    def _make_room(self) -> None:
        """Shared memory does not hold two files: write what only the old one has, and drop it."""
        try:
            self._write_last()
        except (SnapdError, TimeoutError) as error:
            event(_logger, logging.WARNING, "left blocks in an old segment file", error=error)
        self.mounts.unmount_old(self.admin.segments())
        self.drop_old_files()


def _new_life(now: Counters) -> Life:
    return Life(secrets.token_bytes(_LIFE_ID_BYTES), since=now, counters=now, is_whole=False)


def _are_listed(live: tuple[LiveSegment, ...], listed: list[MasterSegment]) -> bool:
    try:
        Layout(live).check(listed)
    except StoreUnavailableError:
        return False
    return True
