"""Scripted lives of a repository. Together they reach every operation on the disk.

A life is a list of steps, each of which makes one or a few calls on a `ModelledRepository`. A step
that fails with a `SnapdError` leaves the repository as the model says that it may be, so the next
step can go on, and so can a life in which anything failed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from repository_kit import content
from repository_model import ModelledRepository

from snapd.disk.simulated import SimulatedDisk

Step = Callable[[ModelledRepository], None]


def blocks(model: ModelledRepository, *names: str, size: int = 3000) -> dict[bytes, bytes]:
    """New bytes for keys: never the same twice in one life."""
    turn = (model.segment << 32) + (model.epoch << 24) + model.sequence + 1
    return {name.encode(): content(name.encode(), turn, size + turn % 97) for name in names}


def first_start(model: ModelledRepository) -> None:
    start(model, "first start")


def start(model: ModelledRepository, step: str = "recovery") -> None:
    model.close()
    recovery = model.start(step)
    told = [*recovery.unreadable_packs, *recovery.unreadable_manifests, *recovery.journal_findings]
    model.check(lossy=bool(model.news(told)))


def put(*names: str, dropped: tuple[str, ...] = (), size: int = 3000) -> Step:
    def step(model: ModelledRepository) -> None:
        out = [name.encode() for name in dropped]
        model.put(blocks(model, *names, size=size), dropped=out)

    return step


def remove(*names: str) -> Step:
    return lambda model: model.remove([name.encode() for name in names])


def evict(*names: str) -> Step:
    return lambda model: model.evict([name.encode() for name in names])


def commit(model: ModelledRepository) -> None:
    model.commit()


def remove_all(model: ModelledRepository) -> None:
    model.remove_all()


def rebuild(model: ModelledRepository) -> None:
    model.rebuild()
    model.commit()


def new_segment(model: ModelledRepository) -> None:
    model.new_segment()


def compact(model: ModelledRepository) -> None:
    model.compact()


def compact_first(model: ModelledRepository) -> None:
    packs = model.open.packs()
    model.compact([pack.sequence for pack in packs[:1]])


# --- the lives ------------------------------------------------------------------------------------


def everyday() -> list[Step]:
    """Packs, upserts, removals, evictions, epochs, commits that prune, restarts."""
    return [
        first_start,
        put("a", "b", "c", "d"),
        commit,
        put("a", "e", "moved", dropped=("moved",)),
        remove("b", "never"),
        evict("c"),
        commit,
        put("f"),
        remove("f"),
        put("a", "g"),
        commit,
        start,
        put("c", "g"),
        commit,
        remove_all,
        put("a", "h"),
        commit,
        commit,
        commit,
        put("h"),
        remove("a"),
    ]


def overlapping() -> list[Step]:
    """Packs sealed out of order, commits and removals in the middle of them, blocks revived."""

    def crossing(model: ModelledRepository) -> None:
        first = model.begin(blocks(model, "a", "b", "x"))
        second = model.begin(blocks(model, "a", "c"))
        model.seal(second)
        model.remove([b"b"])
        model.commit()
        model.seal(first)

    def removed_and_put_again(model: ModelledRepository) -> None:
        pack = model.begin(blocks(model, "c", "d"))
        model.remove([b"c"])
        model.put(blocks(model, "c"))
        model.seal(pack)
        model.commit()

    def epoch_in_between(model: ModelledRepository) -> None:
        pack = model.begin(blocks(model, "a", "late"))
        model.remove_all()
        model.put(blocks(model, "a"))
        model.seal(pack)

    def evict_and_revive(model: ModelledRepository) -> None:
        model.evict([b"a", b"d"])
        model.revive([b"a"])
        model.commit()

    def given_up(model: ModelledRepository) -> None:
        model.begin(blocks(model, "a", "given-up")).writer.abort()

    return [
        first_start,
        put("a", "b"),
        crossing,
        crossing,
        commit,
        removed_and_put_again,
        evict_and_revive,
        put("d"),
        given_up,
        start,
        epoch_in_between,
        commit,
        crossing,
        commit,
        removed_and_put_again,
        start,
        commit,
    ]


def rebuilt() -> list[Step]:
    """Segments that come and go, rebuilds before and after pruning, epochs that only packs know."""
    return [
        first_start,
        put("a", "b", "c"),
        remove("a"),
        put("b"),
        commit,
        new_segment,
        put("a", "d"),
        remove("c"),
        evict("b"),
        commit,
        put("e"),
        commit,
        rebuild,
        remove("d"),
        put("f"),
        commit,
        commit,
        rebuild,
        start,
        new_segment,
        remove_all,
        put("a"),
        commit,
        rebuild,
        put("b", "c"),
        remove("c"),
    ]


def journaled() -> list[Step]:
    """Many removals: journal files that are rotated, renewed and covered, packs of nothing else."""

    def removals_only(model: ModelledRepository) -> None:
        model.remove([b"a"])
        model.open.begin_pack().seal()

    return [
        first_start,
        put("a", "b", "c", "d", "e"),
        commit,
        remove("a"),
        remove("b"),
        start,
        remove("c"),
        put("b"),
        remove("d"),
        commit,
        start,
        removals_only,
        put("a"),
        commit,
        commit,
        removals_only,
        put("c", "d"),
        commit,
        remove("b"),
        start,
        commit,
        remove("e"),
    ]


def compacted() -> list[Step]:
    """Packs that are copied into others, before and after pruning, rebuilds and restarts."""
    return [
        first_start,
        put("a", "b", "c", "d"),
        put("b", "e"),
        remove("c"),
        commit,
        compact_first,
        commit,
        evict("d"),
        put("a", "f"),
        compact,
        remove("b"),
        commit,
        commit,
        start,
        compact,
        put("c", "d"),
        commit,
        rebuild,
        compact,
        remove("e"),
        start,
        commit,
        commit,
    ]


def purge(prefix: str) -> Step:
    return lambda model: model.purge(prefix.encode())


def purged() -> list[Step]:
    """Keys that go with their bytes: from packs of their own and beside others, twice, and all."""
    return [
        first_start,
        put("p/a", "p/b", "c"),
        put("p/a", "d"),
        commit,
        remove("p/b"),
        evict("d"),
        purge("p/"),
        put("p/a", "e"),
        start,
        purge("p/"),
        commit,
        remove("c"),
        purge(""),
        put("f"),
        commit,
        start,
    ]


def restored() -> list[Step]:
    """A repository that somebody copied here file by file, without its identity, is opened for the
    first time, and lived in."""

    def copied(model: ModelledRepository) -> None:
        model.close()
        simulated = simulated_of(model)
        for name in ("repository.json", "lock", "pins"):
            if name in simulated.files():
                simulated.vanish(name)
        model.segment += 1
        model.sequence = 0
        start(model, "restore")

    return [
        first_start,
        put("a", "b", "c"),
        commit,
        remove("a"),
        put("c", "d"),
        commit,
        remove("d"),
        copied,
        put("a", "e"),
        commit,
        start,
        remove("b"),
        commit,
    ]


def damaged() -> list[Step]:
    """A medium that goes bad: the newest snapshot falls back to the one before it and is moved
    aside, and blocks are rejected, with a copy for a look, by a reader and by compaction."""

    def fall_back(model: ModelledRepository) -> None:
        model.damage_newest_manifest()
        start(model)

    def move_aside(model: ModelledRepository) -> None:
        with model.step("retention"):
            model.open.prune(move_unreadable=True)

    def rot_and_read(model: ModelledRepository) -> None:
        model.rot(b"a")
        model.check()

    def rot_and_compact(model: ModelledRepository) -> None:
        model.rot(b"d")
        model.compact()
        model.check()

    return [
        first_start,
        put("a", "b", "c"),
        commit,
        put("b", "d", "f"),
        remove("c"),
        evict("f"),
        commit,
        fall_back,
        put("e"),
        remove("b"),
        commit,
        move_aside,
        rot_and_read,
        commit,
        fall_back,
        rebuild,
        rot_and_compact,
        commit,
        put("a", "d"),
        commit,
        start,
        compact,
        commit,
        commit,
        commit,
        start,
    ]


LIVES: dict[str, Callable[[], list[Step]]] = {
    "everyday": everyday,
    "overlapping": overlapping,
    "rebuilt": rebuilt,
    "journaled": journaled,
    "compacted": compacted,
    "purged": purged,
    "restored": restored,
    "damaged": damaged,
}


def random_life(seed: int, *, steps: int, keys: int) -> list[Step]:
    """A life by chance: as many steps, over so many keys."""
    return list(_random_steps(random.Random(seed), steps, keys))


def _random_steps(chance: random.Random, steps: int, keys: int) -> Iterator[Step]:
    yield first_start
    names = [f"key-{number}" for number in range(keys)]
    for _ in range(steps):
        some = chance.sample(names, chance.randint(1, max(1, keys // 3)))
        kind = chance.choices(
            (
                *("put", "remove", "evict", "commit", "start"),
                *("remove_all", "rebuild", "segment", "compact"),
            ),
            (40, 15, 8, 20, 6, 2, 3, 2, 4),
        )[0]
        if kind == "put":
            dropped = some[: len(some) // 8]
            yield put(*some, dropped=tuple(dropped), size=chance.choice((1, 700, 4096, 5000)))
        elif kind == "remove":
            yield remove(*some[: max(1, len(some) // 3)])
        elif kind == "evict":
            yield evict(*some[: max(1, len(some) // 4)])
        else:
            named: dict[str, Step] = {
                "commit": commit,
                "start": start,
                "remove_all": remove_all,
                "rebuild": rebuild,
                "segment": new_segment,
                "compact": compact,
            }
            yield named[kind]


def simulated_of(model: ModelledRepository) -> SimulatedDisk:
    """The disk, which is a simulated one."""
    assert isinstance(model.disk, SimulatedDisk)
    return model.disk
