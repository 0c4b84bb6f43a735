"""A worker as the main thing of a process: signals and exit codes."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgmail.config import Settings
from pgmail.maintain.leader import Leader
from pgmail.store.presence import Presence
from pgmail.transport.capture import CaptureTransport
from pgmail.worker import supervisor
from tests.sql.kit import one, send, state
from tests.waiting import eventually_now
from tests.worker.kit import QUICK


@contextmanager
def meanwhile(do: Callable[[], Any]) -> Iterator[None]:
    """Do something in a thread, for a signal is for the main one; raises what it raised."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:  # noqa: BLE001
            faults.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(30)
    if faults:
        raise faults[0]


def run_one(db: Any) -> int:
    def lead(pool: Any, presence: Presence) -> tuple[Leader, Callable[[], bool]]:
        leader = Leader(pool, presence, silence_seconds=5)
        return leader, lambda: leader.leading

    return supervisor.run_one(
        Settings(**QUICK),
        {"default": CaptureTransport()},
        make_leader=lead,
        dsn=db.dsn_for("worker"),
        concurrency=2,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_worker_and_it_leaves_with_zero(db, number):
    app, owner = db.connect("producer"), db.connect()
    mail = send(app)

    def stop() -> None:
        eventually_now(lambda: state(app, mail) == "sent")
        os.kill(os.getpid(), number)

    with meanwhile(stop):
        assert run_one(db) == 0
    assert one(owner, "select count(*) from pgmail.worker") == 0


def test_a_worker_that_was_declared_dead_asks_to_be_started_again(db):
    owner = db.connect()

    def declare() -> None:
        epoch = eventually_now(lambda: one(owner, "select max(epoch) from pgmail.worker"))
        one(owner, "select pgmail.rescue_v1(%s)", [epoch])

    with meanwhile(declare):
        assert run_one(db) == 75


def test_several_workers_are_a_tree_that_a_signal_takes_down(monkeypatch, tmp_path: Path):
    assert supervisor.child_argv(7)[-4:] == ["--processes", "1", "--concurrency", "7"]
    program = f"import pathlib, os, signal; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); signal.pause()"
    monkeypatch.setattr(supervisor, "child_argv", lambda _: [sys.executable, "-c", program])

    def stop() -> None:
        eventually_now(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        assert supervisor.run_workers(Settings(), 2, 7) == 0
