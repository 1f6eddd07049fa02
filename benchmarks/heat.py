"""How much of the hit rate is left when only a part of the bytes may be kept.

    python benchmarks/heat.py [--trace FILE ...] [--write docs] [--tune]

A trace is cut at some moment: up to it a cache has seen everything, from then on it starts with
what a policy kept of that, and grows without a limit. A request's hits are the blocks of its chain
from the first on that are there, as an inference engine uses them. Each policy gets the same bytes.

Traces are JSON lines in Mooncake's format (its FAST'25 release has some); without one, generated
chats are used. `--tune` shows instead how well each half-life does on the first half of each trace
only: the numbers by which `HALF_LIFE_GAPS` was chosen. `--write` puts heat.json,
heat.svg and the tables of heat.md into a directory.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snapd.drill.trace import MultiTurn, Trace, generate_trace, read_trace
from snapd.formats.manifest import quantise_heat, restore_heat
from snapd.plans import hottest_first, pages_hottest_first
from snapd.plans.pageheat import HALF_LIFE_GAPS, PageHeat, Touches

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

SEED = 20261122
SHARES = (0.10, 0.25, 0.50)
CUTS = (0.5, 0.6, 0.7, 0.8)
"""Where a trace is cut, as shares of its requests: never in the half that `--tune` looks at."""
HORIZON_REQUESTS = 600
"""Requests after the cut that are counted; later ones hardly tell what was kept."""
RANDOM_RUNS = 5
POLICIES = {
    "random": "random blocks",
    "newest": "put last",
    "most_used": "used most often",
    "last_used": "used last",
    "snapd": "snapd",
    "snapd_restarted": "snapd, from a manifest",
    "snapd_cross": "snapd, tuned on the other traces only",
    "optimum": "offline optimum",
}
TUNED_GAPS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)


@dataclass(frozen=True, slots=True)
class Past:
    """What is known at the cut of each block, all [block_count]; zeros where it was not seen."""

    now: float
    seen: Bools
    uses: I64
    first: F64
    last: F64
    depth: I64
    put_order: U64


def past_of(trace: Trace, cut: int) -> Past:
    """Everything before request `cut`."""
    end, count = int(trace.starts[cut]), trace.block_count
    block = trace.blocks[:end]
    when = np.repeat(trace.times[:cut], trace.lengths[:cut])
    depth, first, last = np.zeros(count, np.int64), np.full(count, np.inf), np.zeros(count)
    depth[block] = np.arange(end) - np.repeat(trace.starts[:cut], trace.lengths[:cut])
    np.minimum.at(first, block, when)
    np.maximum.at(last, block, when)
    uses = np.bincount(block, minlength=count)
    order = np.full(count, end, np.int64)
    np.minimum.at(order, block, np.arange(end))
    return Past(
        float(trace.times[cut]), uses > 0, uses, first, last, depth, order.astype(np.uint64)
    )


def hits_after(trace: Trace, kept: Bools, requests: range) -> tuple[int, int]:
    """(hits, blocks asked for) of these requests, for a cache that starts with `kept`."""
    there, hits, asked = kept.copy(), 0, 0
    for request in requests:
        chain = trace.chain(request)
        found = there[chain]
        hits += len(chain) if found.all() else int(np.argmin(found))
        asked += len(chain)
        there[chain] = True
    return hits, asked


def best_first(score: F64, past: Past) -> I64:
    """Blocks from the highest score on; of equals the one nearer to the start of its chain."""
    order = np.lexsort((past.put_order, past.depth, -score))
    return order[past.seen[order]]


def page_heat(trace: Trace, cut: int, half_life_gaps: float) -> tuple[PageHeat, U64]:
    """`PageHeat` after the look-ups of all requests before the cut, and the id of each block."""
    ids = (np.arange(trace.block_count, dtype=np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    heat = PageHeat(1 << 22, half_life_gaps=half_life_gaps)
    for at in range(0, cut, 256):
        asked = range(at, min(at + 256, cut))
        touches = [
            Touches.of_chain(ids[trace.chain(one)], 0, 0, float(trace.times[one])) for one in asked
        ]
        heat.fold(Touches.concatenate(touches), float(trace.times[asked[-1]]))
    return heat, ids


def snapd_orders(
    trace: Trace, past: Past, cut: int, half_life_gaps: float = HALF_LIFE_GAPS
) -> tuple[I64, I64]:
    """The product's own code: the order of a running daemon, and that of one which knows no more
    than what a manifest keeps of heat, a byte a block."""
    heat, ids = page_heat(trace, cut, half_life_gaps)
    ranks = heat.ranks(ids, np.zeros(len(ids), np.float32), past.now)
    live = pages_hottest_first(ranks, past.put_order)
    kept = hottest_first(restore_heat(quantise_heat(ranks.heat)), past.put_order)
    return live[past.seen[live]], kept[past.seen[kept]]


def optimal_order(trace: Trace, past: Past, requests: range) -> I64:
    """Blocks that will be asked for, the soonest first, parents first; the others after them.

    With these costs no set does better: from the second use on a block is there anyway, so each
    kept block is worth one hit if it is asked for at all and its parents are there, and nothing
    otherwise. Whoever asks for a block asks for its parents, so each beginning of this order has
    the parents of all that is in it: k blocks of it give k hits.
    """
    ahead = trace.blocks[trace.starts[requests.start] : trace.starts[requests.stop]]
    position = np.full(trace.block_count, len(ahead), np.int64)
    np.minimum.at(position, ahead, np.arange(len(ahead)))
    order = np.argsort(position, kind="stable")
    return order[past.seen[order]]


def kept_set(order: I64, share: float, count: int) -> Bools:
    """The first `share` of the blocks in `order`, bool [count]."""
    kept = np.zeros(count, np.bool_)
    kept[order[: int(share * len(order))]] = True
    return kept


def measure(trace: Trace, cut: int, other_gaps: float) -> dict[str, Any]:
    """One cut: hit rates of everything kept, of nothing kept, and of each policy and share.
    `other_gaps`: the gaps in a half-life that the other traces would have chosen."""
    past = past_of(trace, cut)
    ahead = range(cut, min(len(trace), cut + HORIZON_REQUESTS))
    rng = np.random.default_rng(SEED)
    live, restarted = snapd_orders(trace, past, cut)
    orders = {
        "newest": [best_first(past.first, past)],
        "most_used": [best_first(past.uses.astype(np.float64), past)],
        "last_used": [best_first(past.last, past)],
        "snapd": [live],
        "snapd_restarted": [restarted],
        "snapd_cross": [snapd_orders(trace, past, cut, other_gaps)[0]],
        "optimum": [optimal_order(trace, past, ahead)],
        "random": [rng.permutation(np.flatnonzero(past.seen)) for _ in range(RANDOM_RUNS)],
    }

    def rate(kept: Bools) -> float:
        hits, asked = hits_after(trace, kept, ahead)
        return hits / asked

    return {
        "request": cut,
        "seconds": past.now,
        "blocks_seen": int(past.seen.sum()),
        "all_kept": rate(past.seen),
        "none_kept": rate(np.zeros(trace.block_count, np.bool_)),
        "hit_rate": {
            policy: {
                f"{share:.2f}": float(
                    np.mean(
                        [rate(kept_set(one, share, trace.block_count)) for one in orders[policy]]
                    )
                )
                for share in SHARES
            }
            for policy in POLICIES
        },
    }


def mean_kept(cuts: Sequence[Mapping[str, Any]], policy: str, share: float) -> float:
    """Of what keeping everything gains over keeping nothing, the part that is left; the mean."""
    parts = [
        (cut["hit_rate"][policy][f"{share:.2f}"] - cut["none_kept"])
        / (cut["all_kept"] - cut["none_kept"])
        for cut in cuts
    ]
    return float(np.mean(parts))


def report_on(name: str, trace: Trace, other_gaps: float = HALF_LIFE_GAPS) -> dict[str, Any]:
    """A trace's document."""
    cuts = [measure(trace, int(len(trace) * share), other_gaps) for share in CUTS]
    return {
        "trace": name,
        "requests": len(trace),
        "blocks": trace.block_count,
        "seconds": float(trace.times[-1]),
        "gaps_of_the_others": other_gaps,
        "cuts": cuts,
        "kept": {
            policy: {f"{share:.2f}": mean_kept(cuts, policy, share) for share in SHARES}
            for policy in POLICIES
        },
    }


def tune(trace: Trace) -> dict[float, F64]:
    """What each number of gaps in a half-life keeps at each share, on the first half of a trace,
    cut at a third and at two thirds."""
    half = trace.head(len(trace) // 2)
    kept: dict[float, F64] = {}
    for gaps in TUNED_GAPS:
        parts = []
        for cut in (len(half) // 3, 2 * len(half) // 3):
            past, ahead = past_of(half, cut), range(cut, min(len(half), cut + HORIZON_REQUESTS))
            order, _ = snapd_orders(half, past, cut, gaps)
            none, _ = hits_after(half, np.zeros(half.block_count, np.bool_), ahead)
            full, _ = hits_after(half, past.seen, ahead)
            parts.append(
                [
                    (hits_after(half, kept_set(order, share, half.block_count), ahead)[0] - none)
                    / (full - none)
                    for share in SHARES
                ]
            )
        kept[gaps] = np.mean(parts, axis=0)
    return kept


def chosen_by(tuned: Sequence[Mapping[float, F64]]) -> float:
    """The number of gaps with which the trace that loses the most against its own best one loses
    the least. No hand is in it, so it can be asked of any traces."""
    if not tuned:
        return HALF_LIFE_GAPS
    means = [{gaps: float(kept.mean()) for gaps, kept in one.items()} for one in tuned]
    return min(TUNED_GAPS, key=lambda gaps: max(max(one.values()) - one[gaps] for one in means))


def show_tuning(tuned: Mapping[str, Mapping[float, F64]]) -> None:
    """As text."""
    for name, kept in tuned.items():
        print(f"{name}, its first half: gain kept at", *(f"{share:.0%}" for share in SHARES))
        for gaps, each in kept.items():
            print(f"{gaps:6.2f} gaps ", *(f"{one:6.3f}" for one in each), f"  {each.mean():.3f}")
    print("chosen by all of them:", chosen_by(list(tuned.values())))


# --- what people read -----------------------------------------------------------------------------


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Tables in Markdown, one a trace."""
    lines: list[str] = []
    for report in reports:
        rates = [f"{cut['none_kept']:.1%} to {cut['all_kept']:.1%}" for cut in report["cuts"]]
        lines += [
            f"**{report['trace']}**: {report['requests']:,} requests in "
            f"{report['seconds'] / 60:.0f} minutes, {report['blocks']:,} blocks. Hit rate with "
            f"nothing and with everything kept, at each of the cuts: {', '.join(rates)}.",
            "",
            "| of that gain is left, when so much is kept: | "
            + " | ".join(f"{share:.0%}" for share in SHARES)
            + " |",
            "|---|" + "---:|" * len(SHARES),
        ]
        for policy, label in POLICIES.items():
            cells = (f"{report['kept'][policy][f'{share:.2f}']:.1%}" for share in SHARES)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


_COLOURS = {
    "random": "#9aa0a6",
    "newest": "#c58b00",
    "most_used": "#2f7ed8",
    "last_used": "#7b5ea7",
    "snapd": "#c2185b",
    "optimum": "#202124",
}
_PANEL, _HEIGHT, _LEFT, _TOP, _LABELS = 250, 260, 56, 64, 130


def chart(reports: Sequence[Mapping[str, Any]]) -> str:
    """A panel a trace: the part of the gain that is left, over the part of the bytes kept."""
    step = _PANEL + _LABELS + 40
    width, height = _LEFT + step * len(reports), _TOP + _HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" fill="#202124">Part of the hit rate that is '
        "kept, of what keeping everything gains</text>",
    ]
    for number, report in enumerate(reports):
        parts += _panel(report, _LEFT + number * step)
    return "\n".join([*parts, "</svg>", ""])


def _panel(report: Mapping[str, Any], left: int) -> list[str]:
    def x(share: float) -> float:
        return left + _PANEL * share / SHARES[-1]

    def y(kept: float) -> float:
        return _TOP + _HEIGHT * (1 - kept)

    parts = [f'<text x="{left}" y="{_TOP - 14}" fill="#202124">{report["trace"]}</text>']
    for kept in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line x1="{left}" x2="{left + _PANEL}" y1="{y(kept):.1f}" y2="{y(kept):.1f}" '
            'stroke="#e0e0e0"/>'
            f'<text x="{left - 6}" y="{y(kept) + 4:.1f}" text-anchor="end" fill="#5f6368">'
            f"{kept:.0%}</text>"
        )
    for share in SHARES:
        parts.append(
            f'<text x="{x(share):.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle" '
            f'fill="#5f6368">{share:.0%}</text>'
        )
    parts.append(
        f'<text x="{left + _PANEL / 2}" y="{_TOP + _HEIGHT + 38}" text-anchor="middle" '
        'fill="#5f6368">of the bytes are kept</text>'
    )
    ends = {policy: y(report["kept"][policy][f"{SHARES[-1]:.2f}"]) for policy in _COLOURS}
    labels = _spread(ends)
    for policy, colour in _COLOURS.items():
        points = [(x(share), y(report["kept"][policy][f"{share:.2f}"])) for share in SHARES]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        weight = 3 if policy == "snapd" else 1.5
        dashes = ' stroke-dasharray="5 4"' if policy == "optimum" else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{weight}"'
            f"{dashes}/>"
        )
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        parts.append(
            f'<text x="{left + _PANEL + 10}" y="{labels[policy] + 4:.1f}" fill="{colour}">'
            f"{POLICIES[policy]}</text>"
        )
    return parts


def _spread(ends: Mapping[str, float]) -> dict[str, float]:
    """Heights of labels beside the ends of their lines, so that none covers another."""
    placed: dict[str, float] = {}
    above = -np.inf
    for policy in sorted(ends, key=lambda one: ends[one]):
        above = max(ends[policy], above + 15)
        placed[policy] = above
    return placed


MARKS = ("<!-- made by benchmarks/heat.py -->", "<!-- until here -->")


def write_all(directory: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """heat.json, heat.svg and the tables between the marks of heat.md."""
    document = {"half_life_gaps": HALF_LIFE_GAPS, "seed": SEED, "traces": list(reports)}
    (directory / "heat.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "heat.svg").write_text(chart(reports))
    page = directory / "heat.md"
    begin, end = (re.escape(mark) for mark in MARKS)
    made = f"{MARKS[0]}\n{table(reports)}{MARKS[1]}"
    page.write_text(re.sub(f"{begin}.*?{end}", lambda _: made, page.read_text(), flags=re.DOTALL))


GENERATED = {
    "generated long chats": MultiTurn(requests=2400, horizon_seconds=1800.0),
    "generated short chats": MultiTurn(
        requests=2400,
        horizon_seconds=2400.0,
        system_prompts=12,
        turns_mean=4.0,
        think_seconds_mean=90.0,
    ),
}


def load(paths: Sequence[Path], *, with_generated: bool) -> dict[str, Trace]:
    """Traces by name."""
    traces = {path.stem.replace("_", " "): read_trace(path) for path in paths}
    if with_generated:
        traces |= {name: generate_trace(shape, SEED) for name, shape in GENERATED.items()}
    return traces


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args(arguments)
    traces = load(options.trace, with_generated=not options.trace or options.write is not None)
    tuned = {name: tune(trace) for name, trace in traces.items()}
    if options.tune:
        show_tuning(tuned)
        return 0
    reports = [
        report_on(name, trace, chosen_by([tuned[one] for one in traces if one != name]))
        for name, trace in traces.items()
    ]
    print(table(reports))
    if options.write:
        write_all(options.write, reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
