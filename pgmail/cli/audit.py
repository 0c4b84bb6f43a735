"""`pgmail audit`: who did what, when, from where and why, newest first.

An admin and the owner see the acts of all tenants and the fleet's; a reader its tenant's. What can go wrong:
the name of an application is what that program says of itself; actor and address are what the server knows.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output

_LIST = {
    "at": "when",
    "tenant": "tenant",
    "actor": "who",
    "action": "what",
    "object": "on what",
    "reason": "why",
    "source": "from",
    "application": "program",
}


@click.command(short_help="Who did what, when, from where and why.")
@click.option("--since", metavar="TIME", help="Acts from then on.")
@click.option("--until", metavar="TIME", help="Acts before then.")
@click.option("--actor", metavar="NAME", help="A database role, or `key NAME`.")
@click.option("--action", metavar="WORD", help="Such as key.revoke; `key.*` is all about keys.")
@click.option("--object", metavar="TEXT", help="What was acted on; a * at the end stands for any rest.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Most acts."
)
@click.option("--before", type=click.IntRange(min=1), metavar="ID", help="Acts older than this one's id.")
@common.as_json
def audit(
    *,
    since: str | None,
    until: str | None,
    actor: str | None,
    action: str | None,
    object: str | None,
    limit: int,
    before: int | None,
    as_json: bool,
) -> None:
    """Show what people and keys did: configuration, pauses, retries, cancels, erasures. Newest first."""
    given = {"since": common.past(since, "since"), "until": common.past(until, "until")}

    async def ask() -> list[Any]:
        from pgmail.store import audit as store  # noqa: PLC0415

        async with common.database() as connection:
            return await store.listing(
                connection,
                limit=limit,
                own=False,
                before=before,
                actor=actor,
                action=action,
                object=object,
                **given,
            )

    output.show(common.run(ask()), _LIST, as_json=as_json, none="no such act")
