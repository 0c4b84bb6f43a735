"""The benches by themselves: what they may be asked, how figures are made, and what is no figure."""

import inspect
import json
import os
import socketserver
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pgmail.cli import bench as command
from pgmail.cli import parts
from pgmail.cli.main import cli
from pgmail.domain.reply import Envelope
from pgmail.errors import SandboxError
from pgmail.sandbox import bench
from pgmail.sandbox.bench import http_load, meter, peers
from pgmail.sandbox.bench.workers import Workers, last_line, peak_rss_mb
from pgmail.sandbox.bench_noop import Nowhere
from pgmail.transport.base import Transport, ready


def test_the_command_knows_every_bench_and_its_options():
    known = {name: set(inspect.signature(made).parameters) - {"here"} for name, made in bench.BENCHES.items()}
    assert known == command.TAKES


def test_options_come_through_as_they_are_meant(monkeypatch):
    asked = []

    def run(name, folder, options, *, with_peers):
        asked.append((name, options, with_peers))
        return {"bench": name, "per_s": 1}

    monkeypatch.setattr(parts, "part", lambda _: run)
    done = CliRunner().invoke(
        cli, ["bench", "backlog", "--sizes", "10k,1M, 250", "--seconds", "3", "--peers", "--json"]
    )
    assert (done.exit_code, done.exception) == (0, None)
    assert json.loads(done.stdout) == {"bench": "backlog", "per_s": 1}
    assert asked == [("backlog", {"sizes": (10_000, 1_000_000, 250), "seconds": 3}, True)]


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "wake", "--sizes", "10"],
        ["bench", "lanes", "--sizes", "ten"],
        ["bench", "lanes", "--sizes", "0"],
        ["bench", "lanes", "--sizes", ""],
        ["bench", "queue", "--mails", "0"],
        ["bench", "other"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused_before_anything_is_started(words):
    done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, SystemExit | click.UsageError)
    assert done.exit_code == 2


def test_a_percentile_is_a_value_that_occurred():
    values = [float(n) for n in range(100, 0, -1)]
    assert [meter.percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert meter.percentile([7.0], 0.5) == meter.percentile([7.0], 0.99) == 7.0
    assert meter.spread([0.001, 0.002]) == {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 2.0, "worst_ms": 2.0}
    with pytest.raises(SandboxError, match="nothing was measured"):
        meter.percentile([], 0.5)


def test_a_report_is_read_line_by_line_while_it_grows(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_bytes(b"")
    report = meter.Report(path)
    assert report.accepted() == {}
    with path.open("ab", buffering=0) as file:
        file.write(b'{"recipient":"a@example.com","at":1.5}\n{"recipient":"b@exam')
        assert report.accepted() == {"a@example.com": 1.5}
        file.write(b'ple.com","at":2.5}\n{"recipient":"a@example.com","at":9.0}\n')
    assert report.accepted() == {"a@example.com": 1.5, "b@example.com": 2.5}  # the first copy counts


class Asked:
    """A session in front of a queue that moves by so many mails a look."""

    def __init__(self, step):
        self.sent, self.step = 0, step

    def progress(self):
        self.sent += self.step
        return self.sent

    def waits(self):
        return Counter(running=1)


def idle_workers(tmp_path):
    return Workers("", [], 0, tmp_path / "log")


def test_rates_and_waits_are_taken_while_mail_flows(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "POLL_SECONDS", 0.001)
    watch = meter.Meter(Asked(10), idle_workers(tmp_path))
    watch.wait_sent(50)
    assert watch.rate(60, most=200) > 0
    assert len(watch.slices(0.02, 4)) == 4
    assert watch.waits() == {"running": 1.0}


def test_a_queue_that_does_not_move_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(meter, "STALL_SECONDS", 0.01)
    with pytest.raises(SandboxError, match="only 0 of 5 mails were sent"):
        meter.Meter(Asked(0), idle_workers(tmp_path)).wait_sent(5)


def test_a_worker_that_ended_is_told_with_its_last_words(tmp_path):
    class Ended:
        def poll(self):
            return 1

    log = tmp_path / "log"
    log.write_text("starting\npgmail: the role may not claim\n")
    with pytest.raises(SandboxError, match="code 1: pgmail: the role may not claim"):
        Workers("", [Ended()], 1, log).check()
    log.write_text("")
    assert last_line(log) == "it said nothing"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_memory_is_told_of_processes_that_live():
    assert 1 < peak_rss_mb(os.getpid()) < 100_000
    assert peak_rss_mb(2**22 + 1) is None


async def test_the_relay_of_no_op_workers_takes_every_mail():
    nowhere = Nowhere()
    assert isinstance(nowhere, Transport)
    told = []

    async def on_dot():
        told.append(True)

    envelope = Envelope(sender="a@example.com", recipient="b@example.com", body=b"x")
    result = await nowhere.deliver(envelope, on_dot)
    assert (result.reply.code, told) == (250, [True])
    assert ready(await nowhere.probe())
    await nowhere.close()


@contextmanager
def http_server(answer):
    """A server that answers each request that ends in `}` so, or hangs up on an empty answer."""
    seen = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            request = b""
            while data := self.request.recv(65_536):
                request += data
                if request.endswith(b"}"):
                    seen.append(request)
                    request = b""
                    if not answer:
                        return
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/emails", seen
        finally:
            server.shutdown()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_our_own_client_counts_what_was_answered():
    with http_server(OK) as (url, seen):
        request = http_load.Request(url, b'{"to":"a"}', {"Authorization": "Bearer x"})
        found = http_load.own(request, connections=3, seconds=0.2)
    assert found.answered == len(seen) > 3
    assert 0 < found.p50_ms <= found.p99_ms
    assert b"POST /emails HTTP/1.1\r\n" in seen[0]
    assert b"Authorization: Bearer x\r\n" in seen[0]
    assert b"Content-Length: 10\r\n" in seen[0]


@pytest.mark.parametrize(
    ("answer", "told"),
    [(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "answered 401"), (b"", "broke")],
    ids=["refused", "broken"],
)
def test_refusals_and_broken_connections_are_no_rate(answer, told):
    with http_server(answer) as (url, _), pytest.raises(SandboxError, match=told):
        http_load.own(http_load.Request(url, b"{}", {}), connections=2, seconds=0.1)


@pytest.mark.skipif(http_load.client() != "wrk", reason="wrk is not installed")
def test_wrk_counts_the_same_and_tells_refusals(tmp_path):
    with http_server(OK) as (url, seen):
        request = http_load.Request(url, b'{"to":"a"}', {"Authorization": 'Bearer "x"'})
        found = http_load.load(request, 2, 1, tmp_path)
    assert 2 <= found.answered <= len(seen)
    assert b'Authorization: Bearer "x"\r\n' in seen[0]
    with (
        http_server(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") as (url, _),
        pytest.raises(SandboxError, match="refusals"),
    ):
        http_load.load(http_load.Request(url, b"{}", {}), 1, 1, tmp_path)


def test_what_has_no_peers_says_so(tmp_path):
    assert peers.race("wake", tmp_path, {}) == {
        "peers": [],
        "peers_missing": ["wake is measured of no peer"],
    }


def test_an_installation_without_the_drivers_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "home", lambda: tmp_path)
    found = peers.race("queue", tmp_path, {"jobs_per_s": 10})
    assert found == {
        "peers": [],
        "peers_missing": ["the drivers of the peers are in a checkout, under ops/bench"],
    }


def test_ratios_are_ours_by_theirs(tmp_path, monkeypatch):
    script = tmp_path / "ops" / "bench" / "race.py"
    script.parent.mkdir(parents=True)
    rows = {"queue": [{"name": "Other", "median": 4.0, "persists": "nothing"}]}
    script.write_text(
        f"import sys\nopen(sys.argv[-1], 'w').write({json.dumps(json.dumps({'races': rows, 'missing': ['x']}))})\n"
    )
    monkeypatch.setattr(peers, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # the child needs a real one
    found = peers.race("queue", tmp_path / "work", {"jobs_per_s": 10})
    assert found == {
        "peers": [{"name": "Other", "jobs_per_s": 4.0, "ratio": 2.5, "persists": "nothing"}],
        "peers_missing": ["x"],
    }
    script.write_text("raise SystemExit(3)\n")
    with pytest.raises(SandboxError, match="code 3"):
        peers.race("queue", tmp_path / "work", {"jobs_per_s": 10})
