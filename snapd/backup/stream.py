"""`ArchiveWriter` and `ArchiveReader`: archives as streams, in a few MiB of memory.

Chunks are compressed and sealed, or opened, by two threads; they are written and read in order.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import msgspec
import zstandard
from typing_extensions import Buffer

from snapd.backup.format import (
    CHUNK_BYTES,
    CHUNK_HEAD_BYTES,
    HEADER_BYTES,
    ID_BYTES,
    RECORD_HEAD_BYTES,
    SALT_BYTES,
    ArchiveHeader,
    ChunkCodec,
    ChunkHead,
    Cipher,
    Contents,
    Plan,
    RecordKind,
    decode_chunk_head,
    decode_contents,
    decode_header,
    decode_name,
    decode_plan,
    decode_record_head,
    encode_chunk_head,
    encode_header,
    encode_record_head,
)
from snapd.backup.sealing import BackupKey, Bytes, sealer_of
from snapd.errors import CorruptError

_THREADS = 2
_CHUNKS_AHEAD = 6
"""Chunks in memory, beside the one in hand."""
_WORTH = 16
"""A chunk is stored compressed if that saves a sixteenth."""

Sink = Callable[[Buffer], None]
"""Takes the bytes of an archive, in order. May raise DiskError."""


class Source(Protocol):
    """Gives the bytes of an archive, in order."""

    def read(self, length: int) -> bytes | bytearray:
        """Up to `length` bytes, none only at the end. May raise DiskError."""


class ArchiveWriter:
    """Writes one archive into a sink: the plan, then files, then `finish`. A context manager; left
    without `finish`, the archive has no end and no reader takes it."""

    def __init__(
        self, sink: Sink, key: BackupKey | None, *, level: int, archive_id: bytes = b""
    ) -> None:
        """`level`: of zstd, 0 for no compression. `archive_id`: 16 random bytes, where somebody has
        to know them before. Raises what the sink raises, or SettingError."""
        self.header = encode_header(
            archive_id or secrets.token_bytes(ID_BYTES),
            key.key_id if key is not None else bytes(ID_BYTES),
            Cipher.AES_256_GCM if key is not None else Cipher.NONE,
            secrets.token_bytes(SALT_BYTES),
        )
        self.bytes_written = 0
        self._sealer = sealer_of(self.header, key)
        self._sink = sink
        self._level = level
        self._buffer = bytearray()
        self._number = 0
        self._waiting: deque[Future[tuple[bytes, bytes]]] = deque()
        self._threads = ThreadPoolExecutor(_THREADS, "backup")
        self._local = threading.local()
        self._emit(self.header.raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def plan(self, plan: Plan) -> None:
        """Write the first record."""
        self._document(RecordKind.PLAN, plan)

    def begin_file(self, name: str, size: int) -> None:
        """A file of `size` bytes comes next, through `data`."""
        self._append(encode_record_head(RecordKind.FILE, name.encode(), size))
        # So that the file's chunks are whole ones, and its pages lie as they did.
        self._flush(last=False)

    def data(self, data: Buffer) -> None:
        """The next bytes of the file."""
        self._append(data)

    def finish(self, contents: Contents) -> None:
        """Write the last record and all that waits."""
        self._document(RecordKind.CONTENTS, contents)
        self._flush(last=True)
        while self._waiting:
            self._drain()

    def _document(self, kind: RecordKind, document: msgspec.Struct) -> None:
        raw = msgspec.json.encode(document)
        self._append(encode_record_head(kind, b"", len(raw)))
        self._append(raw)

    def _append(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view.nbytes:
            part = view[: CHUNK_BYTES - len(self._buffer)]
            self._buffer += part
            view = view[part.nbytes :]
            if len(self._buffer) == CHUNK_BYTES:
                self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        if not self._buffer and not last:
            return
        while len(self._waiting) >= _CHUNKS_AHEAD:
            self._drain()
        content, self._buffer = self._buffer, bytearray()
        self._waiting.append(self._threads.submit(self._seal, self._number, content, last))
        self._number += 1

    def _seal(self, number: int, content: bytearray, last: bool) -> tuple[bytes, bytes]:
        stored, codec = bytes(content), ChunkCodec.RAW
        if self._level:
            packed = self._compressor().compress(content)
            if len(packed) < len(content) - len(content) // _WORTH:
                stored, codec = packed, ChunkCodec.ZSTD
        head = encode_chunk_head(len(stored), len(content), codec, last=last)
        return head.raw, self._sealer.seal(number, head, stored)

    def _compressor(self) -> zstandard.ZstdCompressor:
        """One a thread: they are not made to be shared."""
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        return found

    def _drain(self) -> None:
        for piece in self._waiting.popleft().result():
            self._emit(piece)

    def _emit(self, data: bytes) -> None:
        self._sink(data)
        self.bytes_written += len(data)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `chunks` has to be used up before the next one is asked for."""

    name: str
    size: int
    chunks: Iterator[memoryview]


class ArchiveReader:
    """Reads one archive from a source: `plan`, then `members`, then `contents`. A context manager.

    Every byte that it gives has passed its seal. Raises CorruptError where one does not, where the
    stream ends before its last chunk or goes on after it, RefusedError for a wrong key,
    NewerFormatError, and what the source raises.
    """

    def __init__(self, source: Source, key: BackupKey | None) -> None:
        self._source = source
        self.header: ArchiveHeader = decode_header(bytes(self._read(HEADER_BYTES)))
        self._sealer = sealer_of(self.header, key)
        self._number = 0
        self._ended = False
        self._waiting: deque[Future[Bytes]] = deque()
        self._threads = ThreadPoolExecutor(_THREADS, "restore")
        self._content = memoryview(b"")
        self._contents: Contents | None = None
        self.plan = self._read_plan()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def members(self) -> Iterator[Member]:
        """The files, in order; at the end `contents` is known, and the stream was whole."""
        while True:
            head = decode_record_head(self._take(RECORD_HEAD_BYTES))
            if head.kind == RecordKind.PLAN:
                raise CorruptError("the backup has two plans")
            if head.kind == RecordKind.CONTENTS:
                self._contents = decode_contents(self._take(head.size))
                self._expect_end()
                return
            name = decode_name(self._take(head.name_bytes))
            member = Member(name, head.size, self._pieces(head.size))
            yield member
            for _ in member.chunks:  # whoever does not want it passes over it
                pass

    @property
    def contents(self) -> Contents:
        """Every file of the backup, once `members` came to its end."""
        if self._contents is None:
            raise CorruptError("the backup was not read to its end")
        return self._contents

    def _read_plan(self) -> Plan:
        try:
            head = decode_record_head(self._take(RECORD_HEAD_BYTES))
            if head.kind != RecordKind.PLAN:
                raise CorruptError("the backup does not begin with its plan")
            return decode_plan(self._take(head.size))
        except BaseException:
            self._threads.shutdown(cancel_futures=True)
            raise

    def _expect_end(self) -> None:
        if self._content.nbytes or self._waiting or not self._ended:
            raise CorruptError("the backup goes on after its contents")
        if self._source.read(1):
            raise CorruptError("something follows the end of the backup")

    def _pieces(self, size: int) -> Iterator[memoryview]:
        while size:
            self._fill()
            piece = self._content[:size]
            self._content = self._content[piece.nbytes :]
            size -= piece.nbytes
            yield piece

    def _take(self, length: int) -> bytes:
        return b"".join(self._pieces(length))

    def _fill(self) -> None:
        """Have content in hand. Raises CorruptError at the end of the archive."""
        while not self._content.nbytes:
            while not self._ended and len(self._waiting) < _CHUNKS_AHEAD:
                self._read_chunk()
            if not self._waiting:
                raise CorruptError("the backup ends in the middle of what it should hold")
            self._content = memoryview(self._waiting.popleft().result())

    def _read_chunk(self) -> None:
        head = decode_chunk_head(bytes(self._read(CHUNK_HEAD_BYTES)))
        sealed = self._read(head.stored_bytes)
        if len(sealed) != head.stored_bytes:
            raise CorruptError("the backup is cut off in the middle of a chunk")
        self._waiting.append(self._threads.submit(self._open, self._number, head, sealed))
        self._number += 1
        self._ended = head.last

    def _open(self, number: int, head: ChunkHead, sealed: bytes | bytearray) -> Bytes:
        stored = self._sealer.open(number, head, sealed)
        if head.codec == ChunkCodec.RAW:
            return stored
        return _decompressed(stored, head.raw_bytes)

    def _read(self, length: int) -> bytes | bytearray:
        """`length` bytes, fewer only at the end."""
        pieces: list[bytes | bytearray] = []
        while length:
            piece = self._source.read(length)
            if not piece:
                break
            pieces.append(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _decompressed(stored: Bytes, raw_bytes: int) -> bytes:
    """Never more than the head allowed, whatever the frame claims. Raises CorruptError."""
    try:
        if zstandard.frame_content_size(stored) != raw_bytes:
            raise CorruptError("a chunk of the backup does not have the length that its head says")
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_bytes)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a chunk of the backup cannot be decompressed: {error}") from error
