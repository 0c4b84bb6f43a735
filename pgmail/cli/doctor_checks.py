"""What `pgmail doctor` checks: each check asks one question and says what is wrong and which command mends it.

Checks stand in the order of what stops most: no settings, no database, no schema, no rights, no workers. A
check that this role may not make says so and is no failure.

What can go wrong: a check of a sick database that hangs. Each has a few seconds, since every statement of
this connection has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgmail.cli import common, doctor_alerts, doctor_database, output
from pgmail.cli.doctor_finding import Finding, Status, leader, span
from pgmail.cli.doctor_finding import ask as _ask
from pgmail.errors import PgmailError, Refused
from pgmail.sqlfiles import queries
from pgmail.store.single import StatementFailed, fetch_dicts

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.store.single import Connection

    # One may find more than one thing.
    Question = Callable[[Connection, Settings], Awaitable[Finding] | Awaitable[tuple[Finding, ...]]]

ROLES = ("api", "worker", "maintain", "producer", "reader", "analyst", "admin")
OLDEST_SERVER = 150_000  # what PostgreSQL calls itself in numbers
LOW_DAYS = 14  # of partitions
SKEW_SECONDS = (2.0, 60.0)  # a remark, a failure: times a minute in the past are refused
LATE_SECONDS = 300.0  # due for so long, while nothing is paused
MOST_COUNTED = (
    200_000  # of what waits, to hold the books against the queue: it takes as long as the queue is deep
)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Make all checks, in their order; what depends on a failed one is left out."""
    try:
        dsn = common.address(settings)
    except PgmailError as error:
        yield Finding(
            "settings", "failed", str(error), "export PGMAIL_DATABASE_URL=postgresql://user@host/mail"
        )
        return
    yield Finding("settings", "ok", "all settings are valid")
    from pgmail.store.single import lend  # noqa: PLC0415

    try:
        async with lend(dsn, name="pgmail doctor") as connection:
            before = common.now()
            (server,) = await _ask(connection, "server")
            yield _server(server)
            schema = await _schema(dsn)
            yield schema
            if schema.status == "failed":
                return
            for check, question in _CHECKS.items():
                for finding in await _one(check, question, connection, settings):
                    yield finding
            yield _clock(server["now"], before, common.now())
    except PgmailError as error:
        yield Finding("database", "failed", str(error), "start PostgreSQL, or correct PGMAIL_DATABASE_URL")


async def existing_roles(names: Sequence[str]) -> set[str]:
    """Which of some roles the cluster has."""
    async with common.database() as connection:
        return {row["name"] for row in await _ask(connection, "roles", names=list(names))}


async def _one(
    check: str, question: Question, connection: Connection, settings: Settings
) -> tuple[Finding, ...]:
    try:
        found = await question(connection, settings)
    except (StatementFailed, Refused) as error:
        return (Finding(check, "skipped", f"cannot look: {error}"),)
    return found if isinstance(found, tuple) else (found,)


def _server(row: dict[str, Any]) -> Finding:
    who = f"PostgreSQL {row['version']}, database {row['database']}, as {row['role']}"
    if row["number"] < OLDEST_SERVER:
        return Finding("database", "failed", f"{who} is too old", "upgrade PostgreSQL to 15 or later")
    if row["standby"]:
        mend = "name the primary, or add target_session_attrs=read-write to the address"
        return Finding("database", "failed", f"{who} is a standby", mend)
    return Finding("database", "ok", who)


async def _schema(dsn: str) -> Finding:
    import asyncio  # noqa: PLC0415

    from pgmail.store import migrate  # noqa: PLC0415 - with Alembic, it takes half a second to load

    try:
        state = await asyncio.to_thread(migrate.check, dsn)
    except Refused as error:  # this role may not read the version
        return Finding("schema", "skipped", f"cannot look: {error}")
    except PgmailError as error:
        return Finding("schema", "failed", str(error), "pgmail db check")
    if state.problem is not None:
        return Finding("schema", "failed", state.problem, "pgmail db upgrade")
    return Finding("schema", "ok", f"version {state.version}")


async def _tenant(connection: Connection, settings: Settings) -> Finding:
    (row,) = await _ask(connection, "tenant")
    if row["tenant_id"] is None:
        (server,) = await _ask(connection, "server")
        if server["role"] == f"{settings.role_prefix}api":
            return Finding("tenant", "ok", "speaks for the tenant of each API key")
        message = f"the database role {server['role']} speaks for no tenant"
        return Finding("tenant", "warning", message, f"pgmail tenant grant {server['role']} default")
    return Finding("tenant", "ok", f"speaks for tenant {row['tenant_id']}")


async def _roles(connection: Connection, settings: Settings) -> Finding:
    names = [settings.role_prefix + role for role in ROLES]
    have = {row["name"] for row in await _ask(connection, "roles", names=names)}
    if missing := [name for name in names if name not in have]:
        return Finding("roles", "warning", f"missing: {', '.join(missing)}", "pgmail db roles --sql | psql")
    return Finding("roles", "ok", f"all {len(names)} exist")


async def _partitions(connection: Connection, _: Settings) -> Finding:
    (row,) = await _ask(connection, "partitions")
    days, strays = row["days_left"], row["strays"]
    mend = "pgmail maintain (a running worker does it as well)"
    if days <= 0:
        return Finding("partitions", "failed", "none is left for new mail", mend)
    if strays:
        message = f"{strays} rows stand in the partitions of last resort"
        return Finding("partitions", "warning", message, mend)
    if days < LOW_DAYS:
        return Finding("partitions", "warning", f"only {days} days are made ahead", mend)
    return Finding("partitions", "ok", f"made {days} days ahead")


async def _retention(connection: Connection, _: Settings) -> Finding:
    (row,) = await _ask(connection, "retention")
    if row["overdue"]:
        message = (
            f"{row['overdue']} partitions should have gone a day ago; a lock, or unsettled mail, keeps them"
        )
        return Finding("retention", "warning", message, "pgmail retention show; pgmail dead list")
    days = {
        word: f"{row[word]} days" if row[word] else "for ever" for word in ("content_days", "record_days")
    }
    return Finding(
        "retention", "ok", f"content is kept {days['content_days']}, the record {days['record_days']}"
    )


async def _restore(connection: Connection, _: Settings) -> Finding:
    rows = await fetch_dicts(connection, queries("history")["fence"])
    if not rows:
        return Finding("restore", "ok", "nothing acknowledged is missing, as far as any process knows")
    message = f"all sending is stopped since {output.cell(rows[0]['noticed_at'])}: {rows[0]['reason']}"
    return Finding("restore", "failed", message, "pgmail resume --after-restore --dry-run")


async def _senders(connection: Connection, _: Settings) -> Finding:
    ask = queries("domains")
    for row in await fetch_dicts(connection, ask["missing"]):
        name = row["domain"]
        mend = f"publish the record (pgmail domain add {name} shows it), then pgmail domain verify {name}"
        if row["state"] == "failed":
            message = f"{name} lost its record and counts as verified no more: {row['answer']}"
            return Finding("senders", "failed", message, mend)
        message = f"{name} lost its record and counts until {row['counts_until']:%Y-%m-%d}: {row['answer']}"
        return Finding("senders", "warning", message, mend)
    for row in await fetch_dicts(connection, ask["rule"]):
        if row["senders"] == "any":
            message = f"tenant {row['name']} may send from any domain: with a key or a role, as anybody"
            mend = f"pgmail domain add DOMAIN, then pgmail tenant set {row['name']} --senders verified"
            return Finding("senders", "warning", message, mend)
    return Finding("senders", "ok", "only verified domains send")


async def _workers(connection: Connection, settings: Settings) -> Finding:
    rows = [row for row in await _ask(connection, "workers") if row["program"] == "worker"]
    silent = max(settings.silence_seconds, 10.0)
    alive = [row for row in rows if row["silent_seconds"] < silent]
    if not alive:
        message = "no worker is running" if not rows else f"none of {len(rows)} workers beats"
        return Finding("workers", "failed", f"{message}; mail waits", "pgmail worker")
    message = f"{len(alive)} alive, {sum(row['concurrency'] for row in alive)} emails at a time"
    if len(alive) < len(rows):
        return Finding("workers", "warning", f"{message}; {len(rows) - len(alive)} silent")
    return Finding("workers", "ok", message)


async def _staging(connection: Connection, _: Settings) -> Finding:
    rows = [row for row in await _ask(connection, "workers") if row["program"] == "worker"]
    found = {row["staging"] for row in rows}
    mend = "PGMAIL_REDIRECT_TO, PGMAIL_ALLOWED_RECIPIENTS, PGMAIL_SUBJECT_PREFIX of each worker"
    if len(found) > 1:
        each = ". ".join(f"worker {row['epoch']}: {row['staging'] or 'sends to everybody'}" for row in rows)
        return Finding("staging", "failed", f"workers differ in what they make of mail. {each}", mend)
    said = found.pop() if found else None
    if said is not None:
        return Finding("staging", "warning", f"mail is changed on its way: {said}", mend)
    return Finding("staging", "ok", "mail goes to its recipients, unchanged")


async def _leader(connection: Connection, _: Settings) -> Finding:
    epoch = await leader(connection)
    if epoch is None:
        return Finding(
            "leader", "failed", "nobody leads: nothing is rescued, woken or expired", "pgmail worker"
        )
    return Finding("leader", "ok", f"worker {epoch}")


async def _relays(connection: Connection, _: Settings) -> Finding:
    rows = await fetch_dicts(connection, queries("cli_operate")["relays"])
    for row in rows:
        if row["state"] == "paused":
            message = f"{row['name']} is paused by {row['changed_by']}: {row['reason'] or 'no reason given'}"
            return Finding("relays", "warning", message, f"pgmail resume --relay {row['name']}")
    for row in rows:
        if row["state"] == "away":
            message = f"{row['name']} does not answer: {row['reason'] or 'unreachable'}"
            return Finding("relays", "failed", message, "pgmail config show (PGMAIL_RELAY_URL)")
    return Finding("relays", "ok", ", ".join(row["name"] for row in rows))


async def _ledger(connection: Connection, _: Settings) -> Finding:
    (deep,) = await _ask(connection, "depth")
    if deep["n"] > MOST_COUNTED:
        message = f"not counted, for {deep['n']} mails wait; by hand: select * from pgmail.ledger"  # noqa: S608 - words
        return Finding("ledger", "ok", message)
    if rows := await _ask(connection, "ledger"):
        off = ", ".join(f"{row['tenant']} by {row['difference']}" for row in rows)
        return Finding("ledger", "failed", f"the books do not balance: {off}", "please report it")
    return Finding("ledger", "ok", "the books balance")


async def _mail(connection: Connection, _: Settings) -> tuple[Finding, ...]:
    """What is late, and what waits for a person's word: first what may have been sent, then dead, then held."""
    (row,), (dead,) = await _ask(connection, "waiting"), await _ask(connection, "dead")
    waiting = Finding("waiting", "ok", "no mail is late")
    if (row["oldest_seconds"] or 0) > LATE_SECONDS:
        message = f"mail has been due for {span(row['oldest_seconds'])}"
        waiting = Finding("waiting", "warning", message, "pgmail queue")
    counts = (
        (row["in_doubt"], "in doubt (may have been sent)", "pgmail doubt list"),
        (dead["n"], "dead letters", "pgmail dead list"),
        (max(row["held"] - row["in_doubt"], 0), "held by an operator or a limit", "GET /emails?state=held"),
    )
    if found := [(f"{n:,} {what}", mend) for n, what, mend in counts if n]:
        message = f"mail waits for a person's word: {', '.join(what for what, _ in found)}"
        return waiting, Finding("people", "warning", message, "; ".join(mend for _, mend in found))
    return waiting, Finding("people", "ok", "no mail waits for a person's word")


async def _quotas(connection: Connection, _: Settings) -> Finding:
    rows = await _ask(connection, "quotas")
    if closed := [row for row in rows if row["kind"] != "near"]:
        worst = next((row for row in closed if row["kind"] == "bound"), closed[0])
        message = f"tenant {worst['tenant']}: {worst['reason']}"
        status: Status = "failed" if worst["kind"] == "bound" else "warning"
        return Finding("quotas", status, message, "pgmail quota list")
    if rows:
        message = f"tenant {rows[0]['tenant']} has handed over {rows[0]['part']:.0%} of its bound of the day"
        mend = f"pgmail quota set --tenant {rows[0]['tenant']} --bound-mails N"
        return Finding("quotas", "warning", message, mend)
    (bound,) = await _ask(connection, "bound")
    each = [f"{bound['bound_mails']:,} emails"] if bound["bound_mails"] else []
    each += [f"{bound['bound_bytes'] / 2**30:,.0f} GiB"] if bound["bound_bytes"] else []
    return Finding(
        "quotas", "ok", f"no door is closed; a tenant's bound a day is {' and '.join(each) or 'none'}"
    )


def _clock(there: datetime, before: datetime, after: datetime) -> Finding:
    """Compare the server's clock with this host's, at the middle of the question's way."""
    skew = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
    low, high = SKEW_SECONDS
    message = f"this host's clock and the database's differ by {skew:.1f} s"
    if skew < low:
        return Finding("clock", "ok", message)
    return Finding(
        "clock", "failed" if skew > high else "warning", message, "set the clock of both hosts by NTP"
    )


# In the order of what stops most; what failed is shown before what is only remarked, each in this order.
_CHECKS: dict[str, Question] = {
    "tenant": _tenant,
    "roles": _roles,
    "restore": _restore,
    "workers": _workers,
    "leader": _leader,
    "relays": _relays,
    "server settings": doctor_database.settings_of,
    "partitions": _partitions,
    "transaction ids": doctor_database.wraparound,
    "connections": doctor_database.connections,
    "ledger": _ledger,
    "figures": doctor_alerts.figures,
    "alerts": doctor_alerts.firing,
    "oldest transaction": doctor_database.oldest,
    "dead rows": doctor_database.dead_rows,
    "replication": doctor_database.replication,
    "notify": doctor_database.notify,
    "alert targets": doctor_alerts.targets,
    "webhooks": doctor_alerts.webhooks,
    "waiting": _mail,
    "pauses": doctor_alerts.pauses,
    "certificates": doctor_alerts.certificates,
    "keys": doctor_alerts.keys,
    "retention": _retention,
    "senders": _senders,
    "staging": _staging,
    "quotas": _quotas,
}
