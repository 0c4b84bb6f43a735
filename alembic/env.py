"""pgmail's own migrations, in its own schema.

The version table is `pgmail.alembic_version`, so an application's Alembic in the same database neither sees
ours nor is seen. `pgmail.store.migrate` hands over the connection and commits; this file opens nothing.
"""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError

connection = context.config.attributes.get("connection")
if connection is None:
    raise CommandError(
        "run `pgmail db upgrade` or `pgmail db downgrade`: they bring the connection with them"
    )

context.configure(
    connection=connection,
    version_table="alembic_version",
    version_table_schema="pgmail",
    # The caller's transaction holds it all: an upgrade happens as a whole or not at all.
    transaction_per_migration=False,
    on_version_apply=context.config.attributes.get("on_version_apply"),
)
context.run_migrations()
