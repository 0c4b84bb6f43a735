"""What commands share: settings, one connection, `--json`, and kinds of values on the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgmail.cli import front
from pgmail.errors import PgmailError, Refused

if TYPE_CHECKING:
    TextType = click.ParamType[str]
    PairType = click.ParamType[tuple[str, str]]
    JsonType = click.ParamType[Any]
    from pgmail.client_seal import Sealer
    from pgmail.config import Role, Settings
    from pgmail.store.single import Connection

else:  # older versions of click cannot be subscripted
    TextType = PairType = JsonType = click.ParamType

T = TypeVar("T")

_SPAN = re.compile(r"(\d{1,6}) ?(s|min|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, whose shape stays as it is; times are ISO 8601, UTC."
)


def settings(options: Mapping[str, object] | None = None) -> Settings:
    """Read all settings; `options` are those given on the command line, None for not given."""
    from pgmail import config  # noqa: PLC0415 - `pgmail --help` needs none

    environ = {name: text for name, text in os.environ.items() if name != front.DEBUG_ENV}
    given = {name: str(value) for name, value in (options or {}).items() if value is not None}
    return config.load(environ, options=given)


def address(found: Settings, role: Role | None = None) -> str:
    """The connection string for a command: a role's, else the common one, else the owner's."""
    if role is None and not found.database_url and found.owner_database_url:
        return found.owner_database_url
    return found.database(role)


def sealer(found: Settings) -> Sealer | None:
    """What seals mail with the keys that the settings name; None where they name none. Raises SettingsError."""
    if not (found.seal_keys or found.seal_key_file or found.seal_key_command):
        return None
    from pgmail.client_seal import Sealer  # noqa: PLC0415 - most installations seal nothing
    from pgmail.sealing.keks import read  # noqa: PLC0415

    return Sealer(read(found))


@asynccontextmanager
async def database(role: Role | None = None) -> AsyncIterator[Connection]:
    """A connection as the role that the settings name; what the command may do is that role's to say."""
    from pgmail.store.single import lend  # noqa: PLC0415 - the driver takes longer to load than most commands

    async with lend(address(settings(), role)) as connection:
        yield connection


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    log_quietly()
    return asyncio.run(work)


def log_quietly() -> None:
    """Have what is logged stand on standard error as a process's log does, warnings and worse: nothing by default.

    Without it structlog would write to standard output, into what `--json` prints, and mask nobody's address. With
    PGMAIL_DEBUG=1 news are told too. Commands that are processes say themselves how they log.
    """
    from pgmail import log  # noqa: PLC0415 - a tenth of a second that `--help` and the like do without

    log.configure("info" if front.debugging() else "warning", keep=False)


class Text(TextType):
    """A text, or `@FILE` for a file's (`@-`: standard input). `@@` at the front is one literal `@`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text that is meant."""
        if not isinstance(value, str) or not value.startswith("@"):
            return str(value)
        if value.startswith("@@"):
            return value[1:]
        try:
            return read(value[1:]).decode()
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"{value[1:]}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}", param, ctx)


class Pair(PairType):
    """`name=value`; with another separator `name: value`."""

    def __init__(self, separator: str = "=") -> None:
        self.separator = separator
        self.name = f"name{separator}value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the first separator."""
        if isinstance(value, tuple):
            return value
        name, found, rest = str(value).partition(self.separator)
        if not found or not name:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return (name, rest) if self.separator == "=" else (name.strip(), rest.strip())


class Json(JsonType):
    """JSON, or `@FILE` with JSON in it (`@-`: standard input)."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the value; NaN and Infinity are no JSON."""
        if not isinstance(value, str):
            return value
        text = Text().convert(value, param, ctx)
        try:
            return parse_json(text)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text (RFC 8259). ValueError otherwise, for NaN and for depth too."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is not a JSON number")

    try:
        return json.loads(text, parse_constant=no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read(name: str) -> bytes:
    """The octets of a file, or of standard input for `-`."""
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def identifier(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """A callback that reads ids (RFC 9562): one, or a tuple of them."""
    from uuid import UUID  # noqa: PLC0415

    try:
        return tuple(UUID(one) for one in value) if isinstance(value, tuple) else value and UUID(value)
    except ValueError:
        raise click.BadParameter("an id is a UUID, as `pgmail send` prints it") from None


def read_span(text: str) -> timedelta | None:
    """Read `90d`, `24h` and the like; None for what is no span."""
    found = _SPAN.fullmatch(text.strip())
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]]) if found else None


def span(_: click.Context, __: click.Parameter, value: str | None) -> timedelta | None:
    """Read `90d`, `24h` and the like, as a callback of an option."""
    if value is None:
        return None
    if (found := read_span(value)) is None:
        raise click.BadParameter("write a number and s, m, h, d or w, as in 24h")
    return found


def moment(value: str | None, field: str) -> datetime | None:
    """The moment of an option, ISO 8601 or a phrase such as "tomorrow at 9am". Raises `Refused`."""
    from pgmail.domain import when  # noqa: PLC0415

    if value is None:
        return None
    try:
        return when.parse(value, now())
    except ValueError as error:
        raise Refused("invalid_time", f"/{field}", str(error)) from None


def confirm(question: str) -> None:
    """Ask before what cannot be undone. A no raises Abort; where nobody can answer, PgmailError says what to do."""
    try:
        yes = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        because = "nobody is there to answer, so nothing was done; give --yes to go on unasked"
        raise PgmailError(because) from None
    if not yes:
        raise click.Abort


def past(value: str | None, option: str) -> datetime | None:
    """The moment of an option that looks back: ISO 8601, "2 hours ago", "7d", "yesterday". Wrong usage otherwise."""
    from pgmail.domain import when  # noqa: PLC0415

    if value is None:
        return None
    try:
        return when.parse_past(value, now())
    except ValueError as error:
        raise click.BadParameter(f"{value[:100]!r} is {error}", param_hint=f"--{option}") from None


email_id = click.argument("id", callback=identifier)


def now() -> datetime:
    """This host's time, aware."""
    return datetime.now(UTC)


def whole_or_none(text: str, option: str, what: str = "a whole number") -> int | None:
    """The number of an option that takes the word none as well. Wrong usage for anything else."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither {what} nor none", param_hint=option) from None
