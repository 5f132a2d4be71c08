"""Line charts as SVG, to stand in an HTML page: no script, colours from the page's style.

A chart is drawn in units of its own and scales with the page. Lines have the classes `line c0`,
`line c1`, ..., all else `axis` or `grid`; `STYLE` gives them colours for light and dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Points: TypeAlias = "Sequence[tuple[float, float | None]]"  # x ascending; y may be missing

WIDTH, HEIGHT = 480, 240  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 30, 36  # margins
LETTER, ROW = 8.2, 15  # about the width of a letter, and the height of a row of names
TICKS = 5  # about so many per axis
MOST_POINTS = 400  # of a line; of a longer one, points are left out at equal distances
COLOURS = 6
STYLE = """
:root { --c0: #0b66c3; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #a16207; --c5: #be185d; }
@media (prefers-color-scheme: dark) { :root {
  --c0: #6cb2ff; --c1: #ff9a62; --c2: #6ee7a0; --c3: #c9a2ff; --c4: #f0c75e; --c5: #ff9ac6; } }
svg.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg.chart text { fill: currentColor; }
svg.chart .axis { stroke: currentColor; opacity: 0.6; }
svg.chart .grid { stroke: currentColor; opacity: 0.15; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { stroke-width: 8; } svg .bar { stroke-width: 9; stroke-linecap: butt; }
""" + "\n".join(
    f"svg .c{i} {{ stroke: var(--c{i}); }} svg text.c{i} {{ stroke: none; fill: var(--c{i}); }}"
    for i in range(COLOURS)
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # without one, it has none in the chart: of several lines of a colour, one has it
    points: Points  # without y, the line is interrupted
    colour: int | None = None  # of COLOURS; None: by its place among the lines


def line_chart(lines: Sequence[Line], title: str, x_label: str = "step") -> str:
    """A chart of some lines over the same axes, with their names in their colours.

    Values that are not finite interrupt a line. Without any value there is no chart: "".
    """
    values = [(x, y) for line in lines for x, y in line.points if _shown(y)]
    if not values:
        return ""
    names, top = _names(lines)
    x_low, x_high = _range([x for x, _ in values])
    y_low, y_high = _range([y for _, y in values])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - top - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    parts.append(f"<title>{html.escape(title)}</title>")
    parts.append(f'<text x="{LEFT}" y="14" font-weight="600">{html.escape(title)}</text>')
    bottom = HEIGHT - BOTTOM
    for tick in ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    corner = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 4}"'
    parts.append(f'<text {corner} text-anchor="end">{html.escape(x_label)}</text>')
    for index, line in enumerate(lines):
        kind = "line dot" if sum(_shown(y) for _, y in line.points) == 1 else "line"
        path = _path(line.points, place)
        parts.append(f'<path class="{kind} {_colour(line, index)}" d="{path}"/>')
    return "".join([*parts, names, "</svg>"])


def sparkline(points: Points, colour: int = 0) -> str:
    """A small line without axes, over 0 to 1 in both directions."""

    def place(x: float, y: float) -> tuple[float, float]:
        return round(1 + 58 * x, 1), round(19 - 18 * y, 1)

    path = _path(points, place)
    frame = '<path class="grid" d="M1 1V19H59" fill="none" stroke="currentColor"/>'
    line = f'<path class="line c{colour % COLOURS}" d="{path}"/>'
    return f'<svg class="spark" viewBox="0 0 60 20" width="60" height="20">{frame}{line}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number of an axis, short: 20k, 0.05, 1e-05."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _shown(y: float | None) -> bool:
    return y is not None and math.isfinite(y)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest; of one value alone, a range around it."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    if low == 0.0:
        return 0.0, 1.0
    return low - abs(low) / 2, high + abs(high) / 2


def _path(points: Points, place: Callable[[float, float], tuple[float, float]]) -> str:
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    # Always with the last one, which is what the run came to.
    kept = [*points[:-1:every], *points[-1:]]
    path, pen_is_up = [], True
    for x, y in kept:
        if _shown(y):
            path.append("{}{} {}".format("M" if pen_is_up else "L", *place(x, y)))
        pen_is_up = not _shown(y)
    return "".join(path) + "h0" * (len(path) == 1)  # a length of 0 shows as a dot


def _names(lines: Sequence[Line]) -> tuple[str, float]:
    """The names of the lines, if there are several, in rows below the title; and where the axes
    begin below them."""
    named = [(index, line) for index, line in enumerate(lines) if line.name]
    if len(named) < 2:
        return "", TOP
    x, y, parts = float(LEFT), float(TOP - 2), []
    for index, line in named:
        width = LETTER * len(line.name) + 10
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + ROW
        parts.append(
            f'<text class="{_colour(line, index)}" x="{x:g}" y="{y:g}" font-weight="600">'
            f"{html.escape(line.name)}</text>"
        )
        x += width
    return "".join(parts), y + 10  # a dot at the top stays clear of them


def _colour(line: Line, index: int) -> str:
    return f"c{(index if line.colour is None else line.colour) % COLOURS}"
