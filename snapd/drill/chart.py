"""Charts as inline SVG, coloured by CSS variables so that they follow the page's light or dark.

Pure: lines in, text out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

POINTS_MAX = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: `x` is time from the kill, `y` a ratio from 0 to 1, float64 [n] each."""

    name: str
    x: F64
    y: F64
    faint: bool = False
    """Another seed of the same scenario: drawn thin, not named."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where things are, in SVG units and in data."""

    width: int
    height: int
    x_min: float
    x_max: float
    left: int = 46
    right: int = 16
    top: int = 14
    bottom: int = 34

    def x(self, seconds: float) -> float:
        """SVG position of a moment."""
        inside = self.width - self.left - self.right
        return self.left + (seconds - self.x_min) / (self.x_max - self.x_min) * inside

    def y(self, ratio: float) -> float:
        """SVG position of a ratio."""
        return self.top + (1 - ratio) * (self.height - self.top - self.bottom)


def line_chart(
    lines: Sequence[Line],
    *,
    width: int,
    height: int,
    outage: tuple[float, float] | None,
    description: str,
    kill_label: str = "",
    unit: str = "s",
) -> str:
    """Ratios over time, with the outage as a band and the kill as a rule."""
    x_min = min((float(line.x.min()) for line in lines if len(line.x)), default=0.0)
    x_max = max((float(line.x.max()) for line in lines if len(line.x)), default=1.0)
    frame = Frame(width, height, x_min, max(x_max, x_min + 1e-6))
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">',
        *_grid(frame, unit),
        *_outage(frame, outage, kill_label),
        *(_path(frame, line) for line in lines),
        "</svg>",
    ]
    return "".join(parts)


def _grid(frame: Frame, unit: str) -> list[str]:
    """Horizontal rules with per cent, and time below."""
    right = frame.width - frame.right
    parts: list[str] = []
    for percent in (0, 25, 50, 75, 100):
        y = frame.y(percent / 100)
        parts.append(
            f'<line class="grid" x1="{frame.left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{percent}%</text>"
        )
    step = _tick_step((frame.x_max - frame.x_min) / max(frame.width / 110, 2))
    tick = np.ceil(frame.x_min / step) * step
    while tick <= frame.x_max:
        parts.append(
            f'<text class="tick" x="{frame.x(float(tick)):.1f}" y="{frame.height - 12}" '
            f'text-anchor="middle">{_time(float(tick), unit)}</text>'
        )
        tick += step
    return parts


def _outage(frame: Frame, outage: tuple[float, float] | None, kill_label: str) -> list[str]:
    x = frame.x(0.0)
    top, bottom = frame.y(1.0), frame.y(0.0)
    parts: list[str] = []
    if outage is not None:
        start, end = frame.x(outage[0]), frame.x(outage[1])
        parts.append(
            f'<rect class="outage" x="{start:.1f}" y="{top:.1f}" '
            f'width="{max(end - start, 1):.1f}" height="{bottom - top:.1f}"/>'
        )
    parts.append(f'<line class="kill" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
    if kill_label:
        parts.append(
            f'<text class="note" x="{x - 6:.1f}" y="{bottom - 8:.1f}" text-anchor="end">'
            f"{escape(kill_label)}</text>"
        )
    return parts


def _path(frame: Frame, line: Line) -> str:
    picks = np.unique(np.linspace(0, len(line.x) - 1, min(POINTS_MAX, len(line.x))).astype(int))
    points = " ".join(
        f"{frame.x(float(line.x[pick])):.1f},{frame.y(float(line.y[pick])):.1f}" for pick in picks
    )
    kind = "line faint" if line.faint else "line"
    return f'<polyline class="{kind} {escape(line.name)}" points="{points}"/>'


def bar_chart(
    rows: Sequence[tuple[str, float | None]], *, width: int, longest: float, unit: str
) -> str:
    """Horizontal bars: (label, value); one of `longest` would be as wide as the chart allows."""
    row_height, label_width, value_width = 24, 74, 62
    room = width - label_width - value_width
    parts = [f'<svg viewBox="0 0 {width} {row_height * len(rows)}" role="img">']
    for number, (label, value) in enumerate(rows):
        y = number * row_height
        length = room * (value or 0.0) / (longest or 1.0)
        text = "none" if value is None else f"{value:.2f} {unit}"
        parts.append(
            f'<text class="tick" x="{label_width - 10}" y="{y + 16}" text-anchor="end">'
            f"{escape(label)}</text>"
            f'<rect class="bar {escape(label)}" x="{label_width}" y="{y + 4}" rx="3" '
            f'width="{max(length, 1):.1f}" height="{row_height - 8}"/>'
            f'<text class="value" x="{label_width + length + 8:.1f}" y="{y + 16}">{text}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _tick_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least this."""
    power = 10.0 ** np.floor(np.log10(max(least, 1e-9)))
    return next(float(power * factor) for factor in (1, 2, 5, 10) if power * factor >= least)


def _time(value: float, unit: str) -> str:
    text = f"{value:+.10g}".replace("-", "−") if abs(value) > 1e-9 else "0"
    return f"{text} {unit}"
