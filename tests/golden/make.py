"""Make a golden repository: what this version of snapd writes, kept for all later ones.

    python tests/golden/make.py v1

Run once for each format version, by whoever changes the format, never by CI: a golden repository
that is made again proves nothing. It holds everything that a repository can have (see
`sample_repository`), and beside it stands what must come out: the XXH3-128 of each key's bytes.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import xxhash
import zstandard

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from sample_repository import LABELLED, build_sample  # noqa: E402 - found through the line above

BYTES_MAX = 100_000


def main() -> None:
    """Write `<name>.tar.zst` and `<name>.json`; refuses to replace them."""
    name = sys.argv[1]
    archive, document = HERE / f"{name}.tar.zst", HERE / f"{name}.json"
    if archive.exists():
        raise SystemExit(f"{archive} is there already: a golden repository is made once")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "repository"
        expected = build_sample(root)
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(root.rglob("*")):
                member = tar.gettarinfo(path, str(path.relative_to(root)))
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.mtime = 0
                if path.is_file():
                    with path.open("rb") as file:
                        tar.addfile(member, file)
                else:
                    tar.addfile(member)
    packed = zstandard.ZstdCompressor(level=19).compress(raw.getvalue())
    if len(packed) > BYTES_MAX:
        raise SystemExit(f"{len(packed)} bytes are too many to keep")
    archive.write_bytes(packed)
    contents = {
        "live": {key.decode(): xxhash.xxh3_128_hexdigest(b) for key, b in expected.live.items()},
        "evicted": {
            key.decode(): xxhash.xxh3_128_hexdigest(b) for key, b in expected.evicted.items()
        },
        "gone": sorted(key.decode() for key in expected.gone),
        "labelled": LABELLED.decode(),
    }
    document.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
