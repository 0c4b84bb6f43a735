"""The fleet's figures as the database has them, for `/metrics` of the process that leads.

Asked for at a scrape, and not more often than `LEAST_SECONDS`; where that takes long, more rarely: one part in `SHARE`
of the time, but once in `MOST_SECONDS`. Sizes of tables a minute apart at least. What can go wrong: the database is
away. The last figures stay, and `figures_age_seconds` tells how old they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog

from pgmail import sqlfiles
from pgmail.errors import PgmailError
from pgmail.metrics.counts import Names, Sample
from pgmail.singleflight import SingleFlight
from pgmail.store.database import Database

_Q = sqlfiles.queries("metrics")
_log = structlog.get_logger()

LEAST_SECONDS, MOST_SECONDS = 5.0, 60.0
TABLES_SECONDS = 60.0
SHARE = 100
MOST_STREAMS, MOST_TENANTS = 50, 100

_LEDGER = frozenset({"enqueued", "sent", "bounced", "suppressed", "expired", "cancelled"})
_QUEUE = {
    "depth": "queue_depth", "oldest_due_seconds": "oldest_due_seconds", "held": "held", "in_doubt": "held_in_doubt",
    "dead": "dead_letters",
}  # fmt: skip
_FLEET = {
    "beat_age_seconds": "beat_age_seconds", "doors_closed": "doors_closed", "pauses": "pauses", "relays": "relays",
    "stopped_for_restore": "stopped_for_restore", "reached_age_seconds": "reached_age_seconds",
    "partition_days_left": "partition_days_left",
    "partition_strays": "partition_strays", "notify_queue": "notify_queue_ratio", "connections": "db_connections",
    "connections_max": "db_connections_max", "database_bytes": "db_bytes", "xid_age": "db_xid_age",
    "snapshot_span": "snapshot_span", "oldest_transaction_seconds": "oldest_transaction_seconds",
    "replication_lag_seconds": "replication_lag_seconds",
}  # fmt: skip
_TABLE = {
    "bytes": "table_bytes", "index_bytes": "index_bytes", "live": "table_live", "dead": "table_dead",
    "wasted_bytes": "table_wasted_bytes", "updates": "table_updates", "hot_updates": "table_hot_updates",
    "vacuumed_seconds": "table_vacuumed_seconds",
}  # fmt: skip


class FleetFigures:
    """What the leader's page shows beside its own. `wanted` tells whether this process leads."""

    def __init__(
        self,
        database: Database,
        wanted: Callable[[], bool],
        *,
        tenants: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._wanted, self._tenants, self._clock = database, wanted, tenants, clock
        self._quick: list[Sample] = []
        self._tables: list[Sample] = []
        self._at: float | None = None  # when the quick ones were fetched
        self._due = self._tables_due = 0.0
        self._took = 0.0
        self._fetching = SingleFlight[str, None]()
        # Named once, named for good: a counter must not go back.
        self._names = Names(most=MOST_STREAMS), Names(most=MOST_TENANTS)

    def samples(self) -> Iterator[Sample]:
        """Tell what was fetched last, while this process leads."""
        if not self._wanted() or self._at is None:
            return
        yield from self._quick
        yield from self._tables
        yield Sample("figures_seconds", (), self._took)
        yield Sample("figures_age_seconds", (), self._clock() - self._at)

    async def refresh(self) -> None:
        """Fetch what has grown old. Who hangs up meanwhile leaves the statement to end by itself."""
        if not self._wanted() or self._clock() < self._due:
            return
        await self._fetching.ask("figures", self._fetch)

    async def _fetch(self) -> None:
        began = self._clock()
        tables = began >= self._tables_due
        try:
            queue = await self._database.many(_Q["queue"], {"tenants": self._tenants})
            fleet = await self._database.many(_Q["fleet"])
            took = self._clock() - began
            sizes = await self._database.many(_Q["tables"]) if tables else []
        except PgmailError as error:
            _log.info("metrics.figures_wait", error=str(error))
            self._due = self._clock() + LEAST_SECONDS
            return
        self._at = self._clock()
        self._took = self._at - began
        self._due = self._at + min(max(LEAST_SECONDS, SHARE * took), MOST_SECONDS)
        self._quick = [*_of_queue(queue, *self._names, tenants=self._tenants), *_of_fleet(fleet)]
        if tables:
            self._tables = list(_of_tables(sizes))
            self._tables_due = self._at + max(TABLES_SECONDS, SHARE * (self._took - took))


def _of_queue(rows: Iterable[Any], streams: Names, tenant_names: Names, *, tenants: bool) -> Iterator[Sample]:
    """Tell the queue's figures. Those with the most mail waiting are the first to be named."""
    rows = sorted(rows, key=lambda row: row.value if row.figure == "depth" else -1.0, reverse=True)
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for row in rows:
        labels: tuple[str, ...] = (streams.of(row.stream),)
        if tenants:
            labels = (tenant_names.of(row.tenant), *labels)
        family = _QUEUE.get(row.figure, "recipients")
        if row.figure in _LEDGER:
            labels = (*labels, row.figure)
        key, before = (family, labels), found.get((family, labels), 0.0)
        found[key] = max(before, row.value) if row.figure == "oldest_due_seconds" else before + row.value
    for (family, labels), value in found.items():
        yield Sample(family, labels, value)


def _of_fleet(rows: Iterable[Any]) -> Iterator[Sample]:
    for row in rows:
        if row.value is None:
            continue
        if row.figure == "workers":
            program, _, state = row.label.rpartition(" ")
            yield Sample("workers", (program, state), row.value)
        else:
            yield Sample(_FLEET[row.figure], () if row.label is None else (row.label,), row.value)


def _of_tables(rows: Iterable[Any]) -> Iterator[Sample]:
    for row in rows:
        for column, family in _TABLE.items():
            value = getattr(row, column)
            if value is not None:
                yield Sample(family, (row.name,), float(value))
