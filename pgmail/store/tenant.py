"""Acting for a tenant: the API's transactions, each of which begins by saying for whom.

The API's role belongs to no tenant; it carries the one of the key that it checked, in a setting that lives no
longer than the transaction. Row-level security then shows that tenant's rows and no others.

What can go wrong: a statement before `acting_as`, or outside it, sees no rows at all and is refused by every
function (`no_tenant`). That is the safe way to be wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import Database
from pgmail.store.keys import Caller

Connection = AsyncConnection[Any]


@asynccontextmanager
async def acting_as(database: Database, caller: Caller) -> AsyncIterator[Connection]:
    """Lend a connection in a transaction that acts for the caller's tenant; commits unless it raises."""
    async with database.connection() as connection, connection.transaction():
        await connection.execute(queries("keys")["act_as"].text.encode(), caller.settings())
        yield connection
