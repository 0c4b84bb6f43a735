"""`pgmail seal`: an operator makes keys, looks at them and rotates both kinds of them."""

import pytest

from pgmail.sealing.keks import new_pair
from tests.acceptance.test_cli import GOOD, Shell
from tests.sql.kit import one, rows


@pytest.fixture
def shell(db, monkeypatch, tmp_path):
    made = Shell(monkeypatch, tmp_path)
    made.set(database_url=db.dsn)
    return made


def test_from_the_first_key_to_a_new_one_everywhere(shell, db):
    first, second = shell.run("seal", "key", "k1").stdout.strip(), new_pair("k2")
    assert first.startswith("k1=")
    shell.set(seal_keys=first)
    shell.run("stream", "save", "transactional", "--seal", "required")
    assert "makes the first" in shell.refused("send", *GOOD)
    shell.run("seal", "rotate", "--reason", "the first")
    shell.run("send", *GOOD)

    shell.set(seal_keys=f"{second} {first}")
    found = shell.json("seal", "status")
    assert found["keys"] == ["k2", "k1"]
    assert [(key["id"], key["kek"], key["current"], key["opens"]) for key in found["data_keys"]] == [
        (1, "k1", True, True)
    ]
    assert found["streams"] == [{"tenant": "default", "name": "transactional", "seal": "required"}]
    assert shell.json("seal", "rotate") == {"tenant": "default", "data_key": 2, "kek": "k2"}
    assert shell.json("seal", "rotate", "--kek", "--reason", "yearly") == {
        "kek": "k2",
        "wrapped": 1,
        "were": 1,
    }

    shell.set(seal_keys=second)
    shell.run("send", *GOOD)
    shown = shell.run("seal", "status").stdout
    assert "k2" in shown
    assert first.partition("=")[2] not in shown + shell.run("config", "show").stdout
    with db.connect() as owner:
        assert [key for (key,) in rows(owner, "select key_id from pgmail.message order by id")] == [1, 2]
        acts = rows(
            owner, "select action, object, reason from pgmail.audit where action like 'data_key%' order by id"
        )
        assert acts == [
            ("data_key.create", "1", "the first"),
            ("data_key.create", "2", None),
            ("data_key.rewrap", "1 by k2", "yearly"),
        ]


def test_what_cannot_be_done_is_one_line_and_changes_nothing(shell, db):
    assert "set PGMAIL_SEAL_KEYS" in shell.refused("seal", "rotate")
    shell.set(seal_keys=new_pair("k1"))
    assert "no tenant is named 'nobody'" in shell.refused("seal", "rotate", "--tenant", "nobody")
    shell.run("seal", "rotate")
    shell.set(seal_keys=new_pair("k2"))
    assert "so none is wrapped anew" in shell.refused("seal", "rotate", "--kek")
    shell.set(seal_keys=new_pair("k1"))  # another key of the same name
    assert [key["opens"] for key in shell.json("seal", "status")["data_keys"]] == [False]
    with db.connect() as owner:
        assert one(owner, "select kek from pgmail.data_key") == "k1"
    shell.run("seal", "key", "no name", code=2)


def test_a_downgrade_that_would_take_keys_away_from_sealed_mail_is_refused(shell):
    shell.set(seal_keys=new_pair("k1"))
    shell.run("seal", "rotate")
    assert (
        "sealed mail can never be read again" in shell.run("db", "downgrade", "0003", "--yes", code=1).stderr
    )


def test_a_mailing_is_sealed_as_its_stream_wants_and_says_so_where_the_key_is_missing(shell, db, tmp_path):
    canary = "Parole-7f31"
    path = tmp_path / "people.csv"
    path.write_text("email,name\n" + "".join(f"u{n}@example.org,{canary}{n}\n" for n in range(25)))
    mailing = (
        *("send", "--csv", str(path), "--chunk", "10", "--from", "a@example.com", "--stream", "broadcast"),
        *("--subject", f"{canary} {{{{ name }}}}", "--text", "Hello {{ name }}"),
    )
    shell.run("stream", "save", "broadcast", "--seal", "required")
    assert "sealing_required" in shell.refused(*mailing)
    shell.set(seal_keys=new_pair("k1"))
    shell.run("seal", "rotate", "--reason", "the first")
    shell.run(*mailing)
    assert "were before" in shell.run(*mailing).stdout
    with db.connect() as owner:
        assert one(owner, "select count(*) from pgmail.recipient where key_id is not null") == 25
        assert one(owner, "select count(*) from pgmail.message where key_id is not null") == 3
        plain = "select count(*) from pgmail.message where position(%s::bytea in content) > 0"
        assert one(owner, plain, [canary.encode()]) == 0
        plain = "select count(*) from pgmail.recipient where position(%s::bytea in variables) > 0"
        assert one(owner, plain, [canary.encode()]) == 0
