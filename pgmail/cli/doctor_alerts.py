"""What `pgmail doctor` checks of what people should know: what fires, who is told, what was forgotten, what ends.

And whether pages and alerts may be believed at all: where the leading process does not get to its work, they look calm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgmail.cli.doctor_finding import Finding, Status, ask, leader, minute, span

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.store.single import Connection

FORGOTTEN_SECONDS = 2 * 86_400.0
LATE_SECONDS = 300.0  # of figures; times what a kind of them takes at most in a deep queue


async def firing(connection: Connection, _: Settings) -> Finding:
    """What fires, the worst of it."""
    rows = await ask(connection, "alerts")
    if not rows:
        return Finding("alerts", "ok", "none fires")
    worst = rows[0]
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    who = f"tenant {worst['tenant']}: " if worst["tenant"] else ""
    status: Status = "failed" if worst["severity"] == "critical" else "warning"
    return Finding("alerts", status, f"{who}{worst['words']}{more}", f"pgmail alert show {worst['rule']}")


async def figures(connection: Connection, _: Settings) -> Finding:
    """Whether figures, webhooks and alerts know what happens, or stand still."""
    rows = await ask(connection, "reached")
    if not rows:
        return Finding("figures", "ok", "nobody has looked yet")
    worst = rows[0]
    if worst["seconds"] > LATE_SECONDS * worst["times"]:
        message = f"{worst['words']} since {minute(worst['at'])} ({span(worst['seconds'])})"
        if await leader(connection) is None:
            return Finding("figures", "failed", f"{message}: nobody leads", "pgmail worker")
        if worst["building"]:
            message += ": the index of events is not whole yet"
        mend = "the log of the process that leads says why (chore.failed, alert.blind)"
        return Finding("figures", "failed", message, mend)
    return Finding("figures", "ok", f"{span(max(row['seconds'] for row in rows))} old at most")


async def webhooks(connection: Connection, _: Settings) -> Finding:
    """Endpoints that fail, and those that were disabled for it."""
    rows = await ask(connection, "webhooks")
    if not rows:
        return Finding("webhooks", "ok", "none fails")
    worst = rows[0]
    what = "fails" if worst["enabled"] else "failed and is disabled: what happens is not kept for it;"
    message = f"{worst['url']} {what} since {minute(worst['failing_since'])}: {worst['reason']}"
    if len(rows) > 1:
        message += f" (and {len(rows) - 1} more)"
    id_ = worst["id"]
    mend = f"mend it, then pgmail webhook test {id_}"
    if not worst["enabled"]:
        mend = f"mend it, then pgmail webhook set {id_} --enable and pgmail webhook replay {id_}"
    if not worst["own"]:
        message, mend = f"tenant {worst['tenant']}: {message}", f"tell tenant {worst['tenant']}: {mend}"
    return Finding("webhooks", "warning" if worst["enabled"] else "failed", message, mend)


async def targets(connection: Connection, settings: Settings) -> Finding:
    """Whether anybody is told."""
    rows = await ask(connection, "targets")
    if not rows:
        message = "nobody is told of alerts"
        return Finding(
            "alert targets",
            "warning",
            message,
            "pgmail alert target add ops --slack URL (or --webhook, --email)",
        )
    for row in rows:
        if row["failing_since"] is not None:
            message = f"{row['name']} cannot be told since {minute(row['failing_since'])}: {row['answer']}"
            return Finding("alert targets", "failed", message, f"pgmail alert target test {row['name']}")
    by_email = all(row["kind"] == "email" for row in rows)
    if by_email and settings.alert_relay_url in {"", settings.relay_url} and len(settings.relays) == 1:
        message = "all are told by email, through the one relay that mail goes through: nobody hears when that is away"
        return Finding(
            "alert targets", "warning", message, "PGMAIL_ALERT_RELAY_URL, or a target of another kind"
        )
    return Finding("alert targets", "ok", ", ".join(row["name"] for row in rows))


async def pauses(connection: Connection, _: Settings) -> Finding:
    """What somebody paused without an end, days ago."""
    rows = await ask(connection, "pauses")
    for row in rows:
        if row["seconds"] > FORGOTTEN_SECONDS:
            since = f"for {span(row['seconds'])} by {row['paused_by']}: {row['reason']}"
            message = f"{row['scope']} {row['name']} is paused {since}"
            if row["scope"] == "tenant":
                return Finding("pauses", "warning", message, f"pgmail tenant resume {row['name']}")
            fleet = " --fleet" if row["fleet"] else ""
            return Finding(
                "pauses", "warning", message, f"pgmail resume --{row['scope']} {row['name']}{fleet}"
            )
    return Finding(
        "pauses", "ok", f"{len(rows)} without an end, none of them old" if rows else "none without an end"
    )


async def certificates(connection: Connection, _: Settings) -> Finding:
    """Certificates that end, or that cannot be seen."""
    rows = await ask(connection, "ends")
    if not rows:
        if unseen := await ask(connection, "unseen"):
            what, since = unseen[0]["what"], minute(unseen[0]["unseen_since"])
            message = f"that of {what} cannot be seen since {since}: {unseen[0]['answer']}"
            return Finding(
                "certificates", "warning", message, "mend that; it is looked at again twice an hour"
            )
        return Finding("certificates", "ok", "none that was seen ends within three weeks")
    days, mend = rows[0]["days"], "renew it; the API reads its own at its next start"
    if days < 0:
        return Finding("certificates", "failed", f"that of {rows[0]['what']} has ended", mend)
    return Finding("certificates", "warning", f"that of {rows[0]['what']} ends in {days:.0f} days", mend)


async def keys(connection: Connection, _: Settings) -> Finding:
    """API keys that end and that nothing replaced."""
    rows = await ask(connection, "keys")
    if not rows:
        return Finding("keys", "ok", "none ends within a week")
    message = f"the API key {rows[0]['name']!r} ends in {rows[0]['days']:.0f} days"
    return Finding("keys", "warning", message, f"pgmail key rotate {rows[0]['id']}")
