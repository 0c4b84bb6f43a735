"""What a demo's tenant has before the first mail: streams that retry soon, templates, an asset, a key, a shop.

All but the shop's table is made by the admin's role through pgmail's own functions, as an operator would. What
can go wrong: nothing that is not a fault of pgmail; it comes out as `Refused`.
"""

from __future__ import annotations

import asyncio

from pgmail import publish, sqlfiles
from pgmail.sandbox import traffic_files, traffic_kinds, traffic_words
from pgmail.store import assets, keys, scratch, streams
from pgmail.store.scratch import Scratch
from pgmail.store.single import lend

RETRY_BASE_SECONDS = 0.4
STREAMS = ("transactional", "broadcast")

_TERMS = (
    "1. You order, we send.",
    "2. What you do not like comes back within thirty days.",
    "3. We tell nobody what you read.",
)


def stock(made: Scratch) -> str:
    """Fill a fresh database; the API key, which is shown once."""
    roles = {role: made.prefix + role for role in ("producer", "admin")}
    with scratch.connect(made.owner) as connection:
        scratch.run_named(connection, sqlfiles.queries("demo")["make_shop"], **roles)
    return asyncio.run(_stock(made.dsn("admin")))


async def _stock(dsn: str) -> str:
    async with lend(dsn, name="pgmail demo") as connection, connection.transaction():
        for name in STREAMS:
            # A demo of a minute cannot wait half of one for the first retry.
            await streams.save(
                connection, name, {"retry_base_seconds": RETRY_BASE_SECONDS, "retry_factor": 2.0}
            )
        for name, subject, text, html in (
            (traffic_kinds.LAYOUT, None, traffic_words.LAYOUT_TEXT, traffic_words.LAYOUT_HTML),
            (
                traffic_kinds.WELCOME,
                traffic_words.WELCOME_SUBJECT,
                traffic_words.WELCOME_TEXT,
                traffic_words.WELCOME_HTML,
            ),
            (
                traffic_kinds.RECEIPT,
                traffic_words.RECEIPT_SUBJECT,
                traffic_words.RECEIPT_TEXT,
                traffic_words.RECEIPT_HTML,
            ),
        ):
            await publish.save(connection, name, subject=subject, text=text, html=html, publish=True)
        paper = traffic_files.document("Terms", _TERMS)
        await assets.save(connection, traffic_kinds.ASSET, "terms.pdf", "application/pdf", paper)
        return (await keys.create(connection, "demo")).key
