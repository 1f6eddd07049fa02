"""Page tables of a mapped file, filled ahead."""

import mmap
import os
import secrets
import time
from pathlib import Path

from snapd.putter.pages import mappings_of, populate_file

BYTES = 40 << 20


def resident_bytes(path: Path) -> int:
    """Of the mappings of a file in this process."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_a_mapped_file_is_touched_as_a_whole_and_stays_as_it_is() -> None:
    path = Path(f"/dev/shm/snapd-test-pages-{secrets.token_hex(8)} with a space")
    with path.open("x+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, BYTES)
            with mmap.mmap(file.fileno(), BYTES) as memory:
                memory[BYTES - 1] = 7
                assert [length for _, length in mappings_of(str(path))] == [BYTES]
                assert resident_bytes(path) < BYTES
                populate_file(str(path))
                deadline = time.monotonic() + 10
                while resident_bytes(path) < BYTES:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                assert memory[BYTES - 1] == 7
                assert not memory[: BYTES - 1].strip(b"\0")
        finally:
            path.unlink()
    assert mappings_of(str(path)) == []
