"""Small secrets at rest, sealed each with a key of its own that a key-encryption key wraps.

For what an operator gives pgmail to keep and nobody should read from a dump: where alerts go. Where no keys are set
they lie in the clear, in a table that no role reads.

What can go wrong: the key-encryption key is taken out of the settings (KeyMissing); `pgmail seal rewrap` changes the
wrapping of data keys, not of these, so an old key stays in the settings as long as something is sealed under it.
"""

from __future__ import annotations

from pgmail.errors import SealBroken
from pgmail.sealing.box import KEY_BYTES, NONCE_BYTES, TAG_BYTES, new_key, place, seal, unseal
from pgmail.sealing.keks import Keks

_WRAPPED = NONCE_BYTES + KEY_BYTES + TAG_BYTES


def close(keks: Keks, tenant: int | None, purpose: str, plain: bytes) -> tuple[str | None, bytes]:
    """Return the name of the wrapping key and the sealed octets; None and the octets themselves without keys.

    `tenant` None is the fleet's. Raises KeyMissing without `cryptography`.
    """
    if not keks:
        return None, plain
    key = new_key()
    name, wrapped = keks.wrap(tenant or 0, key)
    return name, wrapped + seal(key, plain, place(tenant or 0, None, purpose))


def unclose(keks: Keks, tenant: int | None, purpose: str, kek: str | None, octets: bytes) -> bytes:
    """Open what `close` made for this tenant and purpose. Raises KeyMissing and SealBroken."""
    if kek is None:
        return octets
    if len(octets) < _WRAPPED:
        raise SealBroken("sealed octets are cut short")
    key = keks.unwrap(tenant or 0, kek, octets[:_WRAPPED])
    return unseal(key, octets[_WRAPPED:], place(tenant or 0, None, purpose))
