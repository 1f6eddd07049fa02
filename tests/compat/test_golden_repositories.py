"""Repositories of each format version, kept as that version wrote them, against today's code; and
today's refused by name as if it were older. `tests/golden/make.py` made them, once each."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import forgery
import numpy as np
import pytest
import xxhash
import zstandard
from fault_ledger import FaultClass, case
from hostile_cases import Layout
from hostile_exam import live_on, look
from repository_kit import contents_of, put, remove
from sample_repository import FINGERPRINT

from snapd.disk.posix import PosixDisk
from snapd.errors import CorruptError, NewerFormatError
from snapd.formats.journal import RECORD_DTYPE
from snapd.formats.repository import encode_repository
from snapd.formats.sealed import FORMAT_VERSION
from snapd.formats.sections import ENTRY_DTYPE, HEAD_DTYPE, REQUIRED
from snapd.repository import Repository

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path.name.removesuffix(".tar.zst") for path in GOLDEN.glob("*.tar.zst"))


class Golden:
    """A golden repository, unpacked, and what must come out of it."""

    def __init__(self, version: str, root: Path) -> None:
        packed = (GOLDEN / f"{version}.tar.zst").read_bytes()
        raw = zstandard.ZstdDecompressor().decompress(packed)
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            tar.extractall(root, filter="data")
        self.root = root
        self.layout = Layout.of(root)
        document = json.loads((GOLDEN / f"{version}.json").read_text())
        self.live: dict[bytes, str] = {key.encode(): one for key, one in document["live"].items()}
        self.evicted: dict[bytes, str] = {
            key.encode(): one for key, one in document["evicted"].items()
        }
        self.gone = {key.encode() for key in document["gone"]}
        self.labelled = document["labelled"].encode()

    def open(self, *, read_only: bool = False) -> Repository:
        return Repository.open(PosixDisk(self.root), read_only=read_only)

    def tree(self) -> dict[str, str]:
        """A digest of every file, by name."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(request.param, tmp_path / "repository")


def digests(blocks: dict[bytes, bytes]) -> dict[bytes, str]:
    return {key: xxhash.xxh3_128_hexdigest(data) for key, data in blocks.items()}


def test_there_is_a_golden_repository_of_each_format_version() -> None:
    assert [f"v{version}" for version in range(1, FORMAT_VERSION + 1)] == VERSIONS


def test_it_gives_exactly_its_bytes(golden: Golden) -> None:
    with case(FaultClass.OTHER_VERSION, "golden: read"):
        seen = look(golden.root)
        assert digests(seen.blocks) == golden.live
        assert seen.findings == []
        assert seen.recovery is not None
        assert seen.recovery.source == "manifest"


def test_it_starts_twice_and_commits(golden: Golden) -> None:
    with case(FaultClass.OTHER_VERSION, "golden: start, commit, start"):
        for outcome in live_on(golden.root):
            assert outcome.refused == ""
            assert digests(outcome.blocks) == golden.live


def test_its_labels_are_known(golden: Golden) -> None:
    with golden.open(read_only=True) as repository:
        repository.recover()
        rows = repository.catalog.live_rows()
        table = repository.catalog.take(rows)
        label = {
            key: repository.fingerprints.get(number, "")
            for key, number in zip(table.keys.to_list(), table.fingerprint.tolist(), strict=True)
        }
    assert label == {key: FINGERPRINT if key == golden.labelled else "" for key in golden.live}


def test_a_rebuild_brings_back_what_was_not_removed(golden: Golden) -> None:
    with case(FaultClass.OTHER_VERSION, "golden: rebuild from packs alone"):
        for name in golden.layout.manifests:
            (golden.root / name).unlink()
        with golden.open() as repository:
            repository.rebuild()
            found = digests(contents_of(repository))
            repository.commit()
        assert found == golden.live | golden.evicted
        assert digests(look(golden.root).blocks) == found


def test_it_is_carried_on_by_this_version(golden: Golden) -> None:
    with case(FaultClass.OTHER_VERSION, "golden: carried on, four commits"):
        gone = sorted(golden.live)[0]
        for step in range(4):
            with golden.open() as repository:
                repository.recover()
                put(
                    repository,
                    {b"new-%d" % step: b"new" * 1000},
                    sequence=1000 + step,
                    epoch=repository.epoch,
                )
                if step == 1:
                    remove(repository, [gone], sequence=2000, epoch=repository.epoch)
                repository.commit()
        seen = look(golden.root)
        new = {b"new-%d" % step: b"new" * 1000 for step in range(4)}
        right = {key: one for key, one in golden.live.items() if key != gone} | digests(new)
        assert digests(seen.blocks) == right
        assert seen.findings == []


# --- newer files ----------------------------------------------------------------------------------


def _version(name: str, edit: Callable[..., None], golden: Golden) -> None:
    edit(golden.root / name, "format_version", FORMAT_VERSION + 1)


def _feature(name: str, edit: Callable[..., None], golden: Golden) -> None:
    edit(golden.root / name, "features", 1 << 7)


def _required_section(name: str, golden: Golden) -> None:
    """A section that this version does not know, and that says that readers must."""
    forgery.edit_sections(
        golden.root / name, lambda columns: columns.update({200: np.arange(5, dtype=np.uint8)})
    )


def _both_ends(name: str, field: str, value: int, golden: Golden) -> None:
    forgery.edit_header(golden.root / name, field, value)
    forgery.edit_trailer(golden.root / name, field, value)


def start_and_commit(golden: Golden) -> None:
    with golden.open() as repository:
        repository.recover()
        repository.commit()


def newer_cases(layout: Layout) -> dict[str, Callable[[Golden], None]]:
    found: dict[str, Callable[[Golden], None]] = {}
    for name in (*layout.packs, *layout.manifests):
        kind = f"{name.partition('/')[0]} {name.partition('/')[2][:10]}"
        found[f"{kind}: version"] = lambda golden, n=name: _both_ends(
            n, "format_version", FORMAT_VERSION + 1, golden
        )
        found[f"{kind}: feature"] = lambda golden, n=name: _both_ends(n, "features", 1 << 7, golden)
        if name not in layout.manifests[:-1]:
            found[f"{kind}: required section"] = lambda golden, n=name: _required_section(n, golden)
    for name in layout.journals:
        kind = name[:18]
        found[f"{kind}: version"] = lambda golden, n=name: _version(n, forgery.edit_header, golden)
        found[f"{kind}: feature"] = lambda golden, n=name: _feature(n, forgery.edit_header, golden)
    return found


def test_a_newer_file_refuses_the_writer_and_nothing_changes(tmp_path: Path) -> None:
    """Each file in turn, in each way in which a later version may mark it."""
    changes = newer_cases(Golden(VERSIONS[-1], tmp_path / "first").layout)
    for number, (name, change) in enumerate(changes.items()):
        golden = Golden(VERSIONS[-1], tmp_path / str(number))
        with case(FaultClass.OTHER_VERSION, f"newer {name}"):
            change(golden)
            before = golden.tree()
            for _ in range(2):
                with pytest.raises(NewerFormatError) as refused:
                    start_and_commit(golden)
                assert name.split(":")[0].replace(" ", "/") in str(refused.value)
            assert golden.tree() == before, f"{name}: something was changed"
            told = look(golden.root)
            assert golden.tree() == before, f"{name}: a reader changed something"
            assert told.counted, f"{name}: a reader is not told"
            # What was removed may show: the file that says so is the one that cannot be read, and
            # nobody serves what a reader lists.
            known = golden.live.keys() | golden.evicted.keys() | golden.gone
            assert told.blocks.keys() <= known, name


def test_an_older_manifest_that_cannot_be_read_keeps_everything(tmp_path: Path) -> None:
    """Recovery does not read it; whoever prunes does, and leaves all that it may need."""
    for number, name in enumerate(Golden(VERSIONS[-1], tmp_path / "first").layout.manifests[:-1]):
        golden = Golden(VERSIONS[-1], tmp_path / str(number))
        with case(FaultClass.OTHER_VERSION, f"newer {name[:20]}: required section"):
            _required_section(name, golden)
            before = golden.tree()
            for outcome in live_on(golden.root):
                assert digests(outcome.blocks) == golden.live
            for _ in range(3):
                with golden.open() as repository:
                    repository.recover()
                    assert repository.commit().pruned.blocked
            after = golden.tree()
            kept = {one for one in before if one.startswith(("packs/", "manifests/"))}
            assert {one: before[one] for one in kept} == {one: after.get(one) for one in kept}


def test_a_newer_repository_is_refused_and_nothing_changes(golden: Golden) -> None:
    path = golden.root / "repository.json"
    version = f'"format_version": {FORMAT_VERSION}'
    identity = json.loads(path.read_text())["repository_id"]
    later = version.replace(str(FORMAT_VERSION), str(FORMAT_VERSION + 1))
    path.write_text(f'{{{later}, "repository_id": "{identity}"}}\n')
    before = golden.tree()
    with case(FaultClass.OTHER_VERSION, "newer repository.json"):
        for read_only in (True, False):
            with pytest.raises(NewerFormatError, match=r"repository\.json"):
                golden.open(read_only=read_only)
        assert golden.tree() == before


def test_the_command_says_that_it_is_newer_and_exits_with_5(golden: Golden) -> None:
    name = golden.layout.manifests[-1]
    _both_ends(name, "format_version", FORMAT_VERSION + 1, golden)
    before = golden.tree()
    with case(FaultClass.OTHER_VERSION, "newer manifest: snapctl rebuild"):
        ended = subprocess.run(
            [
                str(Path(sys.executable).with_name("snapctl")),
                "rebuild",
                "--persistent-path",
                str(golden.root),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 5, ended.stderr
        assert name in ended.stderr
        assert golden.tree() == before


# --- what may be missing, and what may be added ---------------------------------------------------


def optional_sections(path: Path) -> list[int]:
    index = forgery.Sealed.read(path).index
    head = np.frombuffer(index[: HEAD_DTYPE.itemsize], HEAD_DTYPE)[0]
    entries = np.frombuffer(index, ENTRY_DTYPE, int(head["sections"]), HEAD_DTYPE.itemsize)
    return [int(one["kind"]) for one in entries if not int(one["flags"]) & REQUIRED]


def test_optional_sections_may_be_missing(golden: Golden) -> None:
    """As in files of a version that did not write them yet."""
    with case(FaultClass.OTHER_VERSION, "older: without the optional sections"):
        for name in (*golden.layout.packs, *golden.layout.manifests):
            optional = optional_sections(golden.root / name)

            def drop(columns: forgery.Columns, kinds: list[int] = optional) -> None:
                for kind in kinds:
                    del columns[kind]

            forgery.edit_sections(golden.root / name, drop)
        assert digests(look(golden.root).blocks) == golden.live
        for outcome in live_on(golden.root):
            assert digests(outcome.blocks) == golden.live


def test_optional_sections_of_a_later_version_are_passed_over(golden: Golden) -> None:
    with case(FaultClass.OTHER_VERSION, "newer: with an optional section more"):
        for name in (*golden.layout.packs, *golden.layout.manifests):
            forgery.edit_sections(
                golden.root / name,
                lambda columns: columns.update({200: np.arange(5, dtype=np.uint8)}),
                optional=(200,),
            )
        for outcome in live_on(golden.root):
            assert outcome.refused == ""
            assert digests(outcome.blocks) == golden.live


def test_a_repository_file_without_its_checksum_is_read(golden: Golden) -> None:
    path = golden.root / "repository.json"
    identity = json.loads(path.read_text())["repository_id"]
    path.write_text(f'{{"format_version": 1, "repository_id": "{identity}"}}')
    assert b"checksum" in encode_repository(bytes(16))
    with case(FaultClass.OTHER_VERSION, "older: repository.json without a checksum"):
        assert digests(look(golden.root).blocks) == golden.live


def test_a_journal_record_of_a_kind_to_come_refuses_or_stays(golden: Golden) -> None:
    """It says something that this version cannot read: its file is never deleted."""
    name = golden.layout.journals[-1]
    raw = (golden.root / name).read_bytes()
    start, end = next(iter(forgery.journal_records(raw)))

    def to_come(record: bytearray) -> bytes:
        head = np.frombuffer(bytes(record[: RECORD_DTYPE.itemsize]), RECORD_DTYPE).copy()
        head["kind"] = 99
        return head.tobytes() + bytes(record[RECORD_DTYPE.itemsize :])

    forgery.edit_record(golden.root / name, start, end, to_come)
    before = (golden.root / name).read_bytes()
    with case(FaultClass.OTHER_VERSION, "newer: a journal record of another kind"):
        for outcome in live_on(golden.root):
            assert outcome.counted
        assert (golden.root / name).read_bytes() == before


def test_a_file_of_version_zero_is_damage(golden: Golden) -> None:
    name = golden.layout.manifests[-1]
    _both_ends(name, "format_version", 0, golden)
    number = int(name[-19:-9])
    with golden.open(read_only=True) as repository, pytest.raises(CorruptError):
        repository.show(number)
