"""Containers made by hand to write where they should not, or to cost more than they hold."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import xxhash
import zstandard
from backup_kit import KEY, build, restore_archive
from fault_ledger import FaultClass, case

from snapd.backup import RestoreOptions, captured, load_stream
from snapd.backup.format import (
    CHUNK_BYTES,
    ChunkCodec,
    Cipher,
    Contents,
    FileEntry,
    Plan,
    RecordKind,
    encode_chunk_head,
    encode_header,
    encode_record_head,
)
from snapd.backup.sealing import BackupKey, sealer_of
from snapd.backup.stream import ArchiveWriter
from snapd.disk.posix import PosixDisk
from snapd.disk.simulated import SimulatedDisk
from snapd.errors import CorruptError, DiskError, RefusedError, SnapdError
from snapd.repository.names import LOCK_FILE, RESTORE_FILE

NAMES = [
    "/etc/passwd",
    "../outside",
    "packs/../../outside",
    "packs/../repository.json",
    "./repository.json",
    "packs//0000000001.pack",
    "packs/0000000001.pack",
    "packs/0000000001-" + "0" * 32 + ".pack.tmp",
    "packs/0000000001-" + "0" * 32 + ".PACK",
    "packs/٠٠٠٠٠٠٠٠٠١-" + "0" * 32 + ".pack",
    "manifests/0000000001.manifest/x",
    "manifests/00000000001.manifest",
    "journal/ballast",
    "quarantine/0000000001-0000000000001000.block",
    "aside-1/x",
    "lock",
    "restoring",
    "repository.json\0",
    "packs",
    "x" * 97,
]
GOOD = "manifests/0000000001.manifest"


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "repository_id": "00" * 16,
        "generation": 1,
        "created_ns": 0,
        "blocks": 0,
        "bytes": 0,
        "files": 1,
        "file_bytes": 1,
    }
    return Plan(**(fields | changes))  # type: ignore[arg-type]


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data))


def made(
    files: list[tuple[str, bytes]],
    key: BackupKey | None = None,
    *,
    said: list[FileEntry] | None = None,
    of: Plan | None = None,
) -> bytes:
    """An archive with these files, whatever they are called."""
    out = bytearray()
    writer = ArchiveWriter(lambda data: out.extend(memoryview(data)), key, level=1)
    with writer:
        writer.plan(of or plan())
        for name, data in files:
            writer.begin_file(name, len(data))
            writer.data(data)
        entries = said if said is not None else [entry(name, data) for name, data in files]
        writer.finish(Contents(files=tuple(entries)))
    return bytes(out)


def refused(archive: bytes, what: str, root: Path, key: BackupKey | None = None) -> None:
    """Restoring it into `root/target` fails, and nothing outside of that changed."""
    outside = sorted(path for path in root.rglob("*") if "target" not in path.parts)
    with case(FaultClass.HOSTILE_FILE, f"backup: {what}"):
        disk = PosixDisk(root / "target", create=True)
        try:
            with pytest.raises((CorruptError, RefusedError, DiskError)):
                load_stream(disk, io.BytesIO(archive), key, RestoreOptions())
            names = set(disk.list(""))
            assert RESTORE_FILE in names or names <= {LOCK_FILE}, "something is visible"
        finally:
            disk.close()
    assert sorted(path for path in root.rglob("*") if "target" not in path.parts) == outside


@pytest.mark.parametrize("number", range(len(NAMES)))
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_no_name_but_a_repositorys_own_is_opened(
    tmp_path: Path, number: int, key: BackupKey | None
) -> None:
    name = NAMES[number]
    refused(made([(name, b"x")], key), f"a file called {name!r}, key {bool(key)}", tmp_path, key)
    # As a name in the contents, too.
    archive = made([(GOOD, b"x")], key, said=[entry(GOOD, b"x"), entry(name, b"x")])
    refused(archive, f"contents with {name!r}, key {bool(key)}", tmp_path, key)


def test_links_in_the_target_lead_nowhere(tmp_path: Path) -> None:
    source = SimulatedDisk(1)
    build(source)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with captured(source) as capture:
        archive = made(list(capture.small.items()))
    for name in ("packs", "manifests", "journal", "restoring.tmp", "restoring"):
        target = tmp_path / f"target-{name}"
        target.mkdir()
        (target / name).symlink_to(elsewhere if "restoring" not in name else elsewhere / "file")
        with case(FaultClass.HOSTILE_FILE, f"restore into a directory whose {name} is a link"):
            disk = PosixDisk(target)
            with pytest.raises(SnapdError):
                load_stream(disk, io.BytesIO(archive), None, RestoreOptions(force=True))
            disk.close()
        assert os.listdir(elsewhere) == []


def test_contents_that_say_something_else_are_refused(tmp_path: Path) -> None:
    other = "journal/0000000001.journal"
    cases = {
        "another digest": made([(GOOD, b"x")], said=[entry(GOOD, b"y")]),
        "a file more": made([(GOOD, b"x")], said=[entry(GOOD, b"x"), entry(other, b"x")]),
        "a file less": made([(GOOD, b"x"), (other, b"x")], said=[entry(GOOD, b"x")]),
        "a file twice": made([(GOOD, b"x"), (GOOD, b"x")], said=[entry(GOOD, b"x")]),
        "a name twice": made([(GOOD, b"x")], said=[entry(GOOD, b"x")] * 2),
        "no repository": made([(GOOD, b"x")]),
        "nothing at all": made([]),
        "more than fits": made([(GOOD, b"x")], of=plan(file_bytes=1 << 60)),
        "numbers below zero": made([(GOOD, b"x")], of=plan(blocks=-1)),
        "no id": made([(GOOD, b"x")], of=plan(repository_id="../x")),
    }
    for what, archive in cases.items():
        refused(archive, what, tmp_path / what)


def raw_archive(
    content: bytes, *, claims: int | None = None, key: BackupKey | None = None
) -> bytes:
    """An archive of one chunk with this content, that claims to be as long as `claims`."""
    header = encode_header(
        b"a" * 16,
        key.key_id if key else bytes(16),
        Cipher.AES_256_GCM if key else Cipher.NONE,
        b"s" * 32,
    )
    stored = zstandard.ZstdCompressor().compress(content)
    length = len(content) if claims is None else claims
    head = encode_chunk_head(len(stored), length, ChunkCodec.ZSTD, last=True)
    return header.raw + head.raw + sealer_of(header, key).seal(0, head, stored)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = bytes(64 << 20)
    for claims in (0, 1, CHUNK_BYTES):
        archive = raw_archive(bomb, claims=claims)
        assert len(archive) < 16384
        refused(archive, f"64 MiB of zeros that claim to be {claims}", tmp_path / str(claims))
    with pytest.raises(CorruptError):
        restore_archive(SimulatedDisk(), raw_archive(bomb, claims=1 << 30))


def test_lengths_of_records_are_bounded(tmp_path: Path) -> None:
    heads = {
        "a plan of 2^63 bytes": encode_record_head(RecordKind.PLAN, b"", 1 << 63),
        "a name of 2^31 bytes": b"\2\0\0\0" + b"\xff\xff\xff\x7f" + bytes(8),
        "kind 9": b"\x09\0\0\0" + bytes(12),
        "no plan": encode_record_head(RecordKind.FILE, GOOD.encode(), 1) + b"x",
        "half a head": b"\1\0\0",
    }
    for what, head in heads.items():
        refused(raw_archive(head), what, tmp_path / what.replace(" ", "-"))
