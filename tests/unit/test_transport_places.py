"""Who gets which place: idle connections, new ones, second places, and a number of connections that changes."""

import asyncio
import random
import time

import pytest

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink_rules import Answer
from pgmail.transport.base import TooLate
from tests.fix_smtp import an_envelope


def send(relay, count, first=0):
    return [
        asyncio.create_task(relay.deliver(an_envelope(id=f"{n}@example.com")))
        for n in range(first, first + count)
    ]


async def until(condition):
    """Wait, step by step of the event loop, until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a number is looked at, which sets no event
            await asyncio.sleep(0.001)


async def test_a_mail_prefers_an_idle_connection_then_a_new_one_then_a_second_place(sink, open_relay):
    relay = open_relay(sink.port, "max_connections=2")
    await asyncio.gather(*send(relay, 1))
    assert relay.open_connections == 1
    slow = asyncio.create_task(relay.deliver(an_envelope("slow.a@example.org")))
    await asyncio.sleep(0)
    assert (relay.open_connections, relay.idle_connections) == (1, 0)
    tasks = send(relay, 1)
    await asyncio.sleep(0)
    assert relay.open_connections == 2
    tasks += send(relay, 6, 1)
    assert all(result.accepted for result in await asyncio.gather(slow, *tasks))
    assert (sink.connected, relay.idle_connections) == (2, 2)


async def test_at_zero_connections_mail_waits_and_goes_when_there_may_be_one(sink, open_relay):
    relay = open_relay(sink.port)
    relay.set_max_connections(0)
    tasks = send(relay, 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (relay.open_connections, sink.connected) == (0, 0)
    relay.set_max_connections(1)
    assert all(result.accepted for result in await asyncio.gather(*tasks))
    assert sink.connected == 1


async def test_fewer_connections_close_the_idle_ones_above(sink, open_relay):
    relay = open_relay(sink.port, "max_connections=4")
    await asyncio.gather(*send(relay, 4))
    assert relay.idle_connections == 4
    relay.set_max_connections(1)
    assert relay.idle_connections == 1
    await until(lambda: relay.open_connections == 1)
    assert all(result.accepted for result in await asyncio.gather(*send(relay, 4)))
    assert sink.connected == 4
    relay.set_max_connections(2)
    assert all(result.accepted for result in await asyncio.gather(*send(relay, 4)))
    assert sink.connected == 5


@pytest.mark.parametrize("n", [0, 1])
async def test_busy_connections_above_end_after_the_mails_they_have(open_sink, open_relay, n):
    sink = await open_sink(tarpit_seconds=0.2)
    relay = open_relay(sink.port, "max_connections=2")
    slow = [asyncio.create_task(relay.deliver(an_envelope("slow.a@example.org"))) for _ in range(2)]
    await until(lambda: sink.connected == 2 and not relay._openings)
    relay.set_max_connections(n)
    more = send(relay, 2)
    assert all(result.accepted for result in await asyncio.gather(*slow))
    await until(lambda: relay.open_connections == n)
    relay.set_max_connections(1)
    assert all(result.accepted for result in await asyncio.gather(*more))


async def test_there_are_never_more_connections_than_allowed(sink, open_relay):
    """Not even while those that had their share of mails are being closed."""
    relay = open_relay(sink.port, "max_connections=3&max_mails_per_connection=2")
    most = 0
    tasks = send(relay, 40)
    while not all(task.done() for task in tasks):
        most = max(most, len(sink.connections), relay.open_connections)
        await asyncio.sleep(0)
    assert all(task.result().accepted for task in tasks)
    assert most == 3
    assert sink.connected >= 20


def test_a_negative_number_of_connections_is_a_fault(open_relay):
    with pytest.raises(ValueError, match=r"^n: "):
        open_relay(25).set_max_connections(-1)


async def test_a_failed_connection_is_the_result_of_the_mails_that_waited_for_one(open_script, open_relay):
    tried = 0

    async def serve(reader, writer):
        nonlocal tried
        tried += 1
        writer.write(b"421 4.3.2 too many\r\n")

    relay = open_relay(await open_script(serve), "max_connections=2")
    results = await asyncio.gather(*send(relay, 5))
    assert [(result.phase, result.reply.code) for result in results] == [(Phase.GREETING, 421)] * 5
    assert tried == 5
    assert relay.open_connections == 0


async def test_mail_is_carried_on_by_the_connections_that_are_when_more_are_refused(open_sink, open_relay):
    sink = await open_sink(
        rule=lambda asked: (
            Answer(text="421 4.7.0 too many", after="close")
            if asked.phase is Phase.GREETING and len(sink.connections) > 1
            else None
        )
    )
    relay = open_relay(sink.port, "max_connections=2")
    await asyncio.gather(*send(relay, 1))
    results = await asyncio.gather(*send(relay, 30, 1))
    refused = [result for result in results if not result.accepted]
    assert all(result.phase is Phase.GREETING for result in refused)
    assert sink.total == 31 - len(refused)


async def test_a_fault_of_ours_while_connecting_escapes(open_relay, monkeypatch):
    from pgmail.transport import relay as module

    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "open_session", broken)
    relay = open_relay(25)
    with pytest.raises(ZeroDivisionError):
        await relay.deliver(an_envelope())
    assert relay.open_connections == 0


async def test_a_mail_cancelled_before_its_connection_is_there_stops_it(open_script, open_relay):
    greeted, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        greeted.set()
        assert await reader.read() == b""
        closed.set()

    relay = open_relay(await open_script(serve))
    (task,) = send(relay, 1)
    await asyncio.wait_for(greeted.wait(), 5)
    assert relay.open_connections == 1
    task.cancel()
    await asyncio.wait_for(closed.wait(), 5)
    await until(lambda: relay.open_connections == 0)


async def test_closing_ends_mails_that_could_wait_for_ever(open_relay):
    relay = open_relay(25)
    relay.set_max_connections(0)
    (task,) = send(relay, 1)
    await asyncio.sleep(0)
    await relay.close()
    result = await task
    assert (result.phase, result.reply) == (Phase.CONNECT, None)


async def test_mails_that_wait_when_the_relay_is_closed_are_sent(sink, open_relay):
    relay = open_relay(sink.port, "max_connections=1")
    tasks = send(relay, 8)
    await asyncio.sleep(0)
    await relay.close()
    assert all(result.accepted for result in await asyncio.gather(*tasks))
    await relay.close()
    await until(lambda: relay.open_connections == 0)


@pytest.mark.parametrize("without", [frozenset(), frozenset({"PIPELINING"})])
async def test_whatever_breaks_a_mail_is_taken_once_or_known_to_be_in_doubt(open_sink, open_relay, without):
    chance = random.Random(7)
    phases = (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT, Phase.GREETING)
    faults = (
        Answer(after="close"),
        Answer(after="reset"),
        Answer(text="421 4.3.2 closing", after="close"),
        Answer(text="451 4.3.0 later"),
        Answer(text="550 5.7.1 no"),
        Answer(raw=b"what\r\n"),
    )

    def rule(asked):
        return chance.choice(faults) if asked.phase in phases and chance.random() < 0.06 else None

    sink = await open_sink(rule=rule, without=without)
    relay = open_relay(sink.port, "max_connections=4")
    queue = iter(range(300))
    outcomes = {}

    async def sender():
        for number in queue:
            name = f"{number}@example.com"
            task = asyncio.create_task(relay.deliver(an_envelope(id=name)))
            if number % 17 == 0:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            outcomes[name] = (await asyncio.gather(task, return_exceptions=True))[0]

    await asyncio.gather(*(sender() for _ in range(12)))
    taken = sink.by_message_id
    for name, result in outcomes.items():
        if isinstance(result, asyncio.CancelledError) or result.in_doubt:
            assert taken[name] <= 1
        else:
            assert taken[name] == result.accepted
    assert sum(getattr(result, "accepted", False) for result in outcomes.values()) > 150
    await until(lambda: relay.open_connections == relay.idle_connections)


@pytest.mark.parametrize("farewell", [b"", b"421 4.3.2 closing\r\n"])
async def test_a_remote_that_leaves_after_the_login_does_not_keep_mail_waiting(
    open_script, open_relay, farewell
):
    async def serve(reader, writer):
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-script\r\n250 PIPELINING\r\n" + farewell)

    relay = open_relay(await open_script(serve), "max_connections=2")
    async with asyncio.timeout(10):
        results = await asyncio.gather(*send(relay, 5))
    assert not any(result.accepted or result.in_doubt for result in results)
    await until(lambda: relay.open_connections == 0)


async def test_a_mail_that_waits_for_a_place_past_its_moment_was_not_begun_and_leaves_no_trace(
    open_sink, open_relay
):
    sink = await open_sink(tarpit_seconds=0.3)
    relay = open_relay(sink.port, "max_connections=1")
    slow = [asyncio.create_task(relay.deliver(an_envelope("slow.a@example.org"))) for _ in range(2)]
    await until(lambda: relay._half or (sink.connected and not relay._openings))
    moment = time.monotonic() + 0.05
    late = [
        asyncio.create_task(relay.deliver(an_envelope(id=f"late{n}@example.com", not_after=moment)))
        for n in range(3)
    ]
    for task in late:
        with pytest.raises(TooLate):
            await task
    assert not slow[1].done()
    assert all(result.accepted for result in await asyncio.gather(*slow, *send(relay, 2)))
    assert sink.total == 4
    assert not any(name.startswith("late") for name in sink.by_message_id)


async def test_a_mail_that_is_late_already_is_not_begun_on_an_idle_connection_and_one_in_time_is(
    sink, open_relay
):
    relay = open_relay(sink.port, "max_connections=1")
    await asyncio.gather(*send(relay, 1))
    with pytest.raises(TooLate):
        await relay.deliver(an_envelope(id="late@example.com", not_after=time.monotonic() - 1))
    assert (await relay.deliver(an_envelope(id="two@example.com", not_after=time.monotonic() + 60))).accepted
    assert (sink.total, sink.connected) == (2, 1)


async def test_a_connection_that_opens_more_slowly_than_a_moment_lasts_stays_for_the_next_one(
    open_sink, open_relay
):
    def rule(asked):
        return Answer(text="250 mx", delay_seconds=0.2) if asked.phase is Phase.EHLO else None

    sink = await open_sink(rule=rule)
    relay = open_relay(sink.port, "max_connections=1")
    for _ in range(2):  # a rate gives it its next moment
        with pytest.raises(TooLate):
            await relay.deliver(an_envelope(id="late@example.com", not_after=time.monotonic() + 0.01))
    await until(lambda: relay.idle_connections)
    assert (await relay.deliver(an_envelope(id="one@example.com", not_after=time.monotonic() + 5))).accepted
    assert sink.connected == 1


async def test_the_place_of_a_connection_is_lent_once_a_busy_one_is_over_and_mail_waits_meanwhile(
    sink, open_relay
):
    relay = open_relay(sink.port, "max_connections=1")
    slow = send(relay, 1)
    await until(lambda: sink.connected and not relay._waiting)
    with pytest.raises(TooLate):
        async with relay.lend(time.monotonic() - 1):
            pass
    async with relay.lend():
        assert all(task.done() for task in slow)
        assert (relay.open_connections, len(sink.connections)) == (1, 0)
        tasks = send(relay, 3, 1)
        await until(lambda: len(relay._waiting) == 3)
        assert not any(task.done() for task in tasks)
    assert all(result.accepted for result in await asyncio.gather(*slow, *tasks))
    await relay.close()
    assert relay.open_connections == 0


async def test_who_gives_up_waiting_for_a_place_takes_none(sink, open_relay):
    relay = open_relay(sink.port, "max_connections=1")
    relay.set_max_connections(0)

    async def borrow():
        async with relay.lend():
            pass

    asking = asyncio.create_task(borrow())
    await until(lambda: relay._lending)
    asking.cancel()
    relay.set_max_connections(1)  # before it hears that it is cancelled
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await asyncio.gather(*send(relay, 1)))[0].accepted
    assert relay.open_connections == 1
