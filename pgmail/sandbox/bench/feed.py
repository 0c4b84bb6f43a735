"""Mail for a bench: millions queued set-based, and a feeder that keeps a backlog at its level.

Filling goes through `send` in personal mode, a thousand recipients a message, over two connections: the way a
mailing is sent. So what is measured is what users have, partitions, lanes and tallies included.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from pgmail.errors import SandboxError
from pgmail.sandbox.bench.ground import Place
from pgmail.store import bench as store

CONNECTIONS = 2
TENANTS_LANES = 20


def fill(here: Place, query: str, mails: int, **params: object) -> None:
    """Queue mails with one of the `fill` queries, a thousand a transaction, and leave warm tables."""
    step = store.MOST_PERSONAL
    lows = range(1, mails + 1, step)

    def queue(first: int) -> None:
        with store.session(here.owner) as filling:
            for low in lows[first::CONNECTIONS]:
                filling.fill(query, low, min(low + step - 1, mails), **params)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(queue, range(CONNECTIONS)))
    store.warm(here.owner)


def fill_tenants(here: Place, mails: int, tenants: Sequence[int]) -> None:
    """Queue mails of many tenants, as many of each, over `TENANTS_LANES` sites each."""
    each = max(mails // len(tenants), 1)
    with store.session(here.dsn_for("api")) as filling:
        for tenant in tenants:
            filling.fill_tenant(tenant, 1, each)
    store.warm(here.owner)


class Feeder:
    """Keeps about `level` mails queued while others take them, over `lanes` sites. Use in a `with`."""

    def __init__(self, here: Place, level: int, lanes: int = 20) -> None:
        self.lowest = level
        """The smallest backlog it found; 0 says that it was the feeder that set the pace."""
        self._here, self._level, self._lanes = here, level, lanes
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._caught, name="feeder")

    def __enter__(self) -> Self:
        fill(self._here, "fill_personal", self._level, lanes=self._lanes)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what it died of."""
        if self._fault is not None:
            raise SandboxError("the feeder failed") from self._fault

    def _caught(self) -> None:
        try:
            self._feed(self._stop.is_set)
        except Exception as fault:  # noqa: BLE001 - told by check()
            self._fault = fault

    def _feed(self, ended: Callable[[], bool]) -> None:
        queued, step = self._level, store.MOST_PERSONAL
        with store.session(self._here.owner) as filling:
            while not ended():
                backlog = queued - filling.progress()
                self.lowest = min(self.lowest, backlog)
                if backlog >= self._level:
                    time.sleep(0.01)
                    continue
                for _ in range(4):  # progress is asked for now and then, not for every message
                    filling.fill("fill_personal", queued + 1, queued + step, lanes=self._lanes)
                    queued += step
