"""What else the API's server serves: rooms of its floor that it does not know, handed to it by the composition root.

What can go wrong: a guest that asks for no key. Its handlers are served as they are, so it guards them itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pgmail.access.keyring import Keyring
from pgmail.access.origin import Origins
from pgmail.config import Settings
from pgmail.seals import Sealer
from pgmail.store.database import Database


class Rooms(NamedTuple):
    """What the server shares with its guests. `stopping` is set when it ends: what is open for long ends then."""

    settings: Settings
    database: Database
    keyring: Keyring
    origins: Origins
    sealer: Sealer
    stopping: asyncio.Event


class Mount(NamedTuple):
    """A guest: its route handlers, what it keeps in the application's state, and the path that people open."""

    handlers: Sequence[Any]
    state: Mapping[str, Any]
    path: str


MakeMount = Callable[[Rooms], Mount]
