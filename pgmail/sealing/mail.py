"""What of an email is sealed, and how it is put together again.

Sealed are subject, texts, headers, variables, the names of files and the files. Open stand who it is from, to and
for, the template's name, tags and metadata: what people search by, and what the queue needs. The law judges the
plain body in the database; the sealed form goes along under the key `sealed` and is what is stored
(sql/functions/033_seal.sql). So these two must know the same: which keys are texts, and in which order files come.

What can go wrong: sealed octets are of another mail, cut, or changed (SealBroken). Or who sealed them put something
else in than the plain body that was judged: SQL cannot look inside. So what is opened adds nothing but what may be
sealed, and is judged again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from pgmail.domain import address, ids
from pgmail.domain.check_attachments import check_attachments
from pgmail.domain.check_content import check_headers, check_subject
from pgmail.errors import Refused, SealBroken
from pgmail.sealing.box import keyed_hash, place, seal, unseal

TEXTS = ("subject", "text", "html", "headers")
_SECRET = (*TEXTS, "variables", "filenames")
_NOT_HASHED = frozenset({"idempotency_key", "scheduled_at", "expires_at", "traceparent", "sealed"})
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.decode


class DataKey(NamedTuple):
    """A tenant's data key, opened. `hash_key` is the tenant's first one, which stays the same over rotations."""

    tenant: int
    id: int
    key: bytes
    hash_key: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.tenant}, {self.id})"


def sealed(body: Mapping[str, Any], data_key: DataKey, now: datetime) -> dict[str, Any]:
    """Return a body, ready for SQL, with its sealed form in it. `now` is the server's time, for its id.

    The body must obey the law, or be refused by it: nothing here finds a fault.
    """
    message = ids.make(now)
    key, tenant = data_key.key, data_key.tenant
    secret: dict[str, Any] = {name: body[name] for name in TEXTS if body.get(name) is not None}
    if (variables := _variables(body)) is not None:
        secret["variables"] = variables
    files = body.get("attachments")
    form: dict[str, Any] = {"tenant": tenant, "id": str(message), "key": data_key.id}
    if isinstance(files, list) and files:
        secret["filenames"] = [_filename(file) for file in files]
        form["attachments"] = [
            None
            if (octets := _octets(file)) is None
            else _text(seal(key, octets, place(tenant, message, f"attachment {at}")))
            for at, file in enumerate(files, start=1)
        ]
    if own := _own_variables(body.get("to")):
        form["variables"] = {
            who: _text(seal(key, _encode(given), place(tenant, message, f"variables {who}")))
            for who, given in own.items()
        }
    form["content"] = _text(seal(key, _encode(secret), place(tenant, message, "content")))
    hashed = {name: value for name, value in body.items() if name not in _NOT_HASHED and value is not None}
    form["hash"] = _text(keyed_hash(data_key.hash_key, _encode(hashed)))
    return {**body, "sealed": form}


def open_content(content: bytes, key: bytes, tenant: int, message: UUID) -> dict[str, Any]:
    """Return a sealed `message.content` as the same mail would have it unsealed, and `filenames`. Raises SealBroken."""
    try:
        found = _decode(content, type=dict[str, Any])
        octets = base64.b64decode(found.pop("sealed"), validate=True)
    except (msgspec.MsgspecError, KeyError, TypeError, binascii.Error, ValueError):
        raise SealBroken("the sealed content cannot be read") from None
    found.pop("headers", None)
    plain = unseal(key, octets, place(tenant, message, "content"))
    try:
        secret = _decode(plain, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SealBroken("what was sealed is no content of an email") from None
    # Who it is from and to stands open and was judged: a sealed `from` would put another sender over it.
    secret = {name: secret[name] for name in _SECRET if secret.get(name) is not None}
    _judge(secret)
    return found | secret


def open_variables(variables: bytes, key: bytes, tenant: int, message: UUID, who: str) -> bytes:
    """Return a recipient's own variables, as JSON. `who` is the address, normalised. Raises SealBroken."""
    return unseal(key, variables, place(tenant, message, f"variables {who}"))


def open_attachment(body: bytes, key: bytes, tenant: int, message: UUID, position: int) -> bytes:
    """Return the octets of a file; `position` counts from 1. Raises SealBroken."""
    return unseal(key, body, place(tenant, message, f"attachment {position}"))


def _judge(secret: Mapping[str, Any]) -> None:
    """Refuse what the law would not have let in. The fault's words quote nothing: what is sealed stays closed."""
    names = secret.get("filenames", [])
    fit = (
        all(isinstance(secret.get(name, ""), str) for name in ("text", "html"))
        and isinstance(secret.get("variables", {}), dict)
        and isinstance(names, list)
    )
    if not fit:
        raise SealBroken("what was sealed is no content of an email")
    try:
        check_subject({"subject": secret.get("subject", "")})
        check_headers({"headers": secret.get("headers")})
        # An attachment of an asset is its names alone, and so are these.
        files = [{"asset": "sealed", "filename": name} for name in names if name is not None]
        check_attachments({"attachments": files})
    except Refused as fault:
        raise SealBroken(f"what was sealed does not obey the law of an email ({fault.code})") from None


def _variables(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The variables of all recipients: a template's below the email's own, as the law merges them."""
    given, template = body.get("variables"), body.get("template")
    beside = template.get("variables") if isinstance(template, Mapping) else None
    if isinstance(beside, Mapping):
        return {**beside, **given} if isinstance(given, Mapping) else dict(beside)
    return dict(given) if isinstance(given, Mapping) else None


def _own_variables(people: Any) -> dict[str, Any]:
    """Each recipient's own variables by its address, normalised; of equal addresses the first counts."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for person in people if isinstance(people, list) else [people]:
        given = person.get("variables") if isinstance(person, Mapping) else None
        written: Any = person.get("address") if isinstance(person, Mapping) else person
        try:
            who = address.parse(written).address
        except (ValueError, TypeError, AttributeError):
            continue  # the law refuses it
        if who not in seen:
            seen.add(who)
            if given is not None:
                found[who] = given
    return found


def _filename(file: Any) -> str | None:
    name = file.get("filename") if isinstance(file, Mapping) else None
    return name if isinstance(name, str) and isinstance(file.get("content"), str) else None


def _octets(file: Any) -> bytes | None:
    """The octets of a file that came with its mail, decoded as PostgreSQL does; None for an asset."""
    content = file.get("content") if isinstance(file, Mapping) else None
    if not isinstance(content, str):
        return None
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""  # the law refuses it


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")
