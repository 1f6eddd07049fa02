"""Removals that arrive while the blocks they remove are on their way into a pack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from repository_kit import append, content, contents_of, put, remove, table_of

from snapd.disk.simulated import SimulatedDisk
from snapd.repository import Repository

SEED = 496

Removing = Callable[[Repository], None]


def opened(disk: SimulatedDisk) -> Repository:
    repository = Repository.open(disk)
    repository.recover()
    return repository


def remove_one(repository: Repository) -> None:
    remove(repository, [b"a", b"b"], sequence=5)


def remove_all(repository: Repository) -> None:
    repository.journal(epoch=1)


@pytest.mark.parametrize("removing", [remove_one, remove_all])
@pytest.mark.parametrize("ending", ["kill", "commit and kill", "rebuild"])
def test_a_removal_between_append_and_seal_kills_what_the_pack_brings(
    removing: Removing, ending: str
) -> None:
    disk = SimulatedDisk(SEED)
    repository = opened(disk)
    put(repository, {b"a": content(b"a", 1)}, sequence=1)
    writer = repository.begin_pack()
    append(writer, {b"a": content(b"a", 2), b"b": content(b"b", 2)}, sequence=2)
    removing(repository)
    rows = writer.seal()
    assert not repository.catalog.is_live(rows).any()
    if ending == "commit and kill":
        repository.commit()
    if ending == "rebuild":
        repository.rebuild()
    repository.close()
    disk.crash()
    with opened(disk) as recovered:
        assert contents_of(recovered) == {}
        revived = recovered.catalog.set_live(recovered.catalog.rows(), live=True)
        assert not revived.any(), "what was removed could be made live again"


def test_what_an_ended_epoch_left_cannot_be_matched_by_a_new_put() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        repository.journal(epoch=2)
        old = put(repository, {b"a": content(b"a", 1)}, sequence=1, epoch=1)
        assert not repository.catalog.set_live(old, live=True).any()
        new = put(repository, {b"a": content(b"a", 1)}, sequence=9, epoch=2)
        assert repository.catalog.is_live(new).all()
        table = table_of([b"a"], [content(b"a", 1)])
        assert repository.catalog.find(table.keys, table.key_hash).tolist() == new.tolist()


def test_a_rebuild_gives_no_generation_number_twice() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, {b"a": content(b"a", 1)}, sequence=1)
        repository.commit()
        damaged = repository.commit().generation
    name = f"manifests/{disk.list('manifests')[-1]}"
    disk.replace_contents(name, disk.contents(name)[:100])
    with opened(disk) as repository:
        repository.rebuild()
        assert repository.commit().generation == damaged + 1
        assert contents_of(repository) == {b"a": content(b"a", 1)}
