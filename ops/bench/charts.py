"""Charts from the JSON of a race.

    python ops/bench/charts.py ops/bench/results/race.json ops/bench/results

One file for each race, and of what `--own` measured: the pace by backlog, by worker processes and by the time
that a snapshot is held open, and percentiles of latency. What the JSON does not hold is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import svg
from report import TITLES


def main(argv: list[str]) -> int:
    """Draw what there is; the exit code."""
    if len(argv) != 2:
        print("usage: charts.py RACE.json FOLDER", file=sys.stderr)
        return 2
    found = json.loads(Path(argv[0]).read_bytes())
    folder = Path(argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in charts(found):
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
        print(folder / f"{name}.svg")
    return 0


def charts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and texts of all charts that the figures are there for."""
    for name, rows in found["races"].items():
        if rows:
            yield f"race-{name}", _race(name, rows)
    own = found["own"]
    if "backlog" in own:
        yield "backlog", _backlog(own["backlog"]["backlog"], own.get("lanes"))
    if "workers" in own:
        yield "workers", _workers(own["workers"])
    if "pinned" in own:
        yield "pinned", _pinned(own["pinned"])
    if "wake" in own or "priority" in own:
        yield "latency", _latency(own, found["races"].get("api", ()))


def _race(name: str, rows: list[Mapping[str, Any]]) -> str:
    drawn = [
        svg.Bar(
            row["name"],
            row["median"],
            f"{row['median']:,.0f}" + (f"  ({1 / row['ratio']:.2f}x)" if number and row["ratio"] else ""),
            ours=row["name"].startswith("pgmail"),
        )
        for number, row in enumerate(rows)
    ]
    return svg.bars(TITLES[name], drawn)


def _backlog(rows: list[Mapping[str, float]], lanes: Mapping[str, Any] | None) -> str:
    drawn = [svg.Line("by mails queued", [(row["size"], row["per_s"]) for row in rows])]
    if lanes is not None:
        drawn.append(svg.Line("by lanes", [(row["size"], row["per_s"]) for row in lanes["lanes"]]))
    title = "Pace by the depth and the width of the queue, no SMTP"
    return svg.lines(title, "mails queued, or lanes (logarithmic)", "mails/s", drawn, log_x=True)


def _workers(rows: list[Mapping[str, float | None]]) -> str:
    drawn = []
    for key, name in (("e2e", "4 kB mails over SMTP"), ("queue", "no SMTP")):
        points = [
            (float(row["processes"] or 0), float(row[key] or 0)) for row in rows if row[key] is not None
        ]
        if points:
            drawn.append(svg.Line(name, points))
    return svg.lines("Pace by worker processes", "worker processes", "mails/s", drawn)


def _pinned(figures: Mapping[str, Any]) -> str:
    seconds = figures["conditions"]["slice_seconds"]
    drawn = [
        svg.Line(name, [(seconds * (number + 0.5), rate) for number, rate in enumerate(figures[key])])
        for name, key in (("a snapshot is held open", "pinned_slices"),)
    ]
    free = figures["free_per_s"]
    end = drawn[0].points[-1][0]
    drawn.append(svg.Line("before, on average", [(seconds / 2, free), (end, free)]))
    return svg.lines("Pace while a snapshot is held open", "seconds since it was opened", "mails/s", drawn)


def _latency(own: Mapping[str, Any], api: Any) -> str:
    drawn = []
    for key, name in (("wake", "to sleeping workers"), ("priority", "high, over a full backlog")):
        for word in ("p50_ms", "p90_ms", "p99_ms") if key in own else ():
            value = own[key][word]
            drawn.append(svg.Bar(f"{name}: {word[:3]}", value, f"{value:g} ms", ours=True))
    for row in api:
        for word, text in (("p50_1_ms", "1 connection: p50"), ("p99_16_ms", "16 connections: p99")):
            if word in row["more"]:
                ours, value = row["name"].startswith("pgmail"), row["more"][word]
                short = row["name"].partition(",")[0]
                drawn.append(svg.Bar(f"{short}, {text}", value, f"{value:g} ms", ours=ours))
    return svg.bars("Milliseconds from commit to accepted, and of a POST", drawn)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
