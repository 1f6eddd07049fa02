"""What all fuzz targets share: Atheris around one decoder, with its own mutator and oracle.

Run it through `run.py`. A target is a module `fuzz_<decoder>.py` with three functions:

- `seeds() -> list[bytes]`: small valid inputs, made by the real encoders, the same each time.
- `mutate(data, rng) -> bytes`: a change that keeps the checksums right, so that the fuzzer gets
  behind them. It may raise on input that it cannot parse: then bytes are changed blindly.
- `check(data)`: decode, and on acceptance check what must hold. Every error but a typed one, that
  of a failed assertion included, is a crash.

Atheris (libFuzzer for Python) instruments the byte code of `snapd` only: NumPy, zstandard and
msgspec are compiled and trusted to be fuzzed by their own projects.
"""

from __future__ import annotations

import importlib
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

SUPPORT = Path(__file__).resolve().parent.parent / "support"

BLIND_SHARE = 0.2
"""Inputs that libFuzzer's own mutators make, checksums be damned."""
FRESH_SHARE = 0.6
"""Of the others, those that are made from a seed. What reached something new is most often refused
by now, and a change to it is, too; what is accepted must stay in reach."""


def main() -> None:
    """`harness.py DIRECTORY DECODER [libFuzzer arguments]`; ends the process."""
    directory, decoder = sys.argv[1:3]
    sys.path[:0] = [directory, str(SUPPORT)]
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["snapd"]):
        target = importlib.import_module(f"fuzz_{decoder}")
    seeds: list[bytes] = target.seeds()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() >= BLIND_SHARE:
            try:
                base = rng.choice(seeds) if rng.random() < FRESH_SHARE else bytes(data)
                changed: bytes = target.mutate(base, rng)
            except Exception:  # noqa: BLE001 - input that does not parse has no structure
                pass
            else:
                if len(changed) <= max_size:
                    return changed
        blind: bytes = atheris.Mutate(data, max_size)
        return blind

    atheris.Setup([sys.argv[0], *sys.argv[3:]], target.check, custom_mutator=mutate)
    atheris.Fuzz()


def minimise() -> None:
    """`harness.py DIRECTORY DECODER --minimise INPUT SMALLER SECONDS`: leave out all that a crash
    does without.

    Halves, quarters and so on are left out while the same error comes. libFuzzer can do that only
    with a program that it can start again by itself.
    """
    directory, decoder, _, crash, smaller, seconds = sys.argv[1:7]
    sys.path[:0] = [directory, str(SUPPORT)]
    check: Callable[[bytes], None] = importlib.import_module(f"fuzz_{decoder}").check
    data = Path(crash).read_bytes()
    wanted = _error_of(check, data)
    if wanted is None:
        return
    deadline = time.monotonic() + float(seconds)
    piece = max(1, len(data) // 2)
    while piece:
        at = 0
        while at < len(data):
            without = data[:at] + data[at + piece :]
            if time.monotonic() > deadline:
                piece = 0
                break
            if _error_of(check, without) == wanted:
                data = without
            else:
                at += piece
        piece //= 2
    Path(smaller).write_bytes(data)


def _error_of(check: Callable[[bytes], None], data: bytes) -> str | None:
    """The kind of error that an input raises, and where."""
    try:
        check(data)
    except Exception as error:  # noqa: BLE001 - any error is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} {frames[-1].filename} {frames[-1].name}"
    return None


if __name__ == "__main__" and "--minimise" in sys.argv:
    minimise()
elif __name__ == "__main__":
    main()
