"""What a key reaches of its tenant's mail: the streams that it is limited to, and of one that may only send its own.

Emails, their events, dead letters, mail in doubt and the queue are shown and changed within these streams. What
belongs to the whole tenant is not divided: lanes, limits, templates, assets, suppressions and settings of
streams are seen by any key that may read; and what would touch mail of every stream is refused to a limited one.

A key for tests reaches test email only, all of which is on a site of its own, and changes nothing else: what belongs
to the whole tenant is what its live mail is made of and goes by.

What can go wrong: an answer that tells that an email exists. What is out of reach is unknown, in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

import msgspec

from pgmail.domain.keylimits import need_stream
from pgmail.domain.sites import TEST_SITE
from pgmail.errors import Refused
from pgmail.store import keys
from pgmail.store.doubts import DoubtFilter
from pgmail.store.emails import DeadFilter
from pgmail.store.keys import Caller, Connection

Sited = TypeVar("Sited", DeadFilter, DoubtFilter)


def streams_of(caller: Caller, asked: str | None = None) -> list[str] | None:
    """Return the streams to look in, None for all. Refused `stream_not_allowed` if another one was `asked` for."""
    if caller.streams is None:
        return None
    if asked is not None:
        need_stream(asked, caller.streams)
    return sorted(caller.streams)


async def need_reach(
    connection: Connection, caller: Caller, ids: Sequence[UUID], *, change: bool = False
) -> None:
    """Refuse (404 `not_found`) emails or recipients out of the caller's reach.

    To `change` one takes the scope manage, or a key that sent it, or followed the key that did by rotation.
    """
    own = change and "manage" not in caller.scopes
    if caller.streams is None and not own and not caller.test:
        return
    found = {
        row.id
        for row in await keys.reach(connection, ids)
        if (caller.streams is None or row.stream in caller.streams)
        and (row.own or not own)
        and (row.test or not caller.test)
    }
    for wanted in ids:
        if wanted not in found:
            raise Refused("not_found", "/id", f"no email or recipient has the id {wanted}", 404)


async def reached_of(connection: Connection, caller: Caller, ids: Sequence[UUID]) -> list[UUID]:
    """Return those of these emails or recipients that the caller may see, in their order."""
    if caller.streams is None and not caller.test:
        return list(ids)
    found = {
        row.id
        for row in await keys.reach(connection, ids)
        if (caller.streams is None or row.stream in caller.streams) and (row.test or not caller.test)
    }
    return [id_ for id_ in ids if id_ in found]


def within_reach(caller: Caller, filter: Sited) -> Sited:
    """Return a filter that finds nothing but test email for a key for tests. Refused `live_only` for another site."""
    if not caller.test:
        return filter
    if filter.site not in {None, TEST_SITE}:
        raise Refused("live_only", "/site", f"an API key for tests sees the site {TEST_SITE} only", 403)
    return msgspec.structs.replace(filter, site=TEST_SITE)


def need_live(caller: Caller) -> None:
    """Refuse (403 `live_only`) a key for tests."""
    if caller.test:
        raise Refused(
            "live_only", "", "an API key for tests reaches test email only; this takes a live one", 403
        )


def need_all_streams(caller: Caller) -> None:
    """Refuse (403 `stream_not_allowed`) what touches every stream to a key that is limited to some."""
    if caller.streams is not None:
        because = f"this concerns all streams; this API key may use {', '.join(sorted(caller.streams))}"
        raise Refused("stream_not_allowed", "/stream", because, 403)


def need_all_domains(caller: Caller) -> None:
    """Refuse what decides from where the tenant sends to a key that is limited to streams or sender domains.

    Raises Refused (403): `stream_not_allowed`, `from_not_allowed`.
    """
    need_all_streams(caller)
    if caller.from_domains is not None:
        because = (
            "this concerns the domains of the whole tenant; this API key may only send from "
            f"{', '.join(sorted(caller.from_domains))}"
        )
        raise Refused("from_not_allowed", "/name", because, 403)


def need_target(caller: Caller, stream: str | None) -> None:
    """Refuse (403 `stream_not_allowed`) to act on a stream, or if it is empty on all of them."""
    if stream:
        need_stream(stream, caller.streams)
    else:
        need_all_streams(caller)
