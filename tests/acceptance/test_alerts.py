"""Alerts end to end: real processes, a receiver on the loopback and an SMTP server; nothing goes by the queue."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.acceptance.test_worker_processes import environment, far  # noqa: F401 - a fixture
from tests.sql.kit import one, send
from tests.waiting import eventually_now


class Receiver(ThreadingHTTPServer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_fleet_without_workers_tells_by_http_and_mail_and_says_when_it_is_over(
    db,
    owner,
    *,
    app,
    far,  # noqa: F811 - the fixture
    receiver,
    tmp_path,
):
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    settings = environment(
        PGMAIL_DATABASE_URL=db.dsn_for("admin"),
        PGMAIL_WORKER_DATABASE_URL=db.dsn_for("worker"),
        PGMAIL_HOOK_NETWORKS="127.0.0.0/8",
        PGMAIL_ALERT_RELAY_URL=f"smtp://127.0.0.1:{far.port}?tls=none",
        PGMAIL_RELAY_URL=f"smtp://127.0.0.1:{far.port}?tls=none",
        PGMAIL_ALERT_FROM="pgmail@example.net",
        PGMAIL_PUBLIC_URL="https://mail.example.net",
        PGMAIL_STATE_DIR=str(tmp_path / "state"),
        PGMAIL_LOG_FORMAT="json",
    )

    def pgmail(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pgmail", *words],
            env=settings,
            capture_output=True,
            text=True,
            check=check,
        )

    pgmail("alert", "target", "add", "hook", "--webhook", url)
    pgmail("alert", "target", "add", "ops", "--email", "ada@example.org")
    pgmail("alert", "set", "no_worker", "--threshold", "1", "--for-seconds", "0", "--calm-seconds", "0")
    send(app)
    with (tmp_path / "maintain.log").open("w") as log:
        leader = subprocess.Popen(
            [sys.executable, "-m", "pgmail", "maintain"], env=settings, stdout=log, stderr=log
        )
    worker = None
    try:
        tested = pgmail("alert", "target", "test", "hook")
        assert tested.stdout.startswith("hook was told")
        told = eventually_now(lambda: [one for one in receiver.got if one["type"] == "alert.firing"], 40)
        assert told[0]["alert"]["rule"] == "no_worker"
        assert told[0]["link"] == "https://mail.example.net/dashboard/workers"
        assert "no worker is running" in told[0]["words"]
        eventually_now(lambda: len(far.mails) >= 1, 20)
        assert b"[pgmail] FIRING no_worker" in far.sources[0]
        listed = json.loads(pgmail("alert", "list", "--json").stdout)["alerts"]
        assert [alert["rule"] for alert in listed if alert["state"] == "firing"] == ["no_worker"]
        found = json.loads(pgmail("doctor", "--json", check=False).stdout)
        assert next(row for row in found if row["check"] == "alerts")["status"] == "failed"
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pgmail", "worker"], env=settings, stdout=log, stderr=log
            )
        eventually_now(lambda: [one for one in receiver.got if one["type"] == "alert.resolved"], 40)
        eventually_now(lambda: len(far.mails) >= 3, 20)  # two about the alert, and the one that waited
    finally:
        for process in (leader, worker):
            if process is not None:
                os.kill(process.pid, signal.SIGTERM)
                process.wait(20)
    kinds = [one["type"] for one in receiver.got]
    assert kinds == ["alert.test", "alert.firing", "alert.resolved"]
    assert one(owner, "select count(*) from pgmail.message") == 1
