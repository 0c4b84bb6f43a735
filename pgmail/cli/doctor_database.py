"""What `pgmail doctor` checks of the server: settings that mail hangs on, who keeps dead rows, what fills up.

What can go wrong: this role may not see what others do. PostgreSQL then shows who they are and not since when; the
checks say what they can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgmail.cli.doctor_finding import Finding, Status, ask, span

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.store.single import Connection

OLD_SECONDS = (300.0, 1_800.0)  # of a snapshot: a remark, a failure
DEAD_ROWS = (100_000, 1_000_000)
NOTIFY_SHARE = (0.1, 0.5)
XID_AGE = (500_000_000, 1_200_000_000)
LAG_SECONDS = 60.0
KEPT_BYTES = (1 << 30, 10 << 30)
USED_SHARE = 0.9
_ALTER = "alter system set {} = {}; select pg_reload_conf()"


async def settings_of(connection: Connection, _: Settings) -> Finding:
    """Whether what was committed is still there after a crash, and whether dead rows are ever removed."""
    (row,) = await ask(connection, "server_settings")
    check = "server settings"
    for name in ("fsync", "full_page_writes"):
        if not row[name]:
            message = (
                f"{name} is off: a crash of the host may break the database, and lose mail or send it twice"
            )
            return Finding(check, "failed", message, _ALTER.format(name, "on"))
    for name in ("autovacuum", "track_counts"):
        if not row[name]:
            message = f"{name} is off: the queue grows slower with each mail"
            return Finding(check, "failed", message, _ALTER.format(name, "on"))
    if row["synchronous_commit"] == "off":
        message = "synchronous_commit is off: mail that was acknowledged may be lost with a crash"
        return Finding(check, "failed", message, _ALTER.format("synchronous_commit", "on"))
    return Finding(check, "ok", "what is committed stays, and dead rows are removed")


async def connections(connection: Connection, settings: Settings) -> Finding:
    """Whether this host's processes fit into what the server lets in."""
    (row,) = await ask(connection, "server_settings")
    workers = settings.worker_processes * (settings.worker_pool_size + 1)
    api = settings.api_processes * settings.api_pool_size
    free = row["max_connections"] - row["reserved"]
    said = (
        f"{row['used']} of {row['max_connections']} in use; this host takes up to {workers} and {api} (API)"
    )
    mend = "PGMAIL_WORKER_POOL_SIZE, PGMAIL_API_POOL_SIZE, or a pooler (ops/docs/database.md)"
    if row["used"] > USED_SHARE * free:
        return Finding("connections", "failed", said, mend)
    if workers + api > free:
        return Finding("connections", "warning", f"{said}: more than there are", mend)
    return Finding("connections", "ok", said)


async def oldest(connection: Connection, _: Settings) -> Finding:
    """Who keeps dead rows from being removed."""
    (row,) = await ask(connection, "snapshot")
    seconds, (low, high) = row["seconds"] or 0.0, OLD_SECONDS
    if row["who"] is None or seconds < low:
        return Finding("oldest transaction", "ok", "no transaction is old")
    message = f"dead rows are kept for {span(seconds)} by {row['who']}"
    return Finding("oldest transaction", "failed" if seconds > high else "warning", message, row["mend"])


async def dead_rows(connection: Connection, _: Settings) -> Finding:
    """Whether hot tables are more dead than alive, and whether anybody cleans them."""
    rows = await ask(connection, "tables")
    if off := [row["name"] for row in rows if row["off"]]:
        mend = f"alter table pgmail.{off[0]} reset (autovacuum_enabled)"
        return Finding("dead rows", "failed", f"autovacuum is off for {', '.join(off)}", mend)
    low, high = DEAD_ROWS
    for row in rows:
        if row["dead"] > low and row["dead"] > row["living"]:
            message = f"{row['name']} holds {row['dead']:,} dead rows beside {row['living']:,} living ones"
            status: Status = "failed" if row["dead"] > high else "warning"
            mend = f"vacuum pgmail.{row['name']}; then see 'oldest transaction'"
            return Finding("dead rows", status, message, mend)
    return Finding("dead rows", "ok", "hot tables are clean")


async def wraparound(connection: Connection, _: Settings) -> Finding:
    """How far the database is from the end of its transaction ids."""
    (row,) = await ask(connection, "server_settings")
    age, (low, high) = row["xid_age"], XID_AGE
    message = f"the oldest transaction id is {age:,} transactions old, of 2,100,000,000"
    if age < low:
        return Finding("transaction ids", "ok", message)
    return Finding("transaction ids", "failed" if age > high else "warning", message, "vacuum (freeze)")


async def replication(connection: Connection, _: Settings) -> Finding:
    """Whether standbys keep up, and whether slots keep too much."""
    rows = await ask(connection, "replicas")
    low, high = KEPT_BYTES
    for row in rows:
        kept = row["kept_bytes"] or 0.0
        if row["kind"] == "slot" and kept > (high if row["active"] else low):
            what = "is behind" if row["active"] else "is used by nobody"
            message = f"the slot {row['name']} {what} and keeps {kept / 2**30:.1f} GiB of WAL"
            mend = f"start its standby again, or: select pg_drop_replication_slot('{row['name']}')"
            return Finding("replication", "warning" if row["active"] else "failed", message, mend)
    for row in rows:
        if (row["lag_seconds"] or 0.0) > LAG_SECONDS:
            message = f"the standby {row['name']} lags {span(row['lag_seconds'])} behind"
            return Finding("replication", "warning", message, "see its log, and the network between")
    standbys = sum(row["kind"] == "standby" for row in rows)
    return Finding("replication", "ok", f"{standbys} standbys" if rows else "no standby")


async def notify(connection: Connection, settings: Settings) -> Finding:
    """Whether wake-ups pass."""
    (row,) = await ask(connection, "server_settings")
    share, (low, high) = row["notify_share"], NOTIFY_SHARE
    if share > low:
        message = (
            f"the queue of NOTIFY is {share:.0%} full: a session that listens sits in a long transaction"
        )
        return Finding("notify", "failed" if share > high else "warning", message, "see 'oldest transaction'")
    if not settings.notify:
        message = f"PGMAIL_NOTIFY is off: mail waits up to {settings.poll_interval_ms} ms for the next look"
        return Finding("notify", "ok", message)
    return Finding("notify", "ok", "the queue of NOTIFY is empty" if not share else f"{share:.1%} full")
