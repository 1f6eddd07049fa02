"""Recovery in all its steps, pruning and what stops it, and files that were tampered with."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import xxhash
from fault_ledger import FaultClass, case
from repository_kit import append, blank, content, contents_of, put, remove, table_of

from snapd.blocks import Codec, KeyColumn, hash_keys
from snapd.disk.simulated import Operation, SimulatedDisk
from snapd.errors import (
    CorruptError,
    DiskError,
    LockHeldError,
    NewerFormatError,
    NothingThereError,
    RefusedError,
)
from snapd.formats.journal import RecordPlace, _encode, encode_batch
from snapd.formats.sealed import HEADER_DTYPE, PAGE_BYTES
from snapd.repository import PackWriter, Repository, RowState, Sample, intake
from snapd.repository import commit as commit_module

SEED = 8_128


def opened(disk: SimulatedDisk, **options: object) -> Repository:
    repository = Repository.open(disk, **options)  # type: ignore[arg-type]
    repository.recover()
    return repository


def values(sequence: int, *names: str) -> dict[bytes, bytes]:
    return {name.encode(): content(name.encode(), sequence, 2500) for name in names}


def names_in(disk: SimulatedDisk, directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in disk.list(directory)]


def flip(disk: SimulatedDisk, name: str, at: int, mask: int = 0xFF) -> None:
    data = bytearray(disk.contents(name))
    data[at] ^= mask
    disk.replace_contents(name, bytes(data))


def make_newer(disk: SimulatedDisk, name: str, *, end: bool = False) -> None:
    """Give a file the format version after ours in its header, or in its trailer at the `end`, with
    a fitting checksum."""
    data = disk.contents(name)
    at = len(data) - PAGE_BYTES if end else 0
    record = np.frombuffer(data[at : at + PAGE_BYTES], HEADER_DTYPE).copy()
    record["format_version"] += 1
    body = record.tobytes()[: PAGE_BYTES - 8]
    page = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    disk.replace_contents(name, data[:at] + page + data[at + PAGE_BYTES :])


def all_files(disk: SimulatedDisk) -> list[str]:
    """Every file of a repository that was ever written."""
    return [*names_in(disk, "packs"), *names_in(disk, "manifests"), *names_in(disk, "journal")]


@pytest.fixture
def disk() -> SimulatedDisk:
    """Two generations and a pack sealed after them; `gone` removed, `old` superseded."""
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "old", "gone"), sequence=1)
        repository.commit()
        put(repository, values(2, "old", "b"), sequence=2)
        remove(repository, [b"gone"], sequence=3)
        repository.commit()
        put(repository, values(4, "c"), sequence=4)
    return disk


WHOLE = {**values(1, "a"), **values(2, "old", "b"), **values(4, "c")}


# --- the steps ----------------------------------------------------------------------------------


def test_newest_manifest_and_the_packs_after_it(disk: SimulatedDisk) -> None:
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert (recovery.source, recovery.generation, recovery.blocks) == ("manifest", 2, 4)
        assert recovery.committed_at > 0
        assert contents_of(repository) == WHOLE


def test_an_unreadable_manifest_falls_back_to_the_one_before(disk: SimulatedDisk) -> None:
    flip(disk, "manifests/0000000002.manifest", 5000)
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert (recovery.source, recovery.generation) == ("previous", 1)
        assert len(recovery.unreadable_manifests) == 1
        assert contents_of(repository) == WHOLE


def test_without_any_manifest_packs_alone_give_the_same(disk: SimulatedDisk) -> None:
    for name in names_in(disk, "manifests"):
        flip(disk, name, 5000)
    with Repository.open(disk) as repository:
        assert repository.recover().source == "rebuilt"
        assert contents_of(repository) == WHOLE


def test_rebuild_needs_no_journal_once_a_pack_was_sealed(disk: SimulatedDisk) -> None:
    """Epochs, removals and versions are all in the packs."""
    with opened(disk) as repository:
        put(repository, values(9, "z"), sequence=9)
        repository.journal(epoch=1)
        put(repository, values(10, "y"), sequence=10, epoch=1)
    for directory in ("manifests", "journal"):
        for name in names_in(disk, directory):
            disk.remove(name)
    with Repository.open(disk) as repository:
        assert repository.recover().source == "rebuilt"
        assert contents_of(repository) == values(10, "y")
        assert repository.epoch == 1


def test_nothing_usable_starts_empty_and_moves_the_files_aside(disk: SimulatedDisk) -> None:
    for directory in ("manifests", "packs"):
        for name in names_in(disk, directory):
            flip(disk, name, 100)
            flip(disk, name, len(disk.contents(name)) - 100)
    before = len(names_in(disk, "packs")) + len(names_in(disk, "manifests"))
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert recovery.source == "empty"
        assert len(recovery.moved_aside) == before
        assert names_in(disk, "packs") == names_in(disk, "manifests") == []
        assert names_in(disk, "aside-1") == sorted(recovery.moved_aside)
        put(repository, values(1, "new"))
        assert repository.commit().generation > 2
    with opened(disk) as repository:
        assert contents_of(repository) == values(1, "new")


def test_a_manifest_whose_pack_is_missing_loses_just_that_and_counts_it(
    disk: SimulatedDisk,
) -> None:
    disk.remove(names_in(disk, "packs")[1])
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert recovery.blocks_lost == 2
        assert len(recovery.unreadable_packs) == 1
        # The older version of `old` stays dead although nothing newer is there.
        assert contents_of(repository) == {**values(1, "a"), **values(4, "c")}


def test_losing_the_index_that_superseded_a_block_does_not_bring_it_back(
    disk: SimulatedDisk,
) -> None:
    """The journal says it too, until the next pack does."""
    with opened(disk) as repository:
        put(repository, values(20, "a"), sequence=20)
    newest = names_in(disk, "packs")[-1]
    flip(disk, newest, len(disk.contents(newest)) - 100)
    with opened(disk) as repository:
        assert b"a" not in contents_of(repository)


# --- newer and foreign files --------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["manifests", "packs", "journal"])
def test_a_writer_refuses_a_newer_file_and_changes_nothing(
    disk: SimulatedDisk, directory: str
) -> None:
    with opened(disk) as repository:
        remove(repository, [b"b"], sequence=9)
    for name in names_in(disk, directory):
        whole = disk.contents(name)
        make_newer(disk, name)
        with case(FaultClass.OTHER_VERSION, f"a writer meets a newer file in {directory}"):
            before = {one: disk.contents(one) for one in all_files(disk)}
            for _ in range(2):
                with pytest.raises(NewerFormatError, match=f"{name}.*move the repository aside"):
                    Repository.open(disk)
            assert {one: disk.contents(one) for one in all_files(disk)} == before
        disk.replace_contents(name, whole)
    with opened(disk) as repository:
        assert contents_of(repository) == {key: WHOLE[key] for key in WHOLE if key != b"b"}


def test_a_newer_trailer_is_seen_behind_a_damaged_header(disk: SimulatedDisk) -> None:
    name = names_in(disk, "packs")[-1]
    make_newer(disk, name, end=True)
    flip(disk, name, 100)
    with pytest.raises(NewerFormatError):
        Repository.open(disk)


def test_a_record_that_only_a_newer_journal_knows_is_refused_too(disk: SimulatedDisk) -> None:
    with opened(disk) as repository:
        remove(repository, [b"b"], sequence=9)
        at = RecordPlace(1, 1)
        unknown = _encode(77, b"x", 0, at, repository.repository_id)  # type: ignore[arg-type]
    name = names_in(disk, "journal")[-1]
    disk.replace_contents(name, disk.contents(name) + b"".join(encode_batch([unknown])))
    before = {one: disk.contents(one) for one in all_files(disk)}
    with case(FaultClass.OTHER_VERSION, "a writer meets a journal record of an unknown kind"):
        with (
            Repository.open(disk) as repository,
            pytest.raises(NewerFormatError, match="kinds that are not known"),
        ):
            repository.recover()
        assert {one: disk.contents(one) for one in all_files(disk)} == before


def test_readers_say_which_files_are_newer(disk: SimulatedDisk) -> None:
    make_newer(disk, "manifests/0000000002.manifest")
    make_newer(disk, names_in(disk, "packs")[-1])
    with Repository.open(disk, read_only=True) as repository:
        recovery = repository.recover()
        assert "newer" in recovery.unreadable_manifests[0]
        assert "newer" in recovery.unreadable_packs[0]
        problems = [one.problem for one in repository.generations()]
        assert ["newer" in one for one in problems] == [False, True]
        findings = repository.verify(all_blocks=True).findings
        assert sum("newer" in one.problem for one in findings) == 2


def test_a_newer_repository_is_refused(disk: SimulatedDisk) -> None:
    text = disk.contents("repository.json").replace(b": 1", b": 2").replace(b"checksum", b"other")
    disk.replace_contents("repository.json", text)
    for read_only in (False, True):
        with pytest.raises(NewerFormatError):
            Repository.open(disk, read_only=read_only)
    assert disk.contents("repository.json") == text


def test_a_damaged_repository_file_is_replaced_from_what_repeats_it(disk: SimulatedDisk) -> None:
    disk.replace_contents("repository.json", b"{")
    with Repository.open(disk, read_only=True) as repository:
        repository.recover()
        assert contents_of(repository) == WHOLE
    with Repository.open(disk) as repository:
        assert repository.recover().moved_aside == ["aside-1/repository.json"]
        assert contents_of(repository) == WHOLE
    with opened(disk) as repository:
        assert contents_of(repository) == WHOLE


def test_packs_and_journals_of_another_repository_are_not_believed(disk: SimulatedDisk) -> None:
    other = SimulatedDisk(99)
    with opened(other) as repository:
        put(repository, values(50, "a", "foreign"), sequence=50)
        remove(repository, [b"b"], sequence=51)
    for name in [*names_in(other, "packs"), *names_in(other, "journal")]:
        target = name.replace("0000000001", "0000000077")
        disk.open(target, "x").write([other.contents(name)], 0)
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert "another repository" in recovery.unreadable_packs[0]
        assert contents_of(repository) == WHOLE


def test_a_pack_under_another_name_is_not_believed(disk: SimulatedDisk) -> None:
    name = names_in(disk, "packs")[0]
    disk.rename(name, name.replace("0000000001", "0000000009"))
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert len(recovery.unreadable_packs) == 2
        assert contents_of(repository) == {**values(2, "old", "b"), **values(4, "c")}


def test_another_pack_under_the_same_name_is_not_what_the_manifest_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every header and checksum is right; only the digest in the manifest tells."""
    monkeypatch.setattr(intake.secrets, "token_bytes", lambda count: b"i" * count)
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a"), sequence=1)
        repository.commit()
    other = SimulatedDisk(SEED)
    with opened(other) as repository:
        put(repository, values(2, "a"), sequence=1)
    (name,) = names_in(disk, "packs")
    assert names_in(other, "packs") == [name]
    disk.replace_contents(name, other.contents(name))
    with Repository.open(disk) as repository:
        recovery = repository.recover()
        assert recovery.blocks_lost == 1
        assert "not the pack" in recovery.unreadable_packs[0]
        assert contents_of(repository) == {}


def put_and_commit(repository: Repository) -> None:
    put(repository, values(40, "n"), sequence=40)
    repository.commit()


@pytest.mark.parametrize("directory", ["manifests", "packs"])
def test_what_does_not_read_back_as_written_is_an_error_and_nothing_is_pruned(
    disk: SimulatedDisk, directory: str
) -> None:
    with opened(disk, retain=1) as repository:
        before = names_in(disk, "manifests"), names_in(disk, "packs")

        def lose_a_bit(operation: Operation) -> int:
            if operation.kind == "open" and operation.name.startswith(f"{directory}/"):
                at = len(disk.contents(operation.name)) - PAGE_BYTES - 100
                flip(disk, operation.name, at)
                disk.fault = None
            return 0

        disk.fault = lose_a_bit
        with pytest.raises(CorruptError):
            put_and_commit(repository)
        assert set(before[0]) <= set(names_in(disk, "manifests"))
        assert set(before[1]) <= set(names_in(disk, "packs"))
        assert contents_of(repository).items() >= WHOLE.items()


# --- names and ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["packs", "manifests"])
@pytest.mark.parametrize("what", ["zeros", "a flipped bit", "of another file"])
def test_a_bad_header_costs_nothing_and_is_a_finding(
    disk: SimulatedDisk, directory: str, what: str
) -> None:
    for name in names_in(disk, directory):
        data = disk.contents(name)
        header = {
            "zeros": bytes(PAGE_BYTES),
            "a flipped bit": bytes([data[0] ^ 1]) + data[1:PAGE_BYTES],
            "of another file": disk.contents(
                next(one for one in names_in(disk, directory) if one != name)
            )[:PAGE_BYTES],
        }[what]
        with case(FaultClass.DISK_LIES, f"header of one of the {directory}: {what}"):
            disk.replace_contents(name, header + data[PAGE_BYTES:])
            is_read = name != "manifests/0000000001.manifest"
            with Repository.open(disk, read_only=True) as repository:
                recovery = repository.recover()
                assert recovery.damaged_headers == [
                    one for one in recovery.damaged_headers if name in one
                ]
                assert len(recovery.damaged_headers) == is_read
                assert (recovery.source, recovery.blocks_lost) == ("manifest", 0)
                assert contents_of(repository) == WHOLE
                found = repository.verify(all_blocks=True).findings
                assert [one.file for one in found] == [name]
                assert "trailer serves" in found[0].problem
        disk.replace_contents(name, data)


def test_a_trailer_of_another_pack_is_not_believed(disk: SimulatedDisk) -> None:
    first, second = names_in(disk, "packs")[:2]
    disk.replace_contents(first, disk.contents(second))
    with opened(disk) as repository, case(FaultClass.DISK_LIES, "a pack in place of another"):
        kept = contents_of(repository)
        assert kept == {key: data for key, data in WHOLE.items() if key in kept}
        assert "header of another pack" in repository.recover().unreadable_packs[0]


FAR = "9999999999"
"""The highest number that fits into a name."""


@pytest.mark.parametrize(
    "stray",
    [
        f"packs/4294967294-{'ab' * 16}.pack",
        f"manifests/{FAR}.manifest",
        f"journal/{FAR}.journal",
    ],
)
@pytest.mark.parametrize("what", ["empty", "noise", "a copy"])
def test_a_stray_file_with_a_high_number_uses_up_nothing(
    disk: SimulatedDisk, stray: str, what: str
) -> None:
    directory = stray.partition("/")[0]
    with opened(disk) as repository:
        remove(repository, [b"b"], sequence=9)
    like = disk.contents(names_in(disk, directory)[-1])
    data = {"empty": b"", "noise": np.random.default_rng(SEED).bytes(9000), "a copy": like}[what]
    file = disk.open(stray, "x")
    file.write([data], 0)
    file.close()
    with case(FaultClass.HOSTILE_FILE, f"{what} under the name of a far number in {directory}"):
        for sequence in range(20, 23):
            with Repository.open(disk) as repository:
                recovery = repository.recover()
                told = [
                    *recovery.unreadable_packs,
                    *recovery.unreadable_manifests,
                    *recovery.journal_findings,
                ]
                # What holds nothing at all is what a crash leaves of a new journal file.
                assert any(stray in one for one in told) or (directory, what) == (
                    "journal",
                    "empty",
                )
                put(repository, values(sequence, "d"), sequence=sequence)
                remove(repository, [b"c"], sequence=sequence)
                summary = repository.commit()
                assert summary.generation < 100
                assert max(repository._state.packs) < 100
                wanted = {key: data for key, data in WHOLE.items() if key not in {b"b", b"c"}}
                assert contents_of(repository) == wanted | values(sequence, "d")
        if data or directory != "journal":
            assert disk.contents(stray) == data


def test_names_that_are_no_packs_are_left_alone(disk: SimulatedDisk) -> None:
    for name in ("packs/readme", "packs/9999999999-" + "0" * 32 + ".pack", "manifests/x"):
        disk.open(name, "x").write([b"?"], 0)
    with opened(disk) as repository:
        assert contents_of(repository) == WHOLE
        repository.commit()
    assert "packs/readme" in names_in(disk, "packs")


# --- damage -------------------------------------------------------------------------------------


def test_any_damaged_byte_gives_no_wrong_byte_and_no_removed_key() -> None:
    """Each file in turn, seeded positions: what is restored is right, and recovery never fails."""
    rng = np.random.default_rng(SEED)
    base = SimulatedDisk(SEED)
    with opened(base) as repository:
        put(repository, values(1, "a", "old", "gone"), sequence=1)
        repository.commit()
        put(repository, values(2, "old", "b"), sequence=2)
        remove(repository, [b"gone"], sequence=3)
        repository.commit()
        put(repository, values(4, "c"), sequence=4)
        remove(repository, [b"b"], sequence=5)
    right = {**values(1, "a"), **values(2, "old"), **values(4, "c")}
    files = [n for d in ("packs", "manifests", "journal") for n in names_in(base, d)]
    for name in [*files, "repository.json"]:
        size = len(base.contents(name))
        for at in rng.integers(0, size, 40).tolist():
            disk = base.clone(SEED)
            flip(disk, name, at)
            check_subset(disk, right, (name, at), lossless=name.startswith("manifests"))
        for length in rng.integers(0, size, 15).tolist():
            disk = base.clone(SEED)
            disk.replace_contents(name, disk.contents(name)[:length])
            check_subset(disk, right, (name, length), lossless=name.startswith("manifests"))


def check_subset(
    disk: SimulatedDisk, right: dict[bytes, bytes], where: object, *, lossless: bool
) -> None:
    with opened(disk) as repository:
        rows = repository.catalog.live_rows()
        table = repository.catalog.take(rows)
        buffers = [blank(size) for size in table.size.tolist()]
        good = repository.read(rows, buffers)
        found = {
            key: bytes(buffer[:2500])
            for key, buffer, fine in zip(table.keys.to_list(), buffers, good, strict=True)
            if fine
        }
        # `b` was removed by the journal's only record: if just that is hit, nothing else knows.
        expected = {**right, b"b": content(b"b", 2, 2500)} if "journal" in str(where) else right
        assert found.items() <= expected.items(), where
        if lossless:
            assert found == right, where


def test_two_blocks_that_changed_places_are_both_refused(disk: SimulatedDisk) -> None:
    name = names_in(disk, "packs")[0]
    data = bytearray(disk.contents(name))
    first, second = slice(4096, 8192), slice(8192, 12288)
    data[first], data[second] = data[second], data[first]
    disk.replace_contents(name, bytes(data))
    with opened(disk) as repository:
        rows = repository.catalog.find(KeyColumn.from_list([b"a"]), hash_keys([b"a"]))
        assert not repository.read(rows, [blank(2500)]).any()
        assert repository.reject(rows) == 1
        assert disk.list("quarantine")
        assert repository.catalog.state_of(rows).tolist() == [RowState.LOST]
        assert b"a" not in contents_of(repository)
        findings = repository.verify(all_blocks=True).findings
        assert [finding.file for finding in findings] == [name]


def test_verify_names_what_is_damaged_and_samples_cover_everything(disk: SimulatedDisk) -> None:
    with Repository.open(disk, read_only=True) as repository:
        clean = repository.verify()
        assert (clean.generation, clean.packs, clean.blocks, clean.findings) == (2, 2, 3, [])
        parts = [repository.verify(all_blocks=True, sample=Sample(n, 3)) for n in (1, 2, 3)]
        assert sum(part.blocks for part in parts) == repository.verify(all_blocks=True).blocks == 6
        with pytest.raises(NothingThereError):
            repository.verify(77)
    flip(disk, names_in(disk, "packs")[1], 4100)
    flip(disk, "manifests/0000000001.manifest", 0)
    with Repository.open(disk, read_only=True) as repository:
        assert [one.blocks for one in repository.verify().findings] == [1]
        files = [one.file for one in repository.verify(all_blocks=True).findings]
        assert files == ["manifests/0000000001.manifest", names_in(disk, "packs")[1]]


# --- pruning ------------------------------------------------------------------------------------


def test_pruning_keeps_what_retained_generations_need(disk: SimulatedDisk) -> None:
    with opened(disk, retain=2) as repository:
        for sequence in range(10, 20):
            put(repository, values(sequence, "a", "old", "b", "c"), sequence=sequence)
            pruned = repository.commit().pruned
            assert not pruned.blocked
        assert len(disk.list("manifests")) == 2
        assert len(disk.list("packs")) == 2
        assert contents_of(repository) == values(19, "a", "old", "b", "c")
        assert repository.verify(all_blocks=True).findings == []
        for generation in repository.generations():
            assert repository.verify(generation.generation).findings == []


def test_a_readers_pin_stops_pruning_and_pruning_resumes(disk: SimulatedDisk) -> None:
    with opened(disk, retain=1) as repository:
        with Repository.open(disk, read_only=True):
            put(repository, values(10, "a", "old", "b", "c"), sequence=10)
            assert "pin" in repository.commit().pruned.blocked
            assert len(disk.list("manifests")) == 3
            assert len(disk.list("packs")) == 4
        assert repository.commit().pruned.packs == 3
        assert len(disk.list("packs")) == 1


def test_a_shield_is_not_deleted_without_saying_again_what_it_said() -> None:
    """Pack 2 supersedes a block of pack 1 and dies; pack 1 stays. A rebuild must not revive it."""
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=1) as repository:
        put(repository, values(1, "stays", "k"), sequence=1)
        put(repository, values(2, "k"), sequence=2)
        remove(repository, [b"k"], sequence=3)
        put(repository, values(4, "x"), sequence=4)
        repository.commit()
        repository.commit()
        assert len(disk.list("packs")) == 2
        assert [name[:10] for name in disk.list("packs")] == ["0000000001", "0000000003"]
        # Now the pack that carries the removal dies as well.
        put(repository, values(5, "x"), sequence=5)
        repository.commit()
        repository.commit()
        assert [name[:10] for name in disk.list("packs")] == ["0000000001", "0000000004"]
        repository.rebuild()
        assert contents_of(repository) == {**values(1, "stays"), **values(5, "x")}


def test_an_epoch_survives_the_packs_that_said_it() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=1) as repository:
        put(repository, values(1, "a"), sequence=1)
        repository.journal(epoch=4)
        put(repository, values(2, "b"), sequence=2, epoch=4)
        for _ in range(3):
            repository.commit()
        repository.journal(epoch=5)
        put(repository, values(3, "c"), sequence=3, epoch=5)
        for _ in range(3):
            repository.commit()
        repository.rebuild()
        assert repository.epoch == 5
        assert contents_of(repository) == values(3, "c")


def test_an_epoch_is_said_again_when_the_only_pack_that_says_it_goes() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=2) as repository:
        put(repository, values(1, "a"), sequence=1)
        repository.commit()
        repository.journal(epoch=1)
        rows = put(repository, values(2, "b"), sequence=2, epoch=1)
        repository.catalog.set_live(rows, live=False)
        assert repository.commit().pruned.packs == 1
        assert [name[:10] for name in disk.list("packs")] == ["0000000001"]
    for name in names_in(disk, "manifests"):
        disk.remove(name)
    with opened(disk) as repository:
        assert repository.epoch == 1
        assert contents_of(repository) == {}


def test_a_rebuild_forgets_no_epoch_although_every_pack_that_said_it_is_gone() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk, retain=1) as repository:
        put(repository, values(1, "a"), sequence=1)
        first = repository.incarnation(b"1" * 16)
        repository.journal(epoch=7)
        put(repository, values(2, "b"), sequence=2)
        repository.commit()
        repository.commit()
        assert disk.list("packs") == disk.list("journal") == []
        repository.rebuild()
        assert repository.epoch == 7
        assert repository.incarnation(b"1" * 16) == first
        assert repository.incarnation(b"2" * 16).epoch_base == 7


def test_a_block_of_an_epoch_that_ended_while_it_was_written_is_dead() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        writer = repository.begin_pack()
        append(writer, values(1, "a"), sequence=1)
        repository.journal(epoch=1)
        writer.seal()
        assert contents_of(repository) == {}


def test_a_pack_sealed_after_the_newest_manifest_is_never_pruned() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        repository.commit()
        rows = put(repository, values(1, "a"), sequence=1)
        repository.catalog.set_live(rows, live=False)
        assert repository.prune().packs == 0
        assert len(disk.list("packs")) == 1


def test_journal_files_go_only_when_a_sealed_pack_and_a_manifest_cover_them() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(1, "a", "b"), sequence=1)
        repository.commit()
        remove(repository, [b"a"], sequence=2)
        repository.commit()
        assert len(disk.list("journal")) == 1, "no pack carries the removal yet"
        put(repository, values(3, "c"), sequence=3)
        assert len(disk.list("journal")) == 1, "no manifest covers it yet"
        repository.commit()
        assert disk.list("journal") == []


def test_many_removals_get_a_pack_of_their_own_which_stays_while_it_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit_module, "PENDING_REMOVALS_MAX", 100)
    disk = SimulatedDisk(SEED)
    names = [f"{number:03d}" for number in range(200)]
    with opened(disk, retain=1) as repository:
        put(repository, values(1, "stays", *names), sequence=1)
        remove(repository, [name.encode() for name in names], sequence=2)
        for _ in range(4):
            repository.commit()
            assert [name[:10] for name in disk.list("packs")] == ["0000000001", "0000000002"]
            assert disk.list("journal") == []
        repository.rebuild()
        assert contents_of(repository) == values(1, "stays")
        # Once the blocks that it covers are gone, it goes too.
        put(repository, values(3, "stays"), sequence=3)
        for _ in range(3):
            repository.commit()
        assert [name[:10] for name in disk.list("packs")] == ["0000000003"]


# --- versions and rows --------------------------------------------------------------------------


def test_an_older_version_sealed_late_does_not_win() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, values(5, "k"), sequence=5)
        put(repository, values(3, "k"), sequence=3)
        assert contents_of(repository) == values(5, "k")
        repository.rebuild()
        assert contents_of(repository) == values(5, "k")


def test_a_removal_while_a_pack_is_written_kills_what_it_will_hold() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        writer = repository.begin_pack()
        append(writer, values(1, "a", "b"), sequence=1)
        remove(repository, [b"a"], sequence=2)
        writer.seal()
        assert contents_of(repository) == values(1, "b")
    with opened(disk) as repository:
        assert contents_of(repository) == values(1, "b")
        repository.rebuild()
        assert contents_of(repository) == values(1, "b")


def test_a_pack_sealed_after_the_commit_that_began_before_it_is_found_again() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        slow = repository.begin_pack()
        append(slow, values(1, "slow"), sequence=1)
        put(repository, values(2, "fast"), sequence=2)
        repository.commit()
        slow.seal()
    with opened(disk) as repository:
        assert contents_of(repository) == {**values(1, "slow"), **values(2, "fast")}


def test_only_evicted_rows_come_back_to_life() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        rows = put(repository, values(1, "evicted", "removed", "superseded"), sequence=1)
        put(repository, values(2, "superseded"), sequence=2)
        remove(repository, [b"removed"], sequence=3)
        catalog = repository.catalog
        assert catalog.set_live(rows[:1], live=False).all()
        assert contents_of(repository) == values(2, "superseded")
        assert catalog.set_live(rows, live=True).tolist() == [True, False, False]
        assert contents_of(repository) == {**values(1, "evicted"), **values(2, "superseded")}


def test_incarnations_keep_their_order_and_epochs_never_fall() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        first = repository.incarnation(b"1" * 16)
        repository.journal(epoch=3)
        second = repository.incarnation(b"2" * 16)
        assert (first.ordinal, first.epoch_base) == (1, 0)
        assert (second.ordinal, second.epoch_base) == (2, 3)
    disk.crash()
    with opened(disk) as repository:
        assert repository.incarnation(b"1" * 16) == first
        assert repository.incarnation(b"2" * 16) == second
        assert repository.incarnation(b"3" * 16).ordinal == 3


def test_fingerprints_come_back_with_their_blocks() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        label = repository.fingerprint("model/bf16")
        assert repository.fingerprint("") == 0
        assert repository.fingerprint("model/bf16") == label
        writer = repository.begin_pack()
        append(writer, values(1, "a"), fingerprint=label)
        writer.seal()
    with opened(disk) as repository:
        assert repository.fingerprints == {label: "model/bf16"}
        assert repository.catalog.column("fingerprint", repository.catalog.rows()).tolist() == [
            label
        ]


# --- failures -----------------------------------------------------------------------------------


def append_and_seal(writer: PackWriter) -> None:
    append(writer, values(1, "a"))
    writer.seal()


@pytest.mark.parametrize(("kind", "nth"), [("write", 0), ("write", 1), ("sync", 0), ("rename", 0)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_pack_is_given_up_and_the_next_one_works(kind: str, nth: int, code: int) -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        writer = repository.begin_pack()
        disk.fail_kind(kind, nth, code)
        with pytest.raises(DiskError) as caught:
            append_and_seal(writer)
        assert caught.value.errno == code
        with pytest.raises(DiskError):
            writer.seal()
        assert disk.list("packs") == []
        assert len(repository.catalog) == 0
        put(repository, values(1, "a"))
        assert contents_of(repository) == values(1, "a")


def test_a_failed_commit_leaves_the_generation_before_and_prunes_nothing(
    disk: SimulatedDisk,
) -> None:
    with opened(disk, retain=1) as repository:
        for kind in ("create", "write", "sync", "rename", "syncdir", "read"):
            before = names_in(disk, "manifests"), names_in(disk, "packs")
            disk.fail_kind(kind)
            with pytest.raises(DiskError):
                repository.commit()
            assert set(before[0]) <= set(names_in(disk, "manifests")), kind
            assert before[1] == names_in(disk, "packs"), kind
        disk.fault = None
        repository.commit()
        assert contents_of(repository) == WHOLE


def test_a_block_without_its_checksum_never_reaches_a_pack() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        writer = repository.begin_pack()
        blocks = values(1, "good", "bad")
        table = table_of(list(blocks), list(blocks.values()))
        buffers = [blank(2500), blank(2500)]
        buffers[0][:2500] = blocks[b"good"]
        assert writer.append(table, buffers).tolist() == [True, False]
        assert writer.seal().tolist() == [0, -1]
        pack = disk.contents(names_in(disk, "packs")[0])
        assert b"\xaa" * 8 not in pack, "bytes behind the block reached the disk"


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000, 1 << 20])
def test_blocks_of_every_size_come_back_through_every_codec(codec: Codec, size: int) -> None:
    disk = SimulatedDisk(SEED)
    blocks = {b"noise": content(b"noise", 1, size), b"zeros": bytes(size)}
    with opened(disk, codec=codec) as repository:
        rows = put(repository, blocks)
        assert contents_of(repository) == blocks
        stored = repository.catalog.column("stored_size", rows).tolist()
        assert stored[0] == size
        assert stored[1] == size if codec is Codec.RAW or size <= 4096 else stored[1] < size
    with opened(disk) as repository:
        assert contents_of(repository) == blocks
        buffer = blank(size)
        assert repository.read(rows[1:], [buffer]).all()
        assert not any(buffer), "the padding is not clean"


def test_a_second_writer_is_refused_and_readers_change_nothing(disk: SimulatedDisk) -> None:
    with opened(disk):
        with pytest.raises(LockHeldError):
            Repository.open(disk)
        with opened(disk, read_only=True) as reader:
            operations = disk.counts["write"], disk.counts["create"]
            assert contents_of(reader) == WHOLE
            for call in (
                reader.commit,
                reader.begin_pack,
                reader.rebuild,
                lambda: reader.journal(epoch=9),
                lambda: reader.incarnation(b"n" * 16),
            ):
                with pytest.raises(RefusedError):
                    call()
            assert (disk.counts["write"], disk.counts["create"]) == operations


def test_reading_an_empty_directory_says_that_nothing_is_there() -> None:
    with pytest.raises(NothingThereError):
        Repository.open(SimulatedDisk(1), read_only=True)


def test_recovery_reads_no_block() -> None:
    disk = SimulatedDisk(SEED)
    with opened(disk) as repository:
        put(repository, {b"big": bytes(8 << 20)})
        repository.commit()
    before = disk.bytes_read
    with opened(disk):
        assert disk.bytes_read - before < 200_000


def test_show_and_list(disk: SimulatedDisk) -> None:
    flip(disk, "manifests/0000000001.manifest", 4200)
    with opened(disk, read_only=True) as repository:
        first, second = repository.generations()
        assert first.manifest is None
        assert "digest" in first.problem
        assert second.manifest is not None
        assert second.manifest.blocks == 3
        assert repository.show(2).blocks == 3
        with pytest.raises(CorruptError):
            repository.show(1)
        with pytest.raises(NothingThereError):
            repository.show(3)


def test_what_a_failed_sync_left_in_the_page_cache_is_not_believed_twice() -> None:
    """The sync of a removal fails, the process restarts and reads it from the page cache, and
    then the power goes: what the restart took for removed stays removed."""
    for seed in range(20):
        disk = SimulatedDisk(seed)
        with opened(disk) as repository:
            put(repository, values(1, "a", "b"), sequence=1)
            disk.fail_kind("sync")
            with pytest.raises(DiskError):
                remove(repository, [b"a"], sequence=2)
            assert contents_of(repository) == values(1, "a", "b")
        disk.fault = None
        with opened(disk) as repository:
            found = contents_of(repository)
        disk.crash()
        with opened(disk) as repository:
            assert contents_of(repository) == found, f"seed {seed}"


def test_a_pack_whose_name_may_not_be_durable_is_not_named_by_a_durable_manifest() -> None:
    """The sync of the directory fails after the rename, the process restarts and commits."""
    for seed in range(20):
        disk = SimulatedDisk(seed)
        with opened(disk) as repository:
            writer = repository.begin_pack()
            append(writer, values(1, "a"))
            disk.fail_kind("syncdir")
            with pytest.raises(DiskError):
                writer.seal()
        disk.fault = None
        with opened(disk) as repository:
            found = contents_of(repository)
            repository.commit()
        disk.crash()
        with Repository.open(disk) as repository:
            assert repository.recover().blocks_lost == 0, f"seed {seed}"
            assert contents_of(repository) == found, f"seed {seed}"


def test_heat_stays_with_its_block_when_packs_are_sealed_out_of_order(disk: SimulatedDisk) -> None:
    """The rows of a catalog are in the order of sealing, a manifest in the order of packs."""
    with Repository.open(disk) as repository:
        repository.recover()
        early, late = repository.begin_pack(), repository.begin_pack()
        append(early, {b"cool": b"c" * 5000, b"cold": b"d" * 5000}, sequence=1)
        append(late, {b"hot": b"h" * 5000}, sequence=2)
        hot = late.seal()
        others = early.seal()
        catalog = repository.catalog
        catalog.set_heat(np.concatenate([hot, others]), np.array([64, 4, 1], np.float32))
        repository.commit()
    with Repository.open(disk) as repository:
        repository.recover()
        rows = repository.catalog.find(
            KeyColumn.from_list([b"hot", b"cool", b"cold"]), hash_keys([b"hot", b"cool", b"cold"])
        )
        heat = repository.catalog.column("heat", rows)
    assert heat.tolist() == pytest.approx([64, 4, 1], rel=0.1)
