"""API keys: `pgm_live_` or `pgm_test_` and 256 random bits in base64url. Only the SHA-256 of a key is ever stored.

A key has as much entropy as its hash, so a plain hash without salt or stretching is enough: there is nothing
to guess from. What can go wrong: a key is shown once; who loses it makes another.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal, get_args

Scope = Literal["send", "read", "manage", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: frozenset[Scope] = frozenset({"send", "read", "manage"})
"""What a key may do of which nothing is said: all that there was before keys had scopes. One for tests may send."""

LIVE = "pgm_live_"
TEST = "pgm_test_"
HINT = 13  # characters that are kept to tell keys apart; 24 random bits of them

_KEY = re.compile(rf"(?:{LIVE}|{TEST})[A-Za-z0-9_-]{{43}}")


def make_key(*, test: bool = False) -> tuple[str, str, bytes]:
    """Make a key: the key itself, its hint (the first 13 characters) and its hash (32 octets)."""
    key = (TEST if test else LIVE) + secrets.token_urlsafe(32)
    return key, key[:HINT], hash_key(key)


def hash_key(key: str) -> bytes:
    """Return the SHA-256 of a whole key, 32 octets: what the database looks it up by."""
    return hashlib.sha256(key.encode()).digest()


def is_key(text: str) -> bool:
    """Tell whether `text` has the form of a key, so that nothing else is asked of the database."""
    return _KEY.fullmatch(text) is not None


def granted(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Return all that these scopes allow: `admin` is every one of them."""
    return frozenset(SCOPES) if "admin" in scopes else scopes
