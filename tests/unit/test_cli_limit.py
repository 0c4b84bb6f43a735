"""`pgmail limit`, `pause`, `resume`, and the relays and weights that commands set: words in, words out."""

import json
import os

import click
import pytest
from click.testing import CliRunner

from pgmail.app import transports
from pgmail.cli.limit import rate_of, rate_text
from pgmail.cli.main import cli
from pgmail.cli.stream import relays_of, relays_text
from pgmail.config import Settings
from pgmail.errors import SettingsError


@pytest.fixture
def run(db, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PGMAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGMAIL_DATABASE_URL", db.dsn)

    def run(*args, code=0):
        result = CliRunner().invoke(cli, list(args))
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stderr if code else result.stdout

    return run


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", (100, 1)),
        ("10/min", (10, 60)),
        ("10 per minute", (10, 60)),
        ("5000/h", (5000, 3600)),
        ("1/Day", (1, 86400)),
        ("3/90s", (3, 90)),
        ("3/0.5s", (3, 0.5)),
    ],
)
def test_a_rate_is_read_as_people_write_it(text, rate):
    assert rate_of(text) == rate
    assert rate_of(rate_text(*rate)) == rate


@pytest.mark.parametrize("text", ["", "100", "0/s", "-1/s", "100/fortnight", "1/0s", "x/s", "1.5/s", "٣/s"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="is not a rate such as"):
        rate_of(text)


@pytest.mark.parametrize(
    ("text", "relays"),
    [
        ("ses", "ses"),
        ("ses, bulk", ["ses", "bulk"]),
        ("ses=3,bulk=0.5", [{"name": "ses", "weight": 3.0}, {"name": "bulk", "weight": 0.5}]),
        ("ses=3", [{"name": "ses", "weight": 3.0}]),
    ],
)
def test_relays_of_a_stream_are_read_in_order_or_by_weight(text, relays):
    assert relays_of(text) == relays
    assert relays_of(relays_text(relays)) == relays


def test_weights_are_given_to_all_relays_or_to_none():
    with pytest.raises(click.BadParameter, match="all of them with weights"):
        relays_of("ses=3,bulk")


def test_a_limit_is_set_changed_in_part_shown_and_removed(run):
    assert run("limit", "set", "--site", "hotmail.com", "--rate", "10/min") == "limited site outlook.com\n"
    rows = {row["name"]: row for row in json.loads(run("limit", "list", "--json"))}
    changed = rows["outlook.com"]
    assert (changed["messages"], changed["per_seconds"], changed["shipped"]) == (10, 60, False)
    assert changed["connections"] == 10  # the default's, which nobody named
    assert "RP-001" in changed["note"]
    run("limit", "set", "--site", "outlook.com", "--connections", "none", "--note", "asked them")
    table = run("limit", "list")
    (line,) = [line for line in table.splitlines() if "outlook.com" in line]
    assert "10/min" in line
    assert "asked them" in line
    run("limit", "set", "--relay", "ses", "--rate", "14/s", "--connections", "10", "--ramp-seconds", "60")
    run("limit", "set", "--tenant", "default", "--rate", "5/s")
    (ses, tenant) = json.loads(run("limit", "list", "--json"))[:2]
    assert (ses["name"], ses["messages"], ses["connections"], ses["ramp_seconds"]) == ("ses", 14, 10, 60)
    assert (tenant["scope"], tenant["ramp_seconds"]) == ("tenant", None)
    assert run("limit", "remove", "--site", "live.com") == "site live.com is no longer limited\n"
    assert "has no limit" in run("limit", "remove", "--site", "outlook.com", code=1)
    assert "[missing_field]" in run(
        "limit", "set", "--relay", "ses", "--rate", "none", "--connections", "none", code=1
    )


@pytest.mark.parametrize(
    "args",
    [
        ("limit", "set", "--rate", "1/s"),
        ("limit", "set", "--site", "a.example", "--relay", "b", "--rate", "1/s"),
        ("limit", "set", "--site", "a.example"),
        ("limit", "set", "--site", "a.example", "--rate", "fast"),
        ("limit", "set", "--site", "a.example", "--connections", "many"),
        ("pause", "--reason", "x"),
        ("pause", "--site", "a.example", "--lane", "b", "--reason", "x"),
        ("pause", "--site", "a.example"),
        ("pause", "--relay", "default", "--fleet", "--reason", "x"),
        ("resume",),
        ("stream", "save", "bulk", "--relay", "a=1,b"),
        ("tenant", "set", "default"),
    ],
)
def test_wrong_usage_is_told_apart_from_a_refusal(run, args):
    assert "Usage:" in run(*args, code=2)


def test_a_pause_is_shown_by_queue_until_it_ends(run):
    said = run("pause", "--site", "googlemail.com", "--reason", "they throttle", "--until", "in 1 hour")
    assert said.startswith("site gmail.com is paused until ")
    run("pause", "--stream", "broadcast", "--reason", "typo", "--fleet")
    run("pause", "--lane", "transactional/high/a.example", "--reason", "asked")
    run("send", "--from", "a@example.com", "--to", "b@gmail.com", "--subject", "s", "--text", "t")
    told = run("queue")
    assert "site gmail.com is paused until " in told
    assert ": they throttle" in told
    assert "stream broadcast is paused for the whole fleet, by pgmail_owner since " in told
    seen = json.loads(run("queue", "--json"))
    assert [row["name"] for row in seen["pauses"]] == [
        "gmail.com",
        "broadcast",
        "transactional/high/a.example",
    ]
    assert seen["lanes"][0]["waits_for"].startswith("site gmail.com is paused by pgmail_owner since ")
    assert "for the whole fleet" in run("resume", "--stream", "broadcast", code=1)
    assert run("resume", "--stream", "broadcast", "--fleet") == "stream broadcast is no longer paused\n"
    assert (
        run("resume", "--site", "gmail.com", "--reason", "better") == "site gmail.com is no longer paused\n"
    )
    assert "[not_paused]" in run("resume", "--site", "gmail.com", code=1)


def test_relays_and_weights_are_set_and_listed(run, db):
    with db.connect() as connection:
        connection.execute("select pgmail.register_relays_v1(array['ses', 'bulk'])")
    run("stream", "save", "news", "--relay", "ses=3,bulk=1")
    assert "ses=3,bulk=1" in run("stream", "list")
    run("stream", "save", "news", "--relay", "bulk,ses")
    (news,) = [row for row in json.loads(run("stream", "list", "--json")) if row["name"] == "news"]
    assert news["relay"] == ["bulk", "ses"]
    assert "PGMAIL_RELAY_URLS" in run("stream", "save", "news", "--relay", "nowhere", code=1)
    assert run("tenant", "set", "default", "--weight", "2.5") == "tenant default has the weight 2.5\n"
    assert json.loads(run("tenant", "list", "--json"))[0]["weight"] == 2.5
    assert "[invalid_weight]" in run("tenant", "set", "default", "--weight", "0", code=1)


def test_every_relay_of_the_settings_becomes_a_transport_and_every_fault_is_named():
    made = transports(Settings(relay_urls="ses=smtp://127.0.0.1:2526?tls=none bulk=smtp://127.0.0.1:2527"))
    assert list(made) == ["default", "ses", "bulk"]
    with pytest.raises(SettingsError) as caught:
        transports(Settings(relay_url="smtp://h?x=1", relay_urls="ses=smtp://h?y=1"))
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [
        "PGMAIL_RELAY_URL",
        "PGMAIL_RELAY_URLS",
    ]
