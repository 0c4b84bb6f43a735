"""`pgmail template`: save, publish, look at and check templates. What is published is what mail gets.

Every save is a new version; mail that is queued keeps the version it was queued with. What can go wrong: a
template that no longer compiles because a layout changed. It stays as it was published; `check` says what a new
publishing would say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError, Refused

if TYPE_CHECKING:
    from pgmail.publish import Checked, Saved

F = TypeVar("F", bound=Callable[..., Any])
_LIST = {
    "name": "name",
    "published_version": "published",
    "newest_version": "newest",
    "updated_at": "updated",
}
_VERSIONS = {
    "version": "version",
    "state": "state",
    "required": "needs",
    "depends": "leans on",
    "created_at": "created",
    "created_by": "by",
    "published_at": "published",
}


def _sources(command: F) -> F:
    for option in (
        click.option("--html", type=common.Text(), metavar="TEXT", help="HTML; @FILE reads a file."),
        click.option("--text", type=common.Text(), metavar="TEXT", help="Plain text; @FILE reads a file."),
        click.option("--subject", type=common.Text(), metavar="TEXT", help="Subject; @FILE reads a file."),
    ):
        command = option(command)
    return command


@click.group(short_help="Templates of subject, text and HTML.")
def template() -> None:
    """Save, publish, list, show and check templates (Jinja; HTML is escaped)."""


@template.command()
@click.argument("name")
@_sources
@click.option("--publish", is_flag=True, help="Publish it at once.")
@common.as_json
def save(name: str, publish: bool, as_json: bool, **source: str | None) -> None:
    """Save a new version of a template, as a draft unless --publish."""

    async def act() -> Saved:
        from pgmail import publish as publishing  # noqa: PLC0415

        async with common.database() as connection, connection.transaction():
            return await publishing.save(connection, name, publish=publish, **_read(source))

    _tell(common.run(act()), as_json=as_json)


@template.command()
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Which. Defaults to the newest.")
@common.as_json
def publish(name: str, version: int | None, as_json: bool) -> None:
    """Publish a version that is saved: from now on mail gets it."""

    async def act() -> Saved:
        from pgmail import publish as publishing  # noqa: PLC0415

        async with common.database() as connection, connection.transaction():
            return await publishing.publish(connection, name, version)

    _tell(common.run(act()), as_json=as_json)


@template.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List templates by name."""

    async def ask() -> list[Any]:
        from pgmail.store import templates  # noqa: PLC0415

        async with common.database() as connection:
            return await templates.listing(connection, limit=10_000)

    output.show(common.run(ask()), _LIST, as_json=as_json, none="no templates")


@template.command()
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Which. Defaults to the published one.")
@common.as_json
def show(name: str, version: int | None, as_json: bool) -> None:
    """Show a version in full, and the list of all."""

    async def ask() -> tuple[Any, list[Any]]:
        from pgmail.store import templates  # noqa: PLC0415

        async with common.database() as connection:
            return (
                await templates.get(connection, name, version),
                await templates.versions(connection, name),
            )

    found, versions = common.run(ask())
    if found is None:
        which = "" if version is None else f" in version {version}"
        raise PgmailError(f"no template is named {name!r}{which}")
    if as_json:
        output.print_json(output.plain(found) | {"versions": [output.plain(row) for row in versions]})
        return
    output.show_one(found, as_json=False, leave_out=("subject", "body_text", "body_html"))
    for part in ("subject", "body_text", "body_html"):
        if (source := getattr(found, part)) is not None:
            click.echo(f"\n--- {part.removeprefix('body_')}\n{output.cell(source)}")
    click.echo("\n--- versions")
    output.show(versions, _VERSIONS, as_json=False)


@template.command()
@click.argument("name")
@_sources
@common.as_json
def check(name: str, as_json: bool, **source: str | None) -> None:
    """Check what publishing would: the source given, or else the newest version that is saved."""

    async def ask() -> Checked:
        from pgmail import publish as publishing  # noqa: PLC0415
        from pgmail.store import published  # noqa: PLC0415

        async with common.database() as connection:
            given = {part: text for part, text in source.items() if text is not None}
            if not given:
                newest = await published.newest(connection, name)
                stored = None if newest is None else await published.stored(connection, name, newest)
                if stored is None:
                    raise Refused("unknown_template", "/name", f"no template is named {name!r}", 404)
                given = {part: text for part in source if (text := getattr(stored, part)) is not None}
            return await publishing.check(connection, name, **given)

    found = common.run(ask())
    if as_json:
        output.print_json({"required": sorted(found.required), "depends": found.depends})
    else:
        facts = {"needs": sorted(found.required), "leans on": found.depends}
        told = ", ".join(f"{word} {output.cell(value)}" for word, value in facts.items() if value)
        click.echo(f"fine; {told}" if told else "fine")


def _read(source: dict[str, str | None]) -> dict[str, Any]:
    return {part: source[part] for part in ("subject", "text", "html")}


def _tell(saved: Saved, *, as_json: bool) -> None:
    if as_json:
        output.print_json(saved)
        return
    state = "published" if saved.published else "saved as a draft"
    click.echo(f"{saved.name} version {saved.version} is {state}; needs {output.cell(saved.required)}")
