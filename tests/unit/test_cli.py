"""The command line by itself: its tree and its page, how it fails, what it prints."""

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import click
import msgspec
import psycopg
import pytest
from click.testing import CliRunner

import pgmail
from pgmail.cli import common, front, output
from pgmail.cli.main import COMMANDS, cli
from pgmail.errors import DatabaseAway, Refused, SettingsError

PAGE = Path(__file__).parents[2] / "ops" / "docs" / "cli.md"


def leaves(command: click.Command = cli, path: str = "pgmail") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by its words."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, f"{path} {name}")


def documented() -> dict[str, str]:
    """The rows of the page by the words of their command."""
    rows = re.findall(r"^\| `(pgmail [^`]+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {" ".join(word for word in words.split() if word.islower()): row for words, row in rows}


def test_the_page_lists_every_command_and_no_other():
    assert documented().keys() == dict(leaves()).keys()


@pytest.mark.parametrize("words", [words for words, _ in leaves()])
def test_the_page_names_every_option_of(words):
    row = documented().get(words, "")
    command = dict(leaves())[words]
    options = {option.opts[0] for option in command.params if isinstance(option, click.Option)}
    assert options == set(re.findall(r"`(--[a-z-]+)", row.rpartition("|")[2]))


@pytest.mark.parametrize(("words", "command"), list(leaves()))
def test_every_command_and_option_has_its_help(words, command):
    assert command.help
    assert [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ] == []


@pytest.mark.parametrize(("words", "command"), list(leaves()))
def test_help_says_what_an_option_takes_and_not_its_type(words, command):
    shown = command.get_help(click.Context(command, **cli.context_settings))
    assert re.findall(r"--\S+ (?:INTEGER|FLOAT)\b.*", shown) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_works_for(name):
    result = CliRunner().invoke(cli, [name, "-h"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_list_of_benches_keeps_its_lines():
    shown = CliRunner().invoke(cli, ["bench", "-h"]).stdout
    assert "\n  queue     the same with small mails" in shown
    assert "\b" not in shown


def test_what_prints_data_takes_json():
    silent = {
        "run",
        "serve",
        "api",
        "worker",
        "maintain",
        "pause",
        "resume",
        "revoke",
        "save",
        "export",
        "add",
        "remove",
        "grant",
        "role",
        "suspend",
        "trust",
        "classify",  # JSON lines, always
        "set",
        *("silence", "unsilence", "test", "end-sessions"),
    }
    without = {
        words
        for words, command in leaves()
        if not any("--json" in option.opts for option in command.params)
        and words.rpartition(" ")[2] not in silent
    }
    assert without == set()


def failing(error: BaseException) -> click.testing.Result:
    group = front.Front("x", places={})

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (Refused("invalid_address", "/to", "no\naddress"), ["/to: no address [invalid_address]"]),
        (DatabaseAway("gone"), ["gone"]),
        (SettingsError(["one", "two"]), ["one", "two"]),
        (FileNotFoundError(2, "No such file", "x"), ["x: No such file"]),
        (OSError(28, "No space left"), ["No space left"]),
        (pgmail.PgmailError(), ["PgmailError"]),
    ],
)
def test_what_fails_is_a_line_and_exit_code_1(error, lines, monkeypatch):
    monkeypatch.delenv(front.DEBUG_ENV, raising=False)
    result = failing(error)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [f"pgmail: {line}" for line in lines]


def test_a_fault_of_ours_is_a_line_that_says_so(monkeypatch):
    monkeypatch.delenv(front.DEBUG_ENV, raising=False)
    result = failing(ZeroDivisionError("a\nb"))
    assert result.exit_code == 1
    assert result.stderr.startswith("pgmail: a fault of pgmail itself")
    assert result.stderr.count("\n") == 1
    monkeypatch.setenv(front.DEBUG_ENV, "1")
    assert "Traceback" in failing(ZeroDivisionError()).stderr


def test_a_role_that_may_not_is_told_of_the_settings_and_not_of_a_fault_of_ours(monkeypatch):
    monkeypatch.delenv(front.DEBUG_ENV, raising=False)
    line = failing(
        psycopg.errors.InsufficientPrivilege("permission denied for function worker_start_v2\nx")
    ).stderr
    assert line.startswith(
        "pgmail: permission denied for function worker_start_v2: this database role may not"
    )
    assert "PGMAIL_WORKER_DATABASE_URL" in line


def test_interruptions_have_their_own_codes():
    assert failing(KeyboardInterrupt()).exit_code == 130
    assert failing(click.Abort()).exit_code == 1
    assert failing(click.UsageError("no")).exit_code == 2


def test_a_reader_that_went_away_is_silent(monkeypatch):
    closed = []
    monkeypatch.setattr(front, "_close_quietly", lambda: closed.append(True))
    result = failing(BrokenPipeError())
    assert (result.exit_code, result.stderr, closed) == (0, "", [True])


# ----------------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("text", "value"),
    [("plain", "plain"), ("@@x", "@x"), ("", ""), ("a@b", "a@b")],
)
def test_a_text_is_what_it_says_unless_it_names_a_file(text, value):
    assert common.Text().convert(text, None, None) == value


def test_a_text_reads_a_file_as_utf_8(tmp_path):
    file = tmp_path / "x"
    file.write_text("grün", encoding="utf-8")
    assert common.Text().convert(f"@{file}", None, None) == "grün"
    file.write_bytes(b"\xff")
    with pytest.raises(click.BadParameter, match="not UTF-8"):
        common.Text().convert(f"@{file}", None, None)


def test_a_text_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert common.Text().convert("@-", None, None) == "piped"


def test_pairs_and_json_are_read_once():
    pair = common.Pair(":")
    assert pair.convert("X-Kind:  a:b ", None, None) == ("X-Kind", "a:b")
    assert pair.convert(("a", "b"), None, None) == ("a", "b")
    assert common.Pair().convert("a= b", None, None) == ("a", " b")
    assert common.Json().convert({"a": 1}, None, None) == {"a": 1}
    assert common.Json().convert("[1]", None, None) == [1]


def test_the_owners_address_serves_where_no_common_one_is_set(monkeypatch):
    monkeypatch.setenv("PGMAIL_OWNER_DATABASE_URL", "postgresql://owner@h/x")
    monkeypatch.delenv("PGMAIL_DATABASE_URL", raising=False)
    found = common.settings({"api_port": 1, "api_host": None})
    assert common.address(found) == "postgresql://owner@h/x"
    assert (found.api_port, found.sources["api_port"]) == (1, "option")


# ----------------------------------------------------------------------------------------------------------- output
def test_cells_are_for_people():
    at = datetime(2026, 11, 21, 10, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    cells = [None, "", True, False, at, 1.5, 2.0, {"a": 1}, {}, [1, "b"], [], "x\x1b[2Jy", 7, 1e10]
    assert [output.cell(value) for value in cells] == [
        *("-", "-", "yes", "no", "2026-11-21 09:00:00Z", "1.5", "2", "a=1", "-", "1, b", "-"),
        *("x\N{REPLACEMENT CHARACTER}[2Jy", "7", "10000000000"),
    ]


class Row(NamedTuple):
    name: str
    at: datetime
    body: bytes = b"\xff"


class Facts(msgspec.Struct):
    name: str
    at: datetime


AT = datetime(2026, 11, 21, 10, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize("row", [Row("a", AT), Facts("a", AT), {"name": "a", "at": AT}])
def test_rows_of_any_kind_are_printed_in_utc(row, capsys):
    output.show([row], {"name": "name", "at": "at"}, as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out)[0]["at"] == "2026-11-21T09:00:00Z"
    output.show([row], {"name": "name", "at": "at"}, as_json=False)
    assert "2026-11-21 09:00:00Z" in capsys.readouterr().out
    output.show_one(row, as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out)["name"] == "a"


def test_ids_are_json_strings(capsys):
    output.print_json({"id": UUID(int=1)})
    assert str(UUID(int=1)) in capsys.readouterr().out


def test_without_a_terminal_a_row_is_one_line_whatever_its_length(capsys):
    output.show([{"a": "x" * 500, "b": "[bold]y"}], {"a": "a", "b": "b"}, as_json=False)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["a", "b"]
    assert row == "x" * 500 + "  [bold]y"


def test_on_a_terminal_a_table_fits_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.show([{"a": "word " * 30, "n": 7}], {"a": "a", "n": "n"}, as_json=False)
    assert max(len(line) for line in click.unstyle(capsys.readouterr().out).splitlines()) <= 40


def test_an_empty_list_is_an_empty_array_or_a_word(capsys):
    output.show([], {"a": "a"}, as_json=True)
    assert capsys.readouterr().out == "[]\n"
    output.show([], {"a": "a"}, as_json=False, none="no keys")
    assert capsys.readouterr().out == "no keys\n"


# ------------------------------------------------------------------------------------------------ the package's front
def test_every_public_name_of_the_package_is_there():
    for name in pgmail.__all__:
        assert getattr(pgmail, name) is not None
    assert set(pgmail.__all__) <= set(dir(pgmail))
    with pytest.raises(AttributeError, match="nothing"):
        _ = pgmail.nothing
    assert datetime.now(UTC) >= common.now() - timedelta(seconds=60)
