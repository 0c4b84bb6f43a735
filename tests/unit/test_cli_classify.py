"""`pgmail classify`: JSON lines in, JSON lines out, no database."""

import json

import pytest
from click.testing import CliRunner

from pgmail.cli.main import cli

GONE = {"class": "hard", "suppress": True, "reason": "recipient-gone", "blame": "recipient"}


def run(*words: str, said: str | None = None):
    return CliRunner().invoke(cli, ["classify", *words], input=said, env={"PGMAIL_DATABASE_URL": ""})


def test_each_line_is_answered_in_order_with_its_id():
    replies = [
        {"id": "a", "code": 550, "enhanced": "5.1.1", "text": "User unknown"},
        {"id": 2, "code": "452", "enhanced": None, "text": "mailbox full"},
        {"id": 3, "code": 554, "enhanced": "", "text": "blocked using zen.spamhaus.org"},
        {"code": None, "text": None},
    ]
    result = run(said="\n".join(json.dumps(reply) for reply in replies) + "\n\n")
    assert result.exit_code == 0
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers[0] == {"id": "a"} | GONE
    assert [(answer.get("id"), answer["class"], answer["suppress"]) for answer in answers[1:]] == [
        (2, "soft", False),
        (3, "block", False),
        (None, "other", False),
    ]


def test_one_reply_by_options_is_explained():
    result = run("--code", "550", "--text", "User unknown", "--explain")
    answer = json.loads(result.stdout)
    assert GONE.items() <= answer.items()
    assert (answer["rule"], answer["follows"]) == ("no-such-recipient", "bounce")


@pytest.mark.parametrize("bad", ["nonsense", "[1]", "3", '{"code": "many"}', '{"code": [1]}'])
def test_a_line_that_is_no_reply_is_named(bad):
    result = run(said='{"id":1,"code":550,"text":"x"}\n' + bad)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.startswith("pgmail: line 2 of standard input")


def test_options_of_a_reply_need_one():
    assert run("--enhanced", "5.1.1").exit_code == 2
