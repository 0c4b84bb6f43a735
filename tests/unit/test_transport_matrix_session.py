"""What happens to a session as a whole: replies cut anywhere, one too many, a RSET or QUIT that goes wrong, a
remote that hangs up after so many mails, one that takes no more octets. The cells of single mails are in
`test_transport_matrix`.
"""

import asyncio

import pytest

from pgmail.domain.reply import Phase
from tests.rogue import (
    BOTH,
    CHUNKING,
    FAULTS,
    ONE_TOO_MANY,
    PIPELINING,
    PLAIN,
    QUIT,
    RSET,
    Fault,
    Rogue,
    Strike,
    Wire,
    a_mail,
)

LIMIT, AT_MOST = 0.2, 8.0  # seconds
MODES = {"plain": PLAIN, "pipelining": PIPELINING, "chunking": CHUNKING, "both": BOTH}


@pytest.fixture
def served(open_script, open_relay, limits):
    """Start a server and a relay that has one connection to it at a time."""
    limits["quit"] = 0.05

    async def start(serve):
        return open_relay(await open_script(serve), "tls=none&max_connections=1")

    return start


async def deliver(relay, *numbers):
    async with asyncio.timeout(AT_MOST):
        return await asyncio.gather(*(relay.deliver(a_mail(n)) for n in numbers))


# --- replies cut anywhere ---

FIRST = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n"
THEN = b"250-2.0.0 taken\r\n250 2.0.0 as m1\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n"
AT_ONCE = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n250-2.0.0 taken\r\n250 2.0.0 as m1\r\n"
LAST = b"250 2.0.0 taken too\r\n"


class Cut:
    """Answers the first connection's mails in groups, octet by octet up to `at`, where it hangs up."""

    def __init__(self, at, groups, *, chunking):
        self.at, self.groups, self.chunking = at, groups, chunking
        self.rest = Rogue(offers=BOTH if chunking else PIPELINING)
        self.first = True

    async def serve(self, reader, writer):
        if not self.first:
            await self.rest.serve(reader, writer)
            return
        self.first = False
        wire = Wire(reader, writer)
        await wire.say(b"220 cut\r\n")
        await reader.readline()
        await wire.say(
            b"250-cut\r\n250-CHUNKING\r\n250 PIPELINING\r\n"
            if self.chunking
            else b"250-cut\r\n250 PIPELINING\r\n"
        )
        left = self.at
        for number, group in enumerate(self.groups):
            if self.chunking:
                line = await reader.readuntil(b" LAST\r\n")
                await reader.readexactly(int(line.split()[-2]))
            else:
                await reader.readuntil(b"DATA\r\n" if number < len(self.groups) - 1 else b"\r\n.\r\n")
            for octet in group[:left]:
                await wire.say(bytes([octet]))
                await asyncio.sleep(0)
            left -= len(group)
            if left <= 0:
                return


@pytest.mark.parametrize("mode", ["pipelining", "both"])
async def test_replies_cut_at_any_octet_leave_doubt_only_where_there_is_some(served, mode):
    chunking = mode == "both"
    groups = [AT_ONCE, AT_ONCE] if chunking else [FIRST, THEN, LAST]
    verdict = len(AT_ONCE) if chunking else len(FIRST) + THEN.index(b"250 2.1.0")  # of the first mail
    second = verdict if chunking else len(FIRST + THEN)  # from here on all of the second was said

    async def cut(at):
        server = Cut(at, groups, chunking=chunking)
        return server, await deliver(await served(server.serve), 1, 2)

    whole = len(b"".join(groups))
    cells = list(range(whole + 1))
    for batch in (cells[i : i + 20] for i in range(0, len(cells), 20)):
        for at, (server, (one, two)) in zip(batch, await asyncio.gather(*map(cut, batch)), strict=True):
            where = f"cut at {at}: {one} {two}"
            if at >= verdict:
                assert one.accepted, where
            elif chunking or at >= len(FIRST):
                assert (one.phase, one.in_doubt) == (Phase.DOT, True), where
            else:
                assert not one.in_doubt, where
                assert one.error, where
            if at == whole:
                assert two.accepted, where
            elif at >= second:
                assert two.in_doubt, where
            elif two.accepted:
                assert server.rest.taken == {"m2": 1}, where
            else:
                assert not two.in_doubt, where
                assert two.error, where
                assert not server.rest.taken, where


# --- a reply too many ---

# (mode, phase): what is told of the mail at which a reply was said twice; None: accepted, its reply is the right one.
TOO_MANY = {
    ("plain", Phase.MAIL): (Phase.RCPT, False),
    ("plain", Phase.RCPT): (Phase.DATA, False),
    ("plain", Phase.DATA): (Phase.BODY, False),
    ("plain", Phase.DOT): None,
    ("pipelining", Phase.MAIL): (Phase.DATA, False),
    ("pipelining", Phase.RCPT): (Phase.DATA, False),
    ("pipelining", Phase.DOT): None,
}


@pytest.mark.parametrize(("mode", "phase"), TOO_MANY)
async def test_a_reply_too_many_is_not_taken_for_a_later_one(served, mode, phase):
    rogue = Rogue(Strike(phase, ONE_TOO_MANY, 1), offers=MODES[mode])
    told, other = await deliver(await served(rogue.serve), 1, 2)
    wanted = TOO_MANY[mode, phase]
    if wanted is None:
        assert told.accepted
        # Where its commands were on their way, the answers to them cannot be told apart: not sent, and said so.
        assert other.accepted or (other.phase, other.in_doubt) == (Phase.DATA, False)
        assert rogue.taken["m2"] == other.accepted
    else:
        assert (told.phase, told.in_doubt) == wanted
        assert other.accepted
        assert rogue.taken == {"m2": 1}


@pytest.mark.parametrize("last", [b"550 5.1.1 nobody\r\n", b"250 2.0.0 taken\r\n"])
async def test_by_bdat_a_reply_too_many_leaves_doubt_and_never_a_false_acceptance(served, last):
    """There is no 354 to keep replies and commands in step: the third of four may be about the recipient."""
    rest, first = Rogue(), True

    async def serve(reader, writer):
        nonlocal first
        if not first:
            await rest.serve(reader, writer)
            return
        first = False
        wire = Wire(reader, writer)
        await wire.say(b"220 two tongues\r\n")
        await reader.readline()
        await wire.say(b"250-x\r\n250-CHUNKING\r\n250 PIPELINING\r\n")
        line = await reader.readuntil(b" LAST\r\n")
        await reader.readexactly(int(line.split()[-2]))
        await wire.say(b"250 2.1.0 ok\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n" + last)
        await wire.wait_for_end()

    async def quietly(reader, writer):
        try:
            await serve(reader, writer)
        except Exception:  # noqa: BLE001 - the client left
            return

    told, other = await deliver(await served(quietly), 1, 2)
    assert (told.phase, told.in_doubt, told.error) == (Phase.DOT, True, "more replies than commands")
    assert other.accepted
    assert rest.taken == {"m2": 1}


async def test_by_bdat_a_farewell_behind_the_verdict_is_no_reply_too_many(served):
    rogue = Rogue(offers=BOTH, closes_after=1, farewell=b"421 4.3.2 one at a time\r\n")
    results = await deliver(await served(rogue.serve), 1, 2, 3)
    assert all(result.accepted for result in results)
    assert rogue.taken == {"m1": 1, "m2": 1, "m3": 1}


# --- RSET, QUIT ---


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", MODES)
async def test_a_reset_that_goes_wrong_costs_the_connection_and_no_mail(served, limits, mode, fault):
    if FAULTS[fault].slow:
        limits["command"] = 0.5  # that of EHLO too
    rogue = Rogue(
        Strike(RSET, FAULTS[fault]),
        offers=MODES[mode],
        refuse=True,
        on_strike=lambda: limits.pop("command", None),
    )
    relay = await served(rogue.serve)
    told, other, third = await deliver(relay, 1, 2, 3)
    assert rogue.struck
    assert (told.phase, told.reply.code) == (Phase.RCPT, 550)
    for result in (other, third):
        # Its commands may have been on their way when the remote fell silent: then it is told not sent.
        assert result.accepted or (result.phase, result.in_doubt, result.reply) == (Phase.MAIL, False, None)
    assert third.accepted
    assert rogue.taken["m2"] == other.accepted
    assert rogue.taken["m1"] == 0
    assert (rogue.connections == 1) is (FAULTS[fault].means == "harmless")
    if FAULTS[fault].means == "broken":
        assert rogue.taken_after_strike == 0


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_farewell_that_goes_wrong_is_bounded_and_unheard(served, fault):
    rogue = Rogue(Strike(QUIT, FAULTS[fault]))
    relay = await served(rogue.serve)
    (told,) = await deliver(relay, 1)
    async with asyncio.timeout(AT_MOST):
        await relay.close()
    assert told.accepted
    assert rogue.taken == {"m1": 1}
    assert relay.open_connections == 0


# --- hanging up, taking nothing ---


@pytest.mark.parametrize("farewell", [b"", b"421 4.3.2 enough\r\n"])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
async def test_a_remote_that_hangs_up_after_so_many_mails_gets_each_one_once(served, mode, after, farewell):
    rogue = Rogue(offers=MODES[mode], closes_after=after, farewell=farewell)
    numbers = range(1, 11)
    results = await deliver(await served(rogue.serve), *numbers)
    for number, result in zip(numbers, results, strict=True):
        # By BDAT a mail is said in one go: when the remote hung up in that moment, nobody can tell.
        assert result.accepted or (result.in_doubt and mode == "both" and not farewell)
        assert rogue.taken[f"m{number}"] == result.accepted


@pytest.mark.parametrize("mode", MODES)
async def test_a_remote_that_takes_no_more_octets_is_given_up_and_nothing_is_in_doubt(served, limits, mode):
    async def deaf(_wire, _usual):
        await asyncio.Event().wait()

    limits["block"] = LIMIT
    big = (b"x" * 998 + b"\r\n") * 10_000
    rogue = Rogue(
        Strike(Phase.BODY, Fault(deaf), 1), offers=MODES[mode], on_strike=lambda: limits.pop("block", None)
    )
    relay = await served(rogue.serve)
    async with asyncio.timeout(AT_MOST):
        told, other = await asyncio.gather(relay.deliver(a_mail(1, lines=big)), relay.deliver(a_mail(2)))
    assert (told.phase, told.in_doubt) == (Phase.BODY, False), told
    assert told.error.endswith(f"for {LIMIT} s")
    assert other.accepted
    assert rogue.taken == {"m2": 1}
