"""Two mails in line on one connection: what is written together, and what breaks alone."""

import asyncio

import pytest

from pgmail.domain.reply import Phase
from tests.fix_smtp import an_envelope

OK, GO = b"250 2.1.0 ok\r\n", b"354 go\r\n"
TAKEN = b"250 2.0.0 taken\r\n"


def mail(number, **changes):
    return an_envelope(f"u{number}@example.org", id=f"{number}@example.com", **changes)


async def login(reader, writer, *offers):
    writer.write(b"220 hello\r\n")
    await reader.readuntil(b"EHLO")
    await reader.readline()
    lines = [b"script", b"8BITMIME", *(offers or (b"PIPELINING",))]
    writer.write(b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1])


async def take_all(reader, writer):
    """Accept every mail until the client is gone."""
    while True:
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(TAKEN)


class Remote:
    """Connections one after another: the first is served by `first`, all others take every mail."""

    def __init__(self, first):
        self.first = first
        self.logins = 0
        self.second_login = asyncio.Event()

    async def serve(self, reader, writer):
        self.logins += 1
        await login(reader, writer)
        if self.logins == 1:
            await self.first(reader, writer)
        else:
            self.second_login.set()
            await take_all(reader, writer)


@pytest.fixture
def one_connection(open_script, open_relay, limits):
    """Start a `Remote`; return it and a relay that has one connection to it at a time."""
    limits["quit"] = 0.05

    async def start(first, options=""):
        remote = Remote(first)
        return remote, open_relay(await open_script(remote.serve), f"max_connections=1&{options}")

    return start


def send(relay, *numbers):
    return [asyncio.create_task(relay.deliver(mail(number))) for number in numbers]


async def test_the_commands_of_the_next_mail_travel_with_the_end_of_data(one_connection):
    groups = []

    async def first(reader, writer):
        groups.append(await reader.readuntil(b"DATA\r\n"))
        for _ in range(2):
            writer.write(OK + OK + GO)
            group = await reader.readuntil(b"DATA\r\n")
            groups.append(group)
            writer.write(TAKEN)
        writer.write(OK + OK + GO)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(TAKEN)

    _, relay = await one_connection(first)
    results = await asyncio.gather(*send(relay, 1, 2, 3))
    assert all(result.accepted for result in results)
    assert b"\r\n.\r\nMAIL FROM:<shop@example.com>\r\nRCPT TO:<u2@example.org>\r\nDATA\r\n" in groups[1]
    assert b"RCPT TO:<u3@example.org>" in groups[2]
    assert relay.pipeline_depth == 2


async def test_commands_and_body_are_one_write_where_the_next_mail_comes_with_the_result(
    one_connection, monkeypatch
):
    writes = []

    async def first(reader, writer):
        await take_all(reader, writer)

    _, relay = await one_connection(first)
    assert (await relay.deliver(mail(0))).accepted
    transport = relay._idle[-1][1]._transport

    class Counting:
        def __getattr__(self, name):
            return getattr(transport, name)

        def write(self, octets):
            writes.append(octets)
            transport.write(octets)

    monkeypatch.setattr(relay._idle[-1][1], "_transport", Counting())

    async def sender(numbers):
        for number in numbers:
            assert (await relay.deliver(mail(number))).accepted

    numbers = iter(range(1, 41))
    await asyncio.gather(sender(numbers), sender(numbers))
    assert len(writes) == 41


async def test_each_mail_gets_its_own_reply(one_connection):
    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"452 4.2.2 first is full\r\n" + OK + OK + GO)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 2.0.0 second is taken\r\n")

    _, relay = await one_connection(first)
    one, two = await asyncio.gather(*send(relay, 1, 2))
    assert (one.phase, one.reply.code, one.reply.text) == (Phase.DOT, 452, "first is full")
    assert (two.accepted, two.reply.text) == (True, "second is taken")


@pytest.mark.parametrize("how", ["421", "close", "reset", "silence", "nonsense", "unasked"])
async def test_what_breaks_the_first_mail_at_its_dot_does_not_touch_the_second(one_connection, limits, how):
    if how == "silence":
        limits["dot"] = 0.05

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        group = await reader.readuntil(b"DATA\r\n")
        assert b"RCPT TO:<u2@" in group
        if how == "421":
            writer.write(b"421 4.3.2 closing\r\n")
        elif how == "reset":
            writer.transport.abort()
        elif how == "nonsense":
            writer.write(b"what?\r\n")
        elif how == "unasked":
            writer.write(b"354 what?\r\n")
        if how in ("silence", "nonsense", "unasked", "421"):
            assert await reader.read() == b""

    remote, relay = await one_connection(first)
    one, two = await asyncio.gather(*send(relay, 1, 2))
    assert one.phase is Phase.DOT
    assert one.in_doubt is (how != "421")
    assert two.accepted
    assert remote.logins == 2


@pytest.mark.parametrize("data", [b"503 5.5.1 no recipients\r\n", GO])
async def test_a_refusal_of_the_second_mail_leaves_first_and_third_alone(one_connection, data):
    seen = []

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"DATA\r\n")
        writer.write(TAKEN + OK + b"550 5.1.1 nobody\r\n" + data)
        seen.append(await reader.readuntil(b"DATA\r\n"))
        writer.write((b"554 no valid recipients\r\n" if data == GO else b"") + OK + OK + OK + GO)
        seen.append(await reader.readuntil(b"\r\n.\r\n"))
        writer.write(TAKEN)

    remote, relay = await one_connection(first)
    one, two, three = await asyncio.gather(*send(relay, 1, 2, 3))
    assert one.accepted
    assert (two.phase, two.reply.code) == (Phase.RCPT, 550)
    assert three.accepted
    assert seen[0].startswith(b".\r\nRSET\r\nMAIL FROM" if data == GO else b"RSET\r\nMAIL FROM")
    assert b"Message-ID: <3@example.com>" in seen[1]
    assert remote.logins == 1


async def test_no_dot_is_said_when_it_could_send_an_empty_mail(one_connection):
    """MAIL refused, RCPT and DATA not: somebody would get what follows, in whoever's name."""
    rest = []

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"451 4.3.0 not now\r\n" + OK + GO)
        rest.append(await reader.read())

    remote, relay = await one_connection(first)
    one, two = await asyncio.gather(*send(relay, 1, 2))
    assert (one.phase, one.reply.code) == (Phase.MAIL, 451)
    assert two.accepted
    assert (rest, remote.logins) == ([b""], 2)


async def test_a_refused_reset_sends_the_mail_behind_it_elsewhere(one_connection):
    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + b"550 no\r\n503 no\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"502 what is RSET\r\n")
        assert await reader.read() == b""

    remote, relay = await one_connection(first)
    one, two = await asyncio.gather(*send(relay, 1, 2))
    assert one.reply.code == 550
    assert two.accepted
    assert remote.logins == 2


async def test_a_second_reply_to_the_dot_is_not_taken_for_the_next_mail(one_connection):
    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"DATA\r\n")
        writer.write(TAKEN + TAKEN + OK + OK + GO)
        assert await reader.read() == b""

    _, relay = await one_connection(first)
    one, two = await asyncio.gather(*send(relay, 1, 2))
    assert one.accepted
    assert (two.phase, two.in_doubt) == (Phase.DATA, False)
    assert two.error.startswith("unexpected reply to DATA: 250")


async def test_a_remote_that_closes_behind_every_mail_gets_each_one_once(open_script, open_relay):
    taken = []

    async def serve(reader, writer):
        await login(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        taken.append((await reader.readuntil(b"\r\n.\r\n")).partition(b"Message-ID: ")[2][:3])
        writer.write(TAKEN + b"421 4.3.2 one at a time\r\n")

    relay = open_relay(await open_script(serve), "max_connections=2")
    results = await asyncio.gather(*send(relay, *range(1, 8)))
    assert all(result.accepted for result in results)
    assert len(taken) == len(set(taken)) == 7


async def test_a_mail_finds_an_end_when_every_connection_is_closed_under_it(open_script, open_relay):
    asked = 0

    async def serve(reader, writer):
        nonlocal asked
        await login(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        asked += 1
        if asked <= 3:
            writer.write(OK + OK + GO)
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(TAKEN)
            await reader.readuntil(b"DATA\r\n")

    relay = open_relay(await open_script(serve), "max_connections=3")
    assert all(r.accepted for r in await asyncio.gather(*send(relay, 1, 2, 3)))
    result = await relay.deliver(mail(4))
    assert (result.phase, result.reply) == (Phase.MAIL, None)
    assert asked == 4  # a new connection, whose break would happen again


# --- mails that are written with care ---


@pytest.mark.parametrize("big", [True, False])
async def test_nothing_follows_a_careful_mail_before_its_end_of_data(one_connection, big):
    reached, go_on = asyncio.Event(), asyncio.Event()
    seen = bytearray()

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        while not seen.endswith(b"DATA\r\n"):
            seen.extend(await reader.read(65536))
            assert b"MAIL" not in seen or go_on.is_set()
        writer.write(TAKEN + OK + OK + GO)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(TAKEN)

    async def on_dot():
        reached.set()
        await go_on.wait()

    _, relay = await one_connection(first)
    lines = b"x" * 78 + b"\r\n"
    one = asyncio.create_task(relay.deliver(mail(1, lines=lines * (2000 if big else 1)), on_dot))
    await asyncio.wait_for(reached.wait(), 5)
    two = asyncio.create_task(relay.deliver(mail(2)))
    await asyncio.sleep(0)
    go_on.set()
    assert (await one).accepted
    assert (await two).accepted


async def test_a_careful_mail_may_be_the_second_in_line(one_connection):
    async def first(reader, writer):
        await take_all(reader, writer)

    async def on_dot():
        await asyncio.sleep(0)

    _, relay = await one_connection(first)
    tasks = [asyncio.create_task(relay.deliver(mail(n), on_dot if n % 2 else None)) for n in range(8)]
    assert all(result.accepted for result in await asyncio.gather(*tasks))


# --- cancelling ---


async def cancel(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_a_mail_of_which_nothing_was_said_leaves_no_trace(one_connection):
    asked, answer = asyncio.Event(), asyncio.Event()
    seen = []

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        asked.set()
        await answer.wait()
        writer.write(OK + OK + GO)
        seen.append(await reader.readuntil(b"DATA\r\n"))
        writer.write(TAKEN + OK + OK + GO)
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(TAKEN)

    remote, relay = await one_connection(first)
    tasks = send(relay, 1, 2, 3, 4)
    await asyncio.wait_for(asked.wait(), 5)
    await cancel(tasks[1])  # in line, its commands unsaid
    await cancel(tasks[2])  # took its place, or waits for one
    answer.set()
    assert (await tasks[0]).accepted
    assert (await tasks[3]).accepted
    assert b"u4@" in seen[0]
    assert remote.logins == 1


async def test_cancelling_a_mail_half_said_waits_for_the_one_before_it(one_connection):
    asked, answer = asyncio.Event(), asyncio.Event()
    rest = []

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"DATA\r\n")
        asked.set()
        await answer.wait()
        writer.write(TAKEN + OK + OK + GO)
        rest.append(await reader.read())

    remote, relay = await one_connection(first)
    one, two = send(relay, 1, 2)
    await asyncio.wait_for(asked.wait(), 5)
    await cancel(two)
    three = asyncio.create_task(relay.deliver(mail(3)))
    answer.set()
    assert (await one).accepted
    assert (await three).accepted
    assert (rest, remote.logins) == ([b""], 2)


async def test_cancelling_a_mail_at_its_dot_sends_the_one_behind_it_elsewhere(one_connection):
    asked = asyncio.Event()

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        writer.write(OK + OK + GO)
        await reader.readuntil(b"DATA\r\n")
        asked.set()
        assert await reader.read() == b""

    remote, relay = await one_connection(first)
    one, two = send(relay, 1, 2)
    await asyncio.wait_for(asked.wait(), 5)
    await cancel(one)
    assert (await two).accepted
    assert remote.logins == 2


async def test_a_mail_cancelled_as_its_354_arrives_is_not_sent(one_connection):
    asked, answer = asyncio.Event(), asyncio.Event()
    rest = []

    async def first(reader, writer):
        await reader.readuntil(b"DATA\r\n")
        asked.set()
        await answer.wait()
        writer.write(OK + OK + GO)
        rest.append(await reader.read())

    _, relay = await one_connection(first)
    (one,) = send(relay, 1)
    await asyncio.wait_for(asked.wait(), 5)
    (session,) = {mail_.session for mail_ in _in_line(relay)}
    one.cancel()
    session.data_received(OK + OK + GO)  # in the moment between cancelling and the task's awakening
    with pytest.raises(asyncio.CancelledError):
        await one
    answer.set()
    assert (await relay.deliver(mail(2))).accepted
    assert rest == [b""]


def _in_line(relay):
    return [mail_ for session in relay._half for mail_ in session._line]


async def test_an_error_of_on_dot_does_not_touch_the_mail_before_it(one_connection):
    async def first(reader, writer):
        await take_all(reader, writer)

    async def on_dot():
        raise ConnectionError("the database is away")

    remote, relay = await one_connection(first)
    one = asyncio.create_task(relay.deliver(mail(1)))
    two = asyncio.create_task(relay.deliver(mail(2), on_dot))
    assert (await one).accepted
    with pytest.raises(ConnectionError, match="database"):
        await two
    assert (await relay.deliver(mail(3))).accepted
    assert remote.logins == 2
