"""Every hostile file that is tried, as a list: a name, what is done to a sample, what must hold.

`damage_cases` change bytes and lengths, `forged_cases` change meaning and make every checksum right
again, `planted_cases` put things where they do not belong. Each case starts from a fresh copy.
Names say file, place and change, and none occurs twice.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import forgery
import numpy as np
from forgery import Columns, telling_values
from hostile_exam import Promise

from snapd.formats.journal import RECORD_DTYPE
from snapd.formats.manifest import ManifestSection
from snapd.formats.pack import PackSection
from snapd.formats.sealed import HEADER_DTYPE, PAGE_BYTES, TRAILER_DTYPE
from snapd.formats.sections import ENTRY_DTYPE, HEAD_DTYPE

Apply = Callable[[Path], None]

OUTSIDE = b"belongs to somebody else"
"""What is in a file that has a second name in the repository."""
KEYED = {
    int(PackSection.KEY_LENGTHS),
    int(PackSection.KEY_HEAP),
    int(PackSection.KEY_HASH),
    int(PackSection.CHECKSUM),
}
"""Columns that say which bytes are whose: a forger who sets them speaks for the blocks."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One case."""

    name: str
    apply: Apply
    promise: Promise = Promise.DAMAGED
    noticed: bool = False
    """Whether `verify` or a refusal must say that something is wrong."""
    keeps_all: bool = False
    """Whether nothing that was promised may be lost: no block depends on what was changed."""
    may_refuse: bool = False
    """Whether a start may be refused with a sentence, because there is nowhere to write."""
    flips: tuple[str, int, int] | None = None
    """Of a changed byte: file, offset, mask; so that it can be changed in place and back."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a sample by what they are, as names within the repository."""

    packs: tuple[str, ...]
    manifests: tuple[str, ...]
    journals: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> Layout:
        def names(pattern: str) -> tuple[str, ...]:
            return tuple(str(one.relative_to(root)) for one in sorted(root.glob(pattern)))

        return cls(names("packs/*.pack"), names("manifests/*.manifest"), names("journal/*.journal"))


def short(name: str) -> str:
    """A file's name without its random id."""
    return name.split("-", maxsplit=1)[0]


# --- damage: bytes and lengths --------------------------------------------------------------------


def flip(root: Path, name: str, offset: int, mask: int) -> None:
    """Change one byte of a file in place; doing it again undoes it."""
    with (root / name).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def truncate(name: str, length: int, root: Path) -> None:
    os.truncate(root / name, length)


def flip_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every byte that says something, in one file of each kind and in part of the others."""
    whole = {layout.packs[3], layout.manifests[-1], "repository.json"}
    sealed = {*layout.packs, *layout.manifests}
    for name in (*layout.packs, *layout.manifests, *layout.journals, "repository.json"):
        raw = (root / name).read_bytes()
        matters = _matters(raw) if name in sealed else np.ones(len(raw), np.bool_)
        for offset in range(0, len(raw), 1 if name in whole else 23):
            in_data = name == layout.packs[3] and PAGE_BYTES <= offset < _index_offset(raw)
            if in_data and offset % 16:
                continue
            masks = [0xFF] if offset % 2 else [1 << offset // 2 % 8]
            for mask in [1 << bit for bit in range(8)] if name == "repository.json" else masks:
                yield Hostile(
                    f"{short(name)}: byte {offset} xor {mask:#04x}",
                    lambda tree, n=name, o=offset, m=mask: flip(tree, n, o, m),
                    noticed=name in sealed and bool(matters[offset]),
                    keeps_all=name == "repository.json",
                    flips=(name, offset, mask),
                )


def _index_offset(raw: bytes) -> int:
    return int(np.frombuffer(raw[-PAGE_BYTES:], TRAILER_DTYPE)[0]["index_offset"])


def _matters(raw: bytes) -> np.ndarray:
    """Which bytes of a sealed file are not padding behind a block, bool [n]."""
    start = _index_offset(raw)
    result = np.ones(len(raw), np.bool_)
    if raw[:8] == b"SNAPPACK":
        result[PAGE_BYTES:start] = False
        columns = forgery.columns_of(raw[start:-PAGE_BYTES], "pack")
        offsets, sizes = columns[PackSection.PACK_OFFSET], columns[PackSection.STORED_SIZE]
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            result[offset : offset + size] = True
    return result


def length_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every length of the small files, every page and its neighbours of the others; tails."""
    for name in (*layout.packs, *layout.manifests, *layout.journals, "repository.json"):
        size = (root / name).stat().st_size
        lengths = set(_near_pages(size))
        if name == "repository.json":
            lengths = set(range(size))
        elif name == layout.journals[-1]:
            lengths |= set(range(0, size, 11))
        for length in sorted(lengths):
            # A journal may end anywhere: nobody can know what it said behind its end.
            noticed = name in {*layout.packs, *layout.manifests}
            yield Hostile(
                f"{short(name)}: cut to {length}",
                partial(truncate, name, length),
                Promise.FORGED if name in layout.journals else Promise.DAMAGED,
                noticed=noticed,
            )
        for label, tail in _tails().items():
            yield Hostile(
                f"{short(name)}: {label} appended",
                lambda tree, n=name, t=tail: _append(tree / n, t),
                noticed=name in {*layout.packs, *layout.manifests},
            )


def _near_pages(size: int) -> list[int]:
    near = {page + step for page in range(0, size + 1, PAGE_BYTES) for step in (-1, 0, 1)}
    return sorted(length for length in near | {8, 511, 512} if 0 <= length < size)


def _tails() -> dict[str, bytes]:
    noise = random.Random(1).randbytes(PAGE_BYTES)
    return {
        "a zero": b"\0",
        "a page of zeros": bytes(PAGE_BYTES),
        "a page of noise": noise,
        "half a page of noise": noise[:2048],
        "three pages of noise": noise * 3,
    }


def _append(path: Path, tail: bytes) -> None:
    with path.open("ab") as file:
        file.write(tail)


def swap_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Whole things in each other's places."""
    for kind in (layout.packs, layout.manifests, layout.journals):
        for at, one in enumerate(kind):
            for other in kind[at + 1 :]:
                # Journal files that trade places still say all that they say.
                yield Hostile(
                    f"{short(one)} and {short(other)} trade names",
                    lambda tree, a=one, b=other: _trade(tree / a, tree / b),
                    noticed=kind is not layout.journals,
                )
                yield Hostile(
                    f"{short(other)} holds a copy of {short(one)}",
                    lambda tree, a=one, b=other: shutil.copy(tree / a, tree / b) and None,
                    # What a journal said before it was replaced, nobody can know.
                    Promise.FORGED if kind is layout.journals else Promise.DAMAGED,
                    noticed=kind is not layout.journals,
                )
    for name in layout.packs:
        count = len(_places(root / name))
        for one in range(count):
            for other in range(one + 1, count):
                yield Hostile(
                    f"{short(name)}: bytes of blocks {one} and {other} trade places",
                    lambda tree, n=name, a=one, b=other: _trade_blocks(tree / n, a, b),
                    noticed=True,
                )
    for name in (*layout.packs, *layout.manifests, *layout.journals, "repository.json"):
        yield Hostile(
            f"{short(name)}: gone",
            lambda tree, n=name: (tree / n).unlink(),
            noticed=name in layout.packs[:-1],
            # A journal, or a pack behind the last manifest, can be missed by nobody.
            promise=Promise.FORGED
            if name in {*layout.journals, layout.packs[-1]}
            else Promise.DAMAGED,
        )
        size = (root / name).stat().st_size
        for page in range(0, size, PAGE_BYTES):
            yield Hostile(
                f"{short(name)}: page at {page} zeroed",
                lambda tree, n=name, p=page: _overwrite(tree / n, p, bytes(PAGE_BYTES)),
            )
            yield Hostile(
                f"{short(name)}: page at {page} is another's header",
                lambda tree, n=name, p=page: _overwrite(
                    tree / n, p, (tree / layout.packs[0]).read_bytes()[:PAGE_BYTES]
                ),
                promise=Promise.FORGED if name in layout.journals else Promise.DAMAGED,
            )


def _places(path: Path) -> list[tuple[int, int]]:
    columns = forgery.columns_of(forgery.Sealed.read(path).index, "pack")
    sizes = columns[PackSection.STORED_SIZE].tolist()
    return sorted(zip(columns[PackSection.PACK_OFFSET].tolist(), sizes, strict=True))


def _trade(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _trade_blocks(path: Path, one: int, other: int) -> None:
    places = _places(path)
    (a, a_size), (b, b_size) = places[one], places[other]
    raw = bytearray(path.read_bytes())
    length = min(a_size, b_size)
    raw[a : a + length], raw[b : b + length] = raw[b : b + length], raw[a : a + length]
    path.write_bytes(raw)


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    end = min(len(raw), offset + len(data))
    raw[offset:end] = data[: end - offset]
    path.write_bytes(raw)


# --- forged: meaning, with the right checksums ----------------------------------------------------


def forged_header_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every field of headers and trailers."""
    for name in (*layout.packs, *layout.manifests, *layout.journals):
        yield from _page_cases(root, name, HEADER_DTYPE, slice(0, PAGE_BYTES), forgery.edit_header)
    for name in (*layout.packs, *layout.manifests):
        tail = slice(-PAGE_BYTES, None)
        yield from _page_cases(root, name, TRAILER_DTYPE, tail, forgery.edit_trailer)


def _page_cases(
    root: Path,
    name: str,
    dtype: np.dtype[np.void],
    where: slice,
    edit: Callable[[Path, str, int | bytes], None],
) -> Iterator[Hostile]:
    record = np.frombuffer((root / name).read_bytes()[where], dtype)[0]
    part = "header" if where.start == 0 else "trailer"
    for field in dtype.names or ():
        if field in {"reserved", "checksum"}:
            continue
        for label, value in _field_values(record[field]):
            yield Hostile(
                f"{short(name)}: {part}.{field} = {label}",
                lambda tree, n=name, f=field, v=value: edit(tree / n, f, v),
                Promise.FORGED,
            )


def _field_values(current: np.ndarray) -> Iterator[tuple[str, int | bytes]]:
    if current.shape:
        raw = current.tobytes()
        yield from {
            "zeros": bytes(len(raw)),
            "ones": b"\xff" * len(raw),
            "one bit off": bytes([raw[0] ^ 1]) + raw[1:],
            "reversed": raw[::-1],
        }.items()
        return
    for number in telling_values(int(current), current.dtype.itemsize):
        yield str(number), number


def forged_column_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every column of a raw pack's index, a compressed pack's and a manifest's."""
    for name in (layout.packs[2], layout.packs[3], layout.packs[5], *layout.manifests[1:]):
        path = root / name
        kind = forgery.kind_of(path)
        sections = PackSection if kind == "pack" else ManifestSection
        for number, column in forgery.columns_of(forgery.Sealed.read(path).index, kind).items():
            label = f"{short(name)}: {sections(number).name}"
            keyed = kind == "pack" and number in KEYED
            promise = Promise.RENAMED if keyed else Promise.FORGED
            for row in sorted({0, len(column) // 2, len(column) - 1} & set(range(len(column)))):
                for what, edit in _item_edits(number, column, row):
                    yield Hostile(
                        f"{label}[{row}]{what}",
                        lambda tree, n=name, e=edit: forgery.edit_sections(tree / n, e),
                        promise,
                    )
            for what, edit in _column_edits(number, column):
                yield Hostile(
                    f"{label} {what}",
                    lambda tree, n=name, e=edit: forgery.edit_sections(tree / n, e),
                    promise,
                )
            if kind == "pack" and len(column):
                _, edit = next(iter(_item_edits(number, column, 0)))
                yield Hostile(
                    f"{label}[0] changed, manifests name the old digest",
                    lambda tree, n=name, e=edit: forgery.edit_sections(
                        tree / n, e, manifests_follow=False
                    ),
                    promise,
                )


def _item_edits(
    number: int, column: np.ndarray, row: int
) -> Iterator[tuple[str, Callable[[Columns], None]]]:
    if column.dtype.names is None:
        for value in telling_values(int(column[row]), column.dtype.itemsize):
            yield f" = {value}", partial(_set_item, number, row, None, value)
        return
    for field in column.dtype.names:
        for label, found in _field_values(column[row][field]):
            yield f".{field} = {label}", partial(_set_item, number, row, field, found)


def _set_item(
    number: int, row: int, field: str | None, value: int | bytes, columns: Columns
) -> None:
    if field is None:
        columns[number][row] = value
    else:
        forgery.set_field(columns[number][row : row + 1][0], field, value)


def _column_edits(
    number: int, column: np.ndarray
) -> Iterator[tuple[str, Callable[[Columns], None]]]:
    def put(change: Callable[[np.ndarray], np.ndarray], columns: Columns) -> None:
        columns[number] = change(columns[number])

    def drop(columns: Columns) -> None:
        del columns[number]

    edits: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "one item longer": lambda one: np.concatenate([one, one[-1:]]),
        "one item shorter": lambda one: one[:-1],
        "empty": lambda one: one[:0],
        "twice as long": lambda one: np.concatenate([one, one]),
        "backwards": lambda one: one[::-1].copy(),
        "all like the first": lambda one: np.repeat(one[:1], len(one)),
        "all ones": lambda one: np.frombuffer(b"\xff" * one.nbytes, one.dtype).copy(),
        "all zeros": np.zeros_like,
        "of bytes": lambda one: one.view(np.uint8).copy() if len(one) else one,
    }
    yield "missing", drop
    for label, change in edits.items():
        if len(column):
            yield label, partial(put, change)


def forged_directory_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every field of the directory of sections."""
    for name in (layout.packs[3], layout.manifests[-1]):
        index = forgery.Sealed.read(root / name).index
        head = np.frombuffer(index[: HEAD_DTYPE.itemsize], HEAD_DTYPE)[0]
        places = [(0, HEAD_DTYPE, "head")]
        places += [
            (HEAD_DTYPE.itemsize + at * ENTRY_DTYPE.itemsize, ENTRY_DTYPE, f"entry {at}")
            for at in range(int(head["sections"]))
        ]
        for offset, dtype, label in places:
            record = np.frombuffer(index[offset : offset + dtype.itemsize], dtype)[0]
            for field in dtype.names or ():
                for what, value in _field_values(record[field]):
                    yield Hostile(
                        f"{short(name)}: directory {label}.{field} = {what}",
                        lambda tree, n=name, o=offset, d=dtype, f=field, v=value: (
                            forgery.edit_directory(tree / n, partial(_set_record, o, d, f, v))
                        ),
                        Promise.FORGED,
                    )


def _set_record(
    offset: int, dtype: np.dtype[np.void], field: str, value: int | bytes, raw: bytearray
) -> None:
    record = np.frombuffer(bytes(raw[offset : offset + dtype.itemsize]), dtype).copy()
    forgery.set_field(record[0], field, value)
    raw[offset : offset + dtype.itemsize] = record.tobytes()


def forged_journal_cases(root: Path, layout: Layout) -> Iterator[Hostile]:
    """Every field of every record, and every byte of the payloads."""
    for name in layout.journals:
        raw = (root / name).read_bytes()
        places = {raw[start:end]: (start, end) for start, end in forgery.journal_records(raw)}
        for at, (start, end) in enumerate(places.values()):
            record = np.frombuffer(raw[start : start + RECORD_DTYPE.itemsize], RECORD_DTYPE)[0]
            for field in RECORD_DTYPE.names or ():
                if field == "checksum":
                    continue
                for what, value in _field_values(record[field]):
                    yield _record_case(
                        name,
                        (start, end),
                        f"record {at}.{field} = {what}",
                        partial(_changed_record, field, value),
                    )
            for offset in range(RECORD_DTYPE.itemsize, end - start):
                for mask in (0x01, 0x80, 0xFF):
                    yield _record_case(
                        name,
                        (start, end),
                        f"record {at}, byte {offset} of it xor {mask:#04x}",
                        partial(_changed_byte, offset, mask),
                    )
            for more in (-16, -8, 8, 64, PAGE_BYTES):
                yield _record_case(
                    name,
                    (start, end),
                    f"record {at} is {more:+} bytes longer",
                    partial(_resized_record, more),
                )


def _record_case(
    name: str, where: tuple[int, int], label: str, edit: Callable[[bytearray], bytes]
) -> Hostile:
    return Hostile(
        f"{short(name)}: {label}",
        lambda tree: forgery.edit_record(tree / name, *where, edit),
        Promise.FORGED,
    )


def _changed_record(field: str, value: int | bytes, record: bytearray) -> bytes:
    _set_record(0, RECORD_DTYPE, field, value, record)
    return bytes(record)


def _changed_byte(offset: int, mask: int, record: bytearray) -> bytes:
    record[offset] ^= mask
    return bytes(record)


def _resized_record(more: int, record: bytearray) -> bytes:
    changed = bytes(record[:more]) if more < 0 else bytes(record) + bytes(more)
    payload = len(changed) - RECORD_DTYPE.itemsize
    return _changed_record("payload_bytes", max(0, payload), bytearray(changed))


# --- planted: things that do not belong there -----------------------------------------------------


def planted_cases(root: Path, layout: Layout, other: Path) -> Iterator[Hostile]:
    """Special files, links, other repositories' files, names. `other`: another sample."""
    targets = [
        layout.packs[2],
        layout.manifests[-1],
        layout.manifests[0],
        layout.journals[-1],
        "repository.json",
        "lock",
        "pins",
        "quarantine/0000000001-0000000000001000.block",
    ]
    for name in targets:
        for label, plant in SPECIAL_FILES.items():
            yield Hostile(
                f"{short(name)} is {label}",
                lambda tree, n=name, p=plant: _replace(tree / n, p),
                # What was there is gone; of a journal, nobody can know what it said.
                Promise.FORGED if name in layout.journals else Promise.DAMAGED,
                keeps_all=name.startswith(("repository.json", "quarantine")),
                may_refuse=name in {"lock", "pins"},
            )
    for directory in ("packs", "manifests", "journal", "quarantine"):
        for label in ("a symbolic link", "a FIFO", "an empty file", "a socket"):
            yield Hostile(
                f"{directory} is {label}",
                lambda tree, d=directory, p=SPECIAL_FILES[label]: _replace_tree(tree / d, p),
                Promise.FORGED,
                may_refuse=True,
            )
        for label, plant in SPECIAL_FILES.items():
            for stray in _stray_names(directory):
                yield Hostile(
                    f"{directory} also has {stray!r}, {label}",
                    lambda tree, d=directory, s=stray, p=plant: p(
                        Path(os.fsdecode(os.fsencode(tree / d) + b"/" + s))
                    ),
                    keeps_all=True,
                )
    yield from _foreign_cases(layout, Layout.of(other), other)


def _stray_names(directory: str) -> list[bytes]:
    zero = b"0" * 32
    names = {
        "packs": [b"0000000099-" + zero + b".pack", b"4294967294-" + zero + b".pack"],
        "manifests": [b"0000000099.manifest", b"9999999999.manifest", b"0000000000.manifest"],
        "journal": [b"0000000099.journal", b"9999999999.journal"],
        "quarantine": [b"0000000001-0000000000002000.block"],
    }
    other_digits = "٠٠٠٠٠٠٠٠٠٣".encode()
    odd = {
        "packs": other_digits + b"-" + zero + b".pack",
        "manifests": other_digits + b".manifest",
        "journal": other_digits + b".journal",
        "quarantine": other_digits + b".block",
    }
    return [*names[directory], odd[directory], b"\xff\xfe odd\nbytes", b"half.tmp", b".hidden"]


def _foreign_cases(ours: Layout, theirs: Layout, other: Path) -> Iterator[Hostile]:
    pairs = [
        *((ours.packs[at], theirs.packs[at]) for at in range(len(ours.packs))),
        *((ours.manifests[at], theirs.manifests[at]) for at in range(len(ours.manifests))),
        *((ours.journals[at], theirs.journals[at]) for at in range(len(ours.journals))),
    ]
    for our_name, their_name in pairs:
        yield Hostile(
            f"{short(our_name)} is that of another repository",
            lambda tree, a=our_name, b=their_name: shutil.copy(other / b, tree / a) and None,
            Promise.FORGED if our_name in ours.journals else Promise.DAMAGED,
        )
        later = _renumbered(their_name, 90)
        yield Hostile(
            f"another repository's {short(their_name)} beside ours, as {short(later)}",
            lambda tree, b=their_name, c=later: shutil.copy(other / b, tree / c) and None,
            keeps_all=True,
        )
        yield Hostile(
            f"another repository's {short(their_name)} beside ours, renumbered to fit",
            lambda tree, b=their_name, c=later: _plant_numbered(other / b, tree / c, 90),
            keeps_all=True,
        )
        yield Hostile(
            f"another repository's {short(their_name)} beside ours, with our id",
            lambda tree, b=their_name, c=later: _plant_ours(other / b, tree / c, 90),
            Promise.RENAMED,
        )
    yield Hostile(
        "repository.json of another repository",
        lambda tree: shutil.copy(other / "repository.json", tree / "repository.json") and None,
        keeps_all=True,
    )


def _renumbered(name: str, number: int) -> str:
    directory, _, leaf = name.rpartition("/")
    return f"{directory}/{number:010d}{leaf[10:]}"


def _plant_numbered(source: Path, target: Path, number: int) -> None:
    shutil.copy(source, target)
    forgery.edit_header(target, "sequence", number)
    if forgery.kind_of(target) != "journal":
        forgery.edit_trailer(target, "sequence", number)


def _plant_ours(source: Path, target: Path, number: int) -> None:
    """A file of another repository, with our repository's id and a number that is free."""
    some_pack = next(iter(sorted((target.parent.parent / "packs").glob("*.pack"))))
    identity = some_pack.read_bytes()[16:32]
    _plant_numbered(source, target, number)
    forgery.edit_header(target, "repository_id", identity)
    if forgery.kind_of(target) != "journal":
        forgery.edit_trailer(target, "repository_id", identity)


def _replace(path: Path, plant: Callable[[Path], None]) -> None:
    path.rename(path.parent.parent / f"{path.parent.name}-{path.name}-was")
    plant(path)


def _replace_tree(path: Path, plant: Callable[[Path], None]) -> None:
    path.rename(path.parent.parent / f"{path.parent.name}-{path.name}-was")
    plant(path)


def _plant_link(path: Path) -> None:
    path.symlink_to("/dev/zero" if path.suffix else "/tmp")


def _plant_own_link(path: Path) -> None:
    """A link to the real file, which was moved out of the repository."""
    moved = path.parent.parent / f"{path.parent.name}-{path.name}-was"
    path.symlink_to(moved)


def _plant_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))


def _plant_socket(path: Path) -> None:
    # The path may be longer than a socket's address can be: bind below the directory.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(b"/proc/self/fd/%d/" % descriptor + os.fsencode(path.name))
    finally:
        os.close(descriptor)


def _plant_hard_link(path: Path) -> None:
    """A file that has a second name outside; if snapd wrote to it, that would change as well."""
    outside = path.parent.parent / f"{path.parent.name}-outside"
    outside.write_bytes(OUTSIDE)
    os.link(outside, path)


def _plant_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL_FILES: dict[str, Callable[[Path], None]] = {
    "a symbolic link": _plant_link,
    "a symbolic link to the real file": _plant_own_link,
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a device": _plant_device,
    "a socket": _plant_socket,
    "a hard link to something outside": _plant_hard_link,
    "an empty file": Path.touch,
    "a sparse file of a TiB": _plant_sparse,
}
