"""A client that stops in the middle of a put, as a script.

    python client_stalled.py unix:<runtime dir> KEY SIZE

It prints `copying` with half of the block copied, waits for a line of input, copies the rest, ends
the put and prints its return code. Every byte is `FILL`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from snapd.blocks.keys import U64
from snapd.client.link import LinkOptions
from snapd.client.requests import PutOptions
from snapd.client.session import ClientSession
from snapd.client.transfer import PointerSources

FILL = 0x5A


class StalledSources(PointerSources):
    """Copies one half, waits, and copies everything; waits only once."""

    stalled = False

    def copy_to(self, targets: Sequence[int]) -> U64:
        if not self.stalled:
            self.stalled = True
            half = [size // 2 for size in self.sizes]
            PointerSources(self._addresses, half).copy_to(targets)
            print("copying", flush=True)
            sys.stdin.readline()
        return super().copy_to(targets)

    def take(self, rows: Sequence[int]) -> PointerSources:
        return self


def main(address: str, key: str, size: int) -> None:
    session = ClientSession(LinkOptions(f"{address.removeprefix('unix:')}/store.sock", "", 0.0))
    block = np.full(size, FILL, np.uint8)
    sources = StalledSources([block.ctypes.data], [size], block)
    print(session.put([key.encode()], sources, PutOptions())[0], flush=True)
    session.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
