"""Compiled templates kept in memory, least recently used out first, bounded by count and by bytes.

What can go wrong: two threads that miss the same key both compile; the second result is thrown away. That is
cheaper than making every thread wait for one. A template that fails to compile is not remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from pgmail.render.templates import Compiled


class TemplateCache:
    """Compiled templates by a key of the caller's, such as tenant, name and version.

    Holds at most `limit` of them and about `limit_bytes` of memory (an estimate, see `Compiled.cost_bytes`),
    but always the last one used.
    """

    def __init__(self, limit: int = 500, limit_bytes: int = 64 * 1024 * 1024) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[Hashable, Compiled] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Compiled]) -> Compiled:
        """Return what is kept under `key`, or make it and keep it. What `make` raises comes through."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return found
        made = make()
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                return found
            self._held[key] = made
            self._bytes += made.cost_bytes
            while len(self._held) > 1 and (len(self._held) > self._limit or self._bytes > self._limit_bytes):
                _, old = self._held.popitem(last=False)
                self._bytes -= old.cost_bytes
        return made

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """Estimated memory in use, octets."""
        return self._bytes
