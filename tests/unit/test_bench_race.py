"""The race of ops/bench: medians and ratios, who cannot start, the table and the charts."""

import importlib
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from pgmail.cli.bench import TAKES
from pgmail.errors import SandboxError
from pgmail.sandbox.bench import BENCHES

FOLDER = Path(__file__).parents[2] / "ops" / "bench"
MODULES = (
    "svg",
    "arguments",
    "report",
    "services",
    "prepare",
    "contestants",
    "entries",
    "charts",
    "race",
    "watched",
)


@pytest.fixture
def ops(monkeypatch):
    """The modules of ops/bench, which are a program and no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: importlib.import_module(name) for name in MODULES}
    yield found
    for name in MODULES:
        sys.modules.pop(name, None)


def entry(ops, name, figures, needs=()):
    given = iter(figures)

    def run(_):
        figure = next(given)
        if isinstance(figure, Exception):
            raise figure
        return {"jobs_per_s": figure, "enqueue_per_s": 1.0}

    return ops["contestants"].Contestant(name, f"{name} keeps it", run, needs)


def raced(ops, entries, rounds=3):
    missing = []
    runs = ops["race"].race(None, entries, rounds, missing)
    return list(ops["race"].placed(entries, runs)), missing


def test_a_race_has_medians_and_how_much_faster_the_first_is(ops):
    rows, missing = raced(ops, [entry(ops, "pgmail", [90, 100, 110]), entry(ops, "Other", [60, 40, 50])])
    assert missing == []
    assert [(row["name"], row["median"], row["ratio"], row["runs"]) for row in rows] == [
        ("pgmail", 100, 1.0, [90, 100, 110]),
        ("Other", 50, 2.0, [60, 40, 50]),
    ]
    assert rows[1]["more"] == {"enqueue_per_s": 1.0}


def test_runs_are_interleaved(ops):
    order = []

    def noted(name):
        def run(_):
            order.append(name)
            return {"jobs_per_s": 1.0}

        return ops["contestants"].Contestant(name, "", run)

    raced(ops, [noted("a"), noted("b")], rounds=2)
    assert order == ["a", "b", "a", "b"]


def test_who_cannot_start_or_fails_is_told_and_the_others_race(ops):
    rows, missing = raced(
        ops,
        [
            entry(ops, "Absent", [], needs=("no-such-program-here",)),
            entry(ops, "Broken", [SandboxError("it fell")]),
            entry(ops, "pgmail", [1, 1, 1]),
        ],
    )
    assert [row["name"] for row in rows] == ["pgmail"]
    assert missing == ["Absent: no-such-program-here not installed", "Broken: it fell"]


def test_each_race_is_led_by_pgmail_and_every_driver_is_there(ops):
    for name, entries in ops["entries"].RACES.items():
        assert name in ops["report"].TITLES
        assert entries[0].name.startswith("pgmail")
        assert len({one.name for one in entries}) == len(entries)
        assert all(one.persists for one in entries)
    for driver in ("bullmq.mjs", "graphile.mjs", "express.mjs", "pgqueuer_noop.py", "procrastinate_noop.py"):
        assert (FOLDER / "peers" / driver).is_file()


def test_a_driver_without_figures_is_a_failure(ops):
    said = ops["contestants"]._said
    assert said('npm warn something\n{"per_s": 3}\n') == {"per_s": 3}
    for output in ("", "Error: connect ECONNREFUSED"):
        with pytest.raises(SandboxError, match="without figures"):
            said(output)


def results(ops):
    rows, _ = raced(ops, [entry(ops, "pgmail", [9000.0]), entry(ops, "A & B <x>", [4500.0])], rounds=1)
    spread = {"p50_ms": 1.5, "p90_ms": 2.5, "p99_ms": 9.5}
    return {
        "taken_at": "2026-01-01T00:00:00+00:00",
        "runs": 1,
        "scale": 0.1,
        "machine": ops["race"].machine() | {"load_after": 1.0},
        "versions": {"pgmail": "1"},
        "races": {"queue": rows},
        "own": {
            "wake": spread,
            "priority": spread,
            "pinned": {
                "ratio": 0.95,
                "last_to_first": 1.01,
                "free_per_s": 20_000,
                "pinned_slices": [19_000, 19_500],
                "conditions": {"seconds": 10, "slice_seconds": 5.0},
            },
            "backlog": {"backlog": [{"size": 10_000, "per_s": 20_000}, {"size": 1_000_000, "per_s": 19_000}]},
            "lanes": {"lanes": [{"size": 10, "per_s": 9000}], "tenants": [{"size": 1000, "per_s": 8000}]},
            "workers": [
                {"processes": 1, "e2e": 5000, "queue": 9000},
                {"processes": 2, "e2e": None, "queue": 1},
            ],
        },
        "missing": ["Other: node not installed"],
    }


def test_the_table_holds_figures_ratios_durability_and_conditions(ops):
    text = ops["report"].markdown(results(ops))
    assert "| A & B <x> | 4,500 | 2.00 | 4,500 to 4,500 | A & B <x> keeps it |" in text
    assert "at 0.1 of the distance" in text
    assert "p50 1.5 ms, p90 2.5 ms, p99 9.5 ms" in text
    assert "95% of the free 20,000/s" in text
    assert "10,000: 20,000/s, 1,000,000: 19,000/s" in text
    assert "e2e -/s, queue 1/s" in text
    assert "- Other: node not installed" in text


def test_every_chart_is_well_formed_and_told_in_words(ops):
    drawn = dict(ops["charts"].charts(results(ops)))
    assert drawn.keys() == {"race-queue", "backlog", "workers", "pinned", "latency"}
    for text in drawn.values():
        root = ET.fromstring(text)
        title, told = (root.find(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc"))
        assert title.text
        assert told.text
        assert "prefers-color-scheme: dark" in text


def test_a_result_with_nothing_in_it_draws_nothing(ops):
    assert dict(ops["charts"].charts({"races": {"queue": []}, "own": {}})) == {}


@pytest.mark.parametrize("most", [0.3, 1, 7, 95, 100, 101, 4999, 22_345, 1_000_000])
def test_an_axis_has_a_few_round_steps_from_0_past_the_most(ops, most):
    found = ops["svg"].ticks(most)
    assert found[0] == 0
    assert found[-2] < most <= found[-1] * (1 + 1e-9)
    assert 3 <= len(found) <= 7


def test_what_has_no_peer_is_asked_for_as_the_command_takes_it(ops):
    for name, options in ops["race"].OWN.items():
        assert options.keys() <= TAKES[name]
    stage = ops["contestants"].Stage(None, None, scale=0.1)
    sizes = [
        ops["race"].scaled(*words, stage)
        for words in (("backlog", "sizes", 1_000_000), ("lanes", "sizes", 1000), ("pinned", "seconds", 300))
    ]
    assert sizes == [100_000, 1000, 30]


def test_a_program_is_run_to_its_end_or_told(ops):
    run = ops["services"].run
    assert run([sys.executable, "-c", "import os; print(os.environ['WORD'])"], seconds=60, WORD="x") == "x\n"
    with pytest.raises(SandboxError, match="code 3: it fell"):
        run([sys.executable, "-c", "import sys; print('it fell'); sys.exit(3)"], seconds=60)
    with pytest.raises(SandboxError, match="took longer"):
        run([sys.executable, "-c", "import signal; signal.pause()"], seconds=0.05)


def test_each_bench_runs_as_often_watched_as_not_and_paces_and_times_are_compared(ops, monkeypatch):
    order, given = [], []

    class Here:
        def fresh(self):
            order.append("fresh")

    class Gallery:
        watched = False

        @contextmanager
        def open(self):
            self.watched = True
            yield
            self.watched = False

    gallery = Gallery()

    def lanes(_, **options):
        order.append("watched" if gallery.watched else "alone")
        given.append(options)
        pace = 90 if gallery.watched else 100
        return {
            "lanes": [{"size": 1_000, "per_s": pace, "lowest_backlog": 7}],
            "p50_ms": 2.0,
            "peak_rss_mb": [60],
            "conditions": {"cores": 2},
        }

    monkeypatch.setattr(ops["watched"], "BENCHES", {"lanes": lanes})
    options = SimpleNamespace(runs=2, scale=0.5)
    found = ops["watched"].compared(Here(), gallery, "lanes", options)
    assert order == ["fresh", "alone", "fresh", "watched", "fresh", "watched", "fresh", "alone"]
    assert given[0] == {"mails": 150_000}
    assert found == {
        "lanes 1,000 per_s": {"unwatched": [100, 100], "watched": [90, 90], "ratio": 0.9},
        "p50_ms": {"unwatched": [2, 2], "watched": [2, 2], "ratio": 1.0},
    }
    assert "| p50_ms | 2 | 2 | 1 |" in "\n".join(ops["watched"].rows_of(found))


def test_whoever_is_given_to_look_on_exists(ops):
    assert ops["watched"].FULL.keys() == BENCHES.keys()
    for name, options in ops["watched"].FULL.items():
        assert options.keys() <= inspect.signature(BENCHES[name]).parameters.keys(), name
