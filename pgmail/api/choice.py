"""Which of many a bulk action is for: ids, or a filter; what routes for dead letters and for mail in doubt share.

What can go wrong: a filter that means everything by accident. So one of `ids` and `filter` must be given, an empty
filter has to be written out, and a moment without an offset from UTC is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple
from uuid import UUID

from pgmail.access.reach import Sited, streams_of, within_reach
from pgmail.errors import Refused
from pgmail.store.keys import Caller


class Choice(NamedTuple, Generic[Sited]):
    """What an action is for: `wanted`, narrowed to what its caller reaches, in `streams` (None: in all)."""

    wanted: Sequence[UUID] | Sited
    streams: list[str] | None


def choose(caller: Caller, ids: Sequence[UUID] | None, filter: Sited | None) -> Choice[Sited]:
    """Judge what a body names. Raises Refused: `missing_field`, `invalid_time`, and as `within_reach`."""
    if ids is not None and filter is None:
        return Choice(ids, streams_of(caller, None))
    if ids is not None or filter is None:
        raise Refused("missing_field", "/ids", "give either ids or a filter ({} is all)")
    for name in filter.__struct_fields__:
        moment = getattr(filter, name)
        if name.endswith(("_after", "_before")) and moment is not None and moment.tzinfo is None:
            raise Refused("invalid_time", f"/filter/{name}", "must have an offset from UTC")
    chosen = within_reach(caller, filter)
    return Choice(chosen, streams_of(caller, chosen.stream))
