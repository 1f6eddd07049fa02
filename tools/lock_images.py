"""Write the lists of packages, with hashes, that the container images are built from.

    python tools/lock_images.py           write requirements/*.lock
    python tools/lock_images.py --check   only say whether they name what requirements/*.txt name

The versions are those of `requirements/*.txt`; the hashes are what the package index says of their
wheels. pip refuses what does not match them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
PYTHON = "3.11"
GLIBC = ("manylinux_2_35", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
"""What Debian 12's glibc (2.36) runs."""


@dataclass(frozen=True)
class Lock:
    """What one image is made of."""

    sources: tuple[str, ...]
    platforms: tuple[str, ...]


LOCKS = {
    "runtime.lock": Lock(("runtime.txt",), ("x86_64", "aarch64")),
    # Mooncake's wheel without CUDA is there for x86_64 only.
    "mooncake.lock": Lock(("runtime.txt", "mooncake.txt"), ("x86_64",)),
}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")


def main() -> int:
    """Returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name, lock in LOCKS.items():
        wanted = pins(*lock.sources)
        path = REQUIREMENTS / name
        if not check:
            path.write_text(render(lock, wanted, hashes(wanted, lock.platforms)))
        elif locked(path.read_text()) != wanted:
            print(f"{path} is not of requirements/*.txt: python tools/lock_images.py")
            return 1
    return 0


def pins(*sources: str) -> dict[str, str]:
    """Versions by normalised name. Raises ValueError where two files disagree."""
    found: dict[str, str] = {}
    for source in sources:
        for line in (REQUIREMENTS / source).read_text().splitlines():
            if pin := _PIN.match(line):
                name, version = normalised(pin[1]), pin[2]
                if found.setdefault(name, version) != version:
                    raise ValueError(f"{name} is {found[name]} and, in {source}, {version}")
    return dict(sorted(found.items()))


def locked(text: str) -> dict[str, str]:
    """Versions by name in a lock."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.MULTILINE))


def hashes(wanted: dict[str, str], platforms: tuple[str, ...]) -> dict[str, set[str]]:
    """SHA-256 of the wheels by name, one for each platform, as the index has them."""
    found: dict[str, set[str]] = {name: set() for name in wanted}
    for platform in platforms:
        for install in _report(platform, wanted)["install"]:
            digest = install["download_info"]["archive_info"]["hashes"]["sha256"]
            found[normalised(install["metadata"]["name"])].add(digest)
    return found


def render(lock: Lock, wanted: dict[str, str], digests: dict[str, set[str]]) -> str:
    """The text of a lock."""
    lines = [
        f"# What an image is built from, for pip's --require-hashes: {', '.join(lock.sources)}.",
        f"# Written by tools/lock_images.py; wheels for {', '.join(lock.platforms)}.",
    ]
    for package, version in wanted.items():
        options = [f"    --hash=sha256:{digest}" for digest in sorted(digests[package])]
        lines.append(" \\\n".join([f"{package}=={version}", *options]))
    return "\n".join(lines) + "\n"


def normalised(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _report(platform: str, wanted: dict[str, str]) -> Any:
    """What pip would install there. Raises CalledProcessError where one has no wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
                *("--no-deps", "--only-binary=:all:", "--quiet", "--target", scratch),
                *("--python-version", PYTHON, "--report", str(report)),
                *(f"--platform={glibc}_{platform}" for glibc in GLIBC),
                *(f"{name}=={version}" for name, version in wanted.items()),
            ],
            check=True,
        )
        return json.loads(report.read_text())


if __name__ == "__main__":
    sys.exit(main())
