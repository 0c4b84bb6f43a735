"""A real Prometheus scrapes real processes: every panel and every rule is answered, and traffic is seen."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import psycopg
import pytest

from tests.acceptance.own_server import Client
from tests.fix_db import PREFIX
from tests.unit.test_ops_metrics import RULES, panels, rules
from tests.waiting import eventually_now

PROMETHEUS = shutil.which("prometheus")
# What need not be there: nothing of the kind happened here.
QUIET = {"Refused and failed", "Relays up"}
# By the sink's rules these are refused in several ways.
ADDRESSES = ("bounce.a@gmail.com", "defer.b@example.org", "deferonce.c@gmail.com", "drop.d@example.net")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(one.getsockname()[1], 64_000)


def listens(fleet, process):
    """The port of a process's figures, by its log."""

    def port():
        for line in fleet.log(process).splitlines():
            facts = json.loads(line)
            if facts["event"] == "metrics.listens":
                return facts["port"]
        return None

    return eventually_now(port, 30)


class Prometheus:
    """One in a folder of its own, asked by HTTP."""

    def __init__(self, folder, targets):
        folder.mkdir()
        (folder / "pgmail.rules.yml").write_text(RULES.read_text())
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["pgmail.rules.yml"],
                    "scrape_configs": [{"job_name": "pgmail", "static_configs": [{"targets": targets}]}],
                }
            )
        )
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path, **values):
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(values)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression):
        """The series of an expression; an error fails."""
        return self.get("/api/v1/query", query=expression)["result"]

    def up(self):
        try:
            return len(self.ask("up == 1"))
        except (OSError, urllib.error.HTTPError):
            return 0

    def close(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.mark.one_server
def test_a_process_that_only_leads_tells_the_fleets_figures_and_its_health(new_server, fleet):
    server = new_server()
    process = fleet.maintain(server.dsn("maintain"), METRICS_PORT=str(free_port()))
    port = listens(fleet, process)

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            return ""

    eventually_now(lambda: get("/health/ready"), 30)
    found = eventually_now(lambda: "pgmail_leading 1.0" in (text := get("/metrics")) and text, 30)
    assert 'pgmail_process{role="maintain"' in found
    assert 'pgmail_workers{program="maintain",state="running"} 1.0' in found
    assert "pgmail_slots " not in found
    server.stop()
    eventually_now(lambda: not get("/health/ready"), 30)
    assert get("/health/live")
    assert "pgmail_fresh 0.0" in get("/metrics")


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
@pytest.mark.one_server
def test_every_panel_and_rule_is_answered_by_real_processes_under_traffic(new_server, fleet, tmp_path):
    server = new_server()
    with psycopg.connect(f"{server.embedded.dsn()}", autocommit=True) as admin:
        admin.execute(f"grant pg_read_all_stats to {PREFIX}owner")  # to see how old others' transactions are
    base = str(free_port())
    worker = fleet.worker(server.dsn("worker"), METRICS_PORT=base)
    api = fleet.api(server.dsn("api"), METRICS_PORT=base)
    second = fleet.worker(server.dsn("worker"), METRICS_PORT=base)
    ports = [listens(fleet, process) for process in (worker, api.process, second)]
    assert len(set(ports)) == 3
    prometheus = Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{port}" for port in ports])
    try:
        eventually_now(lambda: prometheus.up() == 3, 60)
        for n, address in enumerate(ADDRESSES):
            assert api.send(address, f"once-{n}")[0] == 200
        with Client(api) as client:
            client.more(50)
            eventually_now(
                lambda: prometheus.ask('sum(rate(pgmail_recipients_total{result="sent"}[15s])) > 0'), 60
            )
            eventually_now(lambda: prometheus.ask("sum(rate(pgmail_in_doubt_total[1m])) > 0"), 60)
            missing, answered = {}, set()

            def all_there():
                missing.clear()
                for title, expressions in panels():
                    for expression in expressions:
                        asked = expression.replace("$__rate_interval", "15s").replace("$instance", ".*")
                        # Some are there for a moment only: while mail is due, or just after an error.
                        if asked in answered or prometheus.ask(asked):
                            answered.add(asked)
                        else:
                            missing.setdefault(title, []).append(asked)
                return set(missing) <= QUIET

            try:
                eventually_now(all_there, 60)
            except AssertionError:
                raise AssertionError(f"no series: {missing}") from None
        for name, expression in rules():
            prometheus.ask(expression)  # an error would be raised
            assert name
        groups = eventually_now(
            lambda: (
                (found := prometheus.get("/api/v1/rules")["groups"])
                and all(rule["health"] != "unknown" for group in found for rule in group["rules"])
                and found
            ),
            60,
        )
        told = [rule for group in groups for rule in group["rules"]]
        assert len(told) == len(rules())
        assert [rule for rule in told if rule["health"] != "ok"] == []
        # one process leads, and only it tells of the fleet
        assert len(prometheus.ask("pgmail_leading == 1")) == 1
        assert len(prometheus.ask("pgmail_partition_days_left")) == 1
        sent = float(prometheus.ask('sum(pgmail_results_total{result="sent"})')[0]["value"][1])
        assert sent >= 50
    finally:
        prometheus.close()
