"""Endpoints as people make and change them: what takes more than a statement, for the API and the command line alike.

Their secrets are sealed before they reach the database, bound to their endpoint: so its id is made here. A secret is
returned once, by `add` and `rotate`, and cannot be had again.

What can go wrong: no key to seal with (`sealing_unavailable`); a URL that may not be called, which is said here and
judged again at each call, since names lead elsewhere tomorrow (`invalid_url`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pgmail.domain import ids, webhooks
from pgmail.domain.targets import Network, url_fault
from pgmail.errors import Refused
from pgmail.sealing.box import place, seal
from pgmail.sealing.keks import Keks
from pgmail.seals import newest_key
from pgmail.store import hooks as store
from pgmail.store.hooks import Connection, NewHook, SealedSecret


class Endpoints:
    """What a process needs to make endpoints: keys to seal with, and the networks that may be called."""

    def __init__(self, keks: Keks, allowed: Sequence[Network] = ()) -> None:
        self._keks, self._allowed = keks, tuple(allowed)

    async def add(self, connection: Connection, new: NewHook, secret: str | None = None) -> tuple[UUID, str]:
        """Add an endpoint to the connection's tenant; its id, and its secret: this once.

        `secret` is one to take over from elsewhere, `whsec_...`. Raises Refused.
        """
        self._check(new.url)
        id_ = ids.make(datetime.now(UTC))
        octets = _octets(secret)
        await store.add(connection, id_, new, await self._sealed(connection, id_, octets))
        return id_, webhooks.shown_secret(octets)

    async def change(
        self, connection: Connection, id: UUID, changes: Mapping[str, Any], reason: str | None = None
    ) -> None:
        """Change what is named of `endpoint events streams tags description status`. Raises Refused."""
        if isinstance(url := changes.get("endpoint"), str):
            self._check(url)
        await store.change(connection, id, changes, reason)

    async def rotate(
        self,
        connection: Connection,
        id: UUID,
        overlap: float,
        *,
        secret: str | None = None,
        reason: str | None = None,
    ) -> tuple[str, datetime]:
        """Sign with another secret from now on, and with the old one too for `overlap` seconds.

        The new secret, this once, and when the old one ends. Raises Refused.
        """
        await store.get(connection, id)
        octets = _octets(secret)
        sealed = await self._sealed(connection, id, octets)
        ends = await store.rotate(connection, id, sealed, overlap, reason)
        return webhooks.shown_secret(octets), ends

    def _check(self, url: str) -> None:
        if (fault := url_fault(url, self._allowed)) is not None:
            raise Refused("invalid_url", "/endpoint", fault)

    async def _sealed(self, connection: Connection, hook: UUID, secret: bytes) -> SealedSecret:
        tenant, number, key = await newest_key(connection, self._keks)
        return SealedSecret(number, seal(key, secret, place(tenant, hook, webhooks.PURPOSE)))


async def replay(
    lend: Callable[[], AbstractAsyncContextManager[Connection]],
    id: UUID,
    filter: Mapping[str, str],
    reason: str | None = None,
) -> int:
    """Tell an endpoint events of its log once more, all that `filter` means; how many they are.

    It names some of `since until type outcome event`. `lend` is asked for a connection for each part of the log: a
    transaction each, so that none is long, however long the log. Raises Refused.
    """
    replayed, after = 0, None
    while True:
        async with lend() as connection:
            n, after = await store.replay(connection, id, filter, after, reason)
        replayed += n
        if after is None:
            return replayed


def _octets(secret: str | None) -> bytes:
    if secret is None:
        return webhooks.new_secret()
    try:
        return webhooks.read_secret(secret)
    except ValueError as error:
        raise Refused("invalid_secret", "/signing_secret", str(error)) from None
