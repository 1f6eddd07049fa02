"""One bad page of a journal file, whichever it is and however bad, forgets no confirmed removal.

Nothing here is random: a test that fails names its case, and its node id repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from fault_ledger import FaultClass, case
from repository_kit import contents_of, put, remove, table_of

from snapd.disk.simulated import SimulatedDisk
from snapd.formats.journal import RECORD_DTYPE, RECORD_MAGIC
from snapd.formats.removals import Removals
from snapd.formats.sealed import PAGE_BYTES
from snapd.repository import Repository
from snapd.repository.names import JOURNAL, journal_name
from snapd.repository.scan import JournalScan, scan_journal

MANY = [b"many-%03d-" % number + b"k" * 60 for number in range(50)]
"""Keys of one removal that takes more than a page."""
KEYS = {b"first", b"second", b"last", *MANY}
SEGMENT = b"0123456789abcdef"


@dataclass(frozen=True)
class Sample:
    """A journal file and what it must always say."""

    repository_id: bytes
    raw: bytes
    ends: tuple[int, ...]
    """Length of the file after each confirmed call."""

    @property
    def pages(self) -> int:
        return len(self.raw) // PAGE_BYTES


def removals_of(keys: list[bytes]) -> Removals:
    return Removals.of_blocks(table_of(keys, [b"x"] * len(keys), sequence=7))


@pytest.fixture(scope="module")
def sample() -> Sample:
    disk = SimulatedDisk()
    with Repository.open(disk) as repository:
        repository.recover()
        name = journal_name(1)
        ends = []
        repository.incarnation(SEGMENT)
        for keys in ([b"first"], MANY, None, [b"second"], [b"last"]):
            if keys is None:
                repository.journal(epoch=1)
            else:
                repository.journal(removals_of(keys))
            ends.append(len(read(disk, name)))
        return Sample(repository.repository_id, read(disk, name), tuple(ends))


def read(disk: SimulatedDisk, name: str) -> bytes:
    file = disk.open(name, "r")
    raw = bytearray(file.size())
    file.read([raw], 0)
    file.close()
    return bytes(raw)


class Bench:
    """A disk with nothing but one journal file, whose bytes can be changed in place."""

    def __init__(self, sample: Sample, raw: bytes | None = None) -> None:
        self.sample = sample
        self.raw = sample.raw if raw is None else raw
        self.disk = SimulatedDisk()
        self.disk.make_directory(JOURNAL)
        self.file = self.disk.open(journal_name(1), "x")
        self.file.write([self.raw], 0)

    def scan_with(self, at: int, data: bytes) -> JournalScan:
        """What is read when these bytes are in place of what is there."""
        self.file.write([data], at)
        found = scan_journal(self.disk, self.sample.repository_id)
        self.file.write([self.raw[at : at + len(data)]], at)
        return found


def check_whole(found: JournalScan) -> None:
    """The oracle: whatever was confirmed is still known."""
    assert set(found.removals.keys.to_list()) == KEYS
    assert found.epoch == 1
    assert {one.segment_id for one in found.incarnations} == {SEGMENT}


def record_starts(raw: bytes) -> list[int]:
    starts = []
    at = raw.find(RECORD_MAGIC)
    while at >= 0:
        starts.append(at)
        at = raw.find(RECORD_MAGIC, at + 1)
    return starts


def interesting(raw: bytes) -> Iterator[int]:
    """Every byte that is not zero, and some of the padding."""
    for at in range(len(raw)):
        if raw[at] or at % 97 == 0:
            yield at


def told(found: JournalScan, at: int, sample: Sample) -> bool:
    """Whether the damage is a finding where it must be one: in what is not the last batch."""
    last_batch = sample.ends[-2]
    return bool(found.findings) or not sample.raw[at] or at >= last_batch


def flip_bytes(sample: Sample, places: Iterable[int]) -> int:
    bench = Bench(sample)
    tried = 0
    for at in places:
        mask = 0xFF if at % 2 else 1 << at % 7
        with case(FaultClass.DISK_LIES, f"journal file: byte {at} xor {mask:#04x}"):
            found = bench.scan_with(at, bytes([sample.raw[at] ^ mask]))
            check_whole(found)
            assert told(found, at, sample), f"byte {at} is damaged and nobody says so"
        tried += 1
    return tried


def test_the_sample_is_what_it_should_be(sample: Sample) -> None:
    found = Bench(sample).scan_with(0, sample.raw[:1])
    check_whole(found)
    assert not found.findings
    assert len(record_starts(sample.raw)) == 12
    assert sample.pages == 1 + 2 * 7, "one of the batches takes two pages"


def test_flipped_bytes_of_a_journal_leave_every_removal_known(sample: Sample) -> None:
    assert flip_bytes(sample, islice(interesting(sample.raw), 0, None, 4)) > 1_000


@pytest.mark.long
def test_every_flipped_byte_of_a_journal_padding_too(sample: Sample) -> None:
    assert flip_bytes(sample, range(len(sample.raw))) == len(sample.raw)


def test_every_flipped_bit_of_the_first_record_heads_leaves_every_removal_known(
    sample: Sample,
) -> None:
    flip_heads(sample, record_starts(sample.raw)[:3])


@pytest.mark.long
def test_every_flipped_bit_of_every_record_head_leaves_every_removal_known(sample: Sample) -> None:
    flip_heads(sample, record_starts(sample.raw))


def flip_heads(sample: Sample, starts: list[int]) -> None:
    bench = Bench(sample)
    for start in starts:
        for bit in range(8 * RECORD_DTYPE.itemsize):
            at = start + bit // 8
            with case(FaultClass.DISK_LIES, f"journal record at {start}: bit {bit}"):
                check_whole(bench.scan_with(at, bytes([sample.raw[at] ^ 1 << bit % 8])))


@pytest.mark.parametrize("what", ["zeros", "ones", "another page", "page of another copy"])
def test_every_bad_page_of_a_journal_leaves_every_removal_known(sample: Sample, what: str) -> None:
    bench = Bench(sample)
    for page in range(sample.pages):
        at = page * PAGE_BYTES
        other = (page * 5 + 3) % sample.pages if what == "another page" else (page + 1) % 14
        data = {
            "zeros": bytes(PAGE_BYTES),
            "ones": b"\xff" * PAGE_BYTES,
        }.get(what, sample.raw[other * PAGE_BYTES : (other + 1) * PAGE_BYTES])
        with case(FaultClass.DISK_LIES, f"journal file: page {page} holds {what}"):
            found = bench.scan_with(at, data)
            check_whole(found)
            assert (
                found.findings
                or data == sample.raw[at : at + PAGE_BYTES]
                or (at >= sample.ends[-2])
            )


def test_two_bad_pages_are_a_loss_that_is_said(sample: Sample) -> None:
    """Outside of what two copies stand: then it must at least be said."""
    bench = Bench(sample)
    begin = PAGE_BYTES
    for end in sample.ends[:-1]:
        with case(FaultClass.DISK_LIES, f"journal file: both copies of the batch at {begin}"):
            found = bench.scan_with(begin, bytes(end - begin))
            assert set(found.removals.keys.to_list()) < KEYS or found.epoch == 0
            assert "lost in every copy" in found.findings[0]
            assert found.damaged == {1}
        begin = end


def test_every_length_keeps_what_was_confirmed_by_then(sample: Sample) -> None:
    confirmed = [{b"first"}, set(MANY), set(), {b"second"}, {b"last"}]
    lengths = range(0, len(sample.raw) + 1, 64)
    for length in [*lengths, *(one for end in sample.ends for one in range(end - 9, end + 1))]:
        with case(FaultClass.HOSTILE_FILE, f"journal file: cut off at {length}"):
            found = scan_journal(Bench(sample, sample.raw[:length]).disk, sample.repository_id)
            keys = set(found.removals.keys.to_list())
            for end, wanted in zip(sample.ends, confirmed, strict=True):
                assert end > length or wanted <= keys, length
            assert keys <= KEYS
            assert not found.findings, "a torn tail is no damage"


def lay_repository() -> tuple[SimulatedDisk, int]:
    """Two blocks in a pack and a manifest, one of them removed by the journal alone."""
    disk = SimulatedDisk()
    with Repository.open(disk) as repository:
        repository.recover()
        repository.incarnation(SEGMENT)
        put(repository, {b"kept": b"1" * 5000, b"removed": b"2" * 5000})
        repository.commit()
        remove(repository, [b"removed"], sequence=5)
        remove(repository, [b"never there"], sequence=5)
        number = max(int(name[:10]) for name in disk.list(JOURNAL))
        return disk, number


@pytest.mark.parametrize("page", range(7))
def test_a_removed_key_stays_removed_through_any_bad_page_and_two_restarts(page: int) -> None:
    disk, number = lay_repository()
    name = journal_name(number)
    raw = bytearray(read(disk, name))
    if (page + 1) * PAGE_BYTES > len(raw):
        assert page * PAGE_BYTES >= len(raw)
        return
    with case(FaultClass.DISK_LIES, f"repository with a journal whose page {page} is zeros"):
        file = disk.open(name, "a")
        file.write([bytes(PAGE_BYTES)], page * PAGE_BYTES)
        file.sync()
        file.close()
        for _ in range(2):
            with Repository.open(disk) as repository:
                repository.recover()
                assert set(contents_of(repository)) == {b"kept"}
            disk.crash()


def test_a_synced_removal_is_one_write_and_one_sync(sample: Sample) -> None:
    disk, _ = lay_repository()
    with Repository.open(disk) as repository:
        repository.recover()
        remove(repository, [b"warm"], sequence=6)
        before = disk.counts.copy()
        remove(repository, [b"other"], sequence=6)
        did = disk.counts - before
        assert did["sync"] == 1
        assert did["write"] == 1
        assert did["syncdir"] == 0
    assert np.all(np.diff(sample.ends) % (2 * PAGE_BYTES) == 0)
