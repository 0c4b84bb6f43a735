"""`pgmail db`: bring the schema up to date, take it back, see whether it fits, and print what needs more rights.

All of it runs as the schema's owner (PGMAIL_OWNER_DATABASE_URL, else the common one). What can go wrong: a
downgrade takes mail with it. It is refused while there is any, unless `--yes`.
"""

from __future__ import annotations

import click

from pgmail.cli import common, output
from pgmail.errors import SchemaMismatch


@click.group(short_help="The schema: upgrade, downgrade, check, roles.")
def db() -> None:
    """Upgrade, downgrade and check the schema; print its roles."""


@db.command()
@click.option("--revision", default="head", show_default=True, metavar="NAME", help="How far.")
@click.option("--roles/--no-roles", default=True, show_default=True, help="Whether to set roles up as well.")
@common.as_json
def upgrade(revision: str, roles: bool, as_json: bool) -> None:
    """Bring the schema up to date. Again is harmless; all of it happens or nothing."""
    from pgmail.store import migrate  # noqa: PLC0415

    found = common.settings()
    done = migrate.upgrade(
        common.address(found, "owner"),
        prefix=found.role_prefix,
        revision=revision,
        roles=roles,
        tell=lambda line: click.echo(line, err=True),
    )
    _tell(done, as_json=as_json)


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Even if mail, templates or keys go with it.")
@common.as_json
def downgrade(revision: str, yes: bool, as_json: bool) -> None:
    """Take the schema back to REVISION; base leaves nothing of pgmail in the database."""
    from pgmail.store import migrate  # noqa: PLC0415

    _tell(
        migrate.downgrade(common.address(common.settings(), "owner"), revision, confirmed=yes),
        as_json=as_json,
    )


@db.command()
@common.as_json
def check(as_json: bool) -> None:
    """Tell whether this program and the schema fit; exit code 1 if they do not."""
    from pgmail.store import migrate  # noqa: PLC0415

    state = migrate.check(common.address(common.settings(), "owner"))
    if as_json:
        output.print_json(state._asdict() | {"compatible": state.compatible})
    if state.problem is not None:
        raise SchemaMismatch(state.problem)
    if not as_json:
        click.echo(f"schema version {state.version} fits this program ({state.program_version})")


@db.command()
@click.option("--sql", is_flag=True, help="Print the statements that create them, for an administrator.")
@common.as_json
def roles(sql: bool, as_json: bool) -> None:
    """List pgmail's database roles and whether they exist; --sql prints what creates them."""
    from pgmail.store import migrate  # noqa: PLC0415

    found = common.settings()
    if sql:
        click.echo(migrate.roles_sql(found.role_prefix).rstrip())
        return
    from pgmail.cli.doctor_checks import ROLES, existing_roles  # noqa: PLC0415

    names = [found.role_prefix + role for role in ROLES]
    have = common.run(existing_roles(names))
    rows = [{"name": name, "exists": name in have} for name in names]
    output.show(rows, {"name": "role", "exists": "exists"}, as_json=as_json)


def _tell(done: list[str], *, as_json: bool) -> None:
    if as_json:
        output.print_json(done)
    else:
        click.echo("\n".join(done))
