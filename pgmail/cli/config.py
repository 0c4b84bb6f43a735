"""`pgmail config show`: every setting with its value, where it came from, its unit and its default."""

from __future__ import annotations

import click

from pgmail.cli import common, output

_SHOW = {
    "name": "setting",
    "value": "value",
    "source": "from",
    "unit": "unit",
    "default": "default",
    "text": "what it is",
}


@click.group(short_help="Settings.")
def config() -> None:
    """Look at settings, which come from PGMAIL_* variables and pgmail.toml."""


@config.command()
@common.as_json
def show(as_json: bool) -> None:
    """Show each setting: value, source, unit, default. Passwords are masked."""
    from pgmail.config import describe  # noqa: PLC0415

    output.show(describe(common.settings()), _SHOW, as_json=as_json)
