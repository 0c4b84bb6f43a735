"""What is told of an alert, in the shape of each kind of target: JSON, Slack's blocks, an email.

All of it is made of a row of `alert_take_v1`, at the moment of telling. What can go wrong: words that somebody else
chose (a pause's reason, a reply) in a place where they mean something. They are escaped for Slack; an email is plain
text with headers made by the standard library; JSON is JSON.
"""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

import msgspec

_SIGNS = {"firing": "FIRING", "reminder": "STILL FIRING", "resolved": "RESOLVED", "test": "TEST"}
_TEST_WORDS = "This is a test of an alert target of pgmail; nothing is wrong."


def words_of(row: Any) -> str:
    """Say it in a sentence or two; of what is over the database says it in the past."""
    return _TEST_WORDS if row.event == "test" else str(row.words)


def title_of(row: Any) -> str:
    """Say in a line what it is about: `FIRING oldest_due broadcast (tenant shop)`."""
    if row.event == "test":
        return f"{_SIGNS['test']} of {row.target}"
    parts = [_SIGNS[row.event], row.rule, row.subject, f"(tenant {row.tenant})" if row.tenant else ""]
    return " ".join(part for part in parts if part)


def link_of(row: Any, public_url: str) -> str | None:
    """Return the address of the page that shows it; None where nobody said where the dashboard is."""
    return f"{public_url.rstrip('/')}/dashboard{row.path or '/alerts'}" if public_url else None


def webhook(row: Any, public_url: str) -> bytes:
    """Return the body of a webhook's call: an object whose shape stays as it is."""
    event = "alert.test" if row.event == "test" else f"alert.{row.event}"
    alert = None
    if row.alert_id is not None:
        alert = {
            "id": str(row.alert_id),
            "rule": row.rule,
            "subject": row.subject,
            "tenant": row.tenant,
            "severity": row.severity,
            "value": row.value,
            "threshold": row.threshold,
            "since": _moment(row.since),
            "fired_at": _moment(row.fired_at),
            "resolved_at": _moment(row.resolved_at),
        }
    return msgspec.json.encode(
        {
            "type": event,
            "timestamp": _moment(row.made_at),
            "words": words_of(row),
            "link": link_of(row, public_url),
            "alert": alert,
        }
    )


def signed(row: Any, body: bytes, secret: str, now: datetime) -> dict[str, str]:
    """Return the headers of a webhook's call, signed as Standard Webhooks has it: HMAC-SHA256 of id.timestamp.body.

    `secret` is `whsec_` and base64, else its octets are the key. Without one nothing is signed.
    """
    stamp = str(int(now.timestamp()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "pgmail",
        "webhook-id": str(row.id),
        "webhook-timestamp": stamp,
    }
    if secret:
        try:
            key = (
                base64.b64decode(secret.removeprefix("whsec_"), validate=True)
                if secret.startswith("whsec_")
                else b""
            )
        except ValueError:
            key = b""
        digest = hmac.digest(key or secret.encode(), f"{row.id}.{stamp}.".encode() + body, "sha256")
        headers["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
    return headers


def slack(row: Any, public_url: str) -> bytes:
    """Return what Slack's incoming webhooks take, and those of others that are shaped like them."""
    title, said, link = _slack_text(title_of(row)), _slack_text(words_of(row)), link_of(row, public_url)
    section = f"*{title}*\n{said}" + (f"\n<{link}|Look>" if link else "")
    context = (
        f"severity {row.severity} · since {_minute(row.since)}" if row.alert_id is not None else "pgmail"
    )
    body = {
        "text": f"{title}: {said}",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": section[:3000]}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": context}]},
        ],
    }
    return msgspec.json.encode(body)


def email(row: Any, sender: str, recipient: str, public_url: str, now: datetime) -> bytes:
    """Return an email about it, with CRLF line ends. All of one alert share a thread (RFC 5322, section 3.6.4)."""
    made = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    host = sender.rpartition("@")[2]
    made["From"] = f"pgmail <{sender}>"
    made["To"] = recipient
    made["Subject"] = f"[pgmail] {' '.join(title_of(row).split())}"[:200]
    made["Date"] = format_datetime(now.astimezone(UTC))
    made["Message-ID"] = f"<{row.id.hex}@{host}>"
    if row.alert_id is not None:
        made["References"] = f"<{row.alert_id.hex}@{host}>"
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's vacation answers
    lines = [words_of(row), ""]
    if row.alert_id is not None:
        facts = {
            "rule": row.rule,
            "about": row.subject,
            "tenant": row.tenant,
            "severity": row.severity,
            "since": _minute(row.since),
            "over since": _minute(row.resolved_at),
        }
        lines += [f"{name}: {value}" for name, value in facts.items() if value]
    if link := link_of(row, public_url):
        lines += ["", link]
    if row.alert_id is not None and row.event != "resolved":
        lines += [
            "",
            f"To be quiet about it for a while: pgmail alert silence {row.rule} --until ... --reason ...",
        ]
    made.set_content("\n".join(lines) + "\n")
    return made.as_bytes()


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _minute(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
