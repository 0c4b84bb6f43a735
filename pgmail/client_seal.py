"""Sealing by the Python client: in the application's process, before the database sees what is stored.

    sealer = pgmail.Sealer()                       # keys as of PGMAIL_SEAL_KEYS, once a process
    pgmail.send(connection, ..., seal=sealer)

A `Sealer` is for the connections of one tenant. It asks, on the connection that it is used with, which streams are
sealed and with which data key, once a second at most.

What can go wrong: the key is not in this process (`Refused`, 503), or the stream was sealed a moment ago (`Refused`
`sealing_required`; the transaction needs a rollback, to a savepoint at least).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from pgmail import sqlfiles
from pgmail.client_drivers import ask
from pgmail.domain.seal import State, wrapped_of

if TYPE_CHECKING:
    from pgmail.sealing.keks import Keks
    from pgmail.sealing.tenant import TenantSeal

Seal = Callable[[dict[str, Any]], dict[str, Any]]
TTL_SECONDS = 1.0


class Sealer:
    """Seals the mail of one tenant. Its `repr` shows the names of its keys only."""

    def __init__(self, keys: str | Keks | None = None) -> None:
        """`keys` are as in PGMAIL_SEAL_KEYS; None: those that the settings name. Raises SettingsError."""
        self._keks = _read(keys) if keys is None or isinstance(keys, str) else keys
        self._known: tuple[float, TenantSeal] | None = None

    def __repr__(self) -> str:
        return f"Sealer({self._keks!r})"

    def known(self) -> TenantSeal | None:
        """Return what was learnt in the last second."""
        return self._known[1] if self._known and time.monotonic() < self._known[0] else None

    def learn(self, answer: str) -> TenantSeal:
        """Take the answer of the query `seal_state`."""
        from pgmail.sealing.tenant import TenantSeal  # noqa: PLC0415

        found = msgspec.json.decode(answer)
        state = State(
            found["tenant"],
            datetime.fromisoformat(found["now"]),
            found["streams"] if self._keks else {},
            wrapped_of(found["keys"]),
        )
        made = TenantSeal(state, self._keks, datetime.now(UTC))
        self._known = (time.monotonic() + TTL_SECONDS, made)
        return made


def sealing(connection: Any, seal: Sealer | None, act: Callable[[Seal], Any]) -> Any:
    """Call `act` with what seals a body; on an asynchronous connection return an awaitable of that."""
    if seal is None:
        return act(_as_it_is)
    if (known := seal.known()) is not None:
        return act(known)
    found = ask(connection, sqlfiles.queries("client")["seal_state"], [], seal.learn)
    if not inspect.isawaitable(found):
        return act(found)

    async def later() -> Any:
        return await act(await found)

    return later()


def _read(keys: str | None) -> Keks:
    from pgmail import config  # noqa: PLC0415 - only who seals needs it
    from pgmail.sealing.keks import read  # noqa: PLC0415

    return read(config.load() if keys is None else config.load({"PGMAIL_SEAL_KEYS": keys}))


def _as_it_is(body: dict[str, Any]) -> dict[str, Any]:
    return body
