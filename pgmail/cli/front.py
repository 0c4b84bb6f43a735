"""The front door: commands are loaded when they are asked for, and every failure is one line and an exit code.

0 is done, 1 is refused or failed with one clear line on standard error, 2 is wrong usage. `PGMAIL_DEBUG=1`
shows the traceback as well.

What can go wrong: a program that reads our output goes away (`pgmail dead list | head`). That is no failure of
ours, and silent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import click

from pgmail.cli.parts import load
from pgmail.errors import PgmailError, Refused, SettingsError

DEBUG_ENV = "PGMAIL_DEBUG"

_NOT_ALLOWED = "42501"  # SQLSTATE insufficient_privilege: wrong settings, and no fault of the program
_ROLES = "PGMAIL_DATABASE_URL, PGMAIL_WORKER_DATABASE_URL, PGMAIL_API_DATABASE_URL"


class Front(click.Group):
    """A group whose commands stand elsewhere: `places` maps a name to `module:attribute`."""

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = dict(places)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return [*self.places, *(name for name in super().list_commands(ctx) if name not in self.places)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None if there is none of this name."""
        if cmd_name in self.places:
            command: click.Command = load(self.places[cmd_name])
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the words mean; wrong usage names what comes near."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # noqa: PLC0415 - only a slip of the pen needs it

            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and "Did you mean" not in error.message:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises becomes a line and exit code 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            _close_quietly()
            ctx.exit(0)
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:  # noqa: BLE001 - the one place that turns them into lines
            complain(error)
            ctx.exit(1)


def debugging() -> bool:
    """Tell whether tracebacks and all of the log are wished for."""
    return os.environ.get(DEBUG_ENV, "") not in {"", "0"}


def complain(error: Exception) -> None:
    """Write what went wrong to standard error: a line (settings: a line for each fault), never a traceback."""
    if debugging():
        traceback.print_exception(error)
    for line in lines_of(error):
        click.echo(f"pgmail: {line}", err=True)


def lines_of(error: Exception) -> list[str]:
    """Return an error as lines for a person; all but `SettingsError` have one."""
    if isinstance(error, SettingsError):
        return error.faults
    if isinstance(error, Refused):
        return [_one_line(f"{error} [{error.code}]")]
    if isinstance(error, PgmailError):
        return [_one_line(str(error) or type(error).__name__)]
    if isinstance(error, OSError) and error.strerror:
        return [f"{error.filename}: {error.strerror}" if error.filename else error.strerror]
    if getattr(error, "sqlstate", None) == _NOT_ALLOWED:
        said = str(error).strip().partition("\n")[0]
        return [f"{said}: this database role may not do that; each program has a role of its own ({_ROLES})"]
    text = _one_line(f"{type(error).__name__}: {error}")
    return [f"a fault of pgmail itself, please report it ({DEBUG_ENV}=1 shows where): {text}"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _close_quietly() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not complain again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
