"""What the database says to an email before a list is read: asked by sending it, in a transaction rolled back.

So a stream or a template that is not there, a header that is reserved or a right that is missing is one line
at once, and not the same line for every chunk. It also tells which variables a published template requires,
which a producer's role cannot read. Nothing of it is kept, and no worker is woken: NOTIFY goes with a commit.

What can go wrong: another version of the template is published while the list is read. `send` learns of it.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import msgspec

from pgmail import sqlfiles
from pgmail.client_drivers import ask
from pgmail.client_seal import Sealer, sealing
from pgmail.domain.address import parse
from pgmail.errors import Refused
from pgmail.store.single import Connection

MOST = 500  # variables that a template may require of each recipient

# The law has the message name the variable (ops/docs/email.md, row 8), quoted as an SQL literal.
_NEEDS = re.compile(r"needs E?'((?:[^']|'')*)'")


def missing(refused: Refused) -> str | None:
    """Return the variable that a refusal says the template needs; None for any other refusal."""
    if refused.code != "missing_variable" or not (match := _NEEDS.search(refused.message)):
        return None
    quoted = match[1].replace("''", "'")
    return quoted.replace("\\\\", "\\") if " E'" in refused.message else quoted


async def hand_over(connection: Connection, body: dict[str, Any], sealer: Sealer | None = None) -> UUID:
    """Send an email in whatever transaction the connection is in, sealed where its stream seals; its id.

    Raises Refused.
    """
    query = sqlfiles.queries("client")["send"]
    answer: Any = sealing(
        connection,
        sealer,
        lambda sealed: ask(connection, query, [msgspec.json.encode(sealed(body)).decode()], UUID),
    )
    id: UUID = await answer  # noqa: A001 - the word of the database
    return id


async def required(
    connection: Connection, body: dict[str, Any], sealer: Sealer | None = None
) -> frozenset[str]:
    """Return the variables that the template wants from each recipient, besides those that `body` shares.

    `body` is an email without `to`, in personal mode. Raises Refused for what the database has against it.
    """
    found: dict[str, str] = {}
    while len(found) < MOST:
        # The sender's own address is one that the law has passed, and hears nothing of this.
        person = {"address": parse(body["from"]).rcpt, "variables": found}
        try:
            async with connection.transaction(force_rollback=True):
                await hand_over(connection, {**body, "to": [person]}, sealer)
        except Refused as refused:
            name = missing(refused)
            if name is None or name in found:
                raise
            found[name] = ""
        else:
            return frozenset(found)
    raise Refused(
        "missing_variable", "/variables", f"the template needs more than {MOST} variables of its own"
    )
