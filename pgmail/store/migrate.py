"""The schema's life: upgrade, downgrade, and whether program and schema fit together.

An upgrade is one transaction: migrations by Alembic (each runs a pair of SQL files), then every function
afresh, then the roles if the owner may create them. It happens as a whole or not at all, and again is
harmless. After it, row-level security is forced where it is not yet, table by table, and indexes over partitions
that hold rows are made without a lock, one by one; interrupted, the next upgrade goes on. It needs CREATE on the
database, or a schema `pgmail` of the caller's own; never a superuser.
Nothing here runs at start-up but `check`, which only reads.

What can go wrong, each one line for a person and no traceback: a right is missing, or a lock is not to be had
in time (`Refused`); the database is away (`DatabaseAway`); program and schema refuse each other
(`SchemaMismatch`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgmail import sqlfiles
from pgmail.domain.replies import RuleBook
from pgmail.errors import DatabaseAway, PgmailError, Refused, SchemaMismatch, SettingsError
from pgmail.store import schema
from pgmail.store.schema import SchemaState

# A lock that is waited for makes all mail queue up behind it: shortly, then everything is let go and tried again.
# Less than PostgreSQL's deadlock_timeout, so that no send is ever the victim of an upgrade.
LOCK_TIMEOUT_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 1.0  # between two tries; mail that waited goes meanwhile

# An index is made beside mail, and waits at its end for transactions that are older than it: nobody waits for that.
INDEX_PATIENCE_SECONDS: Final = 60.0
FEED_LATER: Final = (
    "live events answer 503 until `pgmail db upgrade` has made the index of the feed over all partitions: "
)

# The functions of this program stand beside tables of before, and no file of an older program's is at hand here.
OLDER_PROGRAM: Final = (
    "functions are still those of this program and name what was taken back: until the older program's "
    "`pgmail db upgrade` has run, no mail is taken in or sent; run it now"
)

T = TypeVar("T")

_PREFIX: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,31}")
_SECTION: Final = re.compile(r"^-- section: (\w+)[ \t]*$", re.MULTILINE)
_ROLES_AT_ONCE: Final = 3
# Alembic keeps the migration under way in module globals: one at a time in a process, whatever the database.
_ALEMBIC_IS_SINGLE: Final = threading.Lock()


def check(dsn: str) -> SchemaState:
    """Read the schema's version. It changes nothing. DatabaseAway, or Refused without the right to read."""
    with _one_line(), psycopg.connect(dsn, row_factory=dict_row, prepare_threshold=None) as connection:
        return _state(connection)


def upgrade(
    dsn: str,
    *,
    prefix: str,
    revision: str = "head",
    roles: bool = True,
    tell: Callable[[str], None] | None = None,
) -> list[str]:
    """Bring the schema to `revision`, with this program's functions and roles; what was done, a line each.

    `tell` hears what takes long while it lasts.

    `prefix` begins the names of the roles, which belong to the whole cluster. Where the owner lacks
    CREATEROLE and a role is missing, the upgrade goes on without, and the last line says what an administrator
    should run. A schema newer than this program is left alone (SchemaMismatch).
    """
    script = roles_sql(prefix) if roles else ""
    done = _patiently(lambda: _upgrade(dsn, prefix, revision, script))
    try:
        if secured := _patiently(lambda: _secure(dsn)):
            done.insert(-1, f"forced row-level security on {secured} tables and partitions")
    except Refused as error:
        if error.code != "locked":
            raise
        done.append("row-level security is not forced on all tables yet, some were in use; upgrade again")
    made, left = _index_feed(dsn, tell or (lambda _: None))
    if made:
        done.insert(-1, f"made the index of the feed over {made} partitions")
    return done + left


def _index_feed(dsn: str, tell: Callable[[str], None]) -> tuple[int, list[str]]:
    """Make the indexes of the feed over partitions that hold rows, each outside of a transaction; over how many.

    Mail flows meanwhile. What cannot be had in time is left for the next upgrade, and said.
    """
    made = 0
    left: list[str] = []
    with _one_line(), psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as raw:
        if not _ask(raw, "indexes_feed"):
            return 0, []
        _run(raw, "wait_for_locks", lock_timeout=f"{INDEX_PATIENCE_SECONDS * 1000:.0f}ms")
        name = ""
        while found := _row(raw, "feed_index_next", after=name):
            name = str(found["name"])
            tell(
                f"making the index of the feed over {name}, {found['step']} of {found['steps']}; mail goes on"
            )
            try:
                for statement in found["statements"]:
                    raw.execute(statement.encode())
            except (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled) as error:
                left.append(f"{FEED_LATER}{name} was in use ({error.diag.message_primary})")
            except errors.UndefinedTable:
                continue  # retention dropped it meanwhile
            else:
                made += 1
    return made, left


def _secure(dsn: str) -> int:
    """Force row-level security where it is not, one table and one transaction at a time; on how many.

    The locks of all tables at once are not to be had while mail flows. Mail goes on without: nobody but the owner's
    functions reads what a table without it would show.
    """
    count = 0
    with _one_line(), psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as raw:
        if not _ask(raw, "secures"):
            return 0
        name = ""
        while True:
            with raw.transaction():
                _run(raw, "wait_at_most", lock_timeout=f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms")
                found = _row(raw, "secure_next", after=name).get("name")
            if found is None:
                return count
            name = str(found)
            count += 1


def _upgrade(dsn: str, prefix: str, revision: str, script: str) -> list[str]:
    """Try it once; `script` is that of the roles, empty for none."""
    done: list[str] = []
    with _one_line(), _transaction(dsn) as (connection, raw):
        if (
            _ask(raw, "version_is_kept")
            and (found := _state(raw)).version
            and found.version > schema.SCHEMA_VERSION
        ):
            raise SchemaMismatch(
                f"the schema is of version {found.version}, newer than this program's {schema.SCHEMA_VERSION}; "
                "upgrade with the program that brought it, its functions would be replaced by older ones"
            )
        if not _ask(raw, "is_utf8"):
            raise Refused(
                "wrong_encoding", "", "the encoding of the database must be UTF8; create one with it: "
                "create database NAME template template0 encoding 'UTF8'", 409,
            )  # fmt: skip
        if not _ask(raw, "schema_exists"):
            _create_schema(raw)
            done.append("created the schema pgmail")
        _alembic(connection, done, revision, command.upgrade)
        if _ask(raw, "version_is_kept"):
            _apply_functions(raw)
            done.append(f"applied {len(sqlfiles.functions())} files of functions")
            if _ask(raw, "rules_are_kept"):  # not in a schema of an older revision
                rules = RuleBook(sqlfiles.read(sqlfiles.REPLY_RULES)).table()
                _run(raw, "load_reply_rules", rules=Jsonb(rules))
                done.append(f"loaded {len(rules['rules'])} rules for replies")
            _run(raw, "mark_upgraded")
            _run(raw, "make_partitions")  # the first mail should not have to wait for a leader
            if script:
                done.append(_apply_roles(raw, script, prefix))
    return done


def downgrade(dsn: str, revision: str, *, confirmed: bool = False) -> list[str]:
    """Take the schema back to `revision`; `base` leaves nothing of pgmail in the database. What was done.

    Refused (`holds_data`, 409) without `confirmed` when mail, templates, suppressions or keys would be at
    stake. Roles stay: they belong to the cluster, and other databases may use them. After a step that is not
    to `base` the last line says what must be done at once: the older program's own upgrade.
    """
    return _patiently(lambda: _downgrade(dsn, revision, confirmed=confirmed))


def _downgrade(dsn: str, revision: str, *, confirmed: bool) -> list[str]:
    done: list[str] = []
    with _one_line(), _transaction(dsn) as (connection, raw):
        if not _ask(raw, "version_is_kept"):
            return ["the database holds no pgmail schema; nothing to do"]
        if not confirmed and _ask(raw, "holds_data"):
            raise Refused(
                "holds_data",
                "",
                "the database holds mail, templates, suppressions or keys, which a downgrade may destroy; "
                "nothing was changed; confirm to go on (--yes)",
                409,
            )
        _alembic(connection, done, revision, command.downgrade)
        if not _ask(raw, "version_is_kept"):
            _run(raw, "drop_version_table")
            done.append(_drop_schema(raw))
            done.append("roles stay, since other databases of the cluster may use them")
        else:
            done.append(OLDER_PROGRAM)
    return done


def roles_sql(prefix: str) -> str:
    """`sql/roles.sql` with the prefix filled in, for an administrator to run.

    SettingsError for a prefix other than 1 to 32 of a-z, 0-9 and _ (no digit first, and not PostgreSQL's `pg_`).
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise SettingsError(
            [
                f"the role prefix {prefix!r} is not 1 to 32 of a-z, 0-9 and _, with neither a digit nor pg_ first"
            ]
        )
    return sqlfiles.read("roles.sql").replace("{prefix}", prefix)


def run_step(file: str, direction: Literal["up", "down"]) -> None:
    """Run the half of a pair of SQL files that has the name of the Alembic version in `file`.

    The text goes to the driver as it stands: `%`, `:` and `$$` in it mean nothing on the way.
    """
    name = Path(file).stem
    step = next((step for step in sqlfiles.migrations() if step.name == name), None)
    if step is None:
        raise PgmailError(f"alembic/versions/{name}.py has no pair of files sql/migrations/{name}.*.sql")
    path = step.up if direction == "up" else step.down
    raw = op.get_bind().connection.driver_connection
    assert isinstance(raw, psycopg.Connection)  # noqa: S101 - the engine below makes no other
    _run_file(raw, path)


def _patiently(attempt: Callable[[], T]) -> T:
    """Try again while a lock is not to be had. Each attempt is a transaction of its own that lets go of everything."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return attempt()
        except Refused as error:
            if error.code != "locked" or time.monotonic() + PAUSE_SECONDS > until:
                raise
        time.sleep(PAUSE_SECONDS)


@contextmanager
def _transaction(dsn: str) -> Iterator[tuple[sqlalchemy.Connection, psycopg.Connection[Any]]]:
    """One transaction, seen as SQLAlchemy's connection for Alembic and as the driver's own for raw SQL."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        # libpq reads the DSN itself: several hosts, services and key=value forms all work.
        creator=lambda: psycopg.connect(dsn, prepare_threshold=None),
        poolclass=sqlalchemy.NullPool,
    )
    with engine.connect() as connection, connection.begin():
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)  # noqa: S101 - made by the creator above
        _run(raw, "take_turn")
        _run(raw, "wait_at_most", lock_timeout=f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms")
        yield connection, raw


def _alembic(connection: sqlalchemy.Connection, done: list[str], revision: str, move: Any) -> None:
    config = Config()
    config.set_main_option("script_location", str(sqlfiles.alembic_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection

    def note(*, step: Any, **_: Any) -> None:
        verb = "applied" if step.is_upgrade else "took back"
        done.append(f"{verb} migration {step.up_revision_id}")

    config.attributes["on_version_apply"] = note
    with _ALEMBIC_IS_SINGLE:
        move(config, revision)


def _create_schema(raw: psycopg.Connection[Any]) -> None:
    who = _row(raw, "who_and_where")
    try:
        _run(raw, "create_schema")
    except errors.InsufficientPrivilege as error:
        raise Refused(
            "insufficient_privilege",
            "",
            f"the role {who['role']} may not create a schema in the database {who['database']}; "
            f'an administrator runs: grant create on database "{who["database"]}" to "{who["role"]}"',
            403,
        ) from error


def _drop_schema(raw: psycopg.Connection[Any]) -> str:
    try:
        with raw.transaction():
            _run(raw, "drop_schema")
    except errors.InsufficientPrivilege:
        return "the schema pgmail is empty; it stays, since another role owns it"
    except errors.DependentObjectsStillExist as error:
        raise PgmailError(
            f"the schema pgmail holds objects that pgmail did not make: {error.diag.message_detail}"
        ) from error
    return "dropped the schema pgmail"


def _apply_functions(raw: psycopg.Connection[Any]) -> None:
    _run(raw, "functions_may_come_in_any_order")
    for path in sqlfiles.functions():
        _run_file(raw, path)


def _apply_roles(raw: psycopg.Connection[Any], script: str, prefix: str) -> str:
    """Run the sections of roles.sql; a line about it. Savepoints keep the upgrade when a right is missing."""
    _, *parts = _SECTION.split(script)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for attempt in range(1, _ROLES_AT_ONCE + 1):
        try:
            with raw.transaction():
                raw.execute(sections["create"].encode())
                raw.execute(sections["grant"].encode())
        except (errors.InsufficientPrivilege, errors.UndefinedObject) as error:
            who = _row(raw, "who_and_where")
            return (
                f"roles {prefix}* are not set up: {error.diag.message_primary}; give {who['role']} "
                "CREATEROLE, or let an administrator run the output of `pgmail db roles --sql`"
            )
        except (errors.DuplicateObject, errors.UniqueViolation, errors.InternalError_):
            # Roles belong to the cluster: an upgrade of another database made one at the same moment.
            if attempt == _ROLES_AT_ONCE:
                raise
        else:
            break
    return f"roles {prefix}* are set up"


def _run_file(raw: psycopg.Connection[Any], path: Path) -> None:
    try:
        raw.execute(path.read_bytes())
    except psycopg.Error as error:
        error.add_note(f"in {path.parent.name}/{path.name}")
        raise


def _run(raw: psycopg.Connection[Any], name: str, **parameters: object) -> None:
    raw.execute(sqlfiles.queries("migrate")[name].text.encode(), parameters or None)


def _row(raw: psycopg.Connection[Any], name: str, **parameters: object) -> dict[str, Any]:
    with raw.cursor(row_factory=dict_row) as cursor:
        text = sqlfiles.queries("migrate")[name].text.encode()
        return cursor.execute(text, parameters or None).fetchone() or {}


def _ask(raw: psycopg.Connection[Any], name: str) -> bool:
    return bool(_row(raw, name).get("found"))


def _state(raw: psycopg.Connection[Any]) -> SchemaState:
    row = _row(raw, "version") if _ask(raw, "version_is_kept") else {}
    return schema.judge(row.get("version"), row.get("compatible_from"))


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what PostgreSQL refuses for a reason that an operator can remove into one line that says so."""
    try:
        yield
    except (psycopg.Error, sqlalchemy.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        text = " ".join(str(cause).split())
        if isinstance(cause, errors.InsufficientPrivilege):
            raise Refused(
                "insufficient_privilege", "", f"{text}; run this as the owner of the schema pgmail", 403
            ) from error
        if isinstance(cause, errors.LockNotAvailable):
            raise Refused(
                "locked",
                "",
                f"another transaction held a lock for more than {PATIENCE_SECONDS:g} s ({text}); "
                "nothing was changed; try again",
                503,
            ) from error
        if isinstance(cause, psycopg.OperationalError):
            raise DatabaseAway(text) from error
        raise
