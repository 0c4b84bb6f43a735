"""What who seals must know of a tenant: its sealed streams, its data keys as they are stored, the server's time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


class Wrapped(NamedTuple):
    """A data key as it is stored: `wrapped` by the key-encryption key named `kek`."""

    id: int
    kek: str
    wrapped: bytes


class State(NamedTuple):
    """The answer of `pgmail.seal_state_v1`. `streams` have `where_possible` or `required`."""

    tenant: int
    now: datetime
    streams: Mapping[str, str]
    keys: list[Wrapped]


def wrapped_of(keys: list[dict[str, Any]]) -> list[Wrapped]:
    """Return the keys of that answer."""
    return [Wrapped(key["id"], key["kek"], base64.b64decode(key["wrapped"])) for key in keys]
