"""`pgmail`: the list of commands, in the order in which people meet them. Each lives in a small file of its own.

A new command is a line here and a file beside this one (or in a room of its own: any `module:command` will do).
"""

from __future__ import annotations

import click

from pgmail.cli.front import Front

COMMANDS = {
    "demo": "pgmail.cli.demo:demo",
    "serve": "pgmail.cli.run:serve",
    "api": "pgmail.cli.run:api",
    "worker": "pgmail.cli.run:worker",
    "maintain": "pgmail.cli.run:maintain",
    "db": "pgmail.cli.db:db",
    "send": "pgmail.cli.send:send",
    "status": "pgmail.cli.mail:status",
    "trace": "pgmail.cli.mail:trace",
    "why": "pgmail.cli.mail:why",
    "cancel": "pgmail.cli.mail:cancel",
    "reschedule": "pgmail.cli.mail:reschedule",
    "hold": "pgmail.cli.hold:hold",
    "release": "pgmail.cli.hold:release",
    "queue": "pgmail.cli.operate:queue",
    "pause": "pgmail.cli.operate:pause",
    "resume": "pgmail.cli.operate:resume",
    "limit": "pgmail.cli.limit:limit",
    "quota": "pgmail.cli.quota:quota",
    "doubt": "pgmail.cli.doubt:doubt",
    "dead": "pgmail.cli.dead:dead",
    "key": "pgmail.cli.key:key",
    "template": "pgmail.cli.template:template",
    "asset": "pgmail.cli.asset:asset",
    "stream": "pgmail.cli.stream:stream",
    "suppression": "pgmail.cli.suppression:suppression",
    "webhook": "pgmail.cli.webhook:webhook",
    "domain": "pgmail.cli.domain:domain",
    "tenant": "pgmail.cli.tenant:tenant",
    "seal": "pgmail.cli.seal:seal",
    "report": "pgmail.cli.report:report",
    "retention": "pgmail.cli.retention:retention",
    "erase": "pgmail.cli.erase:erase",
    "audit": "pgmail.cli.audit:audit",
    "classify": "pgmail.cli.classify:classify",
    "bench": "pgmail.cli.bench:bench",
    "config": "pgmail.cli.config:config",
    "doctor": "pgmail.cli.doctor:doctor",
}


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from pgmail import __version__  # noqa: PLC0415 - reading it takes longer than all the rest

        click.echo(f"pgmail {__version__}")
        ctx.exit()


@click.group(
    cls=Front,
    places=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings come from PGMAIL_* variables and pgmail.toml; `pgmail config show` lists them.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Send email with PostgreSQL as both queue and system of record."""
