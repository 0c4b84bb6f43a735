"""Standard Webhooks (standardwebhooks.com, version 1): secrets, signatures and headers.

    webhook-id         the event's id: the same over all retries and replays, so that receivers can tell
    webhook-timestamp  seconds since 1970, of this attempt
    webhook-signature  v1,<base64 of HMAC-SHA256 over "id.timestamp.body">, one for each secret, separated by a blank

What can go wrong: a receiver that compares only the first signature while two secrets are in use. The newest secret's
comes first; receivers must accept any.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Iterable

PREFIX = "whsec_"
SECRET_BYTES = 32
MAX_OVERLAP_SECONDS = 30 * 86_400
TYPE_HEADER = "application/json"
AGENT = "pgmail-webhooks/1"
PURPOSE = "webhook secret"
"""What a secret is sealed for, beside its tenant and its endpoint."""


def new_secret() -> bytes:
    """Return a new secret of 256 random bits."""
    return secrets.token_bytes(SECRET_BYTES)


def shown_secret(secret: bytes) -> str:
    """Return a secret as people get it: `whsec_` and base64."""
    return PREFIX + base64.b64encode(secret).decode("ascii")


def read_secret(text: str) -> bytes:
    """Return the octets of a shown secret. ValueError unless it is 24 to 64 octets, as the specification has it."""
    try:
        found = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("must be whsec_ and base64") from None
    if not text.startswith(PREFIX) or not 24 <= len(found) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 octets")
    return found


def signature(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    """Return one signature, `v1,...`."""
    digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode("ascii")


def headers(id: str, timestamp: int, body: bytes, with_secrets: Iterable[bytes]) -> dict[str, str]:
    """Return all headers of one call; `with_secrets` newest first."""
    return {
        "Content-Type": TYPE_HEADER,
        "User-Agent": AGENT,
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(secret, id, timestamp, body) for secret in with_secrets),
    }
