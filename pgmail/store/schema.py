"""Whether program and schema fit together. Read at start and by /health/ready; loads nothing heavy.

Each side may refuse the other: the schema programs older than its `compatible_from`, the program schemas older
than it needs. Both say what to do.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from psycopg import errors

from pgmail import sqlfiles
from pgmail.errors import SchemaMismatch
from pgmail.store.database import Database
from pgmail.store.faults import first_line

SCHEMA_VERSION: Final = 5
"""The schema that this program brings."""

NEEDS_FROM: Final = 5
"""The oldest schema that this program works with."""


class SchemaState(NamedTuple):
    """What `check` found. `problem` is None when program and schema fit, else what is wrong and what to do.

    `version` and `compatible_from` are None when the database holds no pgmail schema.
    """

    version: int | None
    compatible_from: int | None
    program_version: int
    problem: str | None

    @property
    def compatible(self) -> bool:
        """Whether this program may use this schema."""
        return self.problem is None

    def require(self) -> None:
        """SchemaMismatch unless program and schema fit."""
        if self.problem is not None:
            raise SchemaMismatch(self.problem)


def judge(version: int | None, compatible_from: int | None) -> SchemaState:
    """Decide whether this program may use a schema that says this of itself (None: there is none)."""
    problem = None
    if version is None or compatible_from is None:
        problem = "the database holds no pgmail schema; run `pgmail db upgrade`"
    elif compatible_from > SCHEMA_VERSION:
        problem = (
            f"the schema (version {version}) refuses this program: it lets in programs of version "
            f"{compatible_from} or later, and this one is of {SCHEMA_VERSION}; install a newer pgmail"
        )
    elif version < NEEDS_FROM:
        problem = (
            f"this program refuses the schema: it is of version {version}, and this program needs "
            f"{NEEDS_FROM} or later; run `pgmail db upgrade`"
        )
    return SchemaState(version, compatible_from, SCHEMA_VERSION, problem)


async def require(database: Database) -> None:
    """Read what the schema says of itself. SchemaMismatch unless program and schema fit."""
    try:
        row = await database.one(sqlfiles.queries("presence")["schema"])
    except errors.InsufficientPrivilege as error:
        raise SchemaMismatch(
            f"{first_line(error)}: the database role of this process is none that pgmail's programs work with; "
            "each has one of its own (PGMAIL_WORKER_DATABASE_URL, PGMAIL_API_DATABASE_URL)"
        ) from error
    judge(*(row or (None, None))).require()
