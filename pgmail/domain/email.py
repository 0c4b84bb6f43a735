"""An email as Python users write it, and the last step before a body goes to SQL.

`Email` mirrors the body of `POST /emails` (ops/docs/email.md) with two differences that Python forces: `from`
is a keyword, so the field is `sender`; and a moment may be an aware `datetime`.

What can go wrong: a `datetime` without a zone, or one that a change to daylight-saving time skips, has no one
meaning. Both are refused, never guessed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from pgmail.domain import when
from pgmail.domain.check_attachments import decode
from pgmail.errors import Refused


class Recipient(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of `to`, `cc` or `bcc`: `address` as `addr@domain`; `variables` only in personal mode."""

    address: str
    name: str | None = None
    variables: Mapping[str, Any] | None = None


class Attachment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A file sent along: with `content`, or by the name of a stored `asset`.

    `content` is bytes, or a string that is already base64. `content_type` defaults by filename. With
    `content_id` the file is inline and the HTML refers to it as `cid:...` (RFC 2392).
    """

    filename: str | None = None
    content: bytes | str | list[int] | None = None
    content_type: str | None = None
    content_id: str | None = None
    asset: str | None = None

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        filename: str | None = None,
        content_type: str | None = None,
        content_id: str | None = None,
    ) -> Self:
        """Read a local file; `filename` defaults to the path's last part. Raises OSError if it cannot."""
        path = Path(path)
        return cls(
            filename=filename or path.name,
            content=path.read_bytes(),
            content_type=content_type,
            content_id=content_id,
        )


class Email(msgspec.Struct, kw_only=True, omit_defaults=True, rename={"sender": "from"}):
    """One email to enqueue; the fields are the keys of the body, `sender` is its `from`.

    `scheduled_at` and `expires_at` are aware datetimes or strings; a field that is None is absent. Nothing is
    checked before `to_body` but that `sender` and `to` are given.
    """

    sender: str
    to: str | Recipient | Sequence[str | Recipient]
    cc: str | Recipient | Sequence[str | Recipient] | None = None
    bcc: str | Recipient | Sequence[str | Recipient] | None = None
    mode: str | None = None
    reply_to: str | Sequence[str] | None = None
    template: Mapping[str, Any] | None = None
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    variables: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    attachments: Sequence[Attachment] | None = None
    tags: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None
    metadata: Mapping[str, Any] | None = None
    stream: str | None = None
    priority: str | None = None
    scheduled_at: datetime | str | None = None
    expires_at: datetime | str | None = None
    on_limit: str | None = None
    idempotency_key: str | None = None
    test: bool | None = None
    traceparent: str | None = None

    def to_body(self) -> dict[str, Any]:
        """Return the body as JSON has it: only str, int, float, bool, None, dict and list.

        Dates, UUIDs and decimals in variables and metadata become strings. Raises `Refused`: `invalid_time`
        for a datetime that is naive or does not exist, `invalid_body` for a value that JSON cannot express.
        The law itself is for `check.check_email`.
        """
        body: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            key = field.encode_name
            if isinstance(value, datetime):
                value = _moment(value, key)
            elif key in {"to", "cc", "bcc"} and isinstance(value, Recipient):
                value = [value]
            try:
                # Bytes become base64, structs become objects without their empty fields.
                body[key] = msgspec.to_builtins(value, str_keys=True, order=None)
            except (TypeError, ValueError, RecursionError) as error:
                raise Refused("invalid_body", f"/{key}", f"a value is not JSON: {error}") from None
        return body


def prepare(body: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return the body as SQL takes it; `body`, which `check_email` has passed, is not changed.

    A `scheduled_at` in words becomes ISO 8601 in UTC, seen from the aware `now`; content given as bytes or as
    an array of octets (as Resend's SDK sends it) becomes base64. All else is the same object.
    """
    ready = dict(body)
    scheduled = body.get("scheduled_at")
    if isinstance(scheduled, str) and not when.is_iso(scheduled):
        ready["scheduled_at"] = _iso(when.parse(scheduled, now))
    attachments = body.get("attachments")
    if attachments:
        ready["attachments"] = [
            item
            if isinstance(item.get("content"), str | None)
            else {**item, "content": base64.b64encode(decode(item["content"])).decode("ascii")}
            for item in attachments
        ]
    return ready


def _moment(value: datetime, key: str) -> str:
    """Return an aware datetime as ISO 8601 in UTC."""
    if value.tzinfo is None or value.utcoffset() is None:
        because = "a datetime without a time zone; use datetime(..., tzinfo=...) or datetime.now(UTC)"
        raise Refused("invalid_time", f"/{key}", because)
    try:
        moment = value.astimezone(UTC)
        wall = moment.astimezone(value.tzinfo).replace(tzinfo=None, fold=0)
    except (OverflowError, ValueError):
        raise Refused("invalid_time", f"/{key}", "a datetime at the end of the calendar") from None
    if wall != value.replace(tzinfo=None, fold=0):
        because = (
            f"{value.replace(tzinfo=None).isoformat(' ')} does not exist in {value.tzinfo}: "
            "clocks skip it when daylight-saving time changes"
        )
        raise Refused("invalid_time", f"/{key}", because)
    return _iso(moment)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
