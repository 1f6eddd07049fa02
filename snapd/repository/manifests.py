"""Making, writing and reading manifests."""

from __future__ import annotations

import secrets

import numpy as np

from snapd.blocks.keys import I64, Bools
from snapd.disk import Disk
from snapd.errors import CorruptError
from snapd.formats.manifest import Manifest, ManifestPack, decode_manifest, encode_manifest
from snapd.formats.sealed import (
    ID_BYTES,
    MANIFEST_MAGIC,
    PAGE_BYTES,
    FileHeader,
    FileTrailer,
    encode_header,
    encode_trailer,
    index_digest,
)
from snapd.repository.files import SealedFile, read_index, write_durably
from snapd.repository.names import MANIFESTS, manifest_name
from snapd.repository.state import PackInfo, RepositoryState


def make_manifest(
    state: RepositoryState,
    *,
    pack_floor: int,
    journal_floor: int,
    now_ns: int,
    write_debt_bytes: int = 0,
) -> Manifest:
    """The manifest of what is live now; the caller holds the catalog's lock.

    It names every pack that has live blocks, and every pack above the floor, because recovery
    takes an unnamed pack above the floor for one that was sealed later. Not so those that are
    condemned: they are deleted next, and should a crash come first, recovery finds in them what was
    removed, which it knows, and copies of what is live.
    """
    catalog = state.catalog
    packs: list[PackInfo] = []
    masks: list[Bools] = [np.empty(0, np.bool_)]
    rows: list[I64] = [np.empty(0, np.int64)]
    for pack in state.packs.values():
        live = catalog.is_live(pack.rows)
        late = pack.sequence > pack_floor and pack.sequence not in state.condemned
        if late or bool(live.any()):
            packs.append(pack)
            masks.append(live)
            rows.append(np.flatnonzero(live) + pack.rows.start)
    # Pack by pack, not all at once: two writers may seal in another order than they began.
    live_rows = np.concatenate(rows)
    labels = set(np.unique(catalog.column("fingerprint", live_rows)).tolist())
    return Manifest(
        epoch=state.epoch,
        pack_floor=pack_floor,
        pack_last=state.pack_last,
        journal_floor=journal_floor,
        committed_ns=now_ns,
        bytes=int(catalog.column("size", live_rows).sum()),
        packs=tuple(
            ManifestPack(
                pack.sequence, pack.pack_id, pack.index_digest, pack.rows.stop - pack.rows.start
            )
            for pack in packs
        ),
        live=np.concatenate(masks),
        heat=catalog.column("heat", live_rows),
        incarnations=tuple(sorted(state.incarnations.values())),
        # Each pack says the labels of its blocks again; here only those that still have some, so
        # that the labels of weights long gone do not make every manifest longer.
        fingerprints={one: text for one, text in state.fingerprints.items() if one in labels},
        write_debt_bytes=write_debt_bytes,
    )


def write_manifest(disk: Disk, repository_id: bytes, generation: int, manifest: Manifest) -> int:
    """Make a manifest durable, read it back from the medium, and return its length in bytes.

    Crash argument: the bytes are synced before the name is there, and the name is new, so that at
    no moment an older manifest is touched. Raises DiskError, or CorruptError when it does not read
    back as it was written; the generation is then used up and nothing may be pruned.
    """
    trailer, pieces = encode_manifest_file(repository_id, generation, manifest)
    name = manifest_name(generation)
    write_durably(disk, name, MANIFESTS, pieces)
    sealed, raw = read_index(disk, name, MANIFEST_MAGIC, repository_id, direct=True)
    if sealed.trailer != trailer or sealed.problem or index_digest(raw) != trailer.index_digest:
        raise CorruptError(f"{name} does not read back as it was written")
    return sealed.file_bytes


def encode_manifest_file(
    repository_id: bytes, generation: int, manifest: Manifest
) -> tuple[FileTrailer, list[bytes]]:
    """The trailer of a manifest's file, and the bytes of the file in pieces. Raises CorruptError
    for one that this version could not read."""
    body, raw_bytes = encode_manifest(manifest)
    header = FileHeader(MANIFEST_MAGIC, repository_id, secrets.token_bytes(ID_BYTES), generation)
    trailer = FileTrailer(
        header=header,
        index_offset=PAGE_BYTES,
        index_bytes=len(body),
        raw_bytes=raw_bytes,
        index_digest=index_digest(body),
        rows=len(manifest.packs),
    )
    # Parsed before it is written: a manifest that this version cannot read never gets its name.
    decode_manifest(body, trailer)
    return trailer, [encode_header(header), body, encode_trailer(trailer)]


def read_manifest(disk: Disk, repository_id: bytes, generation: int) -> tuple[Manifest, int]:
    """A verified manifest and the length of its file in bytes.

    Raises CorruptError, NewerFormatError or DiskError.
    """
    manifest, sealed = read_manifest_file(disk, repository_id, generation)
    return manifest, sealed.file_bytes


def read_manifest_file(
    disk: Disk, repository_id: bytes, generation: int
) -> tuple[Manifest, SealedFile]:
    """A verified manifest and what is known of its file. Raises as `read_manifest` does."""
    name = manifest_name(generation)
    sealed, raw = read_index(disk, name, MANIFEST_MAGIC, repository_id)
    if sealed.header.sequence != generation:
        raise CorruptError(f"{name} is of generation {sealed.header.sequence}")
    return decode_manifest(raw, sealed.trailer), sealed
