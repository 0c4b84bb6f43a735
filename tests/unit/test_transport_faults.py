"""Each phase of an SMTP session meets each fault: what the relay reports and what pgmail makes of it."""

import asyncio
import contextlib

import pytest

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink_rules import Answer
from pgmail.shaping.verdict import decide
from tests.fix_smtp import an_envelope

FAULTS = {
    "close": Answer(after="close"),
    "reset": Answer(after="reset"),
    "nonsense": Answer(raw=b"HTTP/1.1 400 Bad Request\r\n"),
    "bad code": Answer(raw=b"999 what\r\n"),
    "half a line": Answer(raw=b"250-half of", after="close"),
    "endless": Answer(raw=b"250 " + b"x" * 120_000),
    "silence": Answer(after="hang"),
    "4xx": Answer(text="451 4.3.0 Try again later"),
    "5xx": Answer(text="554 5.7.1 No\n5.7.1 thanks"),
    "421": Answer(text="421 4.3.2 Closing", after="close"),
}
REPLIES = {"4xx": 451, "5xx": 554, "421": 421}

# The time limit that silence runs into. "command" is that of EHLO before it, too: let that have its time.
SILENCE = {
    Phase.GREETING: {"greeting": 0.05},
    Phase.EHLO: {"command": 0.05},
    Phase.STARTTLS: {"command": 2.0},
    Phase.AUTH: {"command": 2.0},
    Phase.MAIL: {"mail": 0.05},
    Phase.RCPT: {"rcpt": 0.05},
    Phase.DATA: {"data": 0.05},
    Phase.BODY: {"block": 0.2},
    Phase.DOT: {"dot": 0.05},
}

# kind of verdict by phase: (broken, 4xx, 5xx, 421)
KINDS = {
    Phase.GREETING: ("delay", "delay", "delay", "delay"),
    Phase.EHLO: ("delay", "delay", "delay", "delay"),
    Phase.STARTTLS: ("delay", "delay", "delay", "delay"),
    Phase.AUTH: ("delay", "delay", "pause_relay", "delay"),
    Phase.MAIL: ("delay", "defer", "bounce", "delay"),
    Phase.RCPT: ("defer", "defer", "bounce", "defer"),
    Phase.DATA: ("defer", "defer", "bounce", "defer"),
    Phase.DOT: ("in_doubt", "defer", "bounce", "defer"),
}


def _kind(phase, fault):
    broken, four, five, bye = KINDS[phase]
    return {"4xx": four, "5xx": five, "421": bye}.get(fault, broken)


# Pipelining begins after the login; the phases before it are the same without.
CASES = [(phase, True) for phase in KINDS] + [(phase, False) for phase in list(KINDS)[4:]]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("phase", "pipelining"), CASES)
async def test_a_fault_is_reported_in_its_phase_and_the_next_mail_goes_through(
    *, open_sink, open_relay, limits, server_tls, ca_file, phase, fault, pipelining
):
    armed = True
    sink = await open_sink(
        rule=lambda asked: FAULTS[fault] if armed and asked.phase is phase else None,
        user="u" if phase is Phase.AUTH else None,
        password="p",
        tls=server_tls if phase is Phase.STARTTLS else None,
        without=frozenset() if pipelining else frozenset({"PIPELINING"}),
    )
    relay = open_relay(
        sink.port,
        f"tls=starttls&ca={ca_file}" if phase is Phase.STARTTLS else "",
        login="u:p@" if phase is Phase.AUTH else "",
    )

    if fault == "silence":
        limits.update(SILENCE[phase])

    result = await relay.deliver(an_envelope())

    assert result.phase is phase
    assert result.in_doubt is (phase is Phase.DOT and fault not in REPLIES)
    assert result.remote_host == f"127.0.0.1:{sink.port}"
    if fault in REPLIES:
        assert result.reply is not None
        assert result.reply.code == REPLIES[fault]
        assert result.reply.enhanced in ("4.3.0", "5.7.1", "4.3.2")
        assert result.reply.text in ("Try again later", "No thanks", "Closing")
        assert result.error is None
    else:
        assert result.reply is None
        assert result.error
    assert decide(result).kind == _kind(phase, fault)
    assert sink.total == 0

    armed = False
    limits.clear()
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.total == 1


BODY_FAULTS = {
    "close": ("defer", None),
    "reset": ("defer", None),
    "nonsense": ("defer", None),
    "silence": ("defer", None),
    "4xx": ("defer", 451),
    "5xx": ("bounce", 554),
}


@pytest.mark.parametrize("fault", BODY_FAULTS)
async def test_a_big_mail_broken_before_its_end_is_not_in_doubt(open_sink, open_relay, limits, fault):
    armed = True
    sink = await open_sink(rule=lambda asked: FAULTS[fault] if armed and asked.phase is Phase.BODY else None)
    relay = open_relay(sink.port)
    if fault == "silence":
        limits.update(SILENCE[Phase.BODY])
    kind, code = BODY_FAULTS[fault]

    result = await relay.deliver(an_envelope(lines=(b"x" * 998 + b"\r\n") * 20_000))

    assert result.phase is Phase.BODY
    assert (result.reply.code if result.reply else None) == code
    assert decide(result).kind == kind
    armed = False
    limits.clear()
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.total == 1


async def test_a_small_mail_dropped_in_its_body_is_in_doubt_because_nobody_can_tell(sink, open_relay):
    relay = open_relay(sink.port)
    assert (await relay.deliver(an_envelope("dropbefore.a@example.org"))).in_doubt
    assert (await relay.deliver(an_envelope("drop.a@example.org"))).in_doubt
    assert sink.total == 1


@pytest.mark.parametrize(
    ("answers", "phase", "error"),
    [
        (
            [b"250 a\r\n", b"250 b\r\n", b"250 not 354\r\n"],
            Phase.DATA,
            "unexpected reply to DATA: 250 not 354",
        ),
        ([b"354 a\r\n", b"250 b\r\n", b"354 c\r\n"], Phase.MAIL, "unexpected reply to MAIL: 354 a"),
        (
            [b"250 a\r\n", b"251 b\r\n", b"354 c\r\n250 too early\r\n"],
            Phase.BODY,
            "reply before the end of data",
        ),
        ([b"250 a\r\n", b"250 b\r\n", b"354 c\r\n", b"334 d\r\n"], Phase.DOT, "unexpected reply to the end"),
    ],
)
async def test_a_reply_that_makes_no_sense_ends_the_connection(
    open_script, open_relay, answers, phase, error
):
    async def serve(reader, writer):
        await _login(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"".join(answers[:3]))
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"".join(answers[3:]))
        assert await reader.read() == b""

    relay = open_relay(await open_script(serve))
    result = await relay.deliver(an_envelope())
    assert result.phase is phase
    assert error in result.error
    assert relay.idle_connections == 0


async def test_data_allowed_after_a_refused_recipient_is_ended_with_a_lone_dot(open_script, open_relay):
    """RFC 2920, section 3.1."""
    seen = []

    async def serve(reader, writer):
        await _login(reader, writer)
        seen.append(await reader.readuntil(b"DATA\r\n"))
        writer.write(b"250 ok\r\n550 5.1.1 nobody\r\n354 go\r\n")
        seen.append(await reader.readuntil(b"RSET\r\n"))
        writer.write(b"554 no valid recipients\r\n250 flushed\r\n")
        seen.append(await reader.readuntil(b"DATA\r\n"))
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 2.0.0 taken\r\n")
        assert (await reader.readline()) == b"QUIT\r\n"

    relay = open_relay(await open_script(serve))
    refused = await relay.deliver(an_envelope())
    assert (refused.phase, refused.reply.code) == (Phase.RCPT, 550)
    assert (await relay.deliver(an_envelope())).accepted
    assert seen[1] == b".\r\nRSET\r\n"
    assert seen[2].startswith(b"MAIL FROM:<")


async def test_a_remote_that_hangs_up_after_a_refusal_does_not_hide_it(open_script, open_relay):
    async def serve(reader, writer):
        await _login(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"550 5.7.1 blocked\r\n")

    result = await open_relay(await open_script(serve)).deliver(an_envelope())
    assert (result.phase, result.reply.code) == (Phase.MAIL, 550)


@pytest.mark.parametrize("farewell", [b"", b"421 4.4.2 idle for too long\r\n", b"250 what\r\n"])
async def test_a_connection_closed_while_idle_is_replaced_silently(open_script, open_relay, limits, farewell):
    limits["quit"] = 0.05
    logins = 0

    async def serve(reader, writer):
        nonlocal logins
        logins += 1
        await _login(reader, writer)
        await _accept(reader, writer)
        # The next mail is on its way already when the remote gives up.
        await reader.readuntil(b"DATA\r\n")
        writer.write(farewell)

    relay = open_relay(await open_script(serve))
    assert (await relay.deliver(an_envelope())).accepted
    if farewell.startswith(b"250"):
        result = await relay.deliver(an_envelope())
        assert (result.phase, result.reply) == (Phase.RCPT, None)  # something was answered: no second try
        assert logins == 1
    else:
        assert (await relay.deliver(an_envelope())).accepted
        assert logins == 2


async def test_a_fresh_connection_that_breaks_is_not_tried_again(open_script, open_relay):
    logins = 0

    async def serve(reader, writer):
        nonlocal logins
        logins += 1
        await _login(reader, writer)
        await reader.readuntil(b"DATA\r\n")

    result = await open_relay(await open_script(serve)).deliver(an_envelope())
    assert (result.phase, result.error, logins) == (Phase.MAIL, "the remote closed the connection", 1)


async def test_a_remote_that_cannot_reset_loses_its_connection(open_script, open_relay):
    logins = 0

    async def serve(reader, writer):
        nonlocal logins
        logins += 1
        await _login(reader, writer)
        if logins == 1:
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"550 no\r\n503 no\r\n503 no\r\n")
            await reader.readuntil(b"RSET\r\n")
            writer.write(b"502 what is RSET\r\n")
            assert await reader.read() == b""
        else:
            await _accept(reader, writer)

    relay = open_relay(await open_script(serve))
    assert (await relay.deliver(an_envelope())).reply.code == 550
    assert (await relay.deliver(an_envelope())).accepted
    assert logins == 2


@pytest.mark.parametrize("late", [True, False])
async def test_words_of_an_idle_remote_are_not_taken_for_replies(open_script, open_relay, late):
    idle, gone = asyncio.Event(), asyncio.Event()
    logins = 0

    async def serve(reader, writer):
        nonlocal logins
        logins += 1
        await _login(reader, writer)
        await _accept(reader, writer)
        if logins == 1:
            if late:
                await idle.wait()
            writer.write(b"250 2.0.0 accepted again\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            gone.set()

    relay = open_relay(await open_script(serve))
    assert (await relay.deliver(an_envelope())).accepted
    idle.set()
    await asyncio.wait_for(gone.wait(), 5)
    assert (await relay.deliver(an_envelope())).accepted
    assert logins == 2


async def _login(reader, writer):
    writer.write(b"220 hello\r\n")
    await reader.readuntil(b"EHLO")
    await reader.readline()
    writer.write(b"250-script\r\n250-8BITMIME\r\n250 PIPELINING\r\n")


async def _accept(reader, writer):
    await reader.readuntil(b"DATA\r\n")
    writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
    await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 2.0.0 taken\r\n")
