"""`Trace`: requests as columns, read from Mooncake's JSONL or made by a multi-turn generator.

A request names the blocks of its prompt in order, 512 tokens each; two requests that begin with the
same blocks share that prefix. Only whole blocks are cached; the rest of a prompt is always
computed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from snapd.errors import SettingError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BLOCK_TOKENS = 512
"""Tokens of one prefix block in Mooncake's traces."""


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests over `block_count` different blocks, ordered by time."""

    times: F64
    """Seconds from the first request, float64 [n], never falling."""
    prompt_tokens: I64
    """Tokens of each prompt, int64 [n], at least those of its blocks."""
    starts: I64
    """Request i has blocks `blocks[starts[i]:starts[i + 1]]`, int64 [n + 1]."""
    blocks: I64
    """Block numbers from 0 to `block_count` - 1; none occurs twice in one request."""
    block_count: int

    def __len__(self) -> int:
        return len(self.times)

    def chain(self, request: int) -> I64:
        """The blocks of a request, in order."""
        return self.blocks[self.starts[request] : self.starts[request + 1]]

    @property
    def lengths(self) -> I64:
        """Blocks of each request, int64 [n]."""
        return np.diff(self.starts)

    def head(self, requests: int) -> Trace:
        """The first requests, with blocks numbered anew."""
        count = min(requests, len(self))
        end = int(self.starts[count])
        numbers, blocks = np.unique(self.blocks[:end], return_inverse=True)
        return Trace(
            times=self.times[:count],
            prompt_tokens=self.prompt_tokens[:count],
            starts=self.starts[: count + 1],
            blocks=blocks.astype(np.int64),
            block_count=len(numbers),
        )

    def save(self, path: Path) -> None:
        """Write it for other processes; `load` reads it back."""
        np.savez(
            path,
            times=self.times,
            prompt_tokens=self.prompt_tokens,
            starts=self.starts,
            blocks=self.blocks,
        )

    @classmethod
    def load(cls, path: Path) -> Trace:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as columns:
            blocks = columns["blocks"]
            return cls(
                times=columns["times"],
                prompt_tokens=columns["prompt_tokens"],
                starts=columns["starts"],
                blocks=blocks,
                block_count=int(blocks.max(initial=-1)) + 1,
            )


class _Line(msgspec.Struct, frozen=True):
    """One line of a trace file; other fields are ignored."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[int]
    output_length: int = 0


def read_trace(path: Path) -> Trace:
    """A trace in Mooncake's JSONL format: `timestamp` in ms, `input_length`, `output_length`,
    `hash_ids`.

    Raises SettingError that names the line when the file cannot be read or is not such a trace.
    """
    decoder = msgspec.json.Decoder(_Line)
    lines: list[_Line] = []
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if raw.strip():
                    lines.append(_decode(decoder, raw, f"{path}, line {number}"))
    except OSError as error:
        raise SettingError(f"cannot read the trace {path}: {error.strerror}") from error
    if not any(line.hash_ids for line in lines):
        raise SettingError(f"{path} has no request with blocks (hash_ids)")
    lines.sort(key=lambda line: line.timestamp)
    first = lines[0].timestamp
    return _build(
        [(line.timestamp - first) / 1000 for line in lines],
        [line.input_length for line in lines],
        [line.hash_ids for line in lines],
    )


def _decode(decoder: msgspec.json.Decoder[_Line], raw: bytes, where: str) -> _Line:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{where} is not a request of a Mooncake trace: {error}") from error


@dataclass(frozen=True, slots=True)
class MultiTurn:
    """A chat service: conversations start at random, and each turn resends all that came before.

    Times are in seconds of the trace; `Trace.times` is sped up when it is replayed.
    """

    requests: int = 1200
    horizon_seconds: float = 900.0
    """The requests are spread over about this long."""
    system_prompts: int = 6
    system_blocks: int = 4
    turns_mean: float = 7.0
    turn_blocks_max: int = 10
    """A turn adds 1 to this many blocks: the last answer and the new question."""
    think_seconds_mean: float = 200.0


def generate_trace(shape: MultiTurn, seed: int) -> Trace:
    """A multi-turn trace of exactly `shape.requests` requests; the same seed gives the same."""
    rng = random.Random(seed)
    requests: list[tuple[float, int, list[int]]] = []
    next_block = shape.system_prompts * shape.system_blocks
    start_gap = shape.horizon_seconds * shape.turns_mean / shape.requests
    # Conversations that were under way at time 0 would otherwise be missing from the first part.
    start = -shape.turns_mean * shape.think_seconds_mean
    while len(requests) < shape.requests or start < requests[-1][0]:
        start += rng.expovariate(1 / start_gap)
        system = rng.randrange(shape.system_prompts) * shape.system_blocks
        chain = list(range(system, system + shape.system_blocks))
        now = start
        while True:
            added = rng.randint(1, shape.turn_blocks_max)
            chain = chain + list(range(next_block, next_block + added))
            next_block += added
            if now >= 0:
                tokens = len(chain) * BLOCK_TOKENS + rng.randrange(BLOCK_TOKENS)
                requests.append((now, tokens, chain))
            if rng.random() < 1 / shape.turns_mean:
                break
            now += shape.think_seconds_mean * rng.uniform(0.2, 1.8)
        # Only the first requests are kept, so that later conversations cannot come before them.
        requests = sorted(requests)[: shape.requests]
    return _build(
        [time - requests[0][0] for time, _, _ in requests],
        [tokens for _, tokens, _ in requests],
        [chain for _, _, chain in requests],
    )


def _build(times: list[float], tokens: list[int], chains: list[list[int]]) -> Trace:
    """Columns of these requests. A block that occurs twice in one request is kept once."""
    unique = [list(dict.fromkeys(chain)) for chain in chains]
    lengths = np.array([len(chain) for chain in unique], dtype=np.int64)
    starts = np.zeros(len(unique) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    flat = np.fromiter((block for chain in unique for block in chain), dtype=np.int64)
    numbers, blocks = np.unique(flat, return_inverse=True)
    # The last block of a trace's prompt may be partial; it is cached as a whole one.
    at_least = np.maximum(np.array(tokens, dtype=np.int64), (lengths - 1).clip(0) * BLOCK_TOKENS)
    return Trace(
        times=np.array(times, dtype=np.float64),
        prompt_tokens=at_least,
        starts=starts,
        blocks=blocks.astype(np.int64),
        block_count=len(numbers),
    )
