"""What the command line needs from rooms that it may not import, by name and loaded on first use.

The composition root says where each is; a command asks for it when it runs. So `pgmail --help` loads nothing,
and rooms of one floor stay strangers.

What can go wrong: a part that nobody provided. That is a fault of the program, and says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_PLACES: dict[str, str] = {}


def provide(**places: str) -> None:
    """Say where parts are: `run_api="pgmail.app:run_api"`. Later calls add to earlier ones."""
    _PLACES.update(places)


def part(name: str) -> Callable[..., Any]:
    """Load a part."""
    if name not in _PLACES:
        raise LookupError(f"no part is called {name!r}; pgmail.app provides them")
    found: Callable[..., Any] = load(_PLACES[name])
    return found


def load(place: str) -> Any:
    """Load what stands at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
