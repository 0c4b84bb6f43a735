"""Rows as JSON: an email in Resend's shape with pgmail's own keys beside it, events, dead letters.

What can go wrong: Resend tells one state an email, pgmail one a recipient. `last_event` is the state of the
recipient that changed last, in Resend's words; `recipients` tells them all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pgmail.domain import when
from pgmail.domain.states import State
from pgmail.errors import Refused

Shape = dict[str, Any]

_EVENTS: Mapping[State, str] = {
    State.SCHEDULED: "scheduled",
    State.QUEUED: "queued",
    State.SENDING: "queued",
    State.DEFERRED: "delivery_delayed",
    State.HELD: "queued",
    State.SENT: "sent",
    State.BOUNCED: "bounced",
    State.SUPPRESSED: "suppressed",
    State.EXPIRED: "failed",
    State.CANCELLED: "canceled",
    State.DEAD: "failed",
}
_PRIORITIES = {1: "high", 2: "normal", 3: "low"}
_PLAIN = re.compile(r"[^\x00-\x1f\"(),.:;<>@\[\]\\]+")  # needs no quotes before <address>


def moment(at: datetime | None) -> str | None:
    """Return a moment as ISO 8601 in UTC."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def read_moment(text: str, field: str) -> datetime:
    """Return the moment of a body's key: ISO 8601, or a phrase as for `scheduled_at`. Refused `invalid_time`."""
    try:
        return when.parse(text, datetime.now(UTC))
    except ValueError as error:
        raise Refused("invalid_time", f"/{field}", str(error)) from None


def coming(text: str | None, field: str) -> datetime | None:
    """Return a moment of a body that is yet to come, ISO 8601. Refused `invalid_time`, `time_in_past`."""
    if text is None:
        return None
    try:
        at = when.parse_iso(text)
    except ValueError as error:
        raise Refused("invalid_time", f"/{field}", str(error)) from None
    if at <= datetime.now(UTC):
        raise Refused("time_in_past", f"/{field}", "it has passed")
    return at


def listed(data: list[Shape], *, more: bool = False) -> Shape:
    """Return a list as Resend's API has it."""
    return {"object": "list", "data": data, "has_more": more}


def mailbox(address: str, name: str | None) -> str:
    """Return `Name <address>`, the name quoted where it must be (RFC 5322, section 3.4)."""
    if not name:
        return address
    if not _PLAIN.fullmatch(name):
        name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{name} <{address}>"


def last_event(state: str) -> str:
    """Return Resend's word for a state."""
    return _EVENTS[State(state)]


def email(message: Any, content: Shape, recipients: list[Any], *, closed: bool) -> Shape:
    """Return one email in full: a row of `message`, its content, and its rows of `recipients`.

    `closed`: its texts are sealed, and are not in `content`.
    """
    people = [{"role": row.role, "address": row.rcpt, "name": row.name} for row in recipients]
    newest = max(recipients, key=lambda row: (row.changed_at, -row.recipient_id.int))
    return {
        **_head(message, content, people),
        "sealed": closed,
        "html": content.get("html"),
        "text": content.get("text"),
        "headers": content.get("headers") or {},
        "last_event": last_event(newest.state),
        "variables": content.get("variables"),
        "metadata": message.metadata,
        "recipients": [_recipient(row) for row in recipients],
        "test": message.test,
        "replay_of": None if message.replay_of is None else str(message.replay_of),
    }


def email_item(row: Any) -> Shape:
    """Return one email of a list; `to`, `cc` and `bcc` hold 50 addresses at most, `states` counts all."""
    return {
        **_head(row, row.content, row.people or []),
        "sealed": row.key_id is not None,
        "last_event": last_event(row.last_state),
        "states": dict(Counter(row.states)),
    }


def event(row: Any) -> Shape:
    """Return one event of a journey."""
    return {
        "object": "event",
        "id": str(row.event_id),
        "type": row.type,
        "created_at": moment(row.at),
        "recipient_id": str(row.recipient_id),
        "address": row.address,
        "attempt": row.attempt,
        "code": row.code,
        "enhanced": row.enhanced,
        "reply": row.reply,
        "phase": row.phase,
        "relay": row.relay,
        "remote_host": row.remote_host,
        "tls": row.tls,
        "ms": row.ms,
        "worker": row.worker,
        "detail": row.detail,
    }


def dead_letter(row: Any) -> Shape:
    """Return one dead letter; `id` is the recipient's."""
    return {
        "object": "dead_letter",
        "id": str(row.recipient_id),
        "email_id": str(row.message_id),
        "address": row.address,
        "stream": row.stream,
        "site": row.site,
        "died_at": moment(row.died_at),
        "reason": row.reason,
        "error": row.error,
        "attempts": row.attempts,
        "code": row.code,
        "enhanced": row.enhanced,
        "reply": row.reply,
    }


def doubt(row: Any) -> Shape:
    """Return one mail that is held in doubt; `id` is the recipient's."""
    return {
        "object": "in_doubt",
        "id": str(row.recipient_id),
        "email_id": str(row.message_id),
        "address": row.address,
        "stream": row.stream,
        "site": row.site,
        "since": moment(row.since),
        "attempt": row.attempt,
        "relay": row.relay,
        "remote_host": row.remote_host,
        "worker": row.worker,
        "reason": row.reason,
        "error": row.error,
    }


def _head(row: Any, content: Shape, people: Iterable[Mapping[str, str | None]]) -> Shape:
    """Return what a list and a single email tell alike."""
    shown: dict[str, list[str]] = {"to": [], "cc": [], "bcc": []}
    for person in people:
        shown[str(person["role"])].append(mailbox(str(person["address"]), person["name"]))
    sender = content.get("from", {"address": row.sender})
    return {
        "object": "email",
        "id": str(row.id),
        "from": mailbox(sender["address"], sender.get("name")),
        "to": shown["to"],
        "cc": shown["cc"],
        "bcc": shown["bcc"],
        "reply_to": [mailbox(item["address"], item.get("name")) for item in content.get("reply_to", [])],
        "subject": content.get("subject"),
        "created_at": moment(row.created_at),
        "scheduled_at": moment(row.scheduled_at),
        "expires_at": moment(row.expires_at),
        "tags": [{"name": name, "value": value} for name, value in (row.tags or {}).items()],
        "stream": row.stream,
        "priority": _PRIORITIES[row.priority],
        "mode": row.mode,
        "template": None if row.template is None else {"id": row.template, "version": row.template_version},
        "size_bytes": row.size_bytes,
    }


def _recipient(row: Any) -> Shape:
    return {
        "id": str(row.recipient_id),
        "address": row.address,
        "role": row.role,
        "phase": row.phase,
        "state": row.state,
        "attempts": row.attempts,
        "due_at": moment(row.due_at),
        "changed_at": moment(row.changed_at),
        "code": row.code,
        "enhanced": row.enhanced,
        "reply": row.reply,
        "reason": row.reason,
    }
