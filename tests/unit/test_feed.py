"""Listeners: what waits is bounded, who is too slow is dropped with a reason, and filters leave what was asked for."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pgmail.domain.cursor import Cursor, Encoder, Position, Snapshot, parse
from pgmail.feed import listener as parts
from pgmail.feed.events import MOST_EMAILS, Filter, Page, asked
from pgmail.feed.hub import Hub
from pgmail.feed.listener import CLOSING, GONE, KEY_ENDED, Listener
from pgmail.feed.pages import CATCHING_UP, Pages, Step
from pgmail.store.feed import Event, Wanted
from pgmail.store.keys import Caller

CALLER = Caller(1, UUID(int=1), "tests")
HERE = Cursor(b"h" * 8, Snapshot(5, 9), 0, Snapshot(6, 12))
OBJECT = {
    "object": "event",
    "id": str(UUID(int=3)),
    "type": "email.sent",
    "created_at": "2026-01-02T03:04:05.000000Z",
    "data": {"email_id": str(UUID(int=4)), "recipient_id": str(UUID(int=5)), "stream": "transactional"},
}


def event(type: str = "email.sent", *, number: int = 3, **data: Any) -> Event:
    told = OBJECT | {"id": str(UUID(int=number)), "type": type, "data": OBJECT["data"] | data}
    return Event(7, None, UUID(int=number).bytes, 1, type, msgspec.json.encode(told))


def page(*events: Event) -> Page:
    return Page(events, Encoder(HERE))


def cursor(number: int = 3) -> bytes:
    return Encoder(HERE)(Position(7, None, UUID(int=number))).encode()


async def test_what_waits_is_taken_in_order_and_once():
    listener = Listener(CALLER, Filter(), "sse")
    listener.put(b"a", 1)
    listener.put(b"b", 1)
    assert await listener.take(1) == [b"a", b"b"]
    assert await listener.take(0) == []


async def test_a_slow_listener_is_dropped_and_what_waited_is_let_go():
    listener = Listener(CALLER, Filter(), "sse")
    octets = b"x" * 100_000
    for _ in range(parts.MAX_WAITING_BYTES // len(octets)):
        listener.put(octets, len(octets))
    assert listener.dropped is None
    listener.put(octets, len(octets))
    assert listener.dropped is not None
    assert listener.dropped.reason == "slow"
    listener.put(b"late", 4)
    assert await listener.take(1) == []


async def test_one_chunk_of_any_size_is_no_slowness():
    listener = Listener(CALLER, Filter(), "sse")
    listener.put(b"x", 10 * parts.MAX_WAITING_BYTES)
    assert listener.dropped is None


async def test_who_is_sent_away_while_it_catches_up_comes_back_before_what_it_was_not_told():
    """Neither the place where it was let in nor what waits for it: both lie behind what it missed."""
    here = HERE._replace(now=None)
    start = here._replace(seen=Snapshot(9, 12))
    hub = Hub(None)
    listener = Listener(CALLER, Filter(), "sse")

    class Missing:
        async def check(self, *_: Any) -> Any:
            return SimpleNamespace(cursor=lambda: here)

        async def steps(self, cursor: Cursor, end: Cursor, *_: Any) -> Any:
            if end is start:
                listener.put(b"live", 4)
                listener.drop(CLOSING)
                yield Step([event()], start, cursor, complete=False)
            yield Step([], start, end, complete=True)

    async def joined(_: Listener) -> Cursor:
        return start

    hub.pages, hub._joined = Missing(), joined
    told = Step([event()], start, here, complete=False).chunk("sse")
    assert [item async for item in hub.chunks(listener, here, 1)] == [told]


async def test_a_statement_goes_on_to_its_end_when_who_asked_hangs_up_and_gives_its_turn_back():
    """One that is cancelled costs the pool its connection."""
    pages, go, done = Pages(None), asyncio.Event(), []

    async def ask() -> None:
        await go.wait()
        done.append(1)

    asking = [asyncio.create_task(pages._asked(ask)) for _ in range(CATCHING_UP + 1)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert pages._turns.locked()
    go.set()
    await asyncio.wait_for(pages._asked(ask), 10)
    assert len(done) == CATCHING_UP + 1, "and one that had no turn yet is not asked any more"
    assert not pages._running


async def test_who_comes_back_to_another_history_is_sent_away_with_the_reason():
    here = Cursor(b"h" * 8, Snapshot(5, 9), 0)
    hub = Hub(None)
    for start in (here._replace(history=b"i" * 8), here._replace(seen=Snapshot(5, 8))):
        listener = Listener(CALLER, Filter(), "sse")
        assert [item async for item in hub._between(listener, here, start)] == []
        assert listener.dropped == GONE


async def test_when_the_server_ends_what_waits_is_told_but_not_to_an_ended_key():
    for why, told in ((CLOSING, [b"a"]), (KEY_ENDED, [])):
        listener = Listener(CALLER, Filter(), "sse")
        listener.put(b"a", 1)
        listener.drop(why)
        assert await listener.take(1) == told


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        (Filter(), True),
        (Filter(types=frozenset({"email.sent"})), True),
        (Filter(types=frozenset({"email.bounced"})), False),
        (Filter(email=UUID(int=4)), True),
        (Filter(email=UUID(int=5)), True),
        (Filter(email=UUID(int=6)), False),
        (Filter(tag=("kind", "welcome")), True),
        (Filter(tag=("kind", "other")), False),
        (Filter(tag=("colour", "red")), False),
        (Filter(stream="transactional"), True),
        (Filter(stream="broadcast"), False),
        (Filter(streams=frozenset({"broadcast"})), False),
        (Filter(only_tests=True), False),
    ],
)
def test_filters(filter, wanted):
    one = event(tags={"kind": "welcome"})
    assert list(page(one).wanted(filter)) == [one] * wanted


@pytest.mark.parametrize(
    ("filters", "asks"),
    [
        ([Filter()], {Wanted(1)}),
        ([Filter(types=frozenset({"email.sent"})), Filter()], {Wanted(1)}),
        ([Filter(stream="broadcast")], {Wanted(1)}),
        ([Filter(types=frozenset({"email.sent"}), stream="x")], {Wanted(1, "email.sent")}),
        (
            [
                Filter(types=frozenset({"email.sent", "email.bounced"})),
                Filter(types=frozenset({"email.sent"})),
            ],
            {Wanted(1, "email.sent"), Wanted(1, "email.bounced")},
        ),
        ([Filter(email=UUID(int=4), types=frozenset({"email.sent"}))], {Wanted(1, email=UUID(int=4))}),
        ([Filter(email=UUID(int=i)) for i in range(MOST_EMAILS + 1)], {Wanted(1)}),
    ],
)
def test_what_is_asked_for_serves_all_who_listen(filters, asks):
    assert set(asked(1, filters)) == asks


def test_a_key_is_told_within_its_limits():
    limited = CALLER._replace(streams=frozenset({"broadcast"}), test=True)
    shown = Listener(limited, Filter(), "sse").filter
    assert shown.streams == {"broadcast"}
    assert shown.only_tests


def test_all_forms_carry_the_same_object_and_the_cursor():
    one, other = event(), event(number=4)
    frames = [
        b"id: %b\nevent: email.sent\ndata: %b\n\n" % (cursor(number), each.json)
        for number, each in ((3, one), (4, other))
    ]
    both = page(one, other)
    assert both.chunk(Filter(), "sse") == (b"".join(frames), len(b"".join(frames)))
    texts, size = both.chunk(Filter(), "ws")
    assert size == sum(map(len, texts))
    assert [msgspec.json.decode(text) for text in texts] == [
        {"cursor": cursor(number).decode(), "event": msgspec.json.decode(each.json)}
        for number, each in ((3, one), (4, other))
    ]


def test_positions_are_those_of_the_feed():
    one = event()._replace(place=UUID(int=9).bytes)
    assert one.position == Position(7, UUID(int=9), UUID(int=3))
    (text,), _ = page(one).chunk(Filter(), "ws")
    assert parse(msgspec.json.decode(text)["cursor"]).position == one.position
