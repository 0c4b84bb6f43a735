"""What `pgmail doctor` checks of what people should know: what fires, who is told, what was forgotten, what ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgmail.cli.doctor_finding import Finding, Status, ask, span

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.store.single import Connection

FORGOTTEN_SECONDS = 2 * 86_400.0


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


async def targets(connection: Connection, _: Settings) -> Finding:
    """Whether anybody is told."""
    rows = await ask(connection, "targets")
    if not rows:
        message = "nobody is told of alerts"
        return Finding(
            "alert targets", "warning", message, "pgmail alert target add ops --email you@example.com"
        )
    for row in rows:
        if row["failing_since"] is not None:
            message = f"{row['name']} cannot be told since {row['failing_since']:%Y-%m-%d %H:%M} UTC: {row['answer']}"
            return Finding("alert targets", "failed", message, f"pgmail alert target test {row['name']}")
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
    """Certificates that end."""
    rows = await ask(connection, "ends")
    if not rows:
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
    return Finding("keys", "warning", message, "pgmail key rotate ID (pgmail key list has the ids)")
