"""sql/schema.sql is what the migrations and functions make: readable in one place, and true.

`make schema` writes it anew (it runs this test with PGMAIL_WRITE_SCHEMA set).
"""

import os
import re
import subprocess

import pytest

from pgmail import sqlfiles
from pgmail.store import migrate
from tests.fix_db import PREFIX

_HEAD = """\
-- The schema as migrations and functions make it on PostgreSQL 18, without roles, rights, weekly partitions.
-- To read, not to run. Written by `make schema`; a test proves that it equals what the files make.

"""


def normalised(dump: str) -> str:
    """Leave out what differs between two dumps of one schema: settings, tokens, versions, comments."""
    noise = r"^(--.*|SET .*;|SELECT pg_catalog\.set_config.*;|\\(un)?restrict .*)\n"
    kept = re.sub(noise, "", dump, flags=re.MULTILINE)
    return _HEAD + re.sub(r"\n{3,}", "\n\n", kept).strip() + "\n"


@pytest.mark.one_server
def test_the_snapshot_equals_migrations_and_functions(empty_db, server):
    migrate.upgrade(empty_db.dsn, prefix=PREFIX, roles=False)
    dump = subprocess.run(
        [
            server.binaries / "pg_dump",
            "--schema-only",
            "--schema=pgmail",
            "--no-owner",
            "--no-privileges",
            "--no-toast-compression",  # some servers lack lz4
            "--exclude-table=pgmail.*_2[0-9]*",
            empty_db.superuser_dsn,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    made = normalised(dump.stdout)
    snapshot = sqlfiles.sql_folder() / "schema.sql"
    if os.environ.get("PGMAIL_WRITE_SCHEMA"):
        snapshot.write_text(made, encoding="utf-8")
    kept = snapshot.read_text(encoding="utf-8") if snapshot.exists() else ""
    assert kept.splitlines() == made.splitlines(), "run `make schema` and look at what changed"
