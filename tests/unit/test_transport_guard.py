"""The guard: no end of data while this worker may count as dead, however the mail is written."""

import asyncio

import pytest

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink_rules import Answer
from pgmail.transport.base import Withheld
from tests.fix_smtp import an_envelope
from tests.waiting import eventually

WAYS = {
    "one step at a time": frozenset({"PIPELINING", "CHUNKING"}),
    "pipelining": frozenset({"CHUNKING"}),
    "chunking": frozenset({"PIPELINING"}),
    "both": frozenset(),
}
BIG = (b"x" * 998 + b"\r\n") * 300


@pytest.mark.parametrize("lines", [b"Hello\r\n", BIG], ids=["small", "big"])
@pytest.mark.parametrize("without", WAYS.values(), ids=WAYS)
async def test_a_mail_whose_guard_says_no_is_withheld_and_surely_not_sent(
    open_sink, open_relay, without, lines
):
    sink = await open_sink(without=without)
    relay = open_relay(sink.port, "tls=none&max_connections=1")
    free, asked = True, []

    def guard():
        asked.append(len(sink.accepted))
        return free

    relay.set_guard(guard)
    assert (await relay.deliver(an_envelope(lines=lines))).accepted
    free = False
    with pytest.raises(Withheld):
        await relay.deliver(an_envelope(lines=lines))
    free = True
    assert (await relay.deliver(an_envelope(lines=lines))).accepted  # over another connection
    assert len(sink.accepted) == 2
    assert asked == [0, 1, 1]  # once a mail, before it was there


async def test_a_mail_past_its_dot_is_not_touched_by_a_guard_that_then_says_no(open_sink, open_relay):
    free, waits = True, asyncio.Event()

    def slowly(asked):
        return Answer(text="250 2.0.0 Ok", delay_seconds=0.2) if asked.phase is Phase.DOT else None

    sink = await open_sink(rule=slowly, without=WAYS["pipelining"])
    relay = open_relay(sink.port, "tls=none&max_connections=1")

    def guard():
        waits.set()
        return free

    relay.set_guard(guard)
    one = asyncio.create_task(relay.deliver(an_envelope()))
    await waits.wait()
    free = False
    two = asyncio.create_task(relay.deliver(an_envelope(id="two@example.com")))
    assert (await one).accepted
    with pytest.raises(Withheld):
        await two
    assert len(sink.accepted) == 1


@pytest.mark.parametrize("lines", [b"Hello\r\n", BIG], ids=["small", "big"])
@pytest.mark.parametrize("without", WAYS.values(), ids=WAYS)
async def test_what_is_recalled_is_surely_not_sent_and_what_is_sent_comes_to_its_result(
    open_sink, open_relay, without, lines
):
    begun: set[str] = set()

    def slowly(asked):
        if asked.phase is Phase.DOT and asked.recipient.startswith("sent"):
            begun.add("sent")
            return Answer(text="250 2.0.0 Ok", delay_seconds=0.3)
        if asked.phase is Phase.RCPT and asked.recipient.startswith("begun"):
            begun.add("begun")
            return Answer(text="250 2.1.5 Ok", delay_seconds=5.0)
        return None

    sink = await open_sink(rule=slowly, without=without)
    relay = open_relay(sink.port, "tls=none&max_connections=2")
    sent = asyncio.create_task(relay.deliver(an_envelope("sent@example.org", lines=lines)))
    await eventually(lambda: "sent" in begun)
    others = [
        asyncio.create_task(relay.deliver(an_envelope(f"{name}@example.org", lines=BIG)))
        for name in ("begun", "waits", "waits.too")
    ]
    await eventually(lambda: "begun" in begun)
    relay.recall()
    for task in others:
        with pytest.raises(Withheld):
            await asyncio.wait_for(task, 2)
    assert (await sent).accepted
    assert [mail.recipient for mail in sink.accepted] == ["sent@example.org"]
    assert (await relay.deliver(an_envelope("next@example.org", lines=lines))).accepted
