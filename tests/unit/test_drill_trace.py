"""Traces: what is read is what is replayed, and a file that is no trace says where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from snapd.drill.trace import BLOCK_TOKENS, MultiTurn, Trace, generate_trace, read_trace
from snapd.errors import SettingError


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(timestamp: int, *hash_ids: int, tokens: int = 0) -> dict[str, object]:
    return {
        "timestamp": timestamp,
        "input_length": tokens,
        "output_length": 7,
        "hash_ids": list(hash_ids),
    }


def test_requests_are_ordered_by_time_and_share_blocks_by_number(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "trace.jsonl", request(3000, 70, 80, 99), request(1000, 70, 80, 90, tokens=1700)
    )
    trace = read_trace(path)
    assert trace.times.tolist() == [0.0, 2.0]
    assert trace.block_count == 4
    first, second = trace.chain(0).tolist(), trace.chain(1).tolist()
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert trace.prompt_tokens.tolist() == [1700, 2 * BLOCK_TOKENS]


def test_a_block_named_twice_in_a_request_is_kept_once(tmp_path: Path) -> None:
    trace = read_trace(write_lines(tmp_path / "trace.jsonl", request(0, 5, 6, 5, 7)))
    assert len(trace.chain(0)) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"timestamp": 1, "input_length": 2}', "line 2"),
        ('{"timestamp": -1, "input_length": 2, "hash_ids": [1]}', "line 2"),
        ('{"timestamp": 1, "input_length": 2, "hash_ids": ["x"]}', "line 2"),
        ("not json", "line 2"),
        ("\xff\xfe", "line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    good = json.dumps(request(0, 1))
    path.write_bytes(f"{good}\n{line}\n".encode("latin-1"))
    with pytest.raises(SettingError, match=message):
        read_trace(path)


def test_a_trace_without_blocks_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no request with blocks"):
        read_trace(write_lines(tmp_path / "empty.jsonl", request(0)))
    with pytest.raises(SettingError, match="cannot read"):
        read_trace(tmp_path / "missing.jsonl")


def test_the_generator_is_a_function_of_its_seed() -> None:
    shape = MultiTurn(requests=300)
    one, same, other = (generate_trace(shape, seed) for seed in (1, 1, 2))
    assert len(one) == 300
    assert np.array_equal(one.blocks, same.blocks)
    assert np.array_equal(one.times, same.times)
    assert not np.array_equal(one.times, other.times)
    assert bool((np.diff(one.times) >= 0).all())


def test_generated_turns_extend_what_came_before() -> None:
    trace = generate_trace(MultiTurn(requests=400), 3)
    seen: set[int] = set()
    shared = 0
    for number in range(len(trace)):
        chain = trace.chain(number).tolist()
        assert len(set(chain)) == len(chain)
        known = [block in seen for block in chain]
        # What was seen before is a prefix: no block comes back behind a new one.
        assert known == sorted(known, reverse=True)
        shared += sum(known)
        seen.update(chain)
    assert shared > 0.5 * len(trace.blocks)
    assert len(seen) == trace.block_count


def test_a_head_keeps_the_order_and_numbers_blocks_without_gaps() -> None:
    trace = generate_trace(MultiTurn(requests=200), 5)
    head = trace.head(50)
    assert len(head) == 50
    assert sorted(set(head.blocks.tolist())) == list(range(head.block_count))
    assert head.lengths.tolist() == trace.lengths[:50].tolist()
    assert len(trace.head(10_000)) == 200


def test_a_saved_trace_is_the_same(tmp_path: Path) -> None:
    trace = generate_trace(MultiTurn(requests=100), 9)
    trace.save(tmp_path / "trace.npz")
    loaded = Trace.load(tmp_path / "trace.npz")
    assert loaded.block_count == trace.block_count
    for name in ("times", "prompt_tokens", "starts", "blocks"):
        assert np.array_equal(getattr(loaded, name), getattr(trace, name))
