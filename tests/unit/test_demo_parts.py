"""Parts of the demo that its whole runs do not show: a terminal, faults of a way in, what cannot start."""

import io
import os
import signal
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pgmail.errors import PgmailError, SandboxError
from pgmail.sandbox import demo, demo_fleet, demo_place, demo_settings, demo_show, ports
from pgmail.sandbox.demo_account import Account, Summary
from pgmail.sandbox.demo_fleet import Fleet, sink
from pgmail.sandbox.demo_place import locked_folder
from pgmail.sandbox.demo_send import Doors, Sending
from pgmail.sandbox.demo_show import Show
from pgmail.sandbox.traffic import make_traffic
from pgmail.store.scratch import Scratch

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NOWHERE = "host=127.0.0.1 port=1 dbname=none"
ROLES = ("api", "worker", "maintain", "producer", "reader", "admin")


def some_scratch() -> Scratch:
    return Scratch("pgmail_demo_0a0a0a0a", NOWHERE, dict.fromkeys(ROLES, 'p"w\\ ord'))


@pytest.fixture
def only_way(monkeypatch):
    """A plan of one way in."""

    def plan(way: str, count: int = 4):
        return [planned for planned in make_traffic(200) if planned.way == way][:count]

    return plan


@pytest.fixture
def doors(tmp_path):
    scratch = some_scratch()
    config = demo_settings.write_settings(tmp_path, scratch, sink_port=1, api_port=1)
    return Doors(scratch.dsn("producer"), 1, "pgm_live_none", config)


@pytest.mark.parametrize("way", ["sql", "http", "python", "cli"])
def test_a_way_in_that_fails_stops_the_others_and_is_told(way, only_way, doors):
    sending = Sending(only_way(way), doors)
    sending.start()
    sending.stop()
    with pytest.raises(PgmailError) as raised:
        assert sending.going_on
    assert "\n" not in str(raised.value)
    assert sending.sent == []


def test_settings_of_a_demo_are_for_its_user_only_and_read_back_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("PGMAIL_DATABASE_URL", "postgresql://real.example.com/mail")
    path = demo_settings.write_settings(tmp_path, some_scratch(), sink_port=2500, api_port=8000)
    assert path.stat().st_mode & 0o077 == 0
    from pgmail import config

    environ = {name: value for name, value in demo_settings.environment(path).items() if name in os.environ}
    environ |= demo_settings.changes(path)
    assert environ["PGMAIL_DATABASE_URL"] == ""
    settings = config.load(environ)
    assert settings.database("worker") == some_scratch().dsn("worker")
    assert settings.relay_url == "smtp://127.0.0.1:2500?tls=none"
    assert settings.api_port == 8000


def test_a_port_that_was_taken_meanwhile_is_stepped_around(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        real = demo_fleet.free_port
        monkeypatch.setattr(demo_fleet, "free_port", lambda wanted=0: port if wanted else real())
        fleet = Fleet(tmp_path, some_scratch(), 1, processes=0)
        try:
            fleet.start()
            assert fleet.port == port
            wait = threading.Event()
            while fleet.port == port or not ports.answers(f"http://127.0.0.1:{fleet.port}/health/live"):
                fleet.tend()
                wait.wait(0.05)
        finally:
            fleet.stop()
        fleet.stop()
    assert not ports.answers(f"http://127.0.0.1:{fleet.port}/health/ready")


def tend_for_good(fleet: Fleet) -> None:
    wait = threading.Event()
    while not wait.wait(0.05):
        fleet.tend()


def test_a_process_that_cannot_start_says_why(tmp_path):
    fleet = Fleet(tmp_path, some_scratch(), 1, processes=0)
    fleet._sink_port = "none"
    fleet.start()
    with pytest.raises(SandboxError, match=r"could not start: .*relay_url"):
        tend_for_good(fleet)
    fleet.tend()


def test_a_fleet_that_does_not_come_up_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_fleet, "START_SECONDS", 0.0)
    connection = SimpleNamespace(
        execute=lambda *_: SimpleNamespace(fetchone=lambda: SimpleNamespace(workers=1))
    )
    with pytest.raises(SandboxError, match="1 of 2 workers are up and the API is silent"):
        Fleet(tmp_path, some_scratch(), 1, processes=2).wait_ready(connection)


def test_a_sink_that_cannot_start_says_where_to_look(tmp_path):
    (tmp_path / "mail").write_text("in the way")
    with (
        pytest.raises(SandboxError, match=r"sink did not start; see .*sink\.log"),
        sink(tmp_path, tmp_path / "mail"),
    ):
        pass


def test_two_demos_have_a_folder_each_and_a_third_may_be_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_place, "MOST_AT_ONCE", 2)
    with locked_folder(tmp_path / "data") as first, locked_folder(tmp_path / "data") as second:
        assert first != second
        with pytest.raises(SandboxError, match="2 demos run already"), locked_folder(tmp_path / "data"):
            pass
    with locked_folder(tmp_path / "data") as again:
        assert again == first


def test_where_nothing_can_be_written_the_temporary_folder_serves(tmp_path, monkeypatch):
    (tmp_path / "data").write_text("a file")
    monkeypatch.setattr(demo_place.tempfile, "gettempdir", lambda: str(tmp_path))
    with locked_folder(tmp_path / "data") as folder:
        assert folder == tmp_path / f"demo-{os.getuid()}"


def test_a_folder_of_something_else_is_refused_in_a_line(tmp_path):
    (tmp_path / f"demo-{os.getuid()}").write_text("a file")
    with pytest.raises(SandboxError, match="PGMAIL_DATA_FOLDER"), locked_folder(tmp_path):
        pass


def a_show(*, terminal: bool) -> tuple[Show, io.StringIO]:
    file = io.StringIO()
    return Show(Console(file=file, force_terminal=terminal, width=90, highlight=False, markup=False)), file


def an_account(*doubts: str) -> Account:
    summary = Summary(
        messages=1, recipients=1, sent=1, bounced=0, dead=0, held=0, cancelled=0, lost=len(doubts), copies=0,
        mails_per_s=0.0, p50_ms=None, p99_ms=None,
    )  # fmt: skip
    return Account(summary, 1, {"difference": 0}, doubts)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_moves_on_a_terminal_and_is_lines_elsewhere(terminal, doors, monkeypatch):
    monkeypatch.setattr(demo_show, "LINE_SECONDS", -1.0)
    show, file = a_show(terminal=terminal)
    sending = Sending(make_traffic(20), doors)
    with show.progress(sending, 25) as watching:
        watching.update(5)
        watching.update(5)
    shown = file.getvalue()
    if terminal:
        assert "\x1b[" in shown
        assert "SQL, with an order" in shown
    else:
        assert "\x1b" not in shown
        assert shown.count("5 of 25 arrived") == 1


def test_doubts_are_shown_and_so_is_that_it_does_not_balance():
    show, file = a_show(terminal=False)
    sending = SimpleNamespace(rolled_back=0, repeated=0)
    show.account(an_account("one is missing"), sending, 1.0)
    assert "! one is missing" in file.getvalue()
    assert "NOT every recipient" in file.getvalue()


def test_a_reply_in_a_journey_cannot_write_to_the_terminal():
    show, file = a_show(terminal=False)
    row = {"type": "email.sent", "code": 250, "enhanced": None, "detail": None}
    later = NOW + timedelta(seconds=1.5)
    show.journey("Journey", [SimpleNamespace(at=at, reply="ok\x1b[2J", **row) for at in (NOW, NOW, later)])
    assert "\x1b" not in file.getvalue()
    assert "12:00:00" in file.getvalue()
    assert "+1,500 ms" in file.getvalue()


def be_told_twice() -> None:
    with demo.ending_in_good_order():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_signal_is_an_exception_and_a_second_term_is_not():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        be_told_twice()
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_whose_clock_is_ahead_is_noticed_and_noise_is_not():
    def asked(ahead: float):
        import time

        return SimpleNamespace(
            execute=lambda *_: SimpleNamespace(
                fetchone=lambda: SimpleNamespace(now=time.time() + ahead, workers=0)
            )
        )

    assert demo.clock_ahead(asked(3600)) == pytest.approx(3600, abs=1)
    assert demo.clock_ahead(asked(0)) == 0.0


def test_a_path_is_written_as_short_as_it_can_be(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert demo._near(tmp_path / "a" / "b") == "a/b"
    assert demo._near(Path("/etc")) == "/etc"
