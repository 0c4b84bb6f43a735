"""What a mailing shows on standard error: a bar on a terminal, lines elsewhere, and refused rows within reason."""

import pytest

from pgmail.cli.send_csv_show import EVERY_SECONDS, SHOWN, Reporter
from pgmail.mailing.scan import Refusal, Scan
from pgmail.mailing.table import Fault, Row, Table


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("email\na@example.com\n", encoding="utf-8")
    return path


def test_without_a_terminal_progress_is_a_line_now_and_then(listed, capsys):
    now = [0.0]
    with Reporter(listed, None, clock=lambda: now[0]) as reporter, Table(listed) as table:
        reporter.begin(table, "autumn")
        reporter.progress(1, 0)
        reporter.scanned(Scan(chunk=10, rows=400_000))
        for done in (1_000, 100_000, 101_000):
            now[0] += EVERY_SECONDS / 2
            reporter.progress(done, 3)
    assert capsys.readouterr().err.splitlines() == ["handing over: 25 %, 10,000 rows/s, 3 refused"]


def test_after_a_hundred_refused_rows_the_rest_is_counted_only(listed, capsys, tmp_path):
    bad = tmp_path / "bad.csv"
    with Reporter(listed, bad) as reporter, Table(listed) as table:
        reporter.begin(table, None)
        for line in range(SHOWN + 50):
            reporter.refuse(
                Refusal(Row(line, ["\x1b[2J"]), Fault("email", "invalid_address", "a \x1b[2J reply"))
            )
    said = capsys.readouterr().err
    assert len(said.splitlines()) == SHOWN + 1
    assert "--rejected" in said.splitlines()[-1]
    assert "\x1b" not in said
    assert len(bad.read_text(encoding="utf-8").splitlines()) == SHOWN + 51


def test_on_a_terminal_there_is_a_bar_and_lines_stand_above_it(listed, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with Reporter(listed, None) as reporter, Table(listed) as table:
        reporter.begin(table, None)
        reporter.scanned(Scan(chunk=10, rows=10))
        reporter.say("a [line]")
        reporter.progress(5, 2)
    said = capsys.readouterr().err
    assert "handing over" in said
    assert "5 of 10 rows" in said
    assert "/s, 2 refused" in said
    assert "a [line]" in said
