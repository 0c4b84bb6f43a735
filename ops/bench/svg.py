"""Charts as SVG, written by hand: lines over a linear or logarithmic axis, and bars. Readable in light and dark.

Colours come from a style sheet inside each file, which follows the reader's scheme; text is text, so that it can
be found and read aloud. A chart has a title and, for who cannot see it, a description with its figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 56, 56
BAR, GAP = 26, 14
NAMES_WIDTH = 250
COLOURS = 4
_STYLE = """
:root { --back: #ffffff; --ink: #1f2933; --soft: #66727f; --grid: #e2e6ea;
  --c0: #2563a8; --c1: #c2571a; --c2: #2f7d4f; --c3: #8a4fa3; --rest: #a9b4bf; }
@media (prefers-color-scheme: dark) { :root { --back: #12171c; --ink: #e6eaee; --soft: #98a4b0; --grid: #2b343d;
  --c0: #6fb1f5; --c1: #f0995a; --c2: #74cf98; --c3: #cf9be6; --rest: #56626e; } }
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 16px; font-weight: 600; } .soft { fill: var(--soft); }
.back { fill: var(--back); } .grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2.5; }
"""


class Line(NamedTuple):
    """One line of a chart: its name, and its points as (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """One bar: its name, its value, the text after it, and whether it stands out."""

    name: str
    value: float
    text: str
    ours: bool = False


def lines(title: str, x_name: str, y_name: str, drawn: Sequence[Line], *, log_x: bool = False) -> str:
    """A line chart whose y axis begins at 0: a slope is as steep as it is. ValueError without points."""
    points = [point for line in drawn for point in line.points]
    if not points:
        raise ValueError("a chart needs points")
    y_ticks = ticks(max(y for _, y in points))
    x_ticks = sorted({x for x, _ in points}) if log_x else ticks(max(x for x, _ in points))
    low, high = (_log(x_ticks[0]), _log(x_ticks[-1])) if log_x else (0.0, x_ticks[-1])

    def at_x(x: float) -> float:
        share = ((_log(x) if log_x else x) - low) / ((high - low) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    out = []
    for tick in y_ticks:
        y = at_y(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(LEFT - 8, y + 4, short(tick), anchor="end", soft=True))
    out += [
        _text(at_x(tick), HEIGHT - BOTTOM + 20, short(tick), anchor="middle", soft=True) for tick in x_ticks
    ]
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, anchor="middle", soft=True))
    out.append(_text(LEFT - 60, TOP - 12, y_name, soft=True))
    for number, line in enumerate(drawn):
        colour = f"var(--c{number % COLOURS})"
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        out.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        out += [
            f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line.points
        ]
        x = LEFT + 150 + number * 170
        out.append(f'<rect x="{x}" y="{TOP - 22}" width="12" height="12" fill="{colour}"/>')
        out.append(_text(x + 18, TOP - 12, line.name))
    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{short(x)} {short(y)}" for x, y in line.points) for line in drawn
    )
    return _document(title, told, HEIGHT, out)


def bars(title: str, drawn: Sequence[Bar]) -> str:
    """Horizontal bars from 0, in the order given. ValueError without any."""
    if not drawn:
        raise ValueError("a chart needs bars")
    most = max(bar.value for bar in drawn) or 1
    height = TOP + len(drawn) * (BAR + GAP) + 16
    room = WIDTH - NAMES_WIDTH - 130
    out = []
    for number, bar in enumerate(drawn):
        y = TOP + number * (BAR + GAP)
        width = max(bar.value / most * room, 1)
        colour = "var(--c0)" if bar.ours else "var(--rest)"
        out.append(_text(NAMES_WIDTH - 10, y + BAR / 2 + 5, bar.name, anchor="end"))
        out.append(
            f'<rect x="{NAMES_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3" fill="{colour}"/>'
        )
        out.append(_text(NAMES_WIDTH + width + 8, y + BAR / 2 + 5, bar.text))
    told = "; ".join(f"{bar.name}: {bar.text}" for bar in drawn)
    return _document(title, told, height, out)


def ticks(most: float) -> list[float]:
    """From 0 to `most` or a little more in four to six round steps."""
    if most <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(most))
    for factor in (0.2, 0.25, 0.5, 1.0, 2.0):
        if most / (step * factor) <= 5:
            step *= factor
            break
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 950, 20k, 1.5M."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _log(value: float) -> float:
    return math.log10(max(value, 1e-9))


def _text(x: float, y: float, text: str, *, anchor: str = "start", soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _document(title: str, told: str, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(told)}</desc>",
            f"<style>{_STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{height:g}"/>',
            f'<text class="title" x="20" y="26">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )
