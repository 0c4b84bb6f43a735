"""One tenant's sealing, as of a moment ago: whether a body is to be sealed, and with what.

What can go wrong: the key-encryption key of its newest data key is not in this process. New mail of a sealed stream
is then refused with 503, rather than stored unsealed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pgmail.domain.seal import State
from pgmail.errors import KeyMissing, Refused
from pgmail.sealing.keks import Keks
from pgmail.sealing.mail import DataKey, open_content, sealed


class TenantSeal:
    """What a process that seals knows of one tenant, as of a moment ago."""

    def __init__(self, state: State, keks: Keks, local: datetime) -> None:
        """`local` is this machine's time when the state was asked for."""
        self.streams = state.streams
        self._keks = keks
        self._tenant = state.tenant
        self._wrapped = {key.id: key for key in state.keys}
        self._open: dict[int, bytes] = {}
        # Ids must be of the server's time, whatever this machine's clock says.
        self._ahead: timedelta = state.now - local

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a body (which the law has passed, or will refuse), with its sealed form if its stream wants one.

        Raises Refused `sealing_unavailable` (503).
        """
        if not self.wants(body):
            return body
        if not self._wrapped:
            because = "there is no data key yet; `pgmail seal rotate` makes the first"
            raise Refused("sealing_unavailable", "/stream", because, 503)
        try:
            newest, oldest = max(self._wrapped), min(self._wrapped)
            data_key = DataKey(self._tenant, newest, self.key(newest), self.key(oldest))
            return sealed(body, data_key, datetime.now(UTC) + self._ahead)
        except KeyMissing as why:
            raise Refused("sealing_unavailable", "/stream", str(why), 503) from None

    def wants(self, body: Any) -> bool:
        """Tell whether the stream of an email is sealed."""
        stream = body.get("stream") if isinstance(body, dict) else None
        return (stream if isinstance(stream, str) else "transactional") in self.streams

    def content(self, content: bytes, key_id: int, message: UUID) -> dict[str, Any]:
        """Open a message's content. Raises KeyMissing and SealBroken."""
        return open_content(content, self.key(key_id), self._tenant, message)

    def key(self, id: int) -> bytes:
        """Return a data key, opened. Raises KeyMissing."""
        if id not in self._open:
            row = self._wrapped.get(id)
            if row is None:
                raise KeyMissing(f"the database has no data key {id} any more")
            self._open[id] = self._keks.unwrap(self._tenant, row.kek, row.wrapped)
        return self._open[id]
