"""Who is told of alerts: a target as people give it, checked, and what is secret of it kept sealed.

A webhook gets JSON, signed where it has a secret; a Slack-shaped one text and blocks, and its URL is the secret; an
email goes to addresses. Both kinds of URL lead to public addresses, or to networks that PGMAIL_HOOK_NETWORKS names.

What can go wrong: without PGMAIL_SEAL_KEYS nothing is sealed; then URLs lie in a table that no role may read, and in
its backups.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from pgmail.domain import address, ids
from pgmail.domain.targets import networks_of, url_fault
from pgmail.errors import Refused, SealBroken
from pgmail.sealing.keks import Keks
from pgmail.sealing.secret import close, unclose
from pgmail.store import alerts as store

MAX_ADDRESSES = 20
MIN_SECRET = 16  # characters of what signs


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target as it is given. `url` of a webhook or Slack, `secret` signs a webhook's calls, `to` of email."""

    name: str
    kind: str
    url: str | None = None
    secret: str | None = None
    to: list[str] | str | None = None
    severity: str = "warning"


class Secret(msgspec.Struct, frozen=True, omit_defaults=True):
    """What nobody reads of a target."""

    url: str = ""
    secret: str = ""
    to: tuple[str, ...] = ()


async def add_target(
    connection: store.Connection, keks: Keks, networks: str, target: Target, *, fleet: bool = False
) -> UUID:
    """Keep a target of the connection's tenant, or of the fleet; its id. `networks` as in `hook_networks`.

    Raises Refused: `missing_field`, `invalid_url`, `invalid_address`, and as `store.alerts.add_target`.
    """
    shown, secret = _checked(target, networks)
    tenant = None if fleet else await store.tenant(connection)
    id_ = ids.make(datetime.now(UTC))
    sealed = close(keks, tenant, _purpose(id_), msgspec.json.encode(secret))
    await store.add_target(
        connection,
        id_,
        target.name,
        kind=target.kind,
        shown=shown,
        secret=sealed,
        severity=target.severity,
        fleet=fleet,
    )
    return id_


def opened(keks: Keks, tenant: int | None, id: UUID, kek: str | None, octets: bytes) -> Secret:
    """Return what is secret of a target. Raises KeyMissing and SealBroken."""
    plain = unclose(keks, tenant, _purpose(id), kek, octets)
    try:
        return msgspec.json.decode(plain, type=Secret)
    except msgspec.MsgspecError:
        raise SealBroken("what was sealed is no target of alerts") from None


def _purpose(id: UUID) -> str:
    return f"alert target {id.hex}"


def _checked(target: Target, networks: str) -> tuple[str, Secret]:
    if target.kind == "email":
        return _addresses(target)
    if target.kind not in {"webhook", "slack"}:
        raise Refused("invalid_kind", "/kind", "must be webhook, slack or email")
    if not target.url:
        raise Refused("missing_field", "/url", "is required")
    if target.to is not None:
        raise Refused("invalid_target", "/to", "is for email")
    if (fault := url_fault(target.url, networks_of(networks))) is not None:
        raise Refused("invalid_url", "/url", fault)
    if target.secret is not None and (target.kind == "slack" or len(target.secret) < MIN_SECRET):
        raise Refused("invalid_target", "/secret", f"is a webhook's, of {MIN_SECRET} characters or more")
    parts = urlsplit(target.url)
    # What follows the host is the secret of Slack's URLs, and may be one of any.
    return f"{parts.scheme}://{parts.netloc}/...", Secret(url=target.url, secret=target.secret or "")


def _addresses(target: Target) -> tuple[str, Secret]:
    given: Sequence[str] = [target.to] if isinstance(target.to, str) else target.to or ()
    if target.url is not None or target.secret is not None:
        raise Refused("invalid_target", "/url", "is for webhook and slack; an email has addresses in `to`")
    if not 1 <= len(given) <= MAX_ADDRESSES:
        raise Refused("missing_field", "/to", f"must name 1 to {MAX_ADDRESSES} addresses")
    found = []
    for at, text in enumerate(given):
        try:
            found.append(address.parse(text).address)
        except ValueError as error:
            raise Refused("invalid_address", f"/to/{at}", str(error)) from None
    return ", ".join(found), Secret(to=tuple(found))
