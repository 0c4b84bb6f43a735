"""Mails by BDAT (RFC 3030): one round trip each, and the same care for what a break leaves behind."""

import asyncio

import pytest

from pgmail.domain.reply import Phase
from pgmail.transport import session
from tests.fix_smtp import an_envelope

OK, GO = b"250 2.1.0 ok\r\n", b"354 go\r\n"
TAKEN = b"250 2.0.0 taken\r\n"


def mail(number, **changes):
    return an_envelope(f"u{number}@example.org", id=f"{number}@example.com", **changes)


class Remote:
    """Takes mails by BDAT or DATA. `replies`: by a command's first word, a reply or a list, one a time.

    It hangs up when it reads the command `close_at`, once, and behind its octets. `early` counts the commands
    that came before the one before was answered.
    """

    def __init__(self, *, offers=("PIPELINING", "CHUNKING"), replies=None, close_at=None):
        self.offers = offers
        usual = dict.fromkeys((b"MAIL", b"RCPT", b"RSET", b"QUIT"), OK) | {b"BDAT": TAKEN, b"DATA": GO}
        self.replies = usual | (replies or {})
        self.close_at = close_at
        self.logins = 0
        self.early = 0
        self.said = []
        self.bodies = []

    async def serve(self, reader, writer):
        self.logins += 1
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-script\r\n" + "".join(f"250-{name}\r\n" for name in self.offers).encode())
        writer.write(b"250 SIZE\r\n")
        body = b""
        while line := await reader.readline():
            word, last = line[:4], line.endswith(b" LAST\r\n")
            self.said.append(line.strip())
            if word == b"BDAT":
                body += await reader.readexactly(int(line.split()[1]))
                if last:
                    self.bodies.append(body)
                    body = b""
            if word == self.close_at:
                self.close_at = None
                return
            self.early += bool(reader._buffer)
            reply = self.replies[word]
            writer.write(reply if isinstance(reply, bytes) else reply.pop(0))
            if reply == GO:
                self.bodies.append((await reader.readuntil(b"\r\n.\r\n"))[:-3])
                writer.write(TAKEN)

    @property
    def words(self):
        return [line[:4] for line in self.said]


@pytest.fixture
def remote(open_script, open_relay, limits):
    """Start a `Remote`; return it and a relay that has one connection to it at a time."""
    limits["quit"] = 0.05

    async def start(options="", **how):
        remote = Remote(**how)
        return remote, open_relay(await open_script(remote.serve), f"max_connections=1&{options}")

    return start


async def test_a_mail_is_three_commands_and_its_dots_stay_as_they_are(remote):
    there, relay = await remote()
    dots = b".\r\n..a\r\n.b\r\n"
    results = await asyncio.gather(*(relay.deliver(mail(n, lines=dots)) for n in range(5)))
    assert all(result.accepted for result in results)
    assert there.bodies == [mail(n, lines=dots).body for n in range(5)]
    assert there.words == [b"MAIL", b"RCPT", b"BDAT"] * 5
    assert there.logins == 1
    assert relay.capabilities().chunking
    assert relay.pipeline_depth == 2


async def test_all_of_a_mail_is_said_before_any_reply(open_script, open_relay, limits):
    limits["quit"] = 0.05

    async def serve(reader, writer):
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-script\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
        for _ in range(2):
            group = await reader.readuntil(b" LAST\r\n")
            await reader.readexactly(int(group.split()[-2]))
            assert not reader._buffer  # a second mail behind a refused one would mix with it
            writer.write(OK + OK + TAKEN)
        await reader.read()

    relay = open_relay(await open_script(serve), "max_connections=1")
    results = await asyncio.gather(relay.deliver(mail(1)), relay.deliver(mail(2)))
    assert all(result.accepted for result in results)


@pytest.mark.parametrize(
    ("options", "offers", "words", "early"),
    [
        ("chunking=false", ("PIPELINING", "CHUNKING"), [b"MAIL", b"RCPT", b"DATA"], True),
        ("pipelining=false", ("PIPELINING", "CHUNKING"), [b"MAIL", b"RCPT", b"BDAT"], False),
        ("", ("CHUNKING",), [b"MAIL", b"RCPT", b"BDAT"], False),
        ("chunking=false&pipelining=false", ("PIPELINING", "CHUNKING"), [b"MAIL", b"RCPT", b"DATA"], False),
    ],
)
async def test_what_is_not_offered_or_switched_off_is_not_used(remote, options, offers, words, early):
    there, relay = await remote(options, offers=offers)
    results = await asyncio.gather(*(relay.deliver(mail(n)) for n in range(3)))
    assert all(result.accepted for result in results)
    assert there.bodies == [mail(n).body for n in range(3)]
    assert there.words == words * 3
    assert bool(there.early) is early


@pytest.mark.parametrize("bdat", [b"503 5.5.1 no recipients\r\n", b"554 no valid recipients\r\n", TAKEN])
async def test_a_refused_recipient_is_the_result_whatever_is_said_to_the_data(remote, bdat):
    there, relay = await remote(replies={b"RCPT": [b"550 5.1.1 nobody\r\n", OK], b"BDAT": [bdat, TAKEN]})
    one, two = await asyncio.gather(relay.deliver(mail(1)), relay.deliver(mail(2)))
    assert (one.phase, one.reply.code) == (Phase.RCPT, 550)
    assert two.accepted
    assert there.words == [b"MAIL", b"RCPT", b"BDAT", b"RSET", b"MAIL", b"RCPT", b"BDAT"]
    assert there.logins == 1


async def test_a_refused_sender_is_the_result(remote):
    refused = {
        b"MAIL": [b"451 4.3.0 later\r\n", OK],
        b"RCPT": [b"503 no\r\n", OK],
        b"BDAT": [b"503 no\r\n", TAKEN],
    }
    there, relay = await remote(replies=refused)
    one = await relay.deliver(mail(1))
    assert (one.phase, one.reply.code, one.in_doubt) == (Phase.MAIL, 451, False)
    assert (await relay.deliver(mail(2))).accepted
    assert there.logins == 1


async def test_data_accepted_though_the_sender_was_refused_is_in_doubt(remote):
    there, relay = await remote(replies={b"MAIL": [b"451 4.3.0 later\r\n", OK]})
    one, two = await asyncio.gather(relay.deliver(mail(1)), relay.deliver(mail(2)))
    assert one.in_doubt
    assert "MAIL was refused" in one.error
    assert two.accepted
    assert there.logins == 2


@pytest.mark.parametrize("close_at", [b"MAIL", b"RCPT", b"BDAT"])
async def test_a_connection_that_breaks_once_the_data_is_written_leaves_doubt(remote, close_at):
    there, relay = await remote(close_at=close_at)
    one, two = await asyncio.gather(relay.deliver(mail(1)), relay.deliver(mail(2)))
    assert one.in_doubt
    assert two.accepted  # nothing of it was written
    assert there.logins == 2


async def test_a_refused_recipient_stands_when_the_connection_breaks_after_it(remote):
    _there, relay = await remote(close_at=b"BDAT", replies={b"RCPT": [b"550 5.1.1 nobody\r\n"]})
    one = await relay.deliver(mail(1))
    assert (one.phase, one.reply.code) == (Phase.RCPT, 550)


async def test_a_refused_sender_does_not_hide_a_doubt(remote):
    _there, relay = await remote(close_at=b"BDAT", replies={b"MAIL": [b"451 later\r\n"]})
    assert (await relay.deliver(mail(1))).in_doubt


@pytest.mark.parametrize("reply", [b"452 4.3.1 full\r\n", b"421 4.3.2 closing\r\n"])
async def test_refused_data_is_refused_at_the_end_of_data(remote, reply):
    there, relay = await remote(replies={b"BDAT": [reply, TAKEN]})
    one, two = await asyncio.gather(relay.deliver(mail(1)), relay.deliver(mail(2)))
    assert (one.phase, one.reply.code) == (Phase.DOT, int(reply[:3]))
    assert two.accepted
    assert there.logins == (2 if reply.startswith(b"421") else 1)
    assert (b"RSET" in there.words) is (there.logins == 1)


async def test_a_connection_closed_while_idle_leaves_no_doubt(remote, monkeypatch):
    """After a while without a word the data waits for the reply to RCPT."""
    monkeypatch.setattr(session, "TRUSTED_SECONDS", -1.0)
    there, relay = await remote()
    assert (await relay.deliver(mail(1))).accepted
    there.close_at = b"MAIL"
    assert (await relay.deliver(mail(2))).accepted
    assert there.logins == 2
    assert len(there.bodies) == 2


# --- big mails, and those whose intent is written down first ---

BIG = (b"x" * 998 + b"\r\n") * 300


@pytest.mark.parametrize("offers", [("PIPELINING", "CHUNKING"), ("CHUNKING",)])
async def test_a_big_mail_goes_in_chunks_and_on_dot_is_awaited_before_the_last(remote, offers):
    there, relay = await remote(offers=offers)
    before = []

    async def on_dot():
        before.append(([line for line in there.said if line.startswith(b"BDAT")], list(there.bodies)))

    results = await asyncio.gather(relay.deliver(mail(1, lines=BIG), on_dot), relay.deliver(mail(2)))
    assert all(result.accepted for result in results)
    assert there.bodies == [mail(1, lines=BIG).body, mail(2).body]
    said, bodies = before[0]
    assert (said, bodies) == ([b"BDAT 65536"] * 4, [])
    assert there.logins == 1


async def test_on_dot_is_awaited_before_a_small_mail_is_said(remote):
    there, relay = await remote()
    before = []

    async def on_dot():
        before.extend(there.words)

    assert (await relay.deliver(mail(1), on_dot)).accepted
    assert before == [b"MAIL", b"RCPT"]
    assert there.bodies == [mail(1).body]


async def test_on_dot_is_not_called_for_a_refused_recipient(remote):
    there, relay = await remote(replies={b"RCPT": [b"550 5.1.1 nobody\r\n", OK]})
    called = []

    async def on_dot():
        called.append(1)

    assert (await relay.deliver(mail(1), on_dot)).reply.code == 550
    assert not called
    assert (await relay.deliver(mail(2), on_dot)).accepted
    assert there.logins == 1


@pytest.mark.parametrize("reply", [b"552 5.3.4 too big\r\n", b"354 what\r\n"])
async def test_a_chunk_refused_in_the_middle_ends_the_connection_and_is_not_in_doubt(remote, reply):
    there, relay = await remote(replies={b"BDAT": [TAKEN, reply, *[b"503 no\r\n"] * 5]})
    one = await relay.deliver(mail(1, lines=BIG))
    assert one.phase is Phase.BODY
    assert (one.reply.code if one.reply else None) == (552 if reply.startswith(b"552") else None)
    assert there.bodies == []
    there.replies[b"BDAT"] = TAKEN
    assert (await relay.deliver(mail(2))).accepted
    assert there.logins == 2


async def test_a_cancelled_big_mail_is_not_accepted(remote):
    there, relay = await remote()
    reached = asyncio.Event()

    async def on_dot():
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(relay.deliver(mail(1, lines=BIG), on_dot))
    await asyncio.wait_for(reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await relay.deliver(mail(2))).accepted
    assert there.bodies == [mail(2).body]
