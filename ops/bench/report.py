"""The table of a race, as Markdown: figures, ratios, durability, and under what conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TITLES = {
    "e2e": "Mails of 4 kB, rendered and sent to one SMTP sink, a second",
    "queue": "Small jobs that do nothing, a second",
    "enqueue": "Mails of 4 kB queued a second, a thousand a call",
    "api": "POSTs of one mail a second, 16 connections",
}


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report. `found` is what a race writes as JSON."""
    machine, runs = found["machine"], found["runs"]
    lines = [
        "# The race",
        "",
        f"{found['taken_at']}: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB,",
        f"{machine['system']}; load before {machine['load_before']}, after {machine['load_after']}.",
        f"Everything on this one machine. Medians of {runs} interleaved run{'s' if runs != 1 else ''}"
        + (f", at {found['scale']:g} of the distance." if found["scale"] != 1 else "."),
        "",
    ]
    for name, rows in found["races"].items():
        lines += [f"## {TITLES[name]}", "", *_race(name, rows), ""]
    if found["own"]:
        lines += ["## Without a peer", "", *_own(found["own"]), ""]
    lines += ["## Versions", "", ", ".join(f"{name} {text}" for name, text in found["versions"].items()), ""]
    if found["missing"]:
        lines += ["## Not in this race", "", *(f"- {text}" for text in found["missing"]), ""]
    return "\n".join(lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(cells) and all(row[i][:1].isdigit() or row[i] == "-" for row in cells)
        for i in range(len(headings))
    ]
    rule = ["---:" if right else "---" for right in numeric]
    return [f"| {' | '.join(row)} |" for row in (list(headings), rule, *cells)]


def _race(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["Nobody could start."]
    first = rows[0]["name"]
    more = {
        "api": ("rps_1", "rps_64", "p50_1_ms", "p99_16_ms", "batch_per_s"),
        "enqueue": ("send_1_per_s", "send_16_per_s"),
    }.get(name, ())
    headings = [
        "",
        rows[0]["figure"],
        f"{first} is so many times as fast",
        *more,
        "least and most",
        "persists",
    ]
    return table(
        headings,
        (
            [
                row["name"],
                row["median"],
                f"{row['ratio']:.2f}",
                *(row["more"].get(key) for key in more),
                f"{_cell(min(row['runs']))} to {_cell(max(row['runs']))}",
                row["persists"],
            ]
            for row in rows
        ),
    )


def _own(own: Mapping[str, Any]) -> list[str]:
    lines: list[list[Any]] = []
    for name in ("wake", "priority"):
        if name in own:
            figures = own[name]
            lines.append(
                [
                    f"{name}: commit to accepted",
                    f"p50 {figures['p50_ms']} ms, p90 {figures['p90_ms']} ms, p99 {figures['p99_ms']} ms",
                ]
            )
    if "pinned" in own:
        figures = own["pinned"]
        pace = f"{figures['ratio']:.0%} of the free {figures['free_per_s']:,}/s"
        seconds = figures["conditions"]["seconds"]
        lines.append(
            [
                f"pinned: a snapshot held open for {seconds} s",
                f"{pace}; last third to first third {figures['last_to_first']:.2f}",
            ]
        )
    for name, unit in (("backlog", "mails queued"), ("lanes", "lanes")):
        if name in own:
            rows = ", ".join(f"{row['size']:,}: {row['per_s']:,}/s" for row in own[name][name])
            lines.append([f"{name}: pace by {unit}", rows])
    if "lanes" in own:
        rows = ", ".join(f"{row['size']:,}: {row['per_s']:,}/s" for row in own["lanes"]["tenants"])
        lines.append(["lanes: pace by tenants", rows])
    for row in own.get("workers", ()):
        text = f"e2e {_cell(row['e2e'])}/s, queue {_cell(row['queue'])}/s"
        lines.append([f"workers: {row['processes']} process{'es' if row['processes'] > 1 else ''}", text])
    return table(("bench", "figures"), lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | int):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"
    return str(value)
