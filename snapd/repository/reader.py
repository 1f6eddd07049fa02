"""`BlockReader`: bytes of blocks from packs straight into the caller's buffers, verified."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import xxhash
import zstandard
from typing_extensions import Buffer

from snapd.blocks import BlockTable, Codec
from snapd.blocks.keys import I64, Bools
from snapd.disk import Disk, DiskFile
from snapd.errors import DiskError
from snapd.formats.pack import padded_sizes
from snapd.formats.sealed import PAGE_BYTES, padded
from snapd.plans import merge_reads
from snapd.repository.files import aligned_buffer

READ_BYTES_MAX = 16 * 2**20
"""Most bytes in one system call; a longer block is read alone."""
_OPEN_FILES_MAX = 64


@dataclass(slots=True)
class _OpenPack:
    file: DiskFile
    users: int = 0


class PackFiles:
    """Packs open for reading: a bounded number, the longest unused closed first."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._files: OrderedDict[str, _OpenPack] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: str) -> Iterator[DiskFile]:
        """An open pack that stays open until the end. Raises DiskError."""
        with self._lock:
            pack = self._files.get(name)
            if pack is None:
                pack = self._files[name] = _OpenPack(self._disk.open(name, "r", direct=True))
            self._files.move_to_end(name)
            pack.users += 1
        try:
            yield pack.file
        finally:
            with self._lock:
                pack.users -= 1
                self._trim(_OPEN_FILES_MAX)

    def close(self) -> None:
        """Close all that nobody uses."""
        with self._lock:
            self._trim(0)

    def _trim(self, files_max: int) -> None:
        for name in [name for name, pack in self._files.items() if pack.users == 0]:
            if len(self._files) <= files_max:
                return
            self._files.pop(name).file.close()


def read_blocks(
    files: PackFiles, names: dict[int, str], blocks: BlockTable, buffers: Sequence[Buffer]
) -> Bools:
    """Read n blocks into n buffers; bool [n], which were whole and had their checksums.

    `names` are the packs' files by sequence. `buffers[i]` takes the block's `size` bytes padded to
    whole 4 KiB pages, at an address that is a multiple of 4 KiB; what is behind `size` is zeroed.
    Blocks that lie next to each other in a pack are read by one call, raw ones without a copy.
    The bytes of a block that is not good are undefined.

    Raises DiskError when the disk fails, which says nothing about the blocks. A pack that is not
    there is no such failure: its blocks are not good.
    """
    result: Bools = np.zeros(len(blocks), np.bool_)
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    sizes = blocks.size.tolist()
    if any(view.nbytes < padded(size) for view, size in zip(views, sizes, strict=True)):
        raise ValueError("each block needs a buffer of its size in whole pages")
    lengths = padded_sizes(blocks.stored_size)
    runs = merge_reads(blocks.pack, blocks.pack_offset, lengths, bytes_max=READ_BYTES_MAX)
    for run in runs:
        name = names.get(int(blocks.pack[run[0]]))
        if name is None:
            continue
        try:
            with files.use(name) as file:
                _read_run(file, blocks, views, run, result)
        except DiskError as error:
            # A pack that is not there has no blocks; any other failure may pass.
            if error.errno != errno.ENOENT:
                raise
    return result


def _read_run(
    file: DiskFile, blocks: BlockTable, views: list[memoryview], run: I64, result: Bools
) -> None:
    """Read blocks that lie one after another, and note in `result` which are good."""
    lengths = padded_sizes(blocks.stored_size[run]).astype(np.int64)
    offset = int(blocks.pack_offset[run[0]])
    if (blocks.codec[run] == Codec.RAW).all():
        pairs = zip(run.tolist(), lengths.tolist(), strict=True)
        targets = [views[row][:length] for row, length in pairs]
        got = file.read(targets, offset)
        # If the pack is shorter than its index says, the blocks behind its end are gone.
        run = run[np.cumsum(lengths) <= got]
    else:
        run = _read_encoded(file, blocks, views, run, offset)
    sizes = blocks.size[run].tolist()
    digest = xxhash.xxh3_64_intdigest
    pairs = zip(run.tolist(), sizes, strict=True)
    hashes = np.fromiter((digest(views[row][:size]) for row, size in pairs), np.uint64, len(run))
    result[run] = hashes == blocks.checksum[run]
    for row, size in zip(run.tolist(), sizes, strict=True):
        if size % PAGE_BYTES:
            views[row][size : padded(size)] = bytes(padded(size) - size)


def _read_encoded(
    file: DiskFile, blocks: BlockTable, views: list[memoryview], run: I64, offset: int
) -> I64:
    """Read a run in which some blocks are compressed; returns the rows that could be decoded."""
    stored = blocks.stored_size[run].tolist()
    ends = np.cumsum(padded_sizes(blocks.stored_size[run])).tolist()
    staging = aligned_buffer(ends[-1])[: ends[-1]]
    got = file.read([staging], offset)
    decoded: list[int] = []
    for row, length, end in zip(run.tolist(), stored, ends, strict=True):
        if end > got:
            break
        piece = staging[end - padded(length) :][:length]
        target = views[row][: int(blocks.size[row])]
        if int(blocks.codec[row]) == Codec.RAW:
            target[:] = piece
        elif not _decompress(piece, target):
            continue
        decoded.append(row)
    return np.array(decoded, np.int64)


def _decompress(stored: memoryview, target: memoryview) -> bool:
    """Fill `target` with what `stored` holds; False if that is not so many bytes."""
    try:
        # The frame's own claim decides what the library allocates, so it is checked first.
        if zstandard.frame_content_size(stored) != target.nbytes:
            return False
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=target.nbytes)
    except zstandard.ZstdError:
        return False
    if len(data) != target.nbytes:
        return False
    target[:] = data
    return True
