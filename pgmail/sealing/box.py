"""Sealed octets: AES-256-GCM (NIST SP 800-38D), each bound to where it belongs.

    nonce (12 octets, random) | ciphertext | tag (16 octets)

What is sealed is bound to its tenant, its message and its purpose as associated data: moved into another row it
does not open. `cryptography` is loaded when something is sealed or opened first; it comes with `pgmail[seal]`.

What can go wrong: nonces are random, so of one key no more than 2**32 texts should be sealed (section 8.3). A
data key is changed by `pgmail seal rotate`; once in a billion mails is often enough.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING
from uuid import UUID

from pgmail.errors import KeyMissing, SealBroken

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


def new_key() -> bytes:
    """Return a new key of 256 random bits."""
    return secrets.token_bytes(KEY_BYTES)


def place(tenant: int, message: UUID | None, purpose: str) -> bytes:
    """Name where sealed octets belong, for the associated data; no two places have one name."""
    return f"pgmail/1\0{tenant}\0{'' if message is None else message.hex}\0{purpose}".encode()


def seal(key: bytes, plain: bytes, where: bytes) -> bytes:
    """Seal octets for a place. Raises KeyMissing without `cryptography`."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, plain, where)


def unseal(key: bytes, sealed: bytes, where: bytes) -> bytes:
    """Open octets that were sealed for this place.

    Raises SealBroken where they were changed, cut, moved, or sealed with another key.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise SealBroken("sealed octets are cut short")
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see `_cipher`

    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], where)
    except InvalidTag:
        raise SealBroken("sealed octets were changed, or belong to another mail") from None


def keyed_hash(key: bytes, plain: bytes) -> bytes:
    """Return 32 octets that are the same for the same text and key, and tell nothing of it without the key."""
    return hmac.digest(hashlib.sha256(b"pgmail/1 hash\0" + key).digest(), plain, "sha256")


@lru_cache(maxsize=256)
def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra, and slow to load
    except ImportError:
        raise KeyMissing("sealing needs the package cryptography: pip install 'pgmail[seal]'") from None
    return AESGCM(key)
