"""The race: pgmail and what a user would pick instead, on one machine, taking turns; medians and ratios.

    python ops/bench/race.py --work .pgmail/race                       # all races, three runs each
    python ops/bench/race.py --work .pgmail/race --own --json race.json --markdown race.md
    python ops/bench/race.py --work .pgmail/race --races queue --runs 1 --scale 0.1

Runs are interleaved: each round has every contestant once, so that a slow minute of the machine hits all. With
`--own` the benches that have no peer follow (backlog, lanes, pinned, priority, wake, and one to four worker
processes). Exit code 0 unless pgmail itself could not be measured; a peer that is missing or fails is told.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import arguments
import report
from contestants import Contestant, Figures, Stage
from entries import RACES
from prepare import Prepared
from services import Services, run

from pgmail.errors import PgmailError
from pgmail.sandbox.bench.ground import processor

OWN_SECONDS = 3600
WORKERS = (1, 2, 4)
OWN: dict[str, dict[str, list[int]]] = {
    "wake": {"mails": [200]},
    "priority": {"mails": [1_000_000], "seconds": [60]},
    "pinned": {"seconds": [300]},
    "backlog": {"sizes": [10_000, 1_000_000, 5_000_000], "seconds": [20]},
    "lanes": {"sizes": [10, 1000, 50_000], "mails": [1_000_000], "seconds": [20]},
}
"""The benches that have no peer, and their options at the sizes that pgmail promises."""


def main() -> int:
    """Run the races that were asked for; the exit code."""
    given = _parser().parse_args()
    work: Path = given.work.absolute()
    work.mkdir(mode=0o755, parents=True, exist_ok=True)
    stage = Stage(Services(work), Prepared(work), given.scale)
    found: dict[str, Any] = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": given.runs,
        "scale": given.scale,
        "machine": machine(),
        "races": {},
        "own": {},
        "missing": [],
    }
    healthy = True
    for name in given.races:
        entries = [entry for entry in RACES[name] if given.without not in entry.name.split()]
        runs = race(stage, entries, given.runs, found["missing"])
        found["races"][name] = list(placed(entries, runs))
        healthy = healthy and all(runs[e.name] for e in entries if e.name.startswith("pgmail"))
    if given.own:
        found["own"], faults = own(work, stage)
        found["missing"] += faults
        healthy = healthy and not faults
    found["versions"] = stage.prepared.versions()
    found["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    table = report.markdown(found)
    print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.markdown is not None:
        given.markdown.write_text(table, encoding="utf-8")
    return 0 if healthy else 1


def race(
    stage: Stage, entries: Sequence[Contestant], rounds: int, missing: list[str]
) -> dict[str, list[Figures]]:
    """Let each contestant run once a round; the figures of each. `missing` gets who could not, and why."""
    runs: dict[str, list[Figures]] = {entry.name: [] for entry in entries}
    out: set[str] = set()
    for number in range(1, rounds + 1):
        for entry in entries:
            if entry.name in out:
                continue
            if lacking := entry.missing():
                missing.append(f"{entry.name}: {', '.join(lacking)} not installed")
                out.add(entry.name)
                continue
            try:
                figures = entry.run(stage)
            except (PgmailError, OSError) as error:
                missing.append(f"{entry.name}: {error}")
                out.add(entry.name)
                say(f"{entry.name}: {error}")
                continue
            runs[entry.name].append(figures)
            figure, value = next(iter(figures.items()))
            say(f"{number}/{rounds} {entry.name}: {value:,.0f} {figure}")
    return runs


def placed(entries: Sequence[Contestant], runs: dict[str, list[Figures]]) -> Iterator[dict[str, Any]]:
    """Rows of a race, in the order of the entries: the median run of each, and how many times slower than the first."""
    best: float | None = None
    for entry in entries:
        if not runs[entry.name]:
            continue
        figure = next(iter(runs[entry.name][0]))
        values = [found[figure] for found in runs[entry.name]]
        middle = median(values)
        best = best if best is not None else middle
        yield {
            "name": entry.name,
            "figure": figure,
            "median": round(middle, 2),
            "ratio": round(best / middle, 2),
            "runs": [round(value, 2) for value in values],
            "persists": entry.persists,
            "more": {
                key: round(median(found[key] for found in runs[entry.name]), 2)
                for key in runs[entry.name][0]
                if key != figure
            },
        }


def own(work: Path, stage: Stage) -> tuple[dict[str, Any], list[str]]:
    """The benches that have no peer, and the pace of one to four worker processes; and what failed."""
    found: dict[str, Any] = {}
    faults: list[str] = []

    def bench(key: str, argv: list[str]) -> dict[str, Any]:
        command = [sys.executable, "-m", "pgmail", "bench", *argv, "--json"]
        try:
            out = json.loads(run(command, seconds=OWN_SECONDS, PGMAIL_DATA_FOLDER=str(work / "pgmail")))
        except PgmailError as error:
            faults.append(f"pgmail bench {key}: {error}")
            out = {}
        say(f"pgmail bench {key}: {'done' if out else faults[-1]}")
        return dict(out)

    for name, options in OWN.items():
        given = [
            word
            for option, values in options.items()
            for word in (f"--{option}", ",".join(str(scaled(name, option, value, stage)) for value in values))
        ]
        if result := bench(name, [name, *given]):
            found[name] = result
    rows = []
    for processes in WORKERS:
        mails = stage.count(30_000)
        row: dict[str, Any] = {"processes": processes}
        for name, figure in (("e2e", "mails_per_s"), ("queue", "jobs_per_s")):
            argv = [name, "--processes", str(processes), "--mails", str(mails)]
            row[name] = bench(f"{name}, {processes} processes", argv).get(figure)
        rows.append(row)
    return found | {"workers": rows}, faults


def scaled(name: str, option: str, value: int, stage: Stage) -> int:
    """An option's value on the scale of this race. Numbers of lanes stay, and no backlog is below 10,000."""
    if option == "sizes":
        return value if name == "lanes" else max(stage.count(value), 10_000)
    return stage.seconds(value) if option == "seconds" else stage.count(value)


def machine() -> dict[str, Any]:
    """The machine, as far as it tells."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def say(text: str) -> None:
    """Tell a person how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    made = arguments.parser(
        __doc__,
        RACES,
        one="race",
        several="races",
        work="packages, data and services",
        runs=3,
        of=" contestant",
    )
    made.add_argument("--without", default="", metavar="NAME", help="leave a contestant out, such as pgmail")
    made.add_argument(
        "--own", action="store_true", help="also the benches that have no peer: an hour at scale 1"
    )
    made.add_argument("--markdown", type=Path, help="write the table to this file")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
