"""`pgmail asset`: files that are stored once and attached by name.

What can go wrong: saving under a name that is taken. That replaces the file, for mail that waits too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import Refused

_LIST = {
    "name": "name",
    "filename": "file",
    "content_type": "type",
    "size_bytes": "bytes",
    "created_at": "saved",
    "created_by": "by",
}


@click.group(short_help="Files to attach by name.")
def asset() -> None:
    """Save and list assets: files that are stored once and attached by name."""


@asset.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--name", metavar="NAME", help="Name to attach it by. Defaults to the file's.")
@click.option("--filename", metavar="NAME", help="Name that recipients see. Defaults to the file's.")
@click.option("--content-type", metavar="TYPE", help="Defaults to what the file's name says.")
def save(file: str, name: str | None, filename: str | None, content_type: str | None) -> None:
    """Store FILE, or another in its place."""
    from mimetypes import guess_type  # noqa: PLC0415

    from pgmail.domain.check_attachments import check_content_type  # noqa: PLC0415

    filename = filename or Path(file).name
    name = name or Path(file).name
    content_type = content_type or guess_type(filename)[0] or "application/octet-stream"
    if fault := check_content_type(content_type):
        raise Refused("invalid_attachment", "/content_type", fault)

    async def act(body: bytes) -> None:
        from pgmail.store import assets  # noqa: PLC0415

        async with common.database() as connection:
            await assets.save(connection, name, filename, content_type, body)

    body = Path(file).read_bytes()
    common.run(act(body))
    click.echo(f"saved {name} ({content_type}, {len(body):,} bytes)")


@asset.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List assets by name."""

    async def ask() -> list[Any]:
        from pgmail.store import assets  # noqa: PLC0415

        async with common.database() as connection:
            return await assets.listing(connection, limit=10_000)

    output.show(common.run(ask()), _LIST, as_json=as_json, none="no assets")
