"""What an application hands over, as the body that SQL takes: the last stop before the database.

An email comes as an `Email`, as a mapping with the keys of `POST /emails`, or as keyword arguments; one that
breaks the law is refused here, before the caller's transaction is touched. Texts that are templates (there
are `variables`) are compiled as well, since SQL cannot.

What can go wrong: a clock that is not the database's. Times are judged here by this host's clock and in SQL
by the server's, which has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from pgmail.domain import when
from pgmail.domain.check import check_email
from pgmail.domain.email import Email, prepare
from pgmail.errors import Refused, TemplateFault

KEPT_CHARS = 50_000  # larger texts are compiled anew each time, so that what is kept stays small

_FIELDS = {field: "from" if field == "sender" else field for field in Email.__struct_fields__}
_KEYS = {key: field for field, key in _FIELDS.items()}


def checked(email: object, now: datetime) -> dict[str, Any]:
    """Return the body of an email, ready for SQL. Raises `Refused` with its first fault."""
    return prepared(_body(email), now)


def prepared(body: Any, now: datetime, *, keyed: bool = False) -> dict[str, Any]:
    """Return a body as JSON has it, ready for SQL; as `checked`. `keyed`: it comes under a key beside the body."""
    try:
        check_email(body, now=now)
    except Refused as fault:
        # Under a key it may be a repetition, whose first time was good: SQL knows.
        if fault.code != "time_in_past" or not (keyed or body.get("idempotency_key")):
            raise
    check_inline(body)
    return prepare(body, now)


def from_keywords(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments (`sender`, `to`, ...) as a mapping with the keys of a body."""
    return {_FIELDS.get(name, name): value for name, value in fields.items()}


def moment(at: datetime | str, now: datetime) -> str:
    """Return the moment of `scheduled_at` as ISO 8601 in UTC. Raises `Refused` (`invalid_time`)."""
    if isinstance(at, datetime):
        written: str = Email(sender="", to="", scheduled_at=at).to_body()["scheduled_at"]
        return written
    try:
        return when.parse(at, now).isoformat()
    except (ValueError, TypeError) as error:
        raise Refused("invalid_time", "/scheduled_at", str(error)) from None


def check_inline(body: Mapping[str, Any]) -> None:
    """Compile the texts of a body that brings its own templates; `body` is one that `check_email` passed.

    Raises `Refused`: `invalid_template` at `/subject`, `/text` or `/html`, and `missing_variable` at
    `/variables` for the first name, in alphabetical order, that a rendering certainly needs and that
    neither the shared variables nor each recipient's own give.
    """
    if body.get("variables") is None or body.get("template") is not None:
        return
    try:
        texts = body.get("subject"), body.get("text"), body.get("html")
        kept = sum(map(len, filter(None, texts))) <= KEPT_CHARS
        required = (_required if kept else _required.__wrapped__)(*texts)
    except TemplateFault as fault:
        where = f"line {fault.line}: " if fault.line else ""
        raise Refused("invalid_template", f"/{fault.part}", where + fault.message) from fault
    given = body["variables"].keys() | _given_to_all(body.get("to"))
    if missing := sorted(required - given):
        raise Refused("missing_variable", "/variables", f"the template needs {missing[0]!r}")


@lru_cache(maxsize=256)
def _required(subject: str | None, text: str | None, html: str | None) -> frozenset[str]:
    """Names that a rendering certainly needs. Kept: an application sends few texts with many variables."""
    from pgmail.render.templates import Source, check_between  # noqa: PLC0415 - most mail needs no compiler

    return check_between(Source(subject=subject, text=text, html=html))


def _given_to_all(people: object) -> set[str]:
    """The names of variables that every one of `to` brings."""
    if isinstance(people, Mapping):
        people = [people]
    if not isinstance(people, list):
        return set()
    own = [set(person.get("variables") or ()) if isinstance(person, Mapping) else set() for person in people]
    return set.intersection(*own) if own else set()


def _body(email: object) -> Any:
    """Only what JSON knows, whatever it came as. What is no email at all is left for the law to refuse."""
    if isinstance(email, Email):
        return email.to_body()
    if not isinstance(email, Mapping):
        return email
    known = {_KEYS[key]: value for key, value in email.items() if key in _KEYS}
    unknown = {str(key): None for key in email if key not in _KEYS}
    return Email(**({"sender": None, "to": None} | known)).to_body() | unknown
