"""`pgmail seal`: the keys of sealed mail.

Mail is sealed with data keys, which lie in the database, wrapped by a key-encryption key, which does not: processes
have it from PGMAIL_SEAL_KEYS, PGMAIL_SEAL_KEY_FILE or PGMAIL_SEAL_KEY_COMMAND.

What can go wrong: a key-encryption key is taken away from processes while it still wraps something. `status` says
what wraps what; such mail waits until the key is back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

if TYPE_CHECKING:
    from pgmail.sealing.keks import Keks

_LIST = {
    "tenant": "tenant",
    "id": "data key",
    "current": "seals new mail",
    "kek": "wrapped by",
    "opens": "opens here",
    "created_at": "created",
    "created_by": "by",
    "wrapped_at": "wrapped",
}


@click.group(short_help="Sealed mail: its keys, and their rotation.")
def seal() -> None:
    """Make, show and rotate the keys that seal mail at rest."""


@seal.command()
@click.argument("name")
@common.as_json
def key(name: str, as_json: bool) -> None:
    """Print a new key-encryption key as NAME=BASE64, for PGMAIL_SEAL_KEYS. It is stored nowhere: keep it safe.

    Mail that it seals cannot be read without it, by anybody.
    """
    from pgmail.sealing.keks import new_pair  # noqa: PLC0415

    try:
        pair = new_pair(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    if as_json:
        output.print_json({"name": name, "key": pair.partition("=")[2]})
    else:
        click.echo(pair)


@seal.command()
@common.as_json
def status(as_json: bool) -> None:
    """Show the keys of this process, the data keys and what wraps each, and which streams are sealed."""

    async def ask() -> tuple[Keks, list[Any], list[Any]]:
        from pgmail.store import sealing  # noqa: PLC0415

        keks = _keks()
        async with common.database() as connection:
            return keks, await sealing.listing(connection), await sealing.streams(connection)

    keks, rows, streams = common.run(ask())
    shown = [
        {name: value for name, value in output.plain(row).items() if name not in {"wrapped", "tenant_id"}}
        | {"opens": _opens(keks, row)}
        for row in rows
    ]
    if as_json:
        found = [output.plain(row) for row in streams]
        output.print_json({"keys": keks.names, "data_keys": shown, "streams": found})
        return
    click.echo(f"keys here, the first wraps: {', '.join(keks.names) or 'none'}")
    for row in streams:
        click.echo(f"sealed: stream {row.name} of {row.tenant} ({row.seal})")
    output.show(shown, _LIST, as_json=False, none="there are no data keys")


@seal.command()
@click.option(
    "--kek", "rewrap", is_flag=True, help="Wrap all data keys by the first key of PGMAIL_SEAL_KEYS."
)
@click.option("--tenant", default="default", metavar="NAME", help="Whose data key. Defaults to default.")
@click.option("--reason", metavar="TEXT", help="Why, for the record.")
@common.as_json
def rotate(rewrap: bool, tenant: str, reason: str | None, as_json: bool) -> None:
    """Seal new mail with a new data key; with --kek wrap the data keys of all tenants anew instead.

    Nothing stops meanwhile. Before --kek, every process must have the new key: add it to all of them, behind the
    old one; then put it first; then rotate; then take the old one away.
    """

    async def act() -> dict[str, Any]:
        from pgmail.store import sealing  # noqa: PLC0415

        keks = _keks()
        if not keks:
            raise PgmailError(
                "there is no key to wrap with: set PGMAIL_SEAL_KEYS (`pgmail seal key` makes one)"
            )
        async with common.database("owner") as connection:
            if rewrap:
                return await _rewrap(connection, keks, reason)
            rows = await fetch_tenants(connection)
            if tenant not in rows:
                raise PgmailError(f"no tenant is named {tenant!r}")
            from pgmail.sealing.box import new_key  # noqa: PLC0415

            kek, wrapped = keks.wrap(rows[tenant], new_key())
            made = await sealing.add(connection, tenant, kek, wrapped, reason)
        return {"tenant": tenant, "data_key": made, "kek": kek}

    done = common.run(act())
    if as_json:
        output.print_json(done)
    elif rewrap:
        click.echo(
            f"{done['wrapped']} data keys are wrapped by {done['kek']} now; {done['were']} were already"
        )
    else:
        click.echo(
            f"new mail of {tenant} is sealed with data key {done['data_key']}, wrapped by {done['kek']}"
        )


async def fetch_tenants(connection: Any) -> dict[str, int]:
    """Return the ids of all tenants by name."""
    from pgmail.sqlfiles import queries  # noqa: PLC0415
    from pgmail.store.single import fetch_dicts  # noqa: PLC0415

    rows = await fetch_dicts(connection, queries("cli_operate")["tenants"])
    return {str(row["name"]): int(row["id"]) for row in rows}


async def _rewrap(connection: Any, keks: Keks, reason: str | None) -> dict[str, Any]:
    """Wrap each data key by the first key. Where one cannot be opened, none is touched."""
    from pgmail.store import sealing  # noqa: PLC0415

    first = keks.names[0]
    todo = []
    were = 0
    for row in await sealing.listing(connection):
        if row.kek == first:
            were += 1
            continue
        try:
            todo.append((row, keks.unwrap(row.tenant_id, row.kek, bytes(row.wrapped))))
        except PgmailError as why:
            raise PgmailError(
                f"data key {row.id} of {row.tenant} cannot be opened here, so none is wrapped anew: {why}"
            ) from why
    done = 0
    for row, key in todo:
        kek, wrapped = keks.wrap(row.tenant_id, key)
        was = sealing.Wrapped(row.id, row.kek, bytes(row.wrapped))
        done += await sealing.rewrap(connection, row.tenant_id, was, kek, wrapped, reason=reason)
    return {"kek": first, "wrapped": done, "were": were}


def _keks() -> Keks:
    from pgmail.sealing.keks import read  # noqa: PLC0415

    return read(common.settings())


def _opens(keks: Keks, row: Any) -> bool:
    try:
        keks.unwrap(row.tenant_id, row.kek, bytes(row.wrapped))
    except PgmailError:
        return False
    return True
