"""Webhooks as real processes: the command line adds one, a worker sends mail and tells of it, and one is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pgmail.sealing.keks import new_pair
from tests.acceptance.test_worker_processes import environment, far, start_worker
from tests.receiver import Got
from tests.sql.kit import one, rows, send
from tests.waiting import eventually_now

__all__ = ["far", "start_worker"]  # fixtures


class Sink:
    """An HTTP server in threads of its own; `hold` keeps answers back."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.go = threading.Event()
        self.go.set()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                sink.got.append(Got(self.path, headers, body))
                sink.go.wait(30)
                try:
                    self.send_response(204)
                    self.end_headers()
                except OSError:
                    pass  # the caller was killed

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=hidden"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.close()


@pytest.fixture
def keys() -> dict[str, str]:
    return {"PGMAIL_SEAL_KEYS": new_pair("first"), "PGMAIL_HOOK_NETWORKS": "127.0.0.0/8"}


@pytest.fixture
def shell(db, keys, tmp_path: Path):
    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgmail", *words],
            env=environment(PGMAIL_DATABASE_URL=db.dsn, **keys),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_an_endpoint_of_the_command_line_is_told_by_a_worker(db, shell, start_worker, keys, sink):
    made = json.loads(shell("webhook", "add", sink.url, "--json"))
    start_worker(**keys)
    shell("webhook", "test", made["id"])
    assert sink.got[0].json["type"] == "webhook.test"
    app = db.connect("producer")
    email = send(app)
    eventually_now(lambda: len(sink.got) == 4, 30)
    types = sorted(got.json["type"] for got in sink.got[1:])
    assert types == ["email.queued", "email.sending", "email.sent"]
    assert all(got.verify(made["signing_secret"]) for got in sink.got)
    assert {got.json["data"]["email_id"] for got in sink.got[1:]} == {str(email)}
    owner = db.connect()
    eventually_now(lambda: one(owner, "select count(*) from pgmail.hook_queue") == 0, 30)
    log = json.loads(shell("webhook", "deliveries", made["id"], "--json"))
    assert {call["outcome"] for call in log} == {"delivered"}
    assert len(log) == 4
    turned = json.loads(shell("webhook", "rotate", made["id"], "--overlap", "0s", "--json"))
    assert turned["signing_secret"] != made["signing_secret"]
    assert json.loads(
        shell("webhook", "replay", made["id"], "--outcome", "all", "--type", "email.sent", "--yes", "--json")
    ) == {
        "id": made["id"],
        "replayed": 1,
        "dry_run": False,
        "complete": True,
    }
    eventually_now(lambda: len(sink.got) == 5, 30)
    assert sink.got[-1].verify(turned["signing_secret"])
    shell("webhook", "set", made["id"], "--event", "email.bounced", "--disable", "--reason", "done")
    (shown,) = json.loads(shell("webhook", "list", "--json"))
    assert (shown["types"], shown["enabled"]) == (["email.bounced"], False)
    shell("webhook", "remove", made["id"])
    assert "not_found" in shell("webhook", "show", made["id"], code=1)


def test_a_worker_killed_between_the_call_and_its_record_tells_again_under_the_same_id(
    db, shell, start_worker, keys, sink
):
    made = json.loads(shell("webhook", "add", sink.url, "--event", "email.queued", "--json"))
    sink.go.clear()
    first = start_worker(**keys)
    send(db.connect("producer"))
    eventually_now(lambda: len(sink.got) == 1, 30)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    owner = db.connect()
    assert one(owner, "select attempts from pgmail.hook_queue") == 0
    owner.execute("update pgmail.hook_queue set leased_until = now()")  # a minute later
    sink.go.set()
    start_worker(**keys)
    eventually_now(lambda: rows(owner, "select outcome from pgmail.hook_attempt") == [("delivered",)], 30)
    assert len({got.id for got in sink.got}) == 1
    assert len(sink.got) == 2
    assert all(got.verify(made["signing_secret"]) for got in sink.got)


def test_without_keys_the_command_line_says_what_to_do(shell, keys):
    del keys["PGMAIL_SEAL_KEYS"]
    told = shell("webhook", "add", "https://example.com/hook", code=1)
    assert "PGMAIL_SEAL_KEYS" in told
    assert "pgmail seal key" in told
