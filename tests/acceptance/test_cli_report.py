"""`pgmail report` against a real database: for people, as JSON and as CSV."""

import csv
import io

import pytest

from tests.acceptance.test_cli import Shell
from tests.sql import kit
from tests.sql.kit import Hand
from tests.sql.test_rollup import roll


@pytest.fixture
def shell(db, monkeypatch, tmp_path):
    made = Shell(monkeypatch, tmp_path)
    made.set(database_url=db.dsn_for("admin"))
    return made


@pytest.fixture
def mails(db):
    """Three sent and one bounced, rolled up."""
    app, hand = db.connect("producer"), Hand(db.connect("worker"))
    for n in range(4):
        kit.send(app, f"u{n}@example.org")
    first, *rest = hand.claim()
    hand.settle(rest, code=250)
    hand.settle(
        first, "bounced", reason="recipient-gone", code=550, enhanced="5.1.1", reply="5.1.1 nobody here"
    )
    roll(hand.connection)


def test_a_report_is_a_table_json_and_csv(shell, mails):
    (line,) = shell.json("report")["lines"]
    assert (line["key"], line["sent"], line["bounced"], line["sent_rate"]) == ("transactional", 3, 1, 0.75)
    table = shell.run("report", "--by", "site").stdout
    assert "example.org" in table
    assert "75.0" in table
    names, one = list(csv.reader(io.StringIO(shell.run("report", "--by", "site", "--csv").stdout)))
    assert dict(zip(names, one, strict=True))["site"] == "example.org"
    assert [line["key"] for line in shell.json("report", "--by", "tenant")["lines"]] == ["default"]


def test_causes_tell_the_text_and_an_email(shell, mails):
    (cause,) = shell.json("report", "--causes")
    assert (cause["text"], cause["n"], cause["group"]) == ("5.1.1 nobody here", 1, "hard")
    assert "nobody here" in shell.run("report", "--causes").stdout
    assert shell.json("status", cause["examples"][0])[0]["state"] == "bounced"


def test_an_empty_report_says_so_and_a_span_must_be_one(shell):
    assert "no mail came to anything" in shell.run("report").stdout
    assert shell.run("report", "--causes").stdout == "nothing went wrong\n"
    wrong = ("report", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z")
    assert "before" in shell.run(*wrong, code=2).stderr


def test_a_time_that_is_none_names_the_option_and_what_it_takes_and_times_may_look_back(shell, mails):
    said = " ".join(shell.run("report", "--since", "nonsense", code=2).stderr.split())
    assert "--since: 'nonsense' is not a time that pgmail reads; write an ISO 8601 time" in said
    assert '"2 hours ago"' in said
    for since in ("90m", "2 hours ago", "7d", "yesterday", "2026-01-01"):
        assert shell.json("report", "--since", since)["lines"][0]["sent"] == 3, since


def test_a_report_says_where_figures_stand_still_and_an_empty_one_has_its_columns(shell, db):
    assert "nothing was counted yet" in shell.run("report").stderr
    with db.connect() as owner:
        owner.execute("update pgmail.insight_cursor set rolled_at = now() - interval '1 hour'")
    assert "is not counted yet: pgmail doctor says why" in shell.run("report").stderr
    with db.connect() as owner:
        owner.execute("update pgmail.insight_cursor set rolled_at = now()")
    assert shell.run("report").stderr == ""
    assert "no mail with a tag" in shell.run("report", "--by", "tag").stdout
    assert shell.run("report", "--csv").stdout.startswith("stream,sent,bounced,")
    assert "leave --by out" in shell.run("report", "--causes", "--by", "site", code=2).stderr
