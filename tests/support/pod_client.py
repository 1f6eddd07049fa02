"""A client in a container of its own: does what lines on its standard input say, answers in JSON.

With an argument, the address of a Mooncake master, it is a client of that.

put FIRST COUNT         put so many blocks
read COUNT              read all of them, and a quarter as many that were never put
watch SECONDS COUNT     read batches of them for so long, then until one is there
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from typing import Any

from snapd.client import MooncakeDistributedStore

BLOCK_BYTES = 32 * 1024
BATCH = 16
SECONDS_MAX = 30.0


def value(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_BYTES // 8)


def names(numbers: range | list[int]) -> list[str]:
    return [f"page-{number}" for number in numbers]


def read(store: Any, numbers: range | list[int]) -> tuple[int, int]:
    """How many were there, and how many of those were not what was put."""
    found = store.get_batch(names(numbers))
    there = [(n, bytes(one)) for n, one in zip(numbers, found, strict=True) if one]
    return len(there), sum(one != value(n) for n, one in there)


def watch(store: Any, seconds: float, count: int) -> dict[str, float]:
    """Reads for so long, and then until a whole batch is there."""
    draw = random.Random(1)
    began = last_good = time.monotonic()
    hits = asked = wrong = there = 0
    longest = 0.0
    while (now := time.monotonic()) < began + seconds or there < BATCH:
        there, bad = read(store, draw.sample(range(count), BATCH))
        hits, asked, wrong = hits + there, asked + BATCH, wrong + bad
        if there == BATCH:
            now = time.monotonic()
            longest, last_good = max(longest, now - last_good), now
        elif now > began + seconds + SECONDS_MAX:
            break
        time.sleep(0.005)
    return {"rate": hits / asked, "wrong": wrong, "longest_gap_seconds": longest}


def connect(master: str) -> Any:
    """A store of either kind; they have the same methods. Raises what setup cannot do."""
    if not master:
        store = MooncakeDistributedStore()
        code = store.setup("localhost", "", 0, 0, "tcp", "", "unix:/run/mooncake-snapd")
    else:
        store = importlib.import_module("mooncake.store").MooncakeDistributedStore()
        metadata = f"http://{master.split(':', maxsplit=1)[0]}:8080/metadata"
        code = store.setup("127.0.0.1", metadata, 0, 16 << 20, "tcp", "", master)
    assert code == 0, code
    return store


def main() -> None:
    # What native code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    store = connect(*sys.argv[1:] or [""])
    print(json.dumps({"setup": 0}), file=answers, flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        if verb == "put":
            first, count = map(int, numbers)
            chosen = range(first, first + count)
            codes = store.put_batch(names(chosen), [value(n) for n in chosen])
            answer = {"put": codes}
        elif verb == "read":
            count = int(numbers[0])
            there, wrong = read(store, range(count))
            never, _ = read(store, range(10**6, 10**6 + count // 4))
            rate = (there + never) / (count + count // 4)
            answer = {"there": there, "rate": rate, "wrong": wrong}
        else:
            answer = watch(store, float(numbers[0]), int(numbers[1]))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
