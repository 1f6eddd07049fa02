"""Archives: whatever happened to one on its way, no reader takes it for whole."""

from __future__ import annotations

import contextlib
import io

import pytest
import xxhash
from backup_kit import KEY, OTHER_KEY, archive_of, build, live, live_from_packs, restore_archive
from fault_ledger import FaultClass, case

from snapd.backup.format import CHUNK_HEAD_BYTES, HEADER_BYTES, decode_chunk_head
from snapd.backup.sealing import BackupKey, parse_key
from snapd.backup.stream import ArchiveReader
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import CorruptError, NewerFormatError, RefusedError, SettingError


@pytest.fixture(scope="module")
def source() -> SimulatedDisk:
    disk = SimulatedDisk(1)
    build(disk)
    return disk


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def sealed(request: pytest.FixtureRequest, source: SimulatedDisk) -> tuple[bytes, BackupKey | None]:
    key = KEY if request.param == "encrypted" else None
    return archive_of(source, key), key


def chunks_of(archive: bytes) -> list[bytes]:
    """The chunks of an archive, with their heads."""
    found = []
    at = HEADER_BYTES
    while at < len(archive):
        head = decode_chunk_head(archive[at : at + CHUNK_HEAD_BYTES])
        end = at + CHUNK_HEAD_BYTES + head.stored_bytes
        found.append(archive[at:end])
        at = end
    return found


def refused(archive: bytes, key: BackupKey | None, what: str) -> None:
    """A restore of it fails, and nothing is visible."""
    disk = SimulatedDisk(3)
    with case(FaultClass.HOSTILE_FILE, f"backup {what}"):
        with pytest.raises((CorruptError, RefusedError)):
            restore_archive(disk, archive, key)
        with contextlib.suppress(RefusedError):
            assert live(disk) == {}


@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_comes_back_is_what_was_there(level: int) -> None:
    disk = SimulatedDisk(1)
    expected = build(disk)
    for key in (None, KEY):
        target = SimulatedDisk(2)
        result = restore_archive(target, archive_of(disk, key, level), key)
        assert (result.blocks, result.findings) == (4, [])
        assert live(target.clone(1)) == expected
        # Removals and newer versions do not depend on the manifest that came with them.
        assert live_from_packs(target) == expected


def test_a_dry_run_reads_everything_and_writes_nothing(
    sealed: tuple[bytes, BackupKey | None],
) -> None:
    archive, key = sealed
    disk = SimulatedDisk(3)
    assert restore_archive(disk, archive, key, dry_run=True).blocks == 4
    assert disk.files() == {}
    with pytest.raises(CorruptError):
        restore_archive(disk, archive[:-1], key, dry_run=True)


def test_an_archive_that_is_cut_off_anywhere_is_refused(
    sealed: tuple[bytes, BackupKey | None],
) -> None:
    archive, key = sealed
    ends = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(archive) - 1]
    at = HEADER_BYTES
    for chunk in chunks_of(archive)[:-1]:
        at += len(chunk)
        ends += [at, at + 3, at + CHUNK_HEAD_BYTES + 5]
    for end in ends:
        refused(archive[:end], key, f"cut off at {end} of {len(archive)}")


def test_chunks_that_are_moved_dropped_or_added_are_refused(
    sealed: tuple[bytes, BackupKey | None], source: SimulatedDisk
) -> None:
    archive, key = sealed
    chunks = chunks_of(archive)
    other = chunks_of(archive_of(source, key))
    assert len(chunks) > 6
    header = archive[:HEADER_BYTES]
    for number in range(len(chunks) - 1):
        swapped = [*chunks]
        swapped[number : number + 2] = swapped[number + 1], swapped[number]
        refused(header + b"".join(swapped), key, f"chunks {number} and the next swapped")
        less = chunks[:number] + chunks[number + 1 :]
        refused(header + b"".join(less), key, f"chunk {number} dropped")
        mixed = [*chunks]
        mixed[number] = other[number]
        refused(header + b"".join(mixed), key, f"chunk {number} of another archive")
    refused(archive + b"\0", key, "a byte behind the end")
    refused(archive + chunks[-1], key, "the last chunk twice")


def test_any_flipped_bit_is_noticed(sealed: tuple[bytes, BackupKey | None]) -> None:
    archive, key = sealed
    step = max(1, len(archive) // 120)
    for at in [*range(0, HEADER_BYTES + 40, 7), *range(HEADER_BYTES, len(archive), step)]:
        flipped = bytearray(archive)
        flipped[at] ^= 1 << (at % 8)
        refused(bytes(flipped), key, f"bit flipped in byte {at}")


def test_another_key_no_key_and_a_key_too_many_are_refused(source: SimulatedDisk) -> None:
    encrypted, plain = archive_of(source, KEY), archive_of(source)
    for archive, key, words in [
        (encrypted, OTHER_KEY, "the key file holds"),
        (encrypted, None, "--key-file"),
        (plain, KEY, "not encrypted"),
    ]:
        with case(FaultClass.HOSTILE_FILE, f"backup with a wrong key: {words}"):
            disk = SimulatedDisk(3)
            with pytest.raises(RefusedError, match=words):
                restore_archive(disk, archive, key)
            assert disk.files() == {}
    assert KEY.secret.hex().encode() not in encrypted
    assert KEY.key_id in encrypted


def test_nothing_readable_is_in_an_encrypted_backup(source: SimulatedDisk) -> None:
    archive = archive_of(source, KEY, level=0)
    for words in (b"repository", b"packs/", b".manifest", b"SNAPPACK"):
        assert words not in archive
        assert words in archive_of(source, level=0)


def test_two_backups_of_the_same_have_nothing_in_common(source: SimulatedDisk) -> None:
    first, second = (chunks_of(archive_of(source, KEY)) for _ in range(2))
    assert not {chunk[CHUNK_HEAD_BYTES:] for chunk in first} & {
        chunk[CHUNK_HEAD_BYTES:] for chunk in second
    }


def test_a_later_version_is_told_from_damage(source: SimulatedDisk) -> None:
    archive = bytearray(archive_of(source))
    archive[8] = 2
    with pytest.raises(CorruptError, match="checksum"):
        ArchiveReader(io.BytesIO(bytes(archive)), None)
    renew_checksum(archive)
    with pytest.raises(NewerFormatError):
        ArchiveReader(io.BytesIO(bytes(archive)), None)


def renew_checksum(archive: bytearray) -> None:
    """Give a header its checksum again."""
    digest = xxhash.xxh3_64_intdigest(bytes(archive[: HEADER_BYTES - 8]))
    archive[HEADER_BYTES - 8 : HEADER_BYTES] = digest.to_bytes(8, "little")


@pytest.mark.parametrize("raw", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_a_key_is_32_bytes_or_64_digits(raw: bytes) -> None:
    assert parse_key(raw) == KEY


@pytest.mark.parametrize("raw", [b"", b"x" * 31, b"x" * 33, b"g" * 64, b"0" * 63])
def test_anything_else_is_no_key(raw: bytes) -> None:
    with pytest.raises(SettingError):
        parse_key(raw)


def test_a_key_does_not_show_itself() -> None:
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
