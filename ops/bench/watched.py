"""What it costs to look on: pgmail's own benches, each unwatched and watched, taking turns in one database.

Watched is: an API process with two live overviews, pages and metrics that are polled, and ten listeners to events, of
which three are told everything (`watchers.py`). Watchers, clients, PostgreSQL and what is measured share the machine.

    python ops/bench/watched.py --work .pgmail/watched --benches queue,e2e --runs 3 --scale 0.5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import arguments
import psycopg
from report import table

from pgmail.domain.keys import make_key
from pgmail.errors import SandboxError
from pgmail.sandbox.bench import BENCHES, Place, conditions, place
from pgmail.sandbox.ports import free_port

WATCHERS = Path(__file__).resolve().parent / "watchers.py"
SCOPES = '{"scopes": ["admin", "read", "manage", "send"]}'
STOP_SECONDS = 30
# What a bench is given at scale 1, where its own default is not it.
FULL: Mapping[str, Mapping[str, Any]] = {
    "e2e": {"mails": 40_000},
    "queue": {"mails": 120_000},
    "enqueue": {"seconds": 8},
    "api": {"seconds": 8},
    "backlog": {"sizes": (10_000, 1_000_000)},
    "lanes": {"mails": 300_000},
    "pinned": {"seconds": 120},
    "priority": {"mails": 200_000},
    "wake": {"mails": 60},
}
# Not of one moment, or not a pace or a time.
LEFT_OUT = ("conditions", "sessions_by_wait", "free_slices", "pinned_slices", "peak_rss_mb", "dead_rows",
            "lowest_backlog", "size", "asked")  # fmt: skip
LEFT_OUT_ENDS = ("_bytes", "worst_ms", "p90_ms")


class Gallery:
    """The API that is looked at, and who looks."""

    def __init__(self, here: Place) -> None:
        self._here = here
        key, hint, hashed = make_key()
        with psycopg.connect(here.owner, autocommit=True) as owner:
            owner.execute("select pgmail.make_key('watchers', %s, %s, %s::jsonb)", [hint, hashed, SCOPES])
        self._key = key
        self.told: list[dict[str, Any]] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Have it looked at."""
        metrics_port = free_port()
        api = self._here.api(PGMAIL_METRICS_PORT=str(metrics_port))
        try:
            yield from self._looked_at(api.port, metrics_port)
        finally:
            api.process.stop()

    def _looked_at(self, port: int, metrics_port: int) -> Iterator[None]:
        argv = [sys.executable, str(WATCHERS), str(port), str(metrics_port)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watchers:
            watchers.stdin.write(self._key)
            watchers.stdin.close()
            try:
                if not watchers.stdout.readline():
                    raise SandboxError("the watchers did not start")
                yield
            finally:
                watchers.terminate()
                said = watchers.stdout.read()
                watchers.wait(STOP_SECONDS)
            self.told.append(json.loads(said))


def main() -> int:
    """Run the benches; 0."""
    options = arguments.parser(
        __doc__, FULL, one="bench", several="benches", work="the database", runs=2, of=", each way"
    ).parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"runs": options.runs, "scale": options.scale, "benches": {}}
    with place(options.work / "pg") as here:
        found["conditions"] = conditions(here)
        gallery = Gallery(here)
        for name in options.benches:
            found["benches"][name] = compared(here, gallery, name, options)
            print("\n".join([f"## {name}", "", *rows_of(found["benches"][name]), ""]), flush=True)
        found["told"] = gallery.told
    streams = {told["streams"] for told in gallery.told}
    refused = [text for told in gallery.told for text in told["refused"]]
    print(f"streams that ran to the end, of 12: {sorted(streams)}; pages refused: {refused or 'none'}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


def compared(
    here: Place, gallery: Gallery, name: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Figures of a bench by their names: those unwatched, those watched, and the ratio of their means."""
    values: dict[str, dict[str, list[float]]] = {}
    given = {option: scaled(value, options.scale) for option, value in FULL[name].items()}
    for run in range(options.runs):
        for kind in ("unwatched", "watched") if run % 2 == 0 else ("watched", "unwatched"):
            here.fresh()
            if kind == "watched":
                with gallery.open():
                    figures = BENCHES[name](here, **given)
            else:
                figures = BENCHES[name](here, **given)
            for figure, value in leaves(figures):
                values.setdefault(figure, {}).setdefault(kind, []).append(value)
    return {
        figure: kinds | {"ratio": round(mean(kinds["watched"]) / max(mean(kinds["unwatched"]), 1e-9), 3)}
        for figure, kinds in values.items()
    }


def leaves(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Paces and times among the figures of a bench; those of a list's rows by their size."""
    for name, value in figures.items():
        if name in LEFT_OUT or name.endswith(LEFT_OUT_ENDS):
            continue
        if isinstance(value, list):
            for row in value:
                yield from leaves(row, f"{before}{name} {row['size']:,} ")
        elif isinstance(value, int | float):
            yield before + name, float(value)


def scaled(value: Any, scale: float) -> Any:
    """An option's value on a scale."""
    if isinstance(value, tuple):
        return tuple(max(round(each * scale), 10_000) for each in value)
    return max(round(value * scale), 2)


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of what was found."""
    return table(
        ["", "unwatched", "watched", "ratio"],
        [
            [name, mean(each["unwatched"]), mean(each["watched"]), each["ratio"]]
            for name, each in found.items()
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
