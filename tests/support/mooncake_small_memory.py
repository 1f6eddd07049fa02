"""A node whose shared memory holds one segment file and not two; in a mount namespace of its own.

    python mooncake_small_memory.py <directory> <store|master>...

Kills what is named, one after the other, and prints a line of JSON about what came back. `run` does
so from a test.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mooncake_site import SHARED_MEMORY, MooncakeSite

SEGMENT_MIB, SHARED_MEMORY_MIB = 64, 100
KEYS = 200
BACK_SECONDS_MAX = 30.0

_PREFIX = [
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    f'mount -t tmpfs -o size={SHARED_MEMORY_MIB}m tmpfs {SHARED_MEMORY} && exec "$@"',
    "sh",
]


def run(directory: Path, *deaths: str) -> list[dict[str, Any]]:
    """One document for each death."""
    ended = subprocess.run(
        [*_PREFIX, sys.executable, __file__, str(directory), *deaths],
        capture_output=True,
        text=True,
        timeout=60 + 40 * len(deaths),
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"[-6000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


def main() -> None:
    directory, *deaths = sys.argv[1:]
    with MooncakeSite(Path(directory), segment_bytes=SEGMENT_MIB << 20) as site:
        site.start()
        site.start_daemon()
        client = site.client()
        keys = [f"small-{number}" for number in range(KEYS)]
        client.put_all(keys)
        assert site.snapd.snapshot()["blocks"] == KEYS
        for number, death in enumerate(deaths, 1):
            if death == "store":
                site.kill_store()
                site.start_store()
            else:
                site.kill_master()
                site.start_master()
            is_back = functools.partial(_is_back, site, keys, number * KEYS)
            site.until("everything is back", is_back, BACK_SECONDS_MAX)
            client.read(keys)  # a client's first call after a death of the master may bring nothing
            found = client.read(keys)
            report = {
                "death": death,
                "back": sum(state == 1 for state in found.values()),
                "wrong": len(client.wrong(keys)),
                "files": len(site.shared_files()),
                "warnings": site.snapd.logged("no room for a new segment file"),
                "from_disk": site.snapd.metric("warmup_blocks_total", result="loaded"),
            }
            print(json.dumps(report), flush=True)


def _is_back(site: MooncakeSite, keys: list[str], loaded: int) -> bool:
    """A dead store's keys are listed for a while, so that they are says nothing by itself."""
    from_disk = site.snapd.metric("warmup_blocks_total", result="loaded")
    ready = site.snapd.ask("/readyz")[0] == 200
    return ready and from_disk >= loaded and site.keys() >= set(keys)


if __name__ == "__main__":
    main()
