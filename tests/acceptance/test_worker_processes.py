"""Workers as real processes: psql hands mail over, `pgmail worker` sends it, and some of them are killed."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.sql.kit import differences, one, recipients, rows, send, send_many, state
from tests.waiting import eventually_now
from tests.worker.kit import doubts, header, leased, settled

Process = subprocess.Popen[str]


@dataclass
class SinkProcess:
    """An SMTP server that no kill of a worker touches; it writes each mail down before it acknowledges it."""

    process: Process
    port: int
    report: Path
    folder: Path

    @property
    def mails(self) -> list[dict[str, object]]:
        if not self.report.exists():
            return []
        return [json.loads(line) for line in self.report.read_text().splitlines()]

    @property
    def copies(self) -> Counter[str]:
        """How often each Message-ID arrived."""
        return Counter(str(mail["message_id"]) for mail in self.mails)

    @property
    def sources(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.eml"))]


def end(process: Process) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(10)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def environment(**more: str) -> dict[str, str]:
    """Ours, without settings of pgmail."""
    return {name: word for name, word in os.environ.items() if not name.startswith("PGMAIL_")} | more


@pytest.fixture
def far(tmp_path: Path) -> Iterator[SinkProcess]:
    report, folder = tmp_path / "report", tmp_path / "mails"
    argv = [
        sys.executable,
        "-m",
        "pgmail.sandbox.sink",
        "--report",
        report,
        "--folder",
        folder,
        "--tarpit",
        "3",
    ]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield SinkProcess(process, json.loads(process.stdout.readline())["port"], report, folder)
    finally:
        end(process)


@contextlib.contextmanager
def hiring(
    db: Any, port: int, folder: Path, **settings: str
) -> Iterator[tuple[Callable[..., Process], list[Process]]]:
    """What starts workers that send to a port, and those started; they end with it."""
    started: list[Process] = []

    def start(**more: str) -> Process:
        log = (folder / f"worker-{len(started)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "pgmail", "worker"],
            env=environment(
                PGMAIL_DATABASE_URL=db.dsn_for("worker"),
                PGMAIL_RELAY_URL=f"smtp://127.0.0.1:{port}?tls=none",
                PGMAIL_LOG_FORMAT="json",
                **(settings | more),
            ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log.close()
        started.append(process)
        return process

    try:
        yield start, started
    finally:
        for process in started:
            end(process)


@pytest.fixture
def start_worker(db, far, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with hiring(db, far.port, tmp_path) as (start, _):
        yield start


@pytest.fixture
def owner(db) -> psycopg.Connection:
    return db.connect()


@pytest.fixture
def app(db) -> psycopg.Connection:
    return db.connect("producer")


@pytest.fixture
def shop(db, server, owner) -> Callable[[], Process]:
    """`psql` as an application: it has orders, and may send mail."""
    owner.execute("create table orders (id int primary key, what text)")
    owner.execute("grant select, insert on orders to pgmail_producer")

    def open_psql() -> Process:
        return subprocess.Popen(
            [server.binaries / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", db.dsn_for("producer")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    return open_psql


ORDER = """\
begin;
insert into orders values ({id}, 'a book');
select pgmail.send('{{"from": "Shop <shop@example.com>", "to": ["ada@example.org"],
  "subject": "Order {id}", "text": "Thank you, {{{{ name }}}}.", "variables": {{"name": "Ada"}}}}'::jsonb) as mail;
\\echo written
"""


def order(psql: Process, number: int) -> None:
    """Write an order and its mail; returns when both stand in the open transaction."""
    psql.stdin.write(ORDER.format(id=number))
    psql.stdin.flush()
    while (line := psql.stdout.readline()).strip() != "written":
        assert line, "psql ended"


def test_an_order_and_its_mail_are_one_transaction(shop, start_worker, far, app, owner):
    start_worker()
    killed = shop()
    order(killed, 1)
    killed.send_signal(signal.SIGKILL)
    end(killed)
    committed = shop()
    order(committed, 2)
    committed.stdin.write("commit;\n\\q\n")
    committed.stdin.close()
    assert committed.wait(20) == 0
    end(committed)
    eventually_now(lambda: far.mails, 30)
    eventually_now(lambda: settled(owner) == {"sent": 1})
    assert rows(owner, "select id from orders") == [(2,)]
    (source,) = far.sources
    assert header(source, "Subject") == "Order 2"
    assert header(source, "From") == "Shop <shop@example.com>"
    assert source.endswith(b"\r\n\r\nThank you, Ada.\r\n")
    assert set(far.copies.values()) == {1}
    assert differences(owner) == [0]


def test_the_leases_of_a_killed_worker_are_back_within_ten_seconds_and_no_mail_is_lost(
    db, start_worker, far, app, owner
):
    doomed = start_worker(PGMAIL_WORKER_CONCURRENCY="10")
    eventually_now(lambda: one(owner, "select count(*) from pgmail.worker") == 1, 30)
    epoch = one(owner, "select epoch from pgmail.worker")
    body = {"from": "a@example.com", "subject": "s", "text": "t"}
    slow = [{**body, "to": f"slow.x{n}@d{n % 7}.example.org"} for n in range(15)]
    quick = [{**body, "to": f"x{n}@d{n % 7}.example.org"} for n in range(285)]
    send_many(app, [mail for pair in zip(quick, slow, strict=False) for mail in pair] + quick[15:])
    start_worker(PGMAIL_WORKER_CONCURRENCY="10")
    held = "select count(*) from pgmail.queue where leased_by = %s"
    eventually_now(lambda: len(far.mails) > 20 and one(owner, held, [epoch]) > 5, 30)
    doomed.kill()
    doomed.wait(10)
    lost = one(owner, held, [epoch])
    at = time.monotonic()
    assert lost > 0
    eventually_now(lambda: one(owner, held, [epoch]) == 0, 15)
    seconds = time.monotonic() - at
    sys.stdout.write(f"\n{lost} leases of a killed worker were back after {seconds:.1f} s\n")
    assert seconds < 10
    eventually_now(lambda: settled(owner) == {"sent": 300}, 40)
    assert differences(owner) == [0]
    assert one(owner, "select count(*) from pgmail.worker where epoch = %s", [epoch]) == 0
    assert len(far.copies) == 300
    for message_id, arrived in far.copies.items():
        if arrived > 1:
            (recipient,) = recipients(app, UUID(message_id.partition("@")[0]))
            assert doubts(owner, recipient) >= arrived - 1
    assert doubts(owner) == lost


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_drains_and_leaves_with_zero(start_worker, far, app, owner, number):
    process = start_worker(PGMAIL_WORKER_CONCURRENCY="4")
    body = {"from": "a@example.com", "subject": "s", "text": "t"}
    send_many(app, [{**body, "to": f"{'slow.' if n > 3 else ''}x{n}@example.org"} for n in range(16)])
    eventually_now(lambda: len(far.mails) >= 4 and leased(owner) >= 4, 30)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert leased(owner) == 0
    assert doubts(owner) == 0
    found = settled(owner)
    assert sum(found.values()) == 16
    assert set(found) <= {"sent", "queued"}
    assert len(far.mails) == found["sent"] > 4  # what was on the wire was finished
    assert one(owner, "select count(*) from pgmail.worker") == 0


def test_a_tree_of_workers_shares_the_queue_and_leaves_with_zero(start_worker, far, app, owner):
    process = start_worker(PGMAIL_WORKER_PROCESSES="2")
    eventually_now(lambda: one(owner, "select count(*) from pgmail.worker") == 2, 40)
    body = {"from": "a@example.com", "subject": "s", "text": "t"}
    send_many(app, [{**body, "to": f"x{n}@example.org"} for n in range(100)])
    eventually_now(lambda: settled(owner) == {"sent": 100}, 30)
    process.terminate()
    assert process.wait(20) == 0
    assert one(owner, "select count(*) from pgmail.worker") == 0
    assert set(far.copies.values()) == {1}


def test_from_idle_a_committed_mail_is_accepted_in_milliseconds(start_worker, far, app, owner):
    start_worker()
    asleep = "select coalesce(bool_or(asleep), false) from pgmail.worker"
    took: list[float] = []
    for n in range(16):
        eventually_now(lambda: one(owner, asleep), 30)
        at = time.time()
        mail = send(app)
        eventually_now(lambda n=n: len(far.mails) > n, 10)
        took.append((float(far.mails[-1]["at"]) - at) * 1000)
        eventually_now(lambda mail=mail: state(app, mail) == "sent")
    warm = took[1:]  # the first one opens connections
    p50 = statistics.median(warm)
    sys.stdout.write(f"\nfrom idle, commit to accepted: p50 {p50:.1f} ms, most {max(warm):.1f} ms\n")
    assert p50 < 500  # 25 ms on a quiet machine; these are busy
