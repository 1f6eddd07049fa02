"""What has to go when the repository meets its budget, and what may come in.

A repository is a log of packs: blocks are appended, die in place, and a pack's space comes back
only as a whole. Cleaning means copying what is live out of a pack, and its price is set by how
full the disk may get. Rosenblum and Ousterhout ("The Design and Implementation of a Log-Structured
File System", ACM TOCS 10(1), 1992, section 3.4) give the write cost of cleaning packs of which the
share u is live as 2 / (1 - u); only the copies, without reading, are u / (1 - u) bytes for each
byte that is freed. The three numbers follow from it:

- `LIVE_SHARE`: live blocks take at most 0.70 of the budget, because a nearly full log is all
  cleaning: at 0.90 live each new byte costs nine bytes of copies, at 0.70 in 0.85 of space the
  average pack is 0.82 live and the deadest, which is the one taken, far less.
- `START_SHARE`: pressure begins at 0.85. The space between live and start is what dead blocks may
  fill, so that cleaning waits until it is cheap; the space between start and the end is what the
  flusher may use while cleaning runs, and the headroom that a copy needs before its source goes.
- `DEAD_SHARE`: a pack over half dead is cleaned also without pressure: it writes less than it
  frees, and it keeps tables of dead rows from growing.

Two limits, because two questions have different answers. How much may be *written* depends on what
others leave free; what may be *given up* must not: whoever fills the disk for an hour would take
the cache with him. So relief begins at the limit for writing, and goes as far as deleting what is
dead; blocks that live are dropped for the repository's own limit only, which is a setting or the
size of the file system, and in which nobody else's bytes occur.

Which pack: the deadest first (greedy). Their cost-benefit rule multiplies by age because files in
one log differ in how soon they die; here the old and cold do not stay to be copied again and again,
they are what a budget drops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapd.blocks.keys import I64, U64, Bools
from snapd.blocks.table import F32
from snapd.plans.order import chains_hottest_first

LIVE_SHARE = 0.70
"""Of the budget: what live blocks take after the coldest were dropped."""
START_SHARE = 0.85
"""Of the budget in use: where pressure begins."""
STOP_SHARE = 0.80
"""Of the budget in use: where relief is enough."""
DEAD_SHARE = 0.5
"""Of a pack's blocks, by bytes, that are dead: worth cleaning without pressure."""
WORTH_SHARE = 0.05
"""Of a pack's blocks that must be dead for cleaning it to be worth anything under pressure."""
HOTTER_FACTOR = 2.0
"""How much hotter than what it would push out a block must be: a half-life. Below that, blocks of
about equal heat would push each other out for ever, each time with a write."""
SMALL_SHARE = 0.125
"""Of a full pack: packs up to this size are small."""
SMALL_PACKS_MAX = 256
"""Small packs beyond which they are merged. A flush every few seconds seals a pack each; every one
costs a restart a read. A block is merged at most as often as 256 small ones fit into each other."""
_COPY_OVERHEAD_BYTES = 4096
"""What a copy takes beside its blocks and what the old pack took beside its own."""
PACK_OVERHEAD_BYTES = 16_384
"""About what a pack takes beside its blocks: header, trailer, index."""


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """One limit and what follows from it, in bytes."""

    bytes_max: int
    """Most that the repository may take."""
    headroom_bytes: int
    """Kept for copies: a full pack."""
    reserve_bytes: int
    """Kept for manifests and removals, which are never refused."""
    pack_bytes_max: int = 1 << 62
    """Bytes at which packs are sealed: what they take beside blocks comes off the live share."""

    @property
    def copies_up_to(self) -> int:
        """Usage up to which cleaning may write."""
        return max(0, self.bytes_max - self.reserve_bytes)

    @property
    def flushes_up_to(self) -> int:
        """Usage up to which new blocks may be written."""
        return max(0, self.copies_up_to - self.headroom_bytes)

    @property
    def live_max(self) -> int:
        """Most bytes of live blocks. In a budget so small that headroom and reserve are most of
        it, what is left of it."""
        files = min(int(LIVE_SHARE * self.bytes_max), int(STOP_SHARE * self.flushes_up_to))
        return files * self.pack_bytes_max // (self.pack_bytes_max + PACK_OVERHEAD_BYTES)

    @property
    def start(self) -> int:
        """Usage at which pressure begins; before flushes have to stop."""
        return min(int(START_SHARE * self.bytes_max), int(0.95 * self.flushes_up_to))

    @property
    def stop(self) -> int:
        """Usage at which relief ends."""
        return min(int(STOP_SHARE * self.bytes_max), int(0.90 * self.flushes_up_to))


@dataclass(frozen=True, slots=True)
class PackSpace:
    """m packs as columns."""

    file_bytes: I64
    """int64 [m]: length of the file."""
    data_bytes: I64
    """int64 [m]: blocks in whole pages, live and dead."""
    named: Bools
    """bool [m]: a manifest that stays after the next commit names it."""


@dataclass(frozen=True, slots=True)
class LiveRows:
    """n live rows as columns."""

    pack: I64
    """int64 [n]: position of the row's pack in `PackSpace`."""
    stored_bytes: I64
    """int64 [n]: the block in whole pages."""
    heat: F32
    age_order: U64
    """uint64 [n]: rises with the time of the block's put."""
    key_hash: U64
    parent: U64
    """uint64 [n]: hash of the key of the page before in its chain, 0 where there is none."""


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What to do now; the order of its fields is the order of relief."""

    pressed: bool
    """Usage is over the start of pressure even without what is obsolete."""
    commit: bool
    """Space comes back with the next commit: do not wait for its turn."""
    shrink_retention: bool
    """Only the newest generation is to stay."""
    drop: I64
    """Positions in `LiveRows`, int64, coldest first."""
    compact: I64
    """Positions in `PackSpace`, int64, deadest first."""
    copy_bytes: int
    """Most that cleaning these packs writes."""
    used_bytes_after: int
    """Usage once all of it is done and committed."""


def plan_space(
    packs: PackSpace,
    rows: LiveRows,
    limits: SpaceLimits,
    *,
    other_bytes: int,
    pack_bytes_max: int,
    copy_bytes_max: int | None = None,
    own: SpaceLimits | None = None,
) -> SpacePlan:
    """The order of relief: obsolete packs go first, then older generations, then packs are cleaned,
    and what live blocks take beyond their share is dropped, coldest first, tails of chains before
    their heads.

    `limits` are those for writing, which others who use the disk may set; `own` are the ones for
    which live blocks may be dropped (by default the same).

    `other_bytes` is usage outside of packs; `copy_bytes_max` bounds what copies may write, of which
    half is for cleaning that could wait. Where nothing else helps (there is no room left for a
    single copy), whole packs are let go, those with the least heat for the bytes that they take.
    """
    own = own or limits
    live = _bytes_by_pack(rows, np.ones(len(rows.pack), np.bool_), len(packs.file_bytes))
    used = other_bytes + int(packs.file_bytes.sum())
    empty = live == 0
    obsolete, held = empty & ~packs.named, empty & packs.named
    after = used - int(packs.file_bytes[obsolete].sum())
    pressed = after > limits.start
    if not pressed:
        compact = _unpressed(packs, live, limits.start - used, pack_bytes_max)
        compact = _within(copies(packs, live), compact, copy_bytes_max and copy_bytes_max // 2)
        return _plan_without_pressure(packs, live, compact, used > limits.start, after)
    after -= int(packs.file_bytes[held].sum())
    drop = np.empty(0, np.int64)
    if after > own.start:
        drop = _coldest(rows, int(live.sum()) - own.live_max)
    live = _bytes_by_pack(rows, _others(drop, len(rows.pack)), len(live))
    emptied = ~empty & (live == 0)
    after -= int(packs.file_bytes[emptied].sum())
    compact = np.empty(0, np.int64)
    if after > limits.stop:
        compact = _to_clean(packs, live, WORTH_SHARE, limits.copies_up_to - used)
        compact = _enough(packs, live, compact, after - limits.stop)
    freed = used - after
    if after > own.start and not len(compact) and not freed:
        let_go = _whole_packs(packs, rows, live, after - own.stop)
        drop = np.concatenate([drop, let_go[~np.isin(let_go, drop)]])
        live = _bytes_by_pack(rows, _others(drop, len(rows.pack)), len(live))
        after = other_bytes + int(packs.file_bytes[live > 0].sum())
        freed = used - after
    cost = copies(packs, live)
    compact = _within(cost, compact, copy_bytes_max)
    after += int((cost - packs.file_bytes)[compact].sum())
    going = live == 0
    going[compact] = True
    return SpacePlan(
        pressed=True,
        commit=freed > 0 or len(compact) > 0,
        # A generation that holds nothing of this stays: it is the room for the next manifest.
        shrink_retention=bool((packs.named & going).any()),
        drop=drop,
        compact=compact,
        copy_bytes=int(cost[compact].sum()),
        used_bytes_after=after,
    )


@dataclass(frozen=True, slots=True)
class HeatCurve:
    """Live blocks from the coldest on: how much could be pushed out below which heat."""

    heat: F32
    """float32 [n], rising."""
    bytes_up_to: I64
    """int64 [n]: bytes of this block and all that are colder."""

    @classmethod
    def of(cls, heat: F32, stored_bytes: I64) -> HeatCurve:
        """The curve of n live blocks in any order."""
        order = np.argsort(heat, kind="stable")
        return cls(heat[order], np.cumsum(stored_bytes[order]).astype(np.int64))


def admit(heat: F32, stored_bytes: I64, room_bytes: int, curve: HeatCurve) -> Bools:
    """Which of n blocks, hottest first, are worth their space, bool [n].

    `room_bytes` is what live blocks may still grow by, below zero if they are over their share
    already. Blocks within it come in. Each one beyond it must be `HOTTER_FACTOR` as hot as the
    hottest of the blocks that would have to go for it and for those before it.
    """
    needed = np.cumsum(stored_bytes) - room_bytes
    at = np.searchsorted(curve.bytes_up_to, needed, side="left")
    inside = at < len(curve.heat)
    hotter = np.zeros(len(heat), np.bool_)
    hotter[inside] = heat[inside] > HOTTER_FACTOR * curve.heat[at[inside]]
    result: Bools = (needed <= 0) | hotter
    return result


def copies(packs: PackSpace, live: I64) -> I64:
    """Most that cleaning each pack writes, int64 [m], if it has these live bytes: its blocks, and
    an index that is no longer than the old one."""
    result: I64 = live + (packs.file_bytes - packs.data_bytes) + _COPY_OVERHEAD_BYTES
    return result


# --- inside -----------------------------------------------------------------------------------


def _plan_without_pressure(
    packs: PackSpace, live: I64, compact: I64, commit: bool, used_bytes: int
) -> SpacePlan:
    cost = copies(packs, live)
    return SpacePlan(
        pressed=False,
        commit=commit,
        shrink_retention=False,
        drop=np.empty(0, np.int64),
        compact=compact,
        copy_bytes=int(cost[compact].sum()),
        used_bytes_after=used_bytes + int((cost - packs.file_bytes)[compact].sum()),
    )


def _unpressed(packs: PackSpace, live: I64, room_bytes: int, pack_bytes_max: int) -> I64:
    """Without pressure packs are cleaned that are mostly dead, or small and very many; never so
    that the copies would make the pressure."""
    compact = _to_clean(packs, live, DEAD_SHARE, room_bytes)
    small = (live > 0) & (packs.file_bytes <= SMALL_SHARE * pack_bytes_max)
    if int(small.sum()) > SMALL_PACKS_MAX:
        oldest = np.flatnonzero(small)[:SMALL_PACKS_MAX]
        compact = np.concatenate([compact, np.setdiff1d(oldest, compact)])
    return _within(copies(packs, live), compact, room_bytes)


def _within(cost: I64, compact: I64, bytes_max: int | None) -> I64:
    """As many of these packs, from the first, as may be copied."""
    if bytes_max is None:
        return compact
    return compact[np.cumsum(cost[compact]) <= bytes_max]


def _bytes_by_pack(rows: LiveRows, kept: Bools, packs: int) -> I64:
    """Live bytes of each pack, int64 [packs]. Sums are exact up to 2^53, 8 PiB."""
    weights = np.where(kept, rows.stored_bytes, 0)
    return np.bincount(rows.pack, weights=weights, minlength=packs).astype(np.int64)


def _others(rows: I64, total: int) -> Bools:
    result: Bools = np.ones(total, np.bool_)
    result[rows] = False
    return result


def _coldest(rows: LiveRows, excess_bytes: int) -> I64:
    """The coldest rows with at least so many bytes, coldest first; no more rows than it takes."""
    if excess_bytes <= 0:
        return np.empty(0, np.int64)
    order = chains_hottest_first(rows.heat, rows.age_order, rows.key_hash, rows.parent)[::-1]
    total = np.cumsum(rows.stored_bytes[order])
    return order[: int(np.searchsorted(total, excess_bytes, side="left")) + 1].astype(np.int64)


def _to_clean(packs: PackSpace, live: I64, dead_share: float, room_bytes: int) -> I64:
    """Packs with more than this share of dead blocks, deadest first, as far as copies fit."""
    dead = packs.data_bytes - live
    cost = copies(packs, live)
    worth = (live > 0) & (dead > dead_share * packs.data_bytes) & (cost < packs.file_bytes)
    at = np.flatnonzero(worth & (cost <= room_bytes))
    order = at[np.lexsort((at, -dead[at] / np.maximum(packs.data_bytes[at], 1)))]
    return _within(cost, order, room_bytes)


def _enough(packs: PackSpace, live: I64, compact: I64, wanted_bytes: int) -> I64:
    """As many of these packs, from the first, as it takes to free so many bytes."""
    freed = np.cumsum((packs.file_bytes - copies(packs, live))[compact])
    return compact[: int(np.searchsorted(freed, wanted_bytes, side="left")) + 1]


def _whole_packs(packs: PackSpace, rows: LiveRows, live: I64, wanted_bytes: int) -> I64:
    """All live rows of the packs with the least heat for a byte of file, until they free enough."""
    total = len(packs.file_bytes)
    weight = rows.heat.astype(np.float64) * rows.stored_bytes
    heat = np.bincount(rows.pack, weights=weight, minlength=total)
    at = np.flatnonzero(live > 0)
    order = at[np.lexsort((at, heat[at] / np.maximum(packs.file_bytes[at], 1)))]
    freed = np.cumsum(packs.file_bytes[order])
    chosen = order[: int(np.searchsorted(freed, wanted_bytes, side="left")) + 1]
    return np.flatnonzero(np.isin(rows.pack, chosen)).astype(np.int64)
