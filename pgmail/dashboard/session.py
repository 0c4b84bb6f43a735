"""Sessions: who is signed in, as a signed word in a cookie.

The cookie names the key that a session was begun with, never the key itself; it is signed with a secret that lives in
the database, so that all API processes agree, and ends twelve hours after sign-in. Whether the key still lives is asked
with each request (`Keyring.session`), so that revoking a key signs its sessions out within a second.

    octets  tenant (4) | key id (16) | begun, in seconds since 1970 (8) | random (16)
    cookie  base64url(octets) "." base64url(HMAC-SHA256(secret, "session" octets))

What can go wrong: a cookie is copied from a browser. It works until the session ends or the key is revoked; signing out
forgets it in one browser only. `pgmail key end-sessions` makes a new secret, which ends all sessions.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple
from uuid import UUID

from pgmail.clock import Clock, SystemClock
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller

COOKIE = "pgmail_session"
SECONDS = 12 * 3600
SECRET_SECONDS = 10.0  # for which the secret is believed: so late a new one ends the old sessions
FUTURE_SECONDS = 60  # by which the clocks of two hosts may differ

_LAYOUT = struct.Struct(">I16sQ16s")
_MAX = 200  # characters of a cookie that is looked at


class Session(NamedTuple):
    """A session whose signature is right. `token` is the cookie's whole word."""

    tenant_id: int
    key_id: UUID
    begun: int
    token: str


class Sessions:
    """Begins sessions and reads them. For one event loop."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._secret = b""
        self._until = 0.0

    async def begin(self, caller: Caller) -> str:
        """Return the cookie of a new session. Raises DatabaseAway."""
        octets = _LAYOUT.pack(
            caller.tenant_id, caller.key_id.bytes, int(self._clock.now().timestamp()), secrets.token_bytes(16)
        )
        return f"{_text(octets)}.{_text(await self._sign(b'session', octets))}"

    async def read(self, token: str) -> Session | None:
        """Return the session of a cookie; None for one that is forged, too old or none. Raises DatabaseAway."""
        body, _, signature = token.partition(".")
        octets, signed = _octets(body), _octets(signature)
        if len(token) > _MAX or octets is None or signed is None or len(octets) != _LAYOUT.size:
            return None
        if not hmac.compare_digest(signed, await self._sign(b"session", octets)):
            return None
        tenant, key, begun, _random = _LAYOUT.unpack(octets)
        age = self._clock.now().timestamp() - begun
        if not -FUTURE_SECONDS <= age < SECONDS:
            return None
        return Session(tenant, UUID(bytes=key), begun, token)

    async def csrf(self, session: Session) -> str:
        """Return the token that each change asked for in this session must bring. Raises DatabaseAway."""
        return _text(await self._sign(b"csrf", session.token.encode()))

    async def _sign(self, purpose: bytes, octets: bytes) -> bytes:
        now = self._clock.monotonic()
        if not self._secret or now >= self._until:
            self._secret = await keys.session_secret(self._database)
            self._until = now + SECRET_SECONDS
        return hmac.digest(self._secret, purpose + b"\0" + octets, hashlib.sha256)


def _text(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _octets(text: str) -> bytes | None:
    try:
        return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        return None
