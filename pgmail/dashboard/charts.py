"""Charts over time as SVG, drawn here: lines or areas, an axis, what each point says, and the same in words.

The drawing is stretched to its place and has no text in it; the axes' words stand beside it as HTML, so that they stay
readable on a phone. Colours are classes (`series-1` and on) of the style sheet, so that light and dark have their own.

What can go wrong: points without a value (None), as a latency when nothing was sent. They are gaps in a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup, escape

from pgmail.dashboard import words

WIDTH, HEIGHT = 600, 160  # units of the drawing
TICKS = 4  # words on the axis of time


class Series(NamedTuple):
    """One line: its name and its values, one for each moment. `area` fills what is below.

    `colour` is a number of the style sheet: 1 blue, 2 green, 3 red, 4 amber, 5 grey.
    """

    name: str
    values: Sequence[float | None]
    colour: int = 1
    area: bool = False


def chart(
    title: str,
    moments: Sequence[datetime],
    series: Sequence[Series],
    unit: str = "",
    read: Callable[[float | None], str] = words.compact,
) -> Markup:
    """Return a figure of these series. `unit` follows figures, `read` says them."""
    most = max((value for line in series for value in line.values if value is not None), default=0.0)
    top = ceiling(most)
    drawn = Markup("").join(_draw(line, len(moments), top) for line in series)
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{y}" y2="{y}"/>').format(
            WIDTH, y=_number(HEIGHT * part)
        )
        for part in ((0, 0.5, 1) if most else (1,))
    )
    legend = Markup("").join(
        Markup('<li><span class="key series-{}" aria-hidden="true"></span>{}</li>').format(
            line.colour, line.name
        )
        for line in series
    )
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        "{grid}{drawn}{hits}</svg>"
    ).format(w=WIDTH, h=HEIGHT, grid=grid, drawn=drawn, hits=_hits(moments, series, unit, read))
    scale = Markup("").join(
        Markup("<span>{}</span>").format(read(value)) for value in ((top, top / 2, 0) if most else (0,))
    )
    return Markup(
        '<figure class="chart"><figcaption><span class="chart-title">{title}</span>{unit}'
        '<ul class="legend">{legend}</ul></figcaption>'
        '<div class="plot"><div class="scale" aria-hidden="true">{scale}</div>'
        '<div class="drawing">{svg}{none}</div><div class="times" aria-hidden="true">{times}</div></div>'
        '<p class="sr">{words}</p></figure>'
    ).format(
        title=title,
        unit=Markup(' <span class="unit">{}</span>').format(unit) if unit else "",
        legend=legend,
        scale=scale,
        svg=svg,
        none="" if most else Markup('<p class="none" aria-hidden="true">Nothing in this time</p>'),
        times=_times(moments),
        words=in_words(title, moments, series, unit, read),
    )


def ceiling(most: float) -> float:
    """Return a round number at which an axis ends: 1, 2, 4, 5 or 10 times a power of ten, at least `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 4, 5, 10) if power * step >= most * 0.9999)


def in_words(
    title: str,
    moments: Sequence[datetime],
    series: Sequence[Series],
    unit: str,
    read: Callable[[float | None], str],
) -> str:
    """Say a chart: for each series its newest value and its highest, and when that was."""
    if not moments:
        return f"{title}: no figures yet."
    said = []
    for line in series:
        known = [(value, at) for value, at in zip(line.values, moments, strict=True) if value is not None]
        if not known:
            said.append(f"{line.name}: none")
            continue
        most, at = max(known)
        suffix = f" {unit}" if unit else ""
        said.append(
            f"{line.name}: last {read(known[-1][0])}{suffix}, highest {read(most)}{suffix} at {_short(at, moments)} UTC"
        )
    return f"{title}. {'. '.join(said)}."


def _draw(line: Series, count: int, top: float) -> Markup:
    """The paths of one series: a stroke for each stretch without gaps, and what is below it."""
    paths = []
    for stretch in _stretches(line.values):
        spots = [(_x(i, count), HEIGHT * (1 - value / top)) for i, value in stretch]
        if len(spots) == 1:  # one point alone is a short dash
            x, y = spots[0]
            spots = [(max(0.0, x - 2), y), (min(float(WIDTH), x + 2), y)]
        stroke = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in spots)
        if line.area:
            below = f"{stroke}L{_number(spots[-1][0])} {HEIGHT}L{_number(spots[0][0])} {HEIGHT}Z"
            paths.append(Markup('<path class="area series-{}" d="{}"/>').format(line.colour, below))
        paths.append(Markup('<path class="stroke series-{}" d="{}"/>').format(line.colour, stroke))
    return Markup("").join(paths)


def _stretches(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = []
    open_ = False
    for i, value in enumerate(values):
        if value is None:
            open_ = False
        elif open_:
            found[-1].append((i, value))
        else:
            found.append([(i, value)])
            open_ = True
    return found


def _hits(
    moments: Sequence[datetime],
    series: Sequence[Series],
    unit: str,
    read: Callable[[float | None], str],
) -> Markup:
    """A column over each moment, whose title tells what its points say."""
    columns = []
    width = WIDTH / max(1, len(moments))
    for i, at in enumerate(moments):
        said = "\n".join(
            f"{line.name}: {read(line.values[i])}{f' {unit}' if unit else ''}" for line in series
        )
        columns.append(
            Markup('<rect class="hit" x="{}" y="0" width="{}" height="{}"><title>{}</title></rect>').format(
                _number(i * width), _number(width), HEIGHT, f"{_short(at, moments)} UTC\n{said}"
            )
        )
    return Markup("").join(columns)


def _times(moments: Sequence[datetime]) -> Markup:
    if not moments:
        return Markup("")
    places = sorted({round(i * (len(moments) - 1) / (TICKS - 1)) for i in range(TICKS)})
    return Markup("").join(
        Markup("<span>{}{}</span>").format(escape(_short(moments[i], moments)), " UTC" * (i == places[-1]))
        for i in places
    )


def _short(at: datetime, moments: Sequence[datetime]) -> str:
    """A moment as short as the span of the chart lets it be."""
    span = (moments[-1] - moments[0]).total_seconds()
    return at.astimezone(UTC).strftime("%H:%M" if span <= 2 * 86400 else "%d %b %H:%M")


def _x(i: int, count: int) -> float:
    return (i + 0.5) * WIDTH / max(1, count)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
