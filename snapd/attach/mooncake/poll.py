"""`Poll`: looks at the master and brings the inventory up to date.

What the master says of a place is only worth something together with the set of segments: it names
them by endpoint and address, and a segment mounted later may have both from one before. So every
look begins and ends with the segments of this session being listed as they were, in the same life
of the master, and a block is taken in only if it was at one place before and after it was hashed.
An error in the middle leaves the inventory true, and the next look begins where this one did.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from snapd.attach.mooncake.counters import Counters
from snapd.attach.mooncake.inventory import Inventory
from snapd.attach.mooncake.layout import Layout
from snapd.attach.mooncake.life import Activity
from snapd.attach.mooncake.master import MasterAdmin, MasterSegment
from snapd.attach.mooncake.memory import Memory
from snapd.attach.mooncake.places import NOWHERE, Kept, Places
from snapd.attach.mooncake.witness import Witness
from snapd.blocks import KeyColumn
from snapd.blocks.keys import I64, U64, Bools
from snapd.config import event
from snapd.errors import StoreUnavailableError
from snapd.plans import windows
from snapd.plans.listing import ForeignKeys, diff_listing, oldest_first

_logger = logging.getLogger(__name__)
_PIECE_BYTES = 256 * 2**20
_PIECE_BLOCKS = 8192
"""Blocks hashed between two looks at their places: short, so that little moves meanwhile."""

_AGAIN_BYTES = 256 * 2**20
"""Bytes hashed again at every look: a block may have been evicted and put again where it was, and a
rewrite can hide behind a put that was under way when the counters were read."""

_AGAIN_BLOCKS = 4096

_FOREIGN_ROWS_MIN = 2048
_FOREIGN_PARTS = 8
"""One part in so many of other hosts' keys is located again at each look."""


@dataclass
class Look:
    """What one look saw and did."""

    number: int = 0
    seconds: float = 0.0
    listed: int = 0
    """Keys of the whole master; 0 where nothing had changed and none were asked for."""
    unlistable: int = 0
    """Keys that cannot be asked about."""
    foreign: int = 0
    """Keys that are in no segment of ours."""
    new: int = 0
    rewritten: int = 0
    vanished: int = 0
    left: int = 0
    """Keys that were listed at the look before, resident in segments of ours or waiting to be put
    back from dead ones, and are not listed any more."""
    hashed_bytes: int = 0
    moved: int = 0
    """Blocks that moved while they were hashed: left for the next look."""
    in_doubt: int = 0
    """Cold blocks dropped, because somebody may have removed them."""
    without_slot: int = 0
    is_ambiguous: bool = False
    """Whether nothing was done, because a dead segment has the addresses of a live one."""


@dataclass
class Poll:
    """Looks of one daemon, session after session; for one thread at a time."""

    admin: MasterAdmin
    inventory: Inventory
    memory: Memory
    fingerprint: Callable[[], int]
    """Id of the label of what came since the look before; asked for once a look."""
    baseline: Counters | None = None
    """The counters that the inventory accounts for; None before the first look in a life. They are
    those of two looks ago: a request is counted before it takes effect, so one that was counted at
    the last look may have come behind the listing of that look."""
    recent: Counters | None = None
    """The counters of the last look, from before its listing."""
    ambiguous_seconds_max: float = 30.0
    """How long a segment that is not there may be listed at addresses of ours; over client_ttl."""
    _ambiguous_since: float | None = None
    _number: int = 0
    _label: int = 0
    """What this look found new is of this label."""
    _foreign: ForeignKeys = field(default_factory=ForeignKeys)
    _dead_listed: frozenset[int] = frozenset()
    """Files of dead segments that the master listed at the last look."""
    _remove_alls: int = 0
    """Remove-alls that the inventory accounts for."""
    _accounted: Counters | None = None
    """The counters from after the last listing: what they count is accounted for, key by key."""
    forgotten: frozenset[int] = frozenset()
    """Files whose segments the master forgot, until their end is dealt with: their stores have
    registered them again, empty, under the same ids."""
    _looked_in: Layout | None = None
    """The session whose keys were listed at least once."""

    def __post_init__(self) -> None:
        self._witness = Witness(self.admin, self.memory)

    def begin_life(self, counters: Counters, *, known: bool) -> None:
        """A life of the master: nothing that was said in another one means anything. `known` says
        that the inventory, empty as it is, is to account for what happened since these counters;
        else they are where it begins."""
        self.baseline = self.recent = counters if known else None
        self._witness.begin_life(counters)
        self._remove_alls = counters.remove_alls
        self._accounted = counters if known else None
        self._foreign.clear()
        self._dead_listed = self.forgotten = frozenset()

    @property
    def newest(self) -> Counters | None:
        """The counters that were seen last in this life: it is over when any of them has fallen."""
        return self._witness.newest

    def look(self, layout: Layout, dead: Mapping[str, int]) -> Look:
        """Look once. `dead` are the ids of segments that died in this life of the master, with the
        numbers of their files.

        Raises StoreUnavailableError when the session is over: a segment of ours is not listed any
        more, or the master began a new life, or does not answer; ProtocolError as `MasterAdmin`.
        """
        started = time.monotonic()
        self._number += 1
        look = Look(self._number)
        self._label = self.fingerprint()
        before = self._witness.counters()
        listed = self._witness.segments(layout)
        if layout.is_ambiguous(listed):
            look.is_ambiguous = True
            self._bear_ambiguity(layout)
            return look
        self._ambiguous_since = None
        dead_before = _files_of(dead, listed)
        if self._looked_in is layout and self._is_quiet(before, dead_before):
            self._advance(before, dead_before)
            return look
        mark = self.inventory.mark()
        keys = self.admin.keys()
        hashes = keys.hashes()
        # What these count happened before or after the listing; what is missing in it for a reason
        # that they do not count is impossible.
        after = self._witness.counters()
        dead_after = _files_of(dead, self._witness.segments(layout))
        activity = Activity(self.baseline or before, after)
        look.listed, look.unlistable = len(keys), keys.unlistable
        if after.remove_alls > self._remove_alls:
            look.in_doubt += self.inventory.remove_all()
            self._remove_alls = after.remove_alls
        slots = self.inventory.look_up(keys, hashes)
        kept = self.inventory.resident(mark)
        diff = diff_listing(slots, kept.slots)
        self._check_not_forgotten(kept, diff.vanished, activity)
        look.vanished = self.inventory.vanished(
            kept.slots[diff.vanished],
            kept.sequence[diff.vanished],
            removed=activity.may_have_removed,
        )
        look.left = look.vanished
        if self._looked_in is not layout:
            self._doubt_waiting(look, activity, hashes, dead_before & dead_after)
        self._doubt_cold(look, activity, slots, dead_before & dead_after)
        self._doubt_what_left_no_trace(look, after, is_first=self._looked_in is not layout)
        known = kept.take(diff.kept)
        self._look_again(look, layout, known, keys.take(diff.kept_rows), activity)
        self._take_in(look, layout, keys, hashes, slots)
        self._looked_in = layout
        self._advance(before, dead_after)
        look.foreign = len(self._foreign)
        look.seconds = time.monotonic() - started
        return look

    def _bear_ambiguity(self, layout: Layout) -> None:
        """The master forgets a dead segment after client_ttl. What it lists for much longer at
        addresses of ours stays, and nothing of ours can be seen meanwhile: so ours are given up for
        others elsewhere.

        Raises StoreUnavailableError then; `forgotten` says what it is about.
        """
        now = time.monotonic()
        since = self._ambiguous_since = self._ambiguous_since or now
        if now - since < self.ambiguous_seconds_max:
            return
        self._ambiguous_since = None
        self.forgotten = frozenset(layout.files)
        event(
            _logger,
            logging.ERROR,
            "Mooncake's master keeps listing a segment at addresses of another one: mounting "
            "another file; the store service that it is of should be started again",
            seconds=now - since,
        )
        raise StoreUnavailableError(
            "Mooncake's master keeps listing a segment at addresses of one of ours"
        )

    def _check_not_forgotten(self, kept: Kept, vanished: I64, activity: Activity) -> None:
        """A store that is silent for too long is forgotten, and registers again when it goes on:
        with the same segments, and without their keys. Between two looks nothing of that shows but
        keys that are gone, for no other reason that would have been counted.

        Raises StoreUnavailableError then; `forgotten` says what it is about.
        """
        if not len(vanished) or not activity.remounted or activity.may_have_removed:
            return
        if activity.evicted and len(vanished) < len(kept.slots):
            return
        self.forgotten = frozenset(kept.places.file[vanished].tolist())
        raise StoreUnavailableError("Mooncake's master forgot what is in a segment of ours")

    def _is_quiet(self, now: Counters, dead_listed: frozenset[int]) -> bool:
        """Whether nothing changed since before the last listing, so that none is needed."""
        quiet = self.baseline is not None and Activity(self.baseline, now).is_quiet
        return quiet and dead_listed == self._dead_listed

    def _advance(self, before: Counters, dead_listed: frozenset[int]) -> None:
        self.baseline, self.recent = self.recent or before, before
        self._dead_listed = dead_listed

    # --- ends -------------------------------------------------------------------------------------

    def end_segments(self, files: I64, dead: Mapping[str, int]) -> int:
        """The segments in these files died, in a life of the master that goes on. What left before
        that leaves the inventory as in any look; how many blocks are dropped in doubt.

        While the master lists a dead segment, it lists the keys in it. After that a removal just
        before the end cannot be told from the end.
        """
        if self.recent is None:
            return 0
        self.forgotten -= set(files.tolist())
        before = _files_of(dead, self.admin.segments())
        hashes = self.admin.keys().hashes()
        activity = Activity(self.recent, self._witness.counters())
        self._accounted = activity.now
        self._dead_listed = before & _files_of(dead, self.admin.segments())
        kept = self.inventory.resident()
        ours = np.isin(kept.places.file, files)
        listed = np.isin(self.inventory.keys_of(kept.slots[ours]).hashes(), hashes)
        known = np.isin(kept.places.file[ours], sorted(self._dead_listed))
        rows = np.flatnonzero(ours)
        gone, doubtful = rows[known & ~listed], rows[~known]
        removed = activity.may_have_removed
        self.inventory.vanished(kept.slots[gone], kept.sequence[gone], removed=removed)
        if not removed:
            return 0
        return self.inventory.vanished(kept.slots[doubtful], kept.sequence[doubtful], removed=True)

    def end_life(self, files: I64, last: Counters) -> int:
        """The life of the master ended, with these counters when it was seen last. If anything may
        have been removed after the last look, nobody knows what: how many blocks are dropped."""
        if self.recent is None or not Activity(self.recent, last).may_have_removed:
            return 0
        kept = self.inventory.resident()
        ours = np.isin(kept.places.file, files)
        return self.inventory.vanished(kept.slots[ours], kept.sequence[ours], removed=True)

    # --- cold blocks ------------------------------------------------------------------------------

    def _doubt_cold(
        self, look: Look, activity: Activity, slots: I64, still_listed: frozenset[int]
    ) -> None:
        """Somebody may have removed what waits to be put back.

        While a dead segment is listed its keys are too, so one that is not was removed or evicted.
        Between that and the segment's end a removal cannot be told from the end: then all that
        was in it is dropped. A removal that failed, or went by a pattern, may have been of any key
        that waits.
        """
        cold, sequences = self.inventory.held_in(np.array(sorted(still_listed), np.int64))
        listed = np.isin(cold, slots)
        left = self.inventory.drop_cold(
            cold[~listed], sequences[~listed], removed=activity.may_have_removed
        )
        look.left += left
        look.in_doubt += left
        ended = self._dead_listed - still_listed
        if activity.may_have_removed and ended:
            cold, sequences = self.inventory.held_in(np.array(sorted(ended), np.int64))
            look.in_doubt += self.inventory.drop_cold(cold, sequences, removed=True)
        if activity.may_have_removed_unseen:
            look.in_doubt += self.inventory.drop_all_cold()

    def _doubt_waiting(
        self, look: Look, activity: Activity, hashes: U64, still_listed: frozenset[int]
    ) -> None:
        """The same at the first look of a session, before what it lost is registered."""
        removed = activity.may_have_removed
        files = np.array(sorted(still_listed), np.int64)
        left = self.inventory.drop_waiting(files, hashes, removed=removed)
        look.left += left
        look.in_doubt += left
        if activity.may_have_removed_unseen:
            self.inventory.doubt_waiting()
        if removed:
            files = np.array(sorted(self._dead_listed - still_listed), np.int64)
            look.in_doubt += self.inventory.drop_waiting(files, hashes[:0], removed=True)

    def _doubt_what_left_no_trace(self, look: Look, after: Counters, *, is_first: bool) -> None:
        """Whoever puts a key that waits, with other bytes, and removes it again between two looks
        leaves nothing to be seen but a removal by name too many: then all that waits is in doubt.

        Evictions explain keys that left as well, and other hosts' keys are removed too, so this
        doubts more than it has to wherever keys are removed by name, and never less.
        """
        before, self._accounted = self._accounted, after
        if before is None:
            return
        removed = after.removes + after.clears - before.removes - before.clears
        if removed > max(0, look.left - (after.evicted - before.evicted)):
            look.in_doubt += self.inventory.drop_all_cold()
            if is_first:
                self.inventory.doubt_waiting()

    # --- blocks that were known -------------------------------------------------------------------

    def _look_again(
        self, look: Look, layout: Layout, kept: Kept, keys: KeyColumn, activity: Activity
    ) -> None:
        """Blocks that are listed as before: find those that are at another place, or may have other
        bytes at the same, and hash them again."""
        slots, sequence, places, hashed_at = kept.slots, kept.sequence, kept.places, kept.hashed_at
        again = hashed_at == 0
        # Rewritten, or gone and back: what nobody has put since has the bytes that it had.
        again |= activity.may_have_removed and activity.may_have_added
        if activity.may_have_moved and (
            activity.may_have_added or activity.now.moves != activity.before.moves
        ):
            located = self.admin.locate(keys, layout.segments)
            now = layout.places(located)
            moved = ~places.is_same(now)
            # It was put again, into another host's memory: the version that was here is over.
            away = located.found & (now.file == NOWHERE)
            look.vanished += self.inventory.vanished(slots[away], sequence[away], removed=True)
            # What left after the listing stays for the next look, which knows what was counted.
            again = (again | moved) & (now.file != NOWHERE)
            places = now
        share = oldest_first(
            hashed_at, kept.places.size, bytes_max=_AGAIN_BYTES, rows_max=_AGAIN_BLOCKS
        )
        again[share] |= places.file[share] != NOWHERE
        rows = np.flatnonzero(again)
        for piece in _pieces(rows, places.size[rows]):
            part = places.take(piece)
            good, checksums = self._hash(look, layout, keys.take(piece), part)
            look.rewritten += self.inventory.renew(
                slots[piece[good]],
                sequence[piece[good]],
                part.take(good),
                checksums[good],
                look=look.number,
                fingerprint=self._label,
            )

    # --- blocks that are new ----------------------------------------------------------------------

    def _take_in(
        self, look: Look, layout: Layout, keys: KeyColumn, hashes: U64, slots: I64
    ) -> None:
        """Find the keys that are not resident in segments of ours, hash them, and take them in."""
        rows = np.flatnonzero(self.inventory.is_new(slots))
        located = self._foreign.to_locate(
            hashes[rows], rows_min=_FOREIGN_ROWS_MIN, parts=_FOREIGN_PARTS
        )
        located |= slots[rows] >= 0  # a cold block that somebody has put
        asked = rows[located]
        locations = self.admin.locate(keys.take(asked), layout.segments)
        places = layout.places(locations)
        foreign = np.zeros(len(rows), np.bool_)
        foreign[located] = locations.found & (places.file == NOWHERE)
        self._foreign.update(hashes[rows], located, foreign, look.number)
        ours = np.flatnonzero(places.file != NOWHERE)
        for piece in _pieces(ours, places.size[ours]):
            part, names = places.take(piece), keys.take(asked[piece])
            good, checksums = self._hash(look, layout, names, part)
            kept = np.flatnonzero(good)
            look.without_slot += self.inventory.insert(
                names.take(kept),
                hashes[asked[piece[kept]]],
                part.take(kept),
                checksums[kept],
                look=look.number,
                fingerprint=self._label,
            )
            look.new += len(kept)

    def _hash(
        self, look: Look, layout: Layout, keys: KeyColumn, places: Places
    ) -> tuple[Bools, U64]:
        """See `Witness.hash`."""
        good, checksums = self._witness.hash(layout, keys, places)
        look.hashed_bytes += int(places.size.sum())
        look.moved += len(good) - int(good.sum())
        return good, checksums


def _files_of(dead: Mapping[str, int], listed: Sequence[MasterSegment]) -> frozenset[int]:
    return frozenset(dead[one.segment_id] for one in listed if one.segment_id in dead)


def _pieces(rows: I64, sizes: U64) -> Sequence[I64]:
    return list(windows(rows, sizes, bytes_max=_PIECE_BYTES, blocks_max=_PIECE_BLOCKS))
