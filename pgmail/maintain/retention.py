"""Drops what is past its retention, one short statement at a time.

A round goes through the tables: weekly partitions, then what had to be moved out of them and is settled by now,
then streams that keep their content for less. Content goes before the record that speaks of it, recipients
before their outcomes, so that a round which stops half-way leaves nobody in a state that is none.

What can go wrong: somebody reads the table for long, and its lock is not to be had. Then that step is left to
the next round, and nobody waits for us: `send` is the one that counts.
"""

from __future__ import annotations

import structlog

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway
from pgmail.store.database import Database
from pgmail.store.faults import Busy

_Q = sqlfiles.queries("maintain")
_log = structlog.get_logger()

TABLES = ("message", "attachment", "tag", "recipient", "outcome", "event")
_STEPS = (
    *(("drop_partition", base) for base in TABLES),
    *(("drop_strays", base) for base in TABLES),
    ("empty_content", ""),
)


class Retention:
    """Goes round the tables, a step a call."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at = 0

    async def step(self) -> bool:
        """Do the next step; False when the round is over. A step that found something is done again."""
        name, base = _STEPS[self._at]
        try:
            row = await self._database.one(_Q[name], {"base": base} if base else {})
        except Busy as error:
            _log.info("retention.waits", task=name, table=base, reason=str(error))
            row = None
        except DatabaseAway:
            raise
        except BaseException:
            self._at = (self._at + 1) % len(_STEPS)  # whatever is wrong with this table, the others are next
            raise
        if row and row[0]:
            if name == "drop_partition":
                _log.info("retention.dropped", partition=row.name, kept_rows=row.moved)
            return True
        self._at = (self._at + 1) % len(_STEPS)
        return self._at != 0
