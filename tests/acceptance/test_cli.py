"""The command line against a real database: what it prints, what it refuses, how it exits."""

import asyncio
import json
import os
import re
import signal
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgmail import app
from pgmail.app import PARTS, transports
from pgmail.cli import parts
from pgmail.cli.main import cli
from pgmail.config import Settings
from pgmail.errors import SettingsError
from tests.corpus import cases
from tests.nameserver import NameServer
from tests.sql.kit import Hand

GOOD = ["--from", "shop@example.com", "--to", "ada@example.org", "--subject", "Hi", "--text", "Hello"]


class Shell:
    """Runs `pgmail` in this process, with a clean environment."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.startswith("PGMAIL_")]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(folder)
        parts.provide(**PARTS)

    def set(self, **variables):
        for name, value in variables.items():
            self.monkeypatch.setenv(f"PGMAIL_{name.upper()}", value)

    def run(self, *args, code=0, input=None) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args], input=input)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    def json(self, *args, code=0):
        return json.loads(self.run(*args, "--json", code=code).stdout)

    def refused(self, *args, input=None) -> str:
        """The one line on standard error of a command that fails."""
        lines = self.run(*args, code=1, input=input).stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("pgmail: ")
        return lines[0].removeprefix("pgmail: ")


@pytest.fixture
def shell(db, monkeypatch, tmp_path):
    made = Shell(monkeypatch, tmp_path)
    made.set(database_url=db.dsn)
    return made


@pytest.fixture
def owner(db):
    with db.connect() as connection:
        yield connection


def send(shell, *more):
    return UUID(shell.run("send", *GOOD, *more).stdout.strip())


def kill(owner, recipient, **facts):
    """Make a queued recipient a dead letter."""
    facts = {"reason": "attempts_exhausted", "error": "gave up", "code": 451, "reply": "4.7.1 later"} | facts
    owner.execute(
        """with gone as (delete from pgmail.queue where id = %(id)s returning *)
        insert into pgmail.dead_letter (tenant_id, recipient_id, message_id, lane, stream, priority, site, reason,
          error, attempts, code, reply)
        select g.tenant_id, g.id, g.message_id, g.lane, m.stream, m.priority, r.site, %(reason)s, %(error)s, 3,
          %(code)s, %(reply)s
        from gone g join pgmail.message m on m.id = g.message_id join pgmail.recipient r on r.id = g.id""",
        {"id": recipient, **facts},
    )
    owner.execute(
        "insert into pgmail.tally (tenant_id, stream, kind, n) values (1, 'transactional', 'dead', 1)"
    )


def recipient_of(shell, email_id):
    return shell.json("status", email_id)[0]["recipient_id"]


# ---------------------------------------------------------------------------------------------- send, and its email
def test_send_prints_the_id_and_status_finds_it(shell):
    email_id = send(shell)
    (row,) = shell.json("status", email_id)
    assert (row["address"], row["state"], row["phase"]) == ("ada@example.org", "queued", "queued")
    table = shell.run("status", email_id).stdout
    assert "ada@example.org" in table
    assert "queued" in table
    assert shell.json("status", row["recipient_id"]) == [row]


def test_send_takes_every_field_as_an_option(shell, owner, tmp_path):
    (tmp_path / "hello.html").write_text("<p>Hello {{ name }}</p>", encoding="utf-8")
    (tmp_path / "bill.pdf").write_bytes(b"%PDF")
    owner.execute("select pgmail.save_asset('logo', 'l.png', 'image/png', 'x')")
    options = {
        "--from": "Shop <shop@example.com>",
        "--reply-to": "desk@example.com",
        "--subject": "Hi {{ name }}",
        "--text": "@@literal {{ name }}",
        "--html": f"@{tmp_path / 'hello.html'}",
        "--variables": '{"name": "nobody", "n": 1}',
        "--variable": "name=Ada",
        "--header": "X-Kind: welcome",
        "--attach": tmp_path / "bill.pdf",
        "--asset": "logo",
        "--tag": "kind=welcome",
        "--metadata": '{"order": 7}',
        "--stream": "broadcast",
        "--priority": "high",
        "--at": "in 5 minutes",
        "--expires-at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        "--on-limit": "hold",
        "--idempotency-key": "one",
        "--mode": "envelope",
    }
    words = [word for pair in options.items() for word in pair]
    people = [
        "--to",
        "a@example.org",
        "--to",
        "b@example.org",
        "--cc",
        "c@example.org",
        "--bcc",
        "d@example.org",
    ]
    email_id = shell.run("send", *words, *people).stdout.strip()
    (content, stream, priority, tags, metadata) = owner.execute(
        "select convert_from(content, 'UTF8')::jsonb, stream, priority, tags, metadata from pgmail.message"
    ).fetchone()
    assert content["text"] == "@literal {{ name }}"
    assert content["html"] == "<p>Hello {{ name }}</p>"
    assert content["variables"] == {"name": "Ada", "n": 1}
    assert content["headers"] == {"X-Kind": "welcome"}
    assert (stream, priority, metadata) == ("broadcast", 1, {"order": 7})
    assert "welcome" in json.dumps(tags)
    names = owner.execute("select filename, asset from pgmail.attachment order by position").fetchall()
    assert [asset for _, asset in names] == [None, "logo"]
    assert [row["role"] for row in shell.json("status", email_id)] == ["to", "to", "cc", "bcc"]
    assert {row["state"] for row in shell.json("status", email_id)} == {"scheduled"}
    assert shell.run("send", *words, *people).stdout.strip() == email_id  # the same key


def test_send_with_a_template_pins_its_version(shell, owner):
    shell.run("template", "save", "hi", "--subject", "Hi {{ name }}", "--text", "Hello", "--publish")
    people = ["--from", "shop@example.com", "--to", "ada@example.org"]
    shell.run("send", *people, "--template", "hi", "--template-version", "1", "-v", "name=Ada")
    assert owner.execute("select template, template_version from pgmail.message").fetchall() == [("hi", 1)]
    assert shell.refused("send", *people, "--template", "hi") == (
        "/variables: the template needs 'name' [missing_variable]"
    )


def test_send_refuses_with_one_line_that_names_field_and_code(shell):
    line = shell.refused(
        "send", "--from", "shop@example.com", "--to", "nobody", "--subject", "Hi", "--text", "x"
    )
    assert re.fullmatch(r"/to: .* \[invalid_address\]", line)
    line = shell.refused("send", *GOOD, "--stream", "nowhere")
    assert re.fullmatch(r"/stream: .*nowhere.* \[unknown_stream\]", line)
    assert shell.refused("send", *GOOD, "--variables", "7").endswith("[invalid_variables]")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--text", "@missing"], "missing: No such file"),
        (["--attach", "missing"], "missing: No such file"),
        (["--json", "missing"], "missing: No such file"),
        (["--json", "-", "--to", "x@example.org"], "leave out to"),
        (["--variable", "name"], "is not name=value"),
        (["--header", "name"], "is not name:value"),
        (["--variables", "{"], "not JSON"),
        (["--metadata", "[NaN]"], "not a JSON number"),
        (["--nonsense"], "No such option"),
        (["--tmeplate", "x"], "--template"),
    ],
)
def test_wrong_usage_is_exit_code_2(shell, words, hint):
    assert hint in shell.run("send", *words, code=2).stderr


def test_a_slip_of_the_pen_gets_a_hint(shell):
    assert "status" in shell.run("statsu", code=2).stderr
    assert shell.run("status", "7", code=2).stderr.strip().endswith("as `pgmail send` prints it")


@pytest.mark.parametrize("text", ["", "{", '{"from": NaN}', "[" * 100_000, "\udcff"])
def test_a_body_that_is_no_json_is_refused(shell, text):
    assert shell.refused("send", "--json", "-", input=text.encode("utf-8", "surrogateescape")).endswith(
        "[invalid_body]"
    )


def test_hold_and_release_say_what_they_reached(shell):
    email_id = send(shell, "--at", "in 2 hours", "--to", "bob@example.org")
    first = recipient_of(shell, email_id)
    assert shell.run("hold", first, "--reason", "a mistake").stdout == "held 1 of 1 recipients\n"
    assert shell.json("hold", email_id) == {"status": "held", "held": 2, "too_late": 0}
    assert "a mistake" in shell.run("why", first).stdout
    assert shell.run("release", email_id).stdout == "released 2 of 2 recipients\n"
    assert shell.refused("release", email_id) == "nothing of it is held"
    shell.run("cancel", email_id)
    assert shell.refused("hold", email_id) == "too late: nothing was held"
    assert shell.refused("release", uuid4()).endswith("[not_found]")


def test_suppressions_go_into_a_file_and_come_back(shell, tmp_path):
    path, out = tmp_path / "list.csv", tmp_path / "out"
    many = "".join(f"u{n}@example.org\n" for n in range(4_500))
    path.write_text("email,reason\na@example.org,HardBounce\nnobody,\n" + many)
    dry = shell.json("suppression", "import", path, "--dry-run", code=1)
    assert (dry["added"], dry["refused"], dry["rows"]) == (4501, 1, 4502)
    assert dry["faults"] == [
        {"line": 3, "address": "nobody", "code": "invalid_address", "message": "has no @"}
    ]
    assert shell.json("suppression", "list") == []
    first = shell.run(
        "suppression", "import", path, "--reason", "unsubscribed", "--stream", "broadcast", code=1
    )
    assert first.stdout == "4501 added, 0 changed, 0 unchanged, 1 refused\n"
    assert first.stderr.splitlines()[0] == "line 3: nobody: has no @ [invalid_address]"
    again = shell.json(
        "suppression", "import", path, "--reason", "unsubscribed", "--stream", "broadcast", code=1
    )
    assert (again["added"], again["changed"], again["unchanged"]) == (0, 0, 4501)
    shell.run("suppression", "export", "--output", out)
    lines = out.read_text().splitlines()
    assert (len(lines), lines[0]) == (4502, "address,stream,reason,source,created_at,created_by,expires_at")
    assert lines[1].startswith("a@example.org,broadcast,bounced,,")
    shell.run("suppression", "export", "--jsonl", "--output", out)
    assert shell.run("suppression", "import", out).stdout == "0 added, 0 changed, 4501 unchanged, 0 refused\n"
    path.write_text("name,city\nAda,London\n")
    assert shell.refused("suppression", "import", path).endswith("[invalid_csv]")


def test_cancel_and_reschedule_say_what_they_reached(shell):
    email_id = send(shell, "--at", "in 2 hours", "--to", "bob@example.org")
    assert shell.run("reschedule", email_id, "tomorrow at 9am").stdout == "rescheduled 2 of 2 recipients\n"
    assert shell.json("reschedule", email_id, "in 3 hours") == {
        "status": "rescheduled",
        "reached": 2,
        "too_late": 0,
    }
    first = recipient_of(shell, email_id)
    assert shell.run("cancel", first, "--reason", "a mistake").stdout == "cancelled 1 of 1 recipients\n"
    assert "too late for 1" in shell.run("reschedule", email_id, "in 1 hour").stdout
    assert shell.json("cancel", email_id)["reached"] == 2
    assert shell.refused("reschedule", email_id, "in 1 hour") == "too late: nothing was rescheduled"
    assert shell.json("reschedule", email_id, "in 1 hour", code=1)["status"] == "too_late"
    assert shell.refused("reschedule", email_id, "some day").endswith("[invalid_time]")
    assert shell.refused("cancel", uuid4()).endswith("[not_found]")


def test_trace_and_why_tell_the_story(shell):
    email_id = send(shell, "--at", "in 2 hours")
    shell.run("cancel", email_id, "--reason", "a mistake")
    events = shell.json("trace", email_id)
    assert [event["type"] for event in events] == ["email.scheduled", "email.cancelled"]
    assert all(event["at"].endswith("Z") for event in events)
    assert "a mistake" in shell.run("trace", email_id).stdout
    assert "was cancelled" in shell.run("why", email_id).stdout
    assert "was cancelled" in shell.json("why", email_id)["why"][0]
    for command in ("status", "trace", "why"):
        assert shell.refused(command, uuid4()).endswith("[not_found]")


def test_a_producer_may_send_and_look_and_nothing_else(shell, db):
    shell.set(database_url=db.dsn_for("producer"))
    email_id = send(shell)
    for command in ("status", "trace", "why"):
        shell.run(command, email_id)
    shell.run("cancel", email_id)
    for words in (["queue"], ["key", "list"], ["dead", "list"], ["tenant", "list"], ["stream", "list"]):
        assert "may not do that" in shell.refused(*words)


def test_the_apis_role_is_told_that_it_belongs_to_no_tenant(shell, db):
    shell.set(database_url=db.dsn_for("api"))
    assert shell.refused("send", *GOOD).endswith("belongs to no tenant [no_tenant]")


# -------------------------------------------------------------------------------------------------------- operating
def test_queue_shows_what_waits_and_which_relay_does_not(shell):
    assert shell.run("queue").stdout == "nothing waits\n"
    send(shell)
    send(shell, "--at", "in 1 hour", "--stream", "broadcast")
    seen = shell.json("queue")
    assert [(lane["stream"], lane["site"], lane["depth"]) for lane in seen["lanes"]] == [
        ("broadcast", "example.org", 1),
        ("transactional", "example.org", 1),
    ]
    assert [(relay["name"], relay["state"]) for relay in seen["relays"]] == [("default", "up")]
    assert shell.run(
        "pause", "--relay", "default", "--reason", "moving", "--until", "in 1 hour"
    ).stdout.startswith("relay default is paused until ")
    assert "relay default is paused until" in shell.run("queue").stdout
    assert shell.json("queue")["relays"][0]["blocked_until"].endswith("Z")
    assert shell.run("resume", "--relay", "default").stdout == "relay default is up\n"
    assert shell.refused("resume", "--relay", "nowhere").endswith("[unknown_relay]")
    assert shell.refused("pause", "--relay", "default", "--reason", "x", "--until", "soon").endswith(
        "[invalid_time]"
    )


def test_dead_letters_are_listed_shown_retried_and_discarded(shell, owner):
    assert shell.run("dead", "list").stdout == "no dead letters\n"
    emails = [send(shell) for _ in range(3)]
    people = [recipient_of(shell, email_id) for email_id in emails]
    for person in people:
        kill(owner, person)
    listed = shell.json("dead", "list")
    assert {row["recipient_id"] for row in listed} == set(people)
    assert listed[0]["reason"] == "attempts_exhausted"
    assert shell.json("dead", "list", "--stream", "broadcast") == []
    short = shell.run("dead", "list", "--limit", "2").stdout
    assert f"--after {listed[1]['recipient_id']}" in short
    assert [
        row["recipient_id"] for row in shell.json("dead", "list", "--after", listed[1]["recipient_id"])
    ] == [listed[2]["recipient_id"]]
    assert "4.7.1 later" in shell.run("dead", "show", people[0]).stdout
    assert shell.json("dead", "show", emails[0])[0]["recipient_id"] == people[0]
    assert "no dead letter has the id" in shell.refused("dead", "show", uuid4())
    assert shell.run("dead", "retry", people[0], "--why", "mended").stdout == "retried 1\n"
    assert shell.refused("dead", "retry", people[0]) == "no dead letter matches"
    assert shell.json("dead", "discard", emails[1]) == {"discarded": 1}
    assert shell.run("dead", "discard", "--all", code=1, input="n\n").stderr.endswith("Aborted!\n")
    asked = shell.run("dead", "discard", "--all", code=1).stderr  # by a script: nobody answers
    assert (
        asked.splitlines()[-1]
        == "pgmail: nobody is there to answer, so nothing was done; give --yes to go on unasked"
    )
    assert shell.run("dead", "discard", "--reason", "attempts_exhausted", "--yes").stdout == "discarded 1\n"
    assert shell.json("dead", "retry", "--all", code=1) == {"retried": 0}
    assert shell.json("dead", "list", "--died-after", "2 days ago", "--died-before", "7d") == []
    assert "ago" in shell.run("dead", "list", "--died-after", "lately", code=2).stderr
    for words in ([], ["--all", "--stream", "x"], [people[0], "--all"]):
        assert "Give ids" in shell.run("dead", "retry", *words, code=2).stderr
    assert owner.execute("select sum(difference) from pgmail.ledger").fetchone() == (0,)


def test_mail_in_doubt_is_listed_shown_and_resolved(shell, owner, db):
    assert shell.run("doubt", "list").stdout == "nothing is in doubt\n"
    shell.run("stream", "save", "careful", "--on-doubt", "hold")
    emails = [send(shell, "--stream", "careful") for _ in range(3)]
    with db.connect("worker") as connection:
        hand = Hand(connection)
        hand.begin(hand.claim(holds=True))
        hand.rescue()
    listed = shell.json("doubt", "list")
    assert [UUID(row["message_id"]) for row in listed] == emails[::-1]
    assert (listed[0]["relay"], listed[0]["address"]) == ("default", "ada@example.org")
    assert len(shell.json("doubt", "list", "--recipient", "Ada@example.org", "--relay", "default")) == 3
    assert shell.json("doubt", "list", "--doubted-before", "2020-01-01T00:00:00Z") == []
    assert "there are more" in shell.run("doubt", "list", "--limit", "2").stdout
    assert "shop@example.com" in shell.run("doubt", "show", emails[0]).stdout
    assert "in doubt" in shell.refused("doubt", "show", uuid4())
    assert "is held in doubt" in shell.run("why", emails[0]).stdout
    assert "Say --assume-sent" in shell.run("doubt", "resolve", emails[0], code=2).stderr
    assert "Give ids" in shell.run("doubt", "resolve", "--resend", code=2).stderr
    said = shell.run("doubt", "resolve", emails[0], "--assume-sent", "--reason", "in their log").stdout
    assert said == "resolved 1\n"
    assert "in their log" in shell.run("why", emails[0]).stdout
    assert shell.run("doubt", "resolve", "--resend", "--all", code=1, input="n\n").stderr.endswith(
        "Aborted!\n"
    )
    assert shell.json("doubt", "resolve", "--resend", "--stream", "careful", "--yes") == {"resolved": 2}
    assert shell.refused("doubt", "resolve", emails[1], "--resend") == "nothing in doubt matches"
    assert [shell.json("status", email)[0]["state"] for email in emails] == ["sent", "queued", "queued"]


def test_dead_letters_are_found_by_recipient_text_and_time(shell, owner):
    email = send(shell)
    kill(owner, recipient_of(shell, email))
    for words in (
        ["--text", "LATER"],
        ["--recipient", "Ada@example.org"],
        ["--died-after", "2020-01-01T00:00:00Z"],
    ):
        assert len(shell.json("dead", "list", *words)) == 1
    for words in (
        ["--text", "nothing"],
        ["--recipient", "e@e.org"],
        ["--died-before", "2020-01-01T00:00:00Z"],
    ):
        assert shell.json("dead", "list", *words) == []
    assert shell.run("dead", "retry", "--text", "gave up").stdout == "retried 1\n"


def test_a_dead_email_of_two_recipients_is_shown_whole(shell, owner):
    email_id = send(shell, "--to", "bob@example.org")
    for row in shell.json("status", email_id):
        kill(owner, row["recipient_id"], error=None, reply="evil \x1b[2J reply")
    shown = shell.run("dead", "show", email_id).stdout
    assert "ada@example.org" in shown
    assert "bob@example.org" in shown
    assert "\x1b" not in shown


# --------------------------------------------------------------------------------------------------------- managing
def test_a_key_is_printed_once_and_stored_as_a_hash(shell, owner):
    assert "make one" in shell.run("key", "list").stdout
    made = shell.run("key", "create", "--name", "shop")
    key = made.stdout.strip()
    assert re.fullmatch(r"pgm_live_[A-Za-z0-9_-]{43}", key)
    (found,) = shell.json("key", "list")
    assert (found["name"], found["hint"], found["revoked_at"]) == ("shop", key[:13], None)
    assert owner.execute(
        "select sha256(%s::bytea) = hash from pgmail.api_key", [key.encode()]
    ).fetchone() == (True,)
    assert key not in shell.run("key", "list").stdout
    other = shell.json("key", "create", "--name", "other")
    assert other["key"].startswith(other["hint"])
    assert shell.run("key", "revoke", found["id"], "--reason", "leaked").stdout == f"revoked {found['id']}\n"
    assert "no valid key" in shell.refused("key", "revoke", found["id"])
    assert shell.json("key", "list")[0]["revoked_at"].endswith("Z")


def test_a_key_is_limited_by_options_and_rotated_with_an_overlap(shell, owner):
    limits = [
        "--scope",
        "send",
        "--stream",
        "broadcast",
        "--domain",
        "*.Bücher.example",
        "--network",
        "10.0.0.0/8",
    ]
    made = shell.json("key", "create", *limits, "--test", "--expires", "90d", "shop")
    assert made["key"].startswith("pgm_test_")
    assert (made["scopes"], made["streams"], made["from_domains"], made["networks"]) == (
        ["send"], ["broadcast"], ["*.xn--bcher-kva.example"], ["10.0.0.0/8"],
    )  # fmt: skip
    assert "tests, broadcast" in shell.run("key", "list").stdout
    other = shell.json("key", "rotate", made["id"], "--overlap", "2h", "--reason", "yearly")
    assert (other["replaces"], other["scopes"], other["test"]) == (made["id"], ["send"], True)
    assert owner.execute(
        "select array_agg(round(extract(epoch from expires_at - now()) / 3600) order by expires_at) from pgmail.api_key"
    ).fetchone() == ([2, 2160],)
    assert shell.refused("key", "rotate", made["id"]).endswith("[already_rotated]")
    assert shell.refused("key", "create", "x", "--stream", "none").endswith("[unknown_stream]")
    assert shell.refused("key", "create", "x", "--domain", "*").endswith("[invalid_domain]")
    assert shell.refused("key", "create", "x", "--expires", "some day").endswith("[invalid_time]")


def test_templates_are_compiled_when_saved_and_pinned_when_published(shell, owner):
    assert shell.run("template", "list").stdout == "no templates\n"
    line = shell.refused("template", "save", "bad", "--subject", "x", "--text", "a\n{% if %}")
    assert re.fullmatch(r"/text: line 2: .* \[invalid_template\]", line)
    assert shell.refused("template", "save", "bad", "--subject", "x").endswith("[missing_field]")
    # A draft may lean on what is not published yet; publishing it may not.
    child = [
        "--subject",
        "Hi {{ name }}",
        "--html",
        "{% extends 'layout' %}{% block body %}{{ order }}{% endblock %}",
    ]
    assert "version 1 is saved as a draft" in shell.run("template", "save", "order", *child).stdout
    assert shell.refused("template", "publish", "order").endswith("[unknown_template]")
    assert shell.refused("template", "check", "order").endswith("[unknown_template]")
    layout = "<h1>{{ shop }}</h1>{% block body %}{% endblock %}"
    saved = shell.json("template", "save", "layout", "--subject", "-", "--html", layout, "--publish")
    assert saved == {"name": "layout", "version": 1, "published": True, "required": ["shop"], "depends": {}}
    assert (
        "fine; needs name, order, shop, leans on layout=1" in shell.run("template", "check", "order").stdout
    )
    assert shell.json("template", "publish", "order")["depends"] == {"layout": 1}
    assert owner.execute("select required, depends from pgmail.template where name = 'order'").fetchone() == (
        ["name", "order", "shop"],
        {"layout": 1},
    )
    listed = shell.json("template", "list")
    assert [(row["name"], row["published_version"]) for row in listed] == [("layout", 1), ("order", 1)]
    shell.run("template", "save", "order", *child)
    shown = shell.json("template", "show", "order")
    assert [row["version"] for row in shown["versions"]] == [2, 1]
    assert shown["version"] == 1
    text = shell.run("template", "show", "order", "--version", "2").stdout
    assert "{% extends 'layout' %}" in text
    assert shell.run("template", "publish", "order", "--version", "2").stdout.startswith("order version 2")
    assert shell.refused("template", "publish", "order", "--version", "9").endswith("[unknown_template]")
    assert shell.refused("template", "publish", "nothing").endswith("[unknown_template]")
    assert shell.refused("template", "check", "nothing").endswith("[unknown_template]")
    assert "no template is named 'nothing'" in shell.refused("template", "show", "nothing")
    assert shell.json("template", "check", "new", "--text", "{{ a }}") == {"required": ["a"], "depends": {}}


def test_a_template_may_not_lean_on_itself(shell):
    shell.run("template", "save", "a", "--subject", "x", "--text", "x", "--publish")
    shell.run("template", "save", "b", "--subject", "x", "--text", "{% include 'a' %}", "--publish")
    assert "leans on itself" in shell.refused(
        "template", "save", "a", "--subject", "x", "--text", "{% include 'b' %}", "--publish"
    )


def test_assets_are_saved_under_a_name(shell, tmp_path):
    assert shell.run("asset", "list").stdout == "no assets\n"
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    assert shell.run("asset", "save", tmp_path / "logo.png").stdout == "saved logo.png (image/png, 4 bytes)\n"
    shell.run(
        "asset", "save", tmp_path / "logo.png", "--name", "x", "--filename", "y.bin", "--content-type", "a/b"
    )
    assert [(row["name"], row["content_type"], row["size_bytes"]) for row in shell.json("asset", "list")] == [
        ("logo.png", "image/png", 4),
        ("x", "a/b", 4),
    ]
    assert shell.refused("asset", "save", tmp_path / "logo.png", "--content-type", "x").endswith(
        "[invalid_attachment]"
    )
    assert shell.refused("asset", "save", tmp_path / "logo.png", "--name", "a b").endswith("[invalid_name]")
    assert "does not exist" in shell.run("asset", "save", "missing", code=2).stderr


def test_streams_are_created_and_changed(shell):
    shell.run("stream", "save", "news", "--priority", "low", "--on-doubt", "hold", "--max-queued", "10")
    shell.run("stream", "save", "news", "--retry-factor", "2")
    (news,) = [row for row in shell.json("stream", "list") if row["name"] == "news"]
    assert (news["priority"], news["on_doubt"], news["max_queued"], news["retry_factor"]) == (
        "low",
        "hold",
        10,
        2,
    )
    shell.run("stream", "save", "news", "--max-queued", "none")
    assert "news" in shell.run("stream", "list").stdout
    assert shell.refused("stream", "save", "news", "--priority", "urgent").endswith("[invalid_priority]")
    assert shell.refused("stream", "save", "news", "--on-doubt", "what").endswith("[invalid_stream]")
    assert shell.refused("stream", "save", "No Name").endswith("[invalid_name]")
    assert "whole number" in shell.run("stream", "save", "news", "--max-queued", "x", code=2).stderr


def test_suppressions_are_added_found_and_removed(shell):
    assert shell.run("suppression", "list").stdout == "nobody is suppressed\n"
    assert shell.run("suppression", "add", "ADA@Example.ORG").stdout == "suppressed ada@example.org\n"
    shell.run(
        *("suppression", "add", "bob@example.org", "--stream", "broadcast", "--reason", "unsubscribed"),
        *("--source", "a link", "--expires-at", "in 2 days"),
    )
    assert [row["address"] for row in shell.json("suppression", "list", "--address", "Ada@example.org")] == [
        "ada@example.org"
    ]
    (bob,) = shell.json("suppression", "list", "--stream", "broadcast")
    assert (bob["reason"], bob["source"]) == ("unsubscribed", "a link")
    assert shell.json("suppression", "list", "--reason", "bounced") == []
    assert (
        shell.run("suppression", "remove", "ada@example.org").stdout
        == "ada@example.org may have mail again\n"
    )
    assert "is not suppressed on all streams" in shell.refused("suppression", "remove", "ada@example.org")
    for words in (["add", "nobody"], ["list", "--address", "nobody"], ["remove", "nobody"]):
        assert shell.refused("suppression", *words).endswith("[invalid_address]")
    assert shell.refused("suppression", "add", "a@example.org", "--reason", "hate").endswith(
        "[invalid_reason]"
    )


def test_a_tenant_is_suspended_and_resumed(shell, db):
    shell.run("tenant", "create", "acme")
    assert shell.refused("tenant", "suspend", "acme", "--reason", " ").endswith("[missing_field]")
    assert shell.run("tenant", "suspend", "acme", "--reason", "unpaid").stdout == "tenant acme is suspended\n"
    (acme,) = [row for row in shell.json("tenant", "list") if row["name"] == "acme"]
    assert acme["suspended"] == "unpaid"
    assert shell.run("tenant", "resume", "acme").stdout == "tenant acme is no longer suspended\n"
    assert shell.refused("tenant", "resume", "acme").endswith("[not_suspended]")


def test_a_tenant_is_erased_in_steps_only_with_its_mail_given_up(shell, db):
    shell.run("tenant", "create", "acme")
    with db.connect() as owner:
        owner.execute(
            "select pgmail.revoke_tenant('pgmail_producer'), pgmail.grant_tenant('pgmail_producer', 'acme')"
        )
    with db.connect("producer") as app:
        app.execute("select pgmail.send('a@example.com', 'b@example.org', 's', 't')")
    asked = ["tenant", "erase", "acme", "--reason", "they left", "--yes"]
    assert shell.refused(*asked).endswith("[mail_waits]")
    assert shell.refused("tenant", "erase", "default", "--reason", "x", "--yes").endswith("[own_tenant]")
    done = shell.json(*asked, "--discard")
    assert done["discarded"] == 1
    assert done["deleted"] >= 4
    assert [row["name"] for row in shell.json("tenant", "list")] == ["default", f"erased-{done['tenant']}"]


def test_a_tenant_gets_roles_and_loses_them(shell, db):
    shell.run("tenant", "create", "acme")
    role = f"acme_{db.name[-8:]}"
    asked = ["tenant", "role", "acme", role, "--kind", "analyst", "--content"]
    plan = shell.run(*asked, "--sql").stdout
    assert f"grant pgmail_analyst to {role};" in plan
    assert "my_content" in plan
    try:
        assert shell.run(*asked).stdout.startswith(
            f"{role} is a role and speaks for acme; set its password: \\password"
        )
        (acme,) = [row for row in shell.json("tenant", "list") if row["name"] == "acme"]
        assert acme["roles"] == [role]
        assert shell.run("tenant", "revoke", role).stdout == f"{role} speaks for nobody\n"
        assert shell.refused("tenant", "revoke", role).startswith(f"{role} speaks for no tenant")
        assert shell.refused("tenant", "role", "acme", "Bad Name", "--kind", "producer").endswith(
            "[invalid_role]"
        )
    finally:
        with psycopg.connect(db.superuser_dsn, autocommit=True) as admin:
            admin.execute(f"drop owned by {role}")
            admin.execute(f"drop role {role}")


def test_a_tenant_is_created_and_granted_to_a_role(shell, db):
    assert shell.run("tenant", "create", "acme").stdout.startswith("created tenant acme (")
    assert shell.refused("tenant", "create", "acme").startswith("duplicate key")
    assert shell.json("tenant", "create", "other")["name"] == "other"
    role = "pgmail_producer"
    assert shell.refused("tenant", "grant", role, "acme").endswith("[speaks_for_another]")
    shell.run("tenant", "revoke", role)
    assert shell.run("tenant", "grant", role, "acme").stdout == f"{role} speaks for acme\n"
    (acme,) = [row for row in shell.json("tenant", "list") if row["name"] == "acme"]
    assert acme["roles"] == [role]
    assert "acme" in shell.run("tenant", "list").stdout
    assert shell.refused("tenant", "grant", role, "nowhere").endswith("[unknown_tenant]")
    assert "the server has no role" in shell.refused("tenant", "grant", "nobody_here", "acme")
    before = send(shell)
    shell.set(database_url=db.dsn_for("producer"))
    assert shell.refused("status", before).endswith("[not_found]")


# ------------------------------------------------------------------------------------------------- database, doctor
def test_the_schema_is_checked_upgraded_and_taken_back(shell, db):
    assert "fits this program" in shell.run("db", "check").stdout
    assert shell.json("db", "check")["compatible"] is True
    assert "roles pgmail_* are set up" in shell.run("db", "upgrade").stdout
    send(shell)
    assert shell.refused("db", "downgrade", "base").endswith("[holds_data]")
    assert "dropped the schema pgmail" in shell.json("db", "downgrade", "base", "--yes")
    assert "holds no pgmail schema" in shell.refused("db", "check")
    assert shell.json("db", "check", code=1)["compatible"] is False
    assert "pgmail db upgrade" in shell.refused("queue")
    failed = [row for row in shell.json("doctor", code=1) if row["status"] == "failed"]
    assert [(row["check"], row["mend"]) for row in failed] == [("schema", "pgmail db upgrade")]


def test_roles_are_listed_and_their_sql_is_printed(shell):
    listed = shell.json("db", "roles")
    assert {row["name"]: row["exists"] for row in listed}["pgmail_worker"] is True
    assert "pgmail_api" in shell.run("db", "roles").stdout
    shell.set(role_prefix="other_")
    sql = shell.run("db", "roles", "--sql").stdout
    assert "other_worker" in sql
    assert "{prefix}" not in sql
    assert not any(row["exists"] for row in shell.json("db", "roles"))


def test_doctor_names_what_is_wrong_worst_first_with_what_mends_it(shell, owner):
    found = shell.json("doctor", code=1)
    assert [row["status"] for row in found] == sorted(
        (row["status"] for row in found), key=["failed", "warning", "skipped", "ok"].index
    )
    state = {row["check"]: row for row in found}
    assert state["workers"]["status"] == "failed"
    assert state["workers"]["mend"] == "pgmail worker"
    assert state["leader"]["status"] == "failed"
    assert {"settings", "database", "schema", "tenant", "roles", "ledger", "clock"} <= {
        check for check, row in state.items() if row["status"] == "ok"
    }
    text = shell.run("doctor", code=1)
    assert "pgmail worker" in text.stdout
    assert re.search(r"checks failed", text.stderr)
    # A fleet at work.
    owner.execute("insert into pgmail.worker (host, pid, program, concurrency) values ('h', 1, 'worker', 20)")
    owner.execute("update pgmail.leader set epoch = 1, until = now() + interval '1 hour'")
    owner.execute("select pgmail.make_partitions_v1(35)")
    owner.execute("select pgmail.set_senders('default', 'verified')")
    shell.run("alert", "target", "add", "ops", "--webhook", "https://ops.example.com/alerts")
    # The server of these tests forgets what it committed when its host crashes, and that is a fault.
    wrong = [row for row in shell.json("doctor", code=1) if row["status"] != "ok"]
    assert [(row["check"], row["status"]) for row in wrong] == [("server settings", "failed")]
    assert wrong[0]["mend"].startswith("alter system set fsync = on")


def test_a_restore_that_a_person_told_of_is_shown_without_what_nobody_saw(shell):
    shell.run("pause", "--after-restore", "--reason", "last night's dump")
    shown = shell.run("resume", "--after-restore", "--dry-run").stdout
    assert "--since TIME names the moment of the backup" in shown
    assert "acknowledged and is missing" not in shown
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ: last night", shell.run("doctor", code=1).stdout)
    for moment in ("2 hours ago", "2026-11-20T03:00:00Z"):  # it looks back, as any backup does
        shell.run("resume", "--after-restore", "--since", moment, "--dry-run")
    shell.run("resume", "--after-restore", "--since", "tomorrow at 9am", "--dry-run", code=2)
    done = shell.run("resume", "--after-restore", "--reason", "looked", "--yes").stdout
    assert done.endswith("no mail is in doubt\nmail flows again\n")


def test_doctor_sees_pauses_dead_letters_late_mail_and_false_books(shell, owner):
    owner.execute("insert into pgmail.worker (host, pid, program, concurrency) values ('h', 1, 'worker', 20)")
    owner.execute(
        "insert into pgmail.worker (host, pid, program, concurrency, beat_at)"
        " values ('h', 2, 'worker', 20, now() - interval '1 hour')"
    )
    email_id = send(shell)
    owner.execute("update pgmail.queue set due_at = now() - interval '1 hour'")
    shell.run("pause", "--relay", "default", "--reason", "moving")
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["workers"]["message"].endswith("1 silent")
    assert state["waiting"]["mend"] == "pgmail queue"
    assert state["relays"]["mend"] == "pgmail resume --relay default"
    owner.execute("update pgmail.relay set state = 'away', reason = 'refused'")
    owner.execute("update pgmail.queue set due_at = 'infinity', held_due_at = now()")
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["relays"]["status"] == "failed"
    assert "1 held by an operator" in state["people"]["message"]
    owner.execute("update pgmail.queue set due_at = now()")
    kill(owner, recipient_of(shell, email_id))
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["people"]["mend"] == "pgmail dead list"
    owner.execute("delete from pgmail.dead_letter")
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["ledger"]["status"] == "failed"


def test_doctor_skips_what_its_role_may_not_see(shell, db):
    shell.set(database_url=db.dsn_for("producer"))
    state = {row["check"]: row["status"] for row in shell.json("doctor", code=1)}
    assert state["workers"] == state["ledger"] == "skipped"
    assert state["database"] == state["roles"] == "ok"


def test_doctor_tells_that_a_role_belongs_to_nobody(shell, db, owner):
    owner.execute("select pgmail.revoke_tenant('pgmail_reader')")
    shell.set(database_url=db.dsn_for("reader"))
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["tenant"]["mend"] == "pgmail tenant grant pgmail_reader default"


def test_doctor_finds_no_fault_in_the_apis_role_which_has_the_tenants_of_its_keys(shell, db):
    shell.set(database_url=db.dsn_for("api"))
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["tenant"]["status"] == "ok"


def test_doctor_tells_of_partitions_that_run_out(shell, owner):
    owner.execute(
        """do $$ declare t regclass; begin
          for t in select inhrelid::regclass from pg_inherits where inhrelid::regclass::text ~ '_[0-9]{8}$' loop
            execute format('drop table %s', t);
          end loop; end $$"""
    )
    send(shell)
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["partitions"]["status"] == "failed"
    owner.execute("select pgmail.make_partitions_v1(3)")
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["partitions"]["status"] in {"warning", "failed"}


# ------------------------------------------------------------------------------------------------- the corpus
def answer(shell, case):
    result = CliRunner().invoke(cli, ["send", "--json", "-"], input=json.dumps(case.body))
    if result.exit_code == 0:
        UUID(result.stdout.strip())
        return None
    assert result.exit_code == 1, (case.name, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    match = re.fullmatch(r"pgmail: (?:(/\S*|/headers/.*): )?.*\[(\w+)\]", line)
    assert match, (case.name, line)
    return (match[2], match[1] or "")


def test_the_corpus_gets_the_same_answers_from_the_command_line(shell):
    wrong = []
    for case in (case for case in cases(datetime.now(UTC), "cli") if not case.needs):
        expected = case.expect and (case.expect.code, case.expect.field)
        found = answer(shell, case)
        if found != expected:
            wrong.append((case.name, found, expected))
    assert not wrong


# ------------------------------------------------------------------------------------------------- wiring
def test_every_part_that_commands_ask_for_exists():
    for place in PARTS.values():
        assert callable(parts.load(place))
    with pytest.raises(LookupError):
        parts.part("nothing")


def test_a_relay_that_the_transport_refuses_is_a_fault_of_settings():
    with pytest.raises(SettingsError, match="PGMAIL_RELAY_URL"):
        transports(Settings(relay_url="smtp://relay.example.com?what=1"))
    relay = transports(Settings(relay_url="smtp://127.0.0.1:2525", helo_name="mail.example.com"))["default"]
    assert relay.name


async def test_a_process_that_only_leads_leads_until_it_is_told(db):
    settings = Settings(database_url=db.dsn, worker_database_url=db.dsn_for("worker"), beat_interval_ms=50)
    running = asyncio.create_task(app._maintain(settings))
    async with await db.aconnect() as connection:

        async def leads():
            answer = await connection.execute("select until > now() from pgmail.leader")
            return (await answer.fetchone())[0]

        while not await leads():
            await asyncio.wait({running}, timeout=0.05)
            assert not running.done(), running.result()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 30)
        assert not await leads()


# ------------------------------------------------------------------------------------------------ retention, erasure


def test_retention_is_shown_and_set_and_shortening_it_asks_first(shell, owner):
    facts = shell.json("retention", "show")
    assert (facts["content_days"], facts["record_days"], facts["overdue"], facts["kept"]) == (30, 90, 0, 0)
    shell.run("retention", "set", "--content-days", "7", input="n\n", code=1)
    assert shell.json("retention", "show")["content_days"] == 30
    said = shell.run(
        "retention", "set", "--content-days", "7", "--record-days", "none", "--reason", "law", "--yes"
    )
    assert said.stdout == "content is kept 7 days, the record for ever\n"
    assert shell.json("retention", "show")["record_days"] is None
    assert "invalid_retention" in shell.refused("retention", "set", "--record-days", "3", "--yes")
    shell.run("retention", "set", code=2)
    shell.run("stream", "save", "secret", "--keep-content-days", "3")
    assert {row["name"]: row["keep_content_days"] for row in shell.json("stream", "list")}["secret"] == 3
    shell.run("stream", "save", "secret", "--keep-content-days", "none")
    assert {row["name"]: row["keep_content_days"] for row in shell.json("stream", "list")}["secret"] is None


def test_erase_asks_counts_erases_and_says_what_is_left(shell, owner):
    first, _ = send(shell), send(shell)
    asked = ("erase", "Ada@example.org", "--reason", "by letter")
    shell.run(*asked, input="n\n", code=1)
    dry = shell.json(*asked, "--dry-run")
    assert (dry["recipients"], dry["cancelled"], dry["dry_run"]) == (2, 2, True)
    assert {row["state"] for row in shell.json("status", first)} == {"queued"}
    owner.execute(
        "update pgmail.queue set leased_by = 1 where id = (select id from pgmail.queue order by id desc limit 1)"
    )
    left = shell.run(*asked, "--yes", code=1)
    assert "run this again later" in left.stderr
    (row,) = shell.json("status", first)
    assert row["state"] == "cancelled"
    assert re.fullmatch(r"erased-[0-9a-f]{32}@erased\.invalid", row["address"])
    owner.execute("update pgmail.queue set leased_by = null")
    done = shell.json(*asked, "--tenant", "default", "--yes")
    assert (done["recipients"], done["complete"], done["person"]) == (1, True, row["address"])
    assert "invalid_address" in shell.refused("erase", "nobody", "--reason", "x", "--yes")
    assert "unknown_tenant" in shell.refused(*asked, "--tenant", "x", "--yes")


def test_doctor_tells_of_partitions_that_should_have_gone(shell, owner):
    owner.execute("""create table pgmail.event_20200106 partition of pgmail.event for values
        from ('016f7807-5800-0000-0000-000000000000') to ('016f9c14-0400-0000-0000-000000000000')""")
    state = {row["check"]: row for row in shell.json("doctor", code=1)}
    assert state["retention"]["status"] == "warning"
    assert state["retention"]["message"].startswith("1 partitions")


# ------------------------------------------------------------------------------------------------- domains, audit


def test_the_doctor_and_a_new_key_say_that_anybody_may_be_the_sender(shell, owner):
    assert "from any domain" in shell.run("key", "create", "--name", "shop").stderr
    (found,) = [row for row in shell.json("doctor", code=1) if row["check"] == "senders"]
    assert (found["status"], found["mend"].rpartition(", then ")[2]) == (
        "warning", "pgmail tenant set default --senders verified"
    )  # fmt: skip
    shell.run("tenant", "set", "default", "--senders", "verified", "--reason", "before the first key")
    assert "from any domain" not in shell.run("key", "create", "--name", "shop").stderr
    assert "[unverified_domain]" in shell.refused("send", *GOOD)
    shell.run("domain", "trust", "example.com", "--reason", "ours")
    shell.run("send", *GOOD)
    (listed,) = shell.json("domain", "list")
    assert (listed["domain"], listed["state"], listed["trust_reason"]) == ("example.com", "verified", "ours")
    shell.run("domain", "remove", "example.com", "--reason", "sold")
    assert "[not_found]" in shell.refused("domain", "verify", "example.com")
    acts = shell.json("audit", "--action", "domain.*")
    assert [(act["action"], act["reason"]) for act in acts] == [
        ("domain.remove", "sold"),
        ("domain.trust", "ours"),
    ]
    assert shell.json("audit", "--actor", "nobody") == []
    assert len(shell.json("audit", "--limit", "1")) == 1
    assert "before the first key" in shell.run("audit", "--object", "default").stdout


def test_a_tenant_made_now_sends_from_verified_domains_unless_told_otherwise(shell, owner):
    owner.execute(
        "alter table pgmail.tenant alter column senders set default 'verified'"
    )  # as the migration has it
    shell.run("tenant", "create", "strict")
    shell.run("tenant", "create", "open", "--senders", "any")
    rules = {row["name"]: row["senders"] for row in shell.json("tenant", "list")}
    assert rules == {"default": "any", "strict": "verified", "open": "any"}


def test_a_domain_is_verified_by_its_record_and_what_is_wrong_is_one_line(shell):
    loop = asyncio.new_event_loop()
    dns = NameServer()
    ready = threading.Event()

    async def serve():
        async with dns:
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        ready.wait(10)
        shell.set(dns_servers=dns.setting)
        assert 'TXT "pgmail-verify=' in shell.run("domain", "add", "Bücher.example").stdout
        assert "NXDOMAIN" in shell.refused("domain", "verify", "bücher.example")
        (row,) = shell.json("domain", "list")
        dns.publish(row["record"], row["value"])
        assert (
            shell.run("domain", "verify", "xn--bcher-kva.example").stdout
            == "xn--bcher-kva.example is verified\n"
        )
        dns.records.clear()
        said = shell.run("domain", "verify", "bücher.example")
        assert "counts until" in said.stderr
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
