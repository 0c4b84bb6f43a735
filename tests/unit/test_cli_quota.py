"""`pgmail quota`: rules are set in part, shown with what is used, and removed."""

import json

import pytest
from click.testing import CliRunner

from pgmail.cli.main import cli


@pytest.fixture
def run(db, monkeypatch):
    """Run a command on the test's database; its output."""
    monkeypatch.setenv("PGMAIL_DATABASE_URL", db.dsn)

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_a_quota_is_set_changed_in_part_shown_and_removed(run, app, owner):
    assert (
        run("quota", "set", "--tenant", "default", "--per-second", "10", "--max-queued", "0")
        == "quota of tenant default\n"
    )
    run("quota", "set", "--tenant", "default", "--per-second", "none", "--note", "asked them")
    assert run("quota", "set", "--stream", "broadcast", "--per-day", "1000") == "quota of stream broadcast\n"
    run("quota", "set", "--fleet", "--pressure-depth", "5")
    owner.execute("select pgmail.doors_v1()")
    shown = json.loads(run("quota", "list", "--json"))
    fleet, tenant, stream = shown["quotas"]
    assert (fleet["scope"], fleet["pressure_depth"], fleet["bound_mails"]) == ("fleet", 5, 50_000_000)
    assert (tenant["tenant"], tenant["per_second"], tenant["max_queued"]) == ("default", None, 0)
    assert tenant["note"] == "asked them"
    assert (stream["name"], stream["per_day"], stream["tenant"]) == ("broadcast", 1000, "default")
    assert [door["kind"] for door in shown["closed"]] == ["queued"]
    assert "holds as many queued emails as it may (0)" in run("quota", "list")
    found = {row["check"]: row for row in json.loads(run("doctor", "--json", code=1).split("\npgmail:")[0])}
    assert found["quotas"]["status"] == "warning"
    assert "pgmail quota list" in found["quotas"]["mend"]
    assert run("quota", "remove", "--stream", "broadcast") == "stream broadcast has no quota any more\n"
    assert "has no quota" in run("quota", "remove", "--stream", "broadcast", code=1)
    assert "not_allowed" in run("quota", "remove", "--fleet", code=1)


def test_doctor_tells_of_a_bound_before_it_is_reached_and_fails_at_it(run, app, owner):
    def found():
        owner.execute("select pgmail.fold_tallies_v1()")
        owner.execute("select pgmail.doors_v1()")
        said = json.loads(run("doctor", "--json", code=1).split("\npgmail:")[0])
        return next((row["status"], row["message"]) for row in said if row["check"] == "quotas")

    assert found() == ("ok", "no door is closed; a tenant's bound a day is 50,000,000 emails and 200 GiB")
    run("quota", "set", "--tenant", "default", "--bound-mails", "5")
    for _ in range(4):
        app.execute(
            'select pgmail.send(\'{"from":"a@example.com","to":"b@example.org","subject":"s","text":"t"}\')'
        )
    assert found() == ("warning", "tenant default has handed over 80% of its bound of the day")
    app.execute(
        'select pgmail.send(\'{"from":"a@example.com","to":"b@example.org","subject":"s","text":"t"}\')'
    )
    assert found()[0] == "failed"


@pytest.mark.parametrize(
    "words",
    [
        ("quota", "set", "--per-second", "1"),
        ("quota", "set", "--stream", "a", "--key", "b", "--per-second", "1"),
        ("quota", "set", "--fleet", "--tenant", "a", "--pressure-depth", "1"),
        ("quota", "set", "--stream", "a"),
        ("quota", "set", "--stream", "a", "--per-day", "many"),
        ("quota", "remove"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(run, words):
    run(*words, code=2)


def test_what_no_key_is_held_to_is_refused_of_one_by_name(run, owner):
    run("key", "create", "limited")
    (key,) = json.loads(run("key", "list", "--json"))
    said = run("quota", "set", "--key", key["id"], "--max-queued", "5", code=1)
    assert "/max_queued" in said
    assert "set it on the key's stream or its tenant" in said
    assert not json.loads(run("quota", "list", "--json"))["quotas"][1:]
