"""The Python client: hand mail over in the transaction that the application is in.

    pgmail.send(connection, sender="shop@example.com", to="ada@example.org", subject="Hi", text="Hello")

`connection` is whatever the application uses: psycopg, asyncpg, SQLAlchemy (Connection, Session, and their
asynchronous forms) or Django's `connection`. Nothing is committed: roll back, to a savepoint too, and nothing
is sent. On an asynchronous connection each of these returns an awaitable of what is documented.

What can go wrong: an email that breaks the law is `Refused`, mostly here and before the database hears of it,
so the transaction goes on. What only the database can know (an unknown stream or template, a key used with
another body) it refuses itself; the transaction then needs a rollback, to a savepoint at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from pgmail import sqlfiles
from pgmail.client_bodies import checked, from_keywords, moment
from pgmail.client_drivers import ask
from pgmail.client_seal import Seal, Sealer, sealing
from pgmail.domain.check import check_idempotency_key
from pgmail.domain.email import Email
from pgmail.errors import Refused

MAX_BATCH = 10_000  # emails in one call, as in SQL


class Sent(msgspec.Struct, frozen=True):
    """What became of one email of `send_many`: an `id`, or the fault it was left out for."""

    position: int  # from 0
    id: UUID | None
    code: str | None = None
    field: str | None = None  # a JSON pointer into that email
    message: str | None = None


class Change(msgspec.Struct, frozen=True):
    """How many recipients a `cancel` or `reschedule` reached in time, and for how many it came too late.

    `status` is `cancelled`, `partly_cancelled`, `rescheduled`, `partly_rescheduled` or `too_late`.
    """

    status: str
    reached: int
    too_late: int


class Standing(msgspec.Struct, frozen=True):
    """Where one recipient stands; ops/docs/lifecycle.md has the states. Times are aware."""

    recipient_id: UUID
    message_id: UUID
    address: str
    role: str
    phase: str
    state: str
    attempts: int | None
    due_at: datetime | None
    changed_at: datetime | None
    code: int | None
    enhanced: str | None
    reply: str | None
    reason: str | None


def send(
    connection: Any,
    email: Email | Mapping[str, Any] | None = None,
    /,
    *,
    seal: Sealer | None = None,
    **fields: Any,
) -> Any:
    """Enqueue one email and return its id, a UUID.

    It comes as an `Email`, as a mapping with the keys of `POST /emails`, or as keyword arguments named as
    the fields of `Email`. `seal` seals it where its stream asks for that. Raises `Refused`.
    """
    if email is not None and fields:
        raise TypeError("give an email or keyword arguments, not both")
    body = checked(from_keywords(fields) if email is None else email, _now())
    return sealing(
        connection, seal, lambda sealed: ask(connection, _query("send"), [_json(sealed(body))], UUID)
    )


def send_many(
    connection: Any,
    emails: Iterable[Email | Mapping[str, Any]],
    strict: bool = True,
    idempotency_key: str | None = None,
    *,
    seal: Sealer | None = None,
) -> Any:
    """Enqueue up to 10,000 emails in one statement and return a list of `Sent`, one for each, in their order.

    `strict`: the first fault refuses them all, its field led by the position (`/2/to/0`). Otherwise the good
    ones are enqueued and each bad one has its fault. `idempotency_key` holds for the whole batch: sent again
    with the same emails it answers the same ids. `seal` as for `send`. Raises
    `Refused`.
    """
    check_idempotency_key(idempotency_key)
    if isinstance(emails, str | bytes | Mapping | Email) or not isinstance(emails, Iterable):
        raise Refused("invalid_body", "", "a batch is a list of emails")
    batch = list(emails)
    if len(batch) > MAX_BATCH:
        raise Refused("batch_too_large", "", f"{len(batch)} emails; at most {MAX_BATCH:,} at once", 413)
    bodies: list[dict[str, Any]] = []
    places: list[int] = []
    answers: list[Sent | None] = [None] * len(batch)
    now = _now()
    for position, email in enumerate(batch):
        try:
            bodies.append(checked(email, now))
        except Refused as refused:
            if strict:
                raise Refused(
                    refused.code, f"/{position}{refused.field}", refused.message, refused.status
                ) from refused
            answers[position] = Sent(position, None, refused.code, refused.field, refused.message)
        else:
            places.append(position)

    def read(answer: str) -> list[Sent]:
        for sent, position in zip(msgspec.json.decode(answer, type=list[Sent]), places, strict=True):
            answers[position] = msgspec.structs.replace(sent, position=position)
        return [sent for sent in answers if sent is not None]

    def act(sealed: Seal) -> Any:
        # A fault of SQL's names the position among those that came through here.
        params = [_json([sealed(body) for body in bodies]), "true" if strict else "false", idempotency_key]
        return ask(connection, _query("send_many"), params, read)

    return sealing(connection, seal, act)


def cancel(connection: Any, id: UUID | str, reason: str | None = None) -> Any:
    """Cancel what was not sent yet of an email (or of one recipient) and return a `Change`.

    It never waits for a worker: what is being sent counts as too late. Raises `Refused` (`not_found`).
    """
    return ask(connection, _query("cancel"), [_id(id), reason], _change)


def reschedule(connection: Any, id: UUID | str, at: datetime | str) -> Any:
    """Move what was not sent yet to `at` and return a `Change`.

    `at` is an aware datetime, or a text as in `scheduled_at`. Raises `Refused`: `not_found`, `invalid_time`,
    `time_in_past`, `time_too_far`.
    """
    return ask(connection, _query("reschedule"), [_id(id), moment(at, _now())], _change)


def status(connection: Any, id: UUID | str) -> Any:
    """Return a list of `Standing`, one for each recipient of an email (or the one of a recipient's id).

    Raises `Refused` (`not_found`, 404) for an id that this tenant does not have.
    """
    return ask(connection, _query("status"), [_id(id)], _standings)


def _query(name: str) -> sqlfiles.Query:
    return sqlfiles.queries("client")[name]


def _id(id: UUID | str) -> str:
    try:
        return str(id if isinstance(id, UUID) else UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise Refused("not_found", "/id", "not a UUID, and so no email's id", 404) from None


def _now() -> datetime:
    return datetime.now(UTC)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _change(answer: str) -> Change:
    found = msgspec.json.decode(answer, type=dict[str, Any])
    status, too_late = found.pop("status"), found.pop("too_late")
    return Change(status, sum(found.values()), too_late)


def _standings(answer: str) -> list[Standing]:
    return msgspec.json.decode(answer, type=list[Standing])
