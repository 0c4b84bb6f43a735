"""The benches for real, each as short as can be: that they run to their end and answer the promised keys."""

import json
import subprocess
import sys

import pytest

from pgmail.sandbox import bench
from pgmail.sandbox.bench import depth
from pgmail.sandbox.postgres import EmbeddedPostgres
from tests.acceptance.test_cli_processes import environ


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "pg"
    with bench.place(folder) as place:
        yield place
    EmbeddedPostgres(folder).remove()


def positive(found, *keys):
    """Figures above 0, with the conditions beside them."""
    assert all(found[key] > 0 for key in keys), found
    assert found["conditions"]["synchronous_commit"] == "on"
    assert found["conditions"]["cores"] > 0
    return found


@pytest.mark.long
def test_e2e_tells_rate_wal_and_memory(here):
    found = positive(
        bench.BENCHES["e2e"](here, mails=1000), "mails_per_s", "wal_enqueue_bytes", "wal_send_bytes"
    )
    assert found["conditions"]["sink"] in {"smtp-sink", "pgmail's own"}
    if sys.platform == "linux":
        assert len(found["peak_rss_mb"]) == 2


@pytest.mark.long
def test_queue_runs_without_a_sink(here):
    positive(bench.BENCHES["queue"](here, mails=3000, processes=1), "jobs_per_s")


def test_enqueue_measures_three_ways_in_and_wal(here):
    found = bench.BENCHES["enqueue"](here, seconds=1)
    positive(found, "send_1_per_s", "send_16_per_s", "send_many_per_s", "wal_bytes")


@pytest.mark.long
def test_api_measures_connections_and_batches_and_finds_every_mail(here):
    found = bench.BENCHES["api"](here, seconds=1)
    positive(found, "rps_1", "rps_16", "rps_64", "p50_1_ms", "p99_16_ms", "batch_per_s")


@pytest.mark.long
def test_priority_asks_while_the_backlog_is_sent(here):
    found = bench.BENCHES["priority"](here, mails=4000, seconds=1)
    assert positive(found, "p50_ms", "p99_ms", "backlog_per_s")["asked"] <= 10


@pytest.mark.long
def test_wake_waits_until_workers_sleep(here):
    assert positive(bench.BENCHES["wake"](here, mails=2, processes=1), "p50_ms", "p99_ms")["asked"] == 2


@pytest.mark.long
def test_pinned_compares_with_the_pace_before(here, monkeypatch):
    monkeypatch.setattr(depth, "LEVEL", 3000)
    found = positive(bench.BENCHES["pinned"](here, seconds=2), "ratio", "free_per_s", "pinned_per_s")
    assert len(found["pinned_slices"]) == depth.SLICES


@pytest.mark.long
def test_backlog_and_lanes_answer_a_row_for_each_size(here):
    found = bench.BENCHES["backlog"](here, sizes=(4000, 8000), seconds=1, processes=1)
    assert [row["size"] for row in found["backlog"]] == [4000, 8000]
    assert all(row["per_s"] > 0 and row["lowest_backlog"] > 0 for row in found["backlog"])
    found = bench.BENCHES["lanes"](here, sizes=(5,), tenants=10, mails=2000, seconds=1, processes=1)
    assert [row["size"] for row in found["lanes"] + found["tenants"]] == [5, 10]
    assert all(row["per_s"] > 0 for row in found["lanes"] + found["tenants"])


def test_the_command_prints_one_json_object_and_leaves_its_server_stopped(tmp_path):
    argv = [sys.executable, "-m", "pgmail", "bench", "queue", "--mails", "3000", "--processes", "1", "--json"]
    done = subprocess.run(
        argv,
        env=environ(data_folder=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["bench"] == "queue"
    positive(found, "jobs_per_s")
    server = EmbeddedPostgres(tmp_path / "bench")
    assert not (server.data_folder / "pgdata" / "postmaster.pid").exists()
    server.remove()
