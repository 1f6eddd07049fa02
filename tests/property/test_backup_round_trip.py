"""Any history of a repository, backed up anywhere and restored, is what it was."""

from __future__ import annotations

from backup_kit import (
    KEY,
    archive_of,
    blocks,
    live,
    live_from_packs,
    opened,
    restore_archive,
    restore_from,
    save_to,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from repository_kit import put, remove

from snapd.disk.simulated import SimulatedDisk

KEYS = [b"a", b"b", b"c", b"d", b"e"]
keys = st.sets(st.sampled_from(KEYS), min_size=1).map(sorted)
steps = st.one_of(
    st.tuples(st.just("put"), keys),
    st.tuples(st.just("remove"), keys),
    st.tuples(st.just("commit"), st.just([])),
    st.tuples(st.just("epoch"), st.just([])),
    st.tuples(st.just("compact"), st.just([])),
)


Step = tuple[str, list[bytes]]


class Life:
    """A repository, what is live in it, and every block that has ended."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk(1)
        self.expected: dict[bytes, bytes] = {}
        self.gone: set[bytes] = set()
        self._epoch = 0
        self._sequence = 0

    def live(self, step: Step, *, retain: int | None = None) -> None:
        """One step."""
        name, names = step
        self._sequence += 1
        with opened(self.disk) as repository:
            if name == "put":
                new = blocks(names, self._sequence)
                put(repository, new, sequence=self._sequence, epoch=self._epoch)
                self._end(names)
                self.expected |= new
            elif name == "remove":
                remove(repository, names, sequence=self._sequence, epoch=self._epoch)
                self._end(names)
            elif name == "epoch":
                self._epoch += 1
                repository.journal(epoch=self._epoch)
                self._end(KEYS)
            elif name == "compact":
                repository.compact([pack.sequence for pack in repository.packs()])
                repository.commit(retain=retain)
            else:
                repository.commit(retain=retain)

    def _end(self, names: list[bytes]) -> None:
        for name in names:
            self.gone.add(self.expected.pop(name, b""))


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, min_size=1, max_size=10), st.booleans())
def test_what_is_restored_is_what_was_live_at_the_backup(
    history: list[Step], encrypted: bool
) -> None:
    key = KEY if encrypted else None
    life, place = Life(), SimulatedDisk(2)
    saved: dict[int, dict[bytes, bytes]] = {}
    for step in [("put", KEYS[:2]), *history]:
        life.live(step)
        done = save_to(life.disk, place, key)
        saved[int(done.name[-21:-11])] = dict(life.expected)
    for number, then in saved.items():
        assert restore_from(place, key, number=number) == then
    target = SimulatedDisk(3)
    restore_archive(target, archive_of(life.disk, key), key)
    assert live(target.clone(4)) == life.expected
    assert live_from_packs(target) == life.expected


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=6), st.lists(steps, max_size=6))
def test_what_ended_since_the_backup_stays_so_in_a_restore_over_it(
    first: list[Step], second: list[Step]
) -> None:
    life = Life()
    for step in [("put", KEYS), *first]:
        life.live(step, retain=1)
    archive, then = archive_of(life.disk), dict(life.expected)
    for step in second:
        life.live(step, retain=1)
    restore_archive(life.disk, archive, force=True)
    found = live(life.disk.clone(3))
    assert found.items() <= then.items()
    assert not set(found.values()) & life.gone, "a block that had ended is back"
    # What is still live has not been lost by it, as far as the backup has it.
    assert life.expected.items() & then.items() <= found.items()
    assert live_from_packs(life.disk) == found


def test_an_older_backup_in_between_does_not_bring_back_what_ended() -> None:
    """The restore of the older one takes away whoever knew that the newer version had ended; that
    an older version of the key is known must not speak for it."""
    disk, place = SimulatedDisk(1), SimulatedDisk(2)
    with opened(disk) as repository:
        put(repository, blocks([b"k", b"x"], 1), sequence=1)
        repository.commit()
    save_to(disk, place)
    with opened(disk) as repository:
        put(repository, blocks([b"k"], 2), sequence=2)
        repository.commit()
    save_to(disk, place)
    with opened(disk) as repository:
        remove(repository, [b"k"], sequence=3)
    restore_from(place, number=1, onto=disk, force=True)
    assert live(disk) == blocks([b"x"], 1)
    restore_from(place, number=2, onto=disk, force=True)
    assert live(disk) == blocks([b"x"], 1)
    assert live_from_packs(disk) == blocks([b"x"], 1)
