"""`PackWriter`: one pack, from the first block to its name on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import xxhash
import zstandard
from typing_extensions import Buffer

from snapd.blocks import BlockTable, Codec
from snapd.blocks.keys import I64, U8, U64, Bools
from snapd.disk import Disk, DiskFile
from snapd.errors import CorruptError, DiskError, SnapdError
from snapd.formats.pack import PackIndex, decode_pack_index, encode_pack_index, padded_sizes
from snapd.formats.sealed import (
    PACK_MAGIC,
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    encode_header,
    encode_trailer,
    index_digest,
    padded,
)
from snapd.repository.files import (
    SealedFile,
    aligned_buffer,
    aligned_copy,
    discard,
    publish,
    read_index,
)
from snapd.repository.names import PACKS, TEMPORARY, pack_name

_ZEROS = bytes(PAGE_BYTES)

AdoptingPack = Callable[[], AbstractContextManager[Callable[[I64], None]]]
"""Entered around an adoption; calls what it gives with the rows of all positions, as `seal`."""


class PackOwner(Protocol):
    """What a writer needs of the repository."""

    @property
    def crowded(self) -> bool:
        """Whether packs should be sealed soon, so that what they wait for can be forgotten."""

    def pack_index(self, writer: PackWriter, blocks: BlockTable) -> PackIndex:
        """The index to seal: these blocks and what the repository has to say beside them."""

    def adopt(
        self, writer: PackWriter, sealed: SealedFile, index: PackIndex
    ) -> tuple[I64, BlockTable]:
        """The pack is durable: take it into the catalog. Returns its rows there, and the versions
        that it superseded. Does no I/O."""

    def superseded(self, blocks: BlockTable) -> None:
        """Make it durable beside the pack, too, that these versions are superseded."""

    def ended(self, writer: PackWriter, *, in_doubt: bool = False) -> None:
        """The writer will not write any more, whatever came of it. `in_doubt`: its pack is not in
        the catalog and may have its name on disk all the same."""


class PackWriter:
    """Writes one pack; for one thread. A failed write or sync fails the whole pack, which is never
    tried again on the same file: the caller begins another and appends its blocks there."""

    def __init__(
        self, disk: Disk, header: FileHeader, owner: PackOwner, *, codec: Codec, bytes_max: int
    ) -> None:
        self.header = header
        self._disk = disk
        self._owner = owner
        self._bytes_max = bytes_max
        self._name = pack_name(header.sequence, header.file_id)
        self._file: DiskFile | None = None
        self._compressor = zstandard.ZstdCompressor(level=1) if codec == Codec.ZSTD else None
        self._end = 0
        self._tables: list[BlockTable] = []
        self._positions: list[I64] = []
        self._appended = 0
        self._dropped: list[I64] = []
        self._open = True
        self._may_be_named = False

    @property
    def bytes_written(self) -> int:
        """Length of the pack so far, header included."""
        return self._end

    @property
    def full(self) -> bool:
        """Whether the pack should be sealed: it has its size, or its owner has to remember too much
        on its account."""
        return self._end >= self._bytes_max or (self._end > 0 and self._owner.crowded)

    @property
    def appended(self) -> int:
        """Rows given to `append` so far: the position of the next one."""
        return self._appended

    def append(self, table: BlockTable, buffers: Sequence[Buffer]) -> Bools:
        """Verify blocks and write the good ones; bool [n], which those are.

        `buffers[i]` holds block i: its `size` bytes padded to whole 4 KiB pages, at an address that
        is a multiple of 4 KiB. They are written from where they are. Each is hashed first and left
        out unless it has its checksum; what changes between hash and write is caught when it is
        read. Bytes behind `size` never reach the disk.

        Raises DiskError; the pack has then failed and everything appended to it is not on disk.
        """
        self._check_open()
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        sizes = table.size.tolist()
        if len(views) != len(table) or any(
            view.nbytes < padded(size) for view, size in zip(views, sizes, strict=True)
        ):
            raise ValueError("each block needs a buffer of its size in whole pages")
        digest = xxhash.xxh3_64_intdigest
        pairs = zip(views, sizes, strict=True)
        hashes = np.fromiter((digest(view[:size]) for view, size in pairs), np.uint64, len(table))
        good: Bools = hashes == table.checksum
        rows = np.flatnonzero(good)
        first = self._appended
        self._appended += len(table)
        if len(rows):
            kept = table if len(rows) == len(table) else table.take(rows)
            pieces, stored, codec = self._pieces(kept.size, [views[row] for row in rows.tolist()])
            lengths = padded_sizes(stored)
            start = max(self._end, PAGE_BYTES)
            offsets = np.uint64(start) + np.cumsum(lengths) - lengths
            self._write(pieces)
            self._tables.append(
                kept.with_columns(stored_size=stored, codec=codec, pack_offset=offsets)
            )
            self._positions.append(first + rows)
        return good

    def drop(self, positions: I64) -> None:
        """Leave rows out of the index: positions count every row ever given to `append`. For what
        moved while it was written."""
        self._check_open()
        self._dropped.append(positions.astype(np.int64))

    def seal(self, adopting: AdoptingPack | None = None) -> I64:
        """Make the pack durable and add it to the catalog; returns the catalog row of every
        position, int64 [appended], -1 for what was not good or was dropped.

        Nothing is written if no row is left and the repository has nothing to say. `adopting` is
        entered around the step in which the catalog takes the pack in, and told its result there.

        Crash argument: until the rename the file has a temporary name, which recovery removes; its
        blocks are still in the store, and the journal still has the removals. After the rename the
        pack is whole, since its bytes were synced before; recovery takes it in. What the pack
        covers is deleted only after a manifest that knows the pack.

        Raises DiskError, or CorruptError when the pack does not read back as it was written; it is
        not in the catalog then.
        """
        self._check_open()
        blocks, positions = self._kept_blocks()
        try:
            index = self._owner.pack_index(self, blocks)
            if not len(blocks) and not len(index.removals):
                self.abort()
                return np.full(self._appended, -1, np.int64)
            trailer = self._write_index(index)
            sealed, index = self._read_back(trailer)
        except SnapdError:
            self.abort()
            raise
        result = np.full(self._appended, -1, np.int64)
        with adopting() if adopting is not None else nullcontext(_nobody) as adopted:
            result[positions], superseded = self._owner.adopt(self, sealed, index)
            adopted(result)
        self._open = False
        self._owner.ended(self)
        self._owner.superseded(superseded)
        return result

    def abort(self) -> None:
        """Give the pack up; idempotent, and without effect on a sealed one.

        What failed may have been the sync of its name, or reading it back: then the name goes too.
        A pack that stayed there unknown would, in a later life, be newer than versions that live.
        """
        if self._open:
            self._open = False
            if self._file is not None:
                discard(self._disk, self._file, self._name)
            self._owner.ended(self, in_doubt=self._may_be_named and not self.take_back())

    def take_back(self) -> bool:
        """Remove the name of a pack that failed, for good; whether it is certainly gone."""
        try:
            if self._name in {f"{PACKS}/{name}" for name in self._disk.list(PACKS)}:
                self._disk.remove(self._name)
            self._disk.sync_directory(PACKS)
        except DiskError:
            return False
        return True

    # --- inside -------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._open:
            raise DiskError(f"{self._name} was sealed or given up")

    def _write(self, pieces: list[memoryview]) -> None:
        """Write at the end, the header first of all. Raises DiskError and gives the pack up."""
        try:
            if self._file is None:
                self._file = self._disk.open(self._name + TEMPORARY, "x", direct=True)
            if self._end == 0:
                pieces = [aligned_copy(encode_header(self.header)), *pieces]
            self._file.write(pieces, self._end)
        except DiskError:
            self.abort()
            raise
        self._end += sum(piece.nbytes for piece in pieces)

    def _pieces(self, sizes: U64, views: list[memoryview]) -> tuple[list[memoryview], U64, U8]:
        """What to write for verified blocks: pieces, stored sizes uint64 [n], codecs uint8 [n]."""
        stored = sizes.copy()
        codec = np.zeros(len(sizes), np.uint8)
        pieces: list[memoryview] = []
        staging = aligned_buffer(int(padded_sizes(sizes).sum())) if self._compressor else None
        used = 0
        for row, (view, size) in enumerate(zip(views, sizes.tolist(), strict=True)):
            if self._compressor is not None and staging is not None:
                small = self._compressor.compress(view[:size])
                if padded(len(small)) < padded(size):
                    piece = staging[used : used + padded(len(small))]
                    piece[: len(small)] = small
                    used += piece.nbytes
                    stored[row], codec[row] = len(small), Codec.ZSTD
                    pieces.append(piece)
                    continue
            pieces += _zero_padded(view, size)
        return pieces, stored, codec

    def _kept_blocks(self) -> tuple[BlockTable, I64]:
        """The rows that go into the index, and their positions."""
        if not self._tables:
            return BlockTable.empty(), np.empty(0, np.int64)
        blocks = BlockTable.concatenate(self._tables)
        positions = np.concatenate(self._positions)
        if self._dropped:
            keep = ~np.isin(positions, np.concatenate(self._dropped))
            blocks, positions = blocks.take(keep), positions[keep]
        return blocks, positions

    def _write_index(self, index: PackIndex) -> FileTrailer:
        raw, raw_bytes = encode_pack_index(index)
        trailer = FileTrailer(
            header=self.header,
            index_offset=max(self._end, PAGE_BYTES),
            index_bytes=len(raw),
            raw_bytes=raw_bytes,
            index_digest=index_digest(raw),
            rows=len(index.blocks),
        )
        # Parsed before it is written: a pack that this version cannot read never gets its name.
        decode_pack_index(raw, trailer)
        self._write([aligned_copy(raw + encode_trailer(trailer))])
        assert self._file is not None
        self._may_be_named = True
        publish(self._disk, self._file, self._name, PACKS)
        return trailer

    def _read_back(self, trailer: FileTrailer) -> tuple[SealedFile, PackIndex]:
        sealed, raw = read_index(
            self._disk, self._name, PACK_MAGIC, self.header.repository_id, direct=True
        )
        if sealed.trailer != trailer or sealed.problem:
            raise CorruptError(f"{self._name} does not read back as it was written")
        return sealed, decode_pack_index(raw, trailer)


def _nobody(rows: I64) -> None:
    """Nobody waits for the result of an adoption."""


def _zero_padded(view: memoryview, size: int) -> list[memoryview]:
    """A block's pages, as they are or with a clean copy of the last one."""
    end = padded(size)
    tail = view[size:end]
    if tail == _ZEROS[: tail.nbytes]:
        return [view[:end]]
    whole = end - PAGE_BYTES
    last = aligned_buffer(PAGE_BYTES)
    last[: size - whole] = view[whole:size]
    return [view[:whole], last] if whole else [last]
