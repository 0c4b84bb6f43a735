"""`pgmail bench NAME --peers`: the same race with what a user would pick instead, beside our figure.

The drivers live in `ops/bench` of a checkout, which travels with no wheel: they need Node.js, Redis and the
like. What is missing is said, and what can be raced is. The peers run after us and once; `ops/bench/race.py`
takes turns and medians.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pgmail.errors import SandboxError
from pgmail.sandbox.guard import guarded_popen
from pgmail.sqlfiles import home

FIGURES: Mapping[str, str] = {
    "e2e": "mails_per_s",
    "queue": "jobs_per_s",
    "enqueue": "send_many_per_s",
    "api": "rps_16",
}
"""The races that there are, with the figure of ours that a peer's is held against."""


def race(name: str, folder: Path, ours: Mapping[str, object]) -> dict[str, object]:
    """Run the peers of a bench; `peers` with name, figure, our ratio and what each persists, `peers_missing`.

    `folder` keeps what the drivers need from one run to the next. Raises SandboxError.
    """
    if name not in FIGURES:
        return {"peers": [], "peers_missing": [f"{name} is measured of no peer"]}
    script = home() / "ops" / "bench" / "race.py"
    if not script.is_file():
        return {"peers": [], "peers_missing": ["the drivers of the peers are in a checkout, under ops/bench"]}
    with tempfile.TemporaryDirectory(prefix="pgmail-race-") as scratch:
        out = Path(scratch) / "race.json"
        argv = [sys.executable, str(script), "--work", str(folder), "--races", name, "--without", "pgmail"]
        argv += ["--runs", "1", "--json", str(out)]
        with guarded_popen(argv, stdout=sys.stderr.fileno()) as running:
            code = running.wait()
        if code != 0:
            raise SandboxError(f"the race of the peers ended with code {code}")
        found = msgspec.json.decode(out.read_bytes())
    figure = float(str(ours[FIGURES[name]]))
    return {
        "peers": [
            {
                "name": row["name"],
                FIGURES[name]: row["median"],
                "ratio": round(figure / row["median"], 2),
                "persists": row["persists"],
            }
            for row in found["races"][name]
        ],
        "peers_missing": found["missing"],
    }
