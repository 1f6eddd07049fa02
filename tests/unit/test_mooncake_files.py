"""Segment files in shared memory: whole or refused, one owner each, and never half a record."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import xxhash
from fault_ledger import FaultClass, case

from snapd.attach.mooncake.files import (
    SHARED_MEMORY,
    create_segment_file,
    leftover_files,
    open_segment_file,
)
from snapd.attach.mooncake.record import (
    HALF_BYTES,
    TRAILER_BYTES,
    SegmentRecord,
    decode_trailer,
    encode_half,
)
from snapd.errors import CorruptError, LockHeldError, NewerFormatError, SegmentError

SIZE = 1 << 20


def record(number: int = 1) -> SegmentRecord:
    return SegmentRecord(
        store_url="http://127.0.0.1:8088",
        segment_ids=(f"{number}-2", "3-18446744073709551615"),
        base_addresses=((1 << 64) - 1, 0x7F0000000000),
        sizes=(SIZE // 2, SIZE // 2),
        client_id="5-6",
        endpoint="10.0.0.1:13000",
        life_id=bytes(range(16)),
        counters={"master_remove_requests_total": number},
        mounted_at=1.5,
    )


@pytest.fixture
def stem() -> Iterator[str]:
    name = f"snapd-test-files-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    for path in leftover_files(name):
        os.unlink(path)


def test_a_new_file_is_allocated_in_full_and_blank(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE - 5, group_shared=False)) as file:
        assert file.size_bytes == len(file.data) == SIZE
        assert file.record is None
        assert file.allocated_bytes() == SIZE + TRAILER_BYTES
        assert os.stat(file.path).st_mode & 0o777 == 0o600
        assert leftover_files(stem) == [file.path] == [f"{SHARED_MEMORY}/{file.name}"]
        with pytest.raises(ValueError, match="read-only"):
            file.data[0] = 1


def test_a_shared_file_is_of_the_group(stem: str) -> None:
    before = os.umask(0o077)
    try:
        with closing(create_segment_file(stem, SIZE, group_shared=True)) as file:
            assert os.stat(file.path).st_mode & 0o777 == 0o660
    finally:
        os.umask(before)


def test_what_the_store_writes_is_seen_and_outlives_us(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        with open(file.path, "r+b") as other:
            other.seek(SIZE - 3)
            other.write(b"end")
        assert file.data[-3:].tobytes() == b"end"
        file.write_record(record())
        path = file.path
    with closing(open_segment_file(path)) as again:
        assert again.data[-3:].tobytes() == b"end"
        assert again.record == record()
        again.unlink()
        again.unlink()
    assert leftover_files(stem) == []


def test_the_last_of_many_records_is_found(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        path = file.path
        for number in range(1, 6):
            file.write_record(record(number))
    for number in range(6, 9):
        with closing(open_segment_file(path)) as file:
            assert file.record == record(number - 1)
            file.write_record(record(number))
            assert file.record == record(number)


def halves(old: int, new: int) -> tuple[bytes, bytes]:
    first = encode_half(record(old), old).ljust(HALF_BYTES, b"\0")
    return first, encode_half(record(new), new).ljust(HALF_BYTES, b"\0")


def test_a_record_that_is_cut_anywhere_leaves_the_one_before() -> None:
    """Whatever was in the half before, for every byte at which the writer may have been killed."""
    first, second = halves(1, 2)
    old, new = halves(3, 4)
    whole = len(encode_half(record(4), 4))
    for cut in range(whole):
        with case(FaultClass.KILL, f"while a segment file's record is written, byte {cut}"):
            torn = new[:cut] + second[cut:]
            found, _ = decode_trailer(old + torn)
            assert found == record(4 if torn == new else 3), cut
    assert decode_trailer(old + new) == (record(4), 4)
    assert decode_trailer(first + second) == (record(2), 2)
    assert decode_trailer(new + old) == (record(4), 4)


def test_any_flipped_byte_of_a_record_is_noticed() -> None:
    old, new = halves(1, 2)
    length = len(encode_half(record(2), 2))
    for at in range(length):
        with case(FaultClass.HOSTILE_FILE, f"segment file's record, byte {at} flipped"):
            damaged = bytearray(new)
            damaged[at] ^= 0x40
            assert decode_trailer(old + damaged) == (record(1), 1)
            with pytest.raises(CorruptError, match="trailer"):
                decode_trailer(bytes(damaged) + bytes(damaged))


@pytest.mark.parametrize("seed", range(200))
def test_random_trailers_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    with pytest.raises(CorruptError):
        decode_trailer(rng.randbytes(TRAILER_BYTES))


def sealed(payload: bytes, version: int = 1) -> bytes:
    """A trailer whose checksum is right, whatever it holds."""
    whole = encode_half(record(), 1)
    head = whole[:8] + version.to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    head += whole[16:24]
    digest = xxhash.xxh3_64_intdigest(head + payload)
    return (head + digest.to_bytes(8, "little") + payload).ljust(TRAILER_BYTES, b"\0")


FORGED = {
    "nothing": b"",
    "nil": b"\xc0",
    "deep": b"\x91" * 20000 + b"\xc0",
    "a list": msgspec.msgpack.encode([1]),
    "no fields": msgspec.msgpack.encode({}),
    "a short life": msgspec.msgpack.encode(msgspec.structs.asdict(record()) | {"life_id": b"x"}),
    "negative sizes": msgspec.msgpack.encode(msgspec.structs.asdict(record()) | {"sizes": [-1, 1]}),
    "columns of different lengths": msgspec.msgpack.encode(
        msgspec.structs.asdict(record()) | {"sizes": [1]}
    ),
    "a thousand segments": msgspec.msgpack.encode(
        msgspec.structs.asdict(record()) | {"segment_ids": ["1-2"] * 1000}
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_records_are_refused(name: str) -> None:
    with (
        case(FaultClass.HOSTILE_FILE, f"segment file's record: {name}"),
        pytest.raises(CorruptError),
    ):
        decode_trailer(sealed(FORGED[name]))


def test_a_newer_record_is_left_alone(stem: str) -> None:
    payload = msgspec.msgpack.encode(record())
    assert decode_trailer(sealed(payload))[0] == record()
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        path = file.path
    with open(path, "r+b") as other:
        other.seek(SIZE)
        other.write(sealed(b"something else", version=2))
    with (
        case(FaultClass.OTHER_VERSION, "segment file's record of version 2"),
        pytest.raises(NewerFormatError, match="version 2"),
    ):
        open_segment_file(path)
    assert leftover_files(stem) == [path]


def test_a_record_too_large_is_refused_and_the_one_before_stays(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        file.write_record(record())
        with pytest.raises(SegmentError, match="trailer"):
            file.write_record(
                msgspec.structs.replace(
                    record(), counters={"x" * 300 + str(i): i for i in range(200)}
                )
            )
        path = file.path
    with closing(open_segment_file(path)) as file:
        assert file.record == record()


# --- files that are not ours ----------------------------------------------------------------------


def make(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


OTHERS = {
    "empty": b"",
    "shorter than a trailer": bytes(100),
    "only a trailer": bytes(TRAILER_BYTES),
    "a size of no whole pages": bytes(TRAILER_BYTES + 100),
    "text": b"x" * (TRAILER_BYTES + 4096),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_somebody_else_is_refused(stem: str, name: str) -> None:
    data = OTHERS[name]
    path = f"{SHARED_MEMORY}/{stem}.{'0' * 16}.mooncake"
    make(path, data)
    with (
        case(FaultClass.HOSTILE_FILE, f"segment file: {name}"),
        pytest.raises(CorruptError, match=stem),
    ):
        open_segment_file(path)
    assert leftover_files(stem) == [path]
    assert Path(path).read_bytes() == data


def test_links_pipes_and_directories_are_refused(stem: str) -> None:
    path = f"{SHARED_MEMORY}/{stem}.{'0' * 16}.mooncake"
    for name, spoil, undo in (
        ("a link", lambda: os.symlink("/etc/hostname", path), os.unlink),
        ("a pipe", lambda: os.mkfifo(path), os.unlink),
        ("a directory", lambda: os.mkdir(path), os.rmdir),
    ):
        spoil()
        with (
            case(FaultClass.HOSTILE_FILE, f"segment file: {name}"),
            pytest.raises(CorruptError, match="not a regular file"),
        ):
            open_segment_file(path)
        undo(path)
    with pytest.raises(SegmentError, match="cannot open"):
        open_segment_file(path)


def test_a_file_of_another_user_is_refused(stem: str) -> None:
    """Anybody may make a file of our name in shared memory, with a record that looks right."""
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        file.write_record(record())
        path = file.path
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with (
            case(FaultClass.HOSTILE_FILE, "segment file of another user"),
            pytest.raises(CorruptError, match="belongs to user 65534"),
        ):
            open_segment_file(path)


def test_names_that_only_look_alike_are_not_ours(stem: str) -> None:
    names = [f"{stem}x.{'0' * 16}.mooncake", f"{stem}.{'0' * 15}.mooncake", f"{stem}.mooncake"]
    paths = [f"{SHARED_MEMORY}/{name}" for name in names]
    try:
        for path in paths:
            make(path, b"")
        assert leftover_files(stem) == []
    finally:
        for path in paths:
            os.unlink(path)


@pytest.mark.parametrize("bad", ["", "a/b", "../x", "x" * 201, "nul\0"])
def test_a_stem_that_is_no_name_is_refused(bad: str) -> None:
    with pytest.raises(SegmentError, match="segment_path"):
        create_segment_file(bad, SIZE, group_shared=False)


def test_a_replaced_name_is_not_removed(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        os.unlink(file.path)
        make(file.path, b"somebody else's")
        file.unlink()
        assert leftover_files(stem) == [file.path]


# --- locks and holes ------------------------------------------------------------------------------


def test_only_one_process_has_a_file_until_it_is_killed(stem: str) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from snapd.attach.mooncake.files import create_segment_file
        file = create_segment_file(sys.argv[1], 1 << 20, group_shared=False)
        print(file.path, flush=True)
        time.sleep(60)
        """
    )
    holder = subprocess.Popen([sys.executable, "-c", script, stem], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        path = holder.stdout.readline().decode().strip()
        with pytest.raises(LockHeldError, match="another daemon"):
            open_segment_file(path)
        with case(FaultClass.KILL, "holder of a segment file"):
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with closing(open_segment_file(path)) as file:
                assert file.record is None
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_hole_takes_whole_pages_and_reads_as_zeros(stem: str) -> None:
    with closing(create_segment_file(stem, SIZE, group_shared=False)) as file:
        with open(file.path, "r+b") as other:
            other.write(b"\xff" * SIZE)
        full = file.allocated_bytes()
        file.punch(100, 3 * 4096)
        assert full - file.allocated_bytes() == 2 * 4096
        # Not by the mapping, which would put memory behind the hole.
        left = np.fromfile(file.path, np.uint8, SIZE)
        assert np.flatnonzero(left == 0).tolist() == list(range(4096, 3 * 4096))
        file.punch(5, 10)
        file.punch(SIZE, 0)
        assert full - file.allocated_bytes() == 2 * 4096
        for offset, length in ((-1, 5), (0, -1), (0, SIZE + 1), (SIZE, 4096), (1 << 62, 1)):
            with pytest.raises(SegmentError, match="has no bytes"):
                file.punch(offset, length)
        file.punch(0, SIZE)
        assert file.allocated_bytes() == TRAILER_BYTES


def test_views_outlive_the_file(stem: str) -> None:
    """Threads may still read what a segment held when it is given up."""
    file = create_segment_file(stem, SIZE, group_shared=False)
    view = file.data[:10]
    file.unlink()
    file.close()
    file.close()
    assert view.tolist() == [0] * 10


# --- no room --------------------------------------------------------------------------------------


def test_more_than_there_is_says_what_there_is(stem: str) -> None:
    with pytest.raises(
        SegmentError, match=r"has \d+ bytes free, a segment file needs \d+"
    ) as caught:
        create_segment_file(stem, 1 << 45, group_shared=False)
    assert "set global_segment_size lower" in str(caught.value)
    assert leftover_files(stem) == []


_SMALL = """
import os, sys
from snapd.attach.mooncake.files import create_segment_file, free_bytes, leftover_files
from snapd.errors import SegmentError
first = create_segment_file("small", 1 << 20, group_shared=False)
try:
    create_segment_file("small", int(sys.argv[1]), group_shared=False)
except SegmentError as error:
    print(error)
assert leftover_files("small") == [first.path], leftover_files("small")
first.unlink()
first.close()
assert free_bytes() == int(sys.argv[2]), free_bytes()
create_segment_file("small", 1 << 20, group_shared=False).close()
"""


@pytest.mark.parametrize(
    ("name", "size"), [("a second file", 1 << 20), ("its trailer", (1 << 20) - 4096)]
)
def test_a_shared_memory_too_small_for_a_second_file(name: str, size: int) -> None:
    """A real small tmpfs over /dev/shm, in a mount namespace that goes with its last process."""
    whole = 2 * (1 << 20) + TRAILER_BYTES
    with case(FaultClass.FULL, f"shared memory without room for {name}"):
        inner = 'mount -t tmpfs -o size="$1" tmpfs /dev/shm && shift && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inner, "sh"]
        command += [str(whole), sys.executable, "-c", _SMALL, str(size), str(whole)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True)
        assert done.returncode == 0, done.stderr
        assert "/dev/shm has" in done.stdout
        assert f"needs {size + TRAILER_BYTES}" in done.stdout
