"""The relay's connections: reuse, limits, TLS, AUTH, what is said for a mail, cancelling, closing."""

import asyncio
import socket
import ssl

import pytest
import trustme

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink_rules import Answer
from pgmail.shaping.verdict import decide
from pgmail.transport import opening
from pgmail.transport.base import ready
from pgmail.transport.relay import Capabilities, SmtpRelay
from tests.fix_smtp import an_envelope

# --- connections ---


async def test_mails_one_after_another_use_one_connection(sink, open_relay):
    relay = open_relay(sink.port)
    for _ in range(5):
        assert (await relay.deliver(an_envelope())).accepted
    assert (sink.total, sink.connected, relay.idle_connections) == (5, 1, 1)


async def test_no_more_connections_than_allowed_are_opened(sink, open_relay):
    relay = open_relay(sink.port, "max_connections=3")
    results = await asyncio.gather(*(relay.deliver(an_envelope(id=str(n))) for n in range(40)))
    assert all(result.accepted for result in results)
    assert sink.total == len(sink.by_message_id) == 40
    assert sink.connected == 3


async def test_a_connection_is_left_after_its_share_of_mails(sink, open_relay):
    relay = open_relay(sink.port, "max_mails_per_connection=2")
    for _ in range(5):
        await relay.deliver(an_envelope())
    assert sink.connected == 3


async def test_an_idle_connection_is_closed_with_quit(open_sink, open_relay):
    quits = asyncio.Event()
    sink = await open_sink()
    relay = open_relay(sink.port, "idle_seconds=0.05")
    await relay.deliver(an_envelope())
    connection = next(iter(sink.connections))
    usual = connection._verbs[b"QUIT"]
    connection._verbs[b"QUIT"] = lambda *words: (quits.set(), usual(*words))
    await asyncio.wait_for(quits.wait(), 5)
    assert relay.idle_connections == 0


async def test_a_session_idle_for_too_long_is_not_used(sink, open_relay):
    relay = open_relay(sink.port, "idle_seconds=100")
    await relay.deliver(an_envelope())
    relay._idle = [(since - 100, session) for since, session in relay._idle]
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.connected == 2


async def test_connections_lost_while_idle_cost_nothing(sink, open_relay):
    relay = open_relay(sink.port)
    await asyncio.gather(*(relay.deliver(an_envelope()) for _ in range(4)))
    await sink.drop_connections()
    results = await asyncio.gather(*(relay.deliver(an_envelope()) for _ in range(4)))
    assert all(result.accepted for result in results)
    assert sink.total == 8


async def test_after_a_refusal_the_connection_is_reset_and_used_on(sink, open_relay):
    relay = open_relay(sink.port)
    assert (await relay.deliver(an_envelope("bounce.a@example.org"))).reply.code == 550
    assert (await relay.deliver(an_envelope("blocked.a@example.org"))).phase is Phase.DATA
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.connected == 1


@pytest.mark.parametrize("without", [set(), {"PIPELINING"}, {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8"}])
async def test_capabilities_are_known_after_the_first_connection(open_sink, open_relay, without):
    sink = await open_sink(without=frozenset(without), max_bytes=5000)
    relay = open_relay(sink.port)
    assert relay.capabilities() is None
    assert (await relay.deliver(an_envelope())).accepted
    assert relay.capabilities() == Capabilities(
        eightbit="8BITMIME" not in without,
        smtputf8="SMTPUTF8" not in without,
        pipelining="PIPELINING" not in without,
        size=None if "SIZE" in without else 5000,
    )


async def test_closing_twice_is_fine_and_delivering_afterwards_is_not(sink, open_relay):
    relay = open_relay(sink.port)
    await relay.deliver(an_envelope())
    await relay.close()
    await relay.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await relay.deliver(an_envelope())
    with pytest.raises(RuntimeError, match="is closed"):
        await relay.probe()


async def test_closing_is_bounded_when_the_remote_does_not_answer_quit(open_script, open_relay, limits):
    limits["quit"] = 0.05

    async def serve(reader, writer):
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250 old\r\n")
        for reply in (b"250 a\r\n", b"250 b\r\n", b"354 c\r\n", b"250 d\r\n"):
            await reader.readuntil(b".\r\n" if reply[4:5] == b"d" else b"\r\n")
            writer.write(reply)
        await asyncio.Event().wait()

    relay = open_relay(await open_script(serve))
    assert (await relay.deliver(an_envelope())).accepted
    await asyncio.wait_for(relay.close(), 5)


async def test_a_mail_on_its_way_when_the_relay_is_closed_ends_by_itself(open_sink, open_relay):
    sink = await open_sink(tarpit_seconds=0.2)
    relay = open_relay(sink.port)
    reached = asyncio.Event()

    async def on_dot():
        reached.set()

    task = asyncio.create_task(relay.deliver(an_envelope("slow.a@example.org"), on_dot))
    await asyncio.wait_for(reached.wait(), 5)
    await relay.close()
    assert (await task).accepted
    await relay.close()


# --- before the mail ---


async def test_nobody_listening_is_a_connect_fault(open_relay):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = await open_relay(taken.getsockname()[1]).deliver(an_envelope())
    assert (result.phase, result.error) == (Phase.CONNECT, "cannot connect: connection refused")
    assert decide(result).kind == "delay"


async def test_an_unknown_name_is_a_connect_fault(open_relay, monkeypatch):
    async def getaddrinfo(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    result = await open_relay(25, host="mx.example.invalid").deliver(an_envelope())
    assert result.phase is Phase.CONNECT
    assert result.error == "name not found: mx.example.invalid: Name or service not known"


async def test_an_impossible_name_is_a_connect_fault(open_relay):
    result = await open_relay(25, host="a" * 70 + ".example").deliver(an_envelope())
    assert (result.phase, decide(result).kind) == (Phase.CONNECT, "delay")
    assert result.error


async def test_a_slow_name_server_and_a_dead_address_are_connect_faults(open_relay, monkeypatch):
    async def never(*_args, **_options):
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "sock_connect", never)
    result = await open_relay(25, "timeout_scale=0.001").deliver(an_envelope())
    assert (result.phase, result.error) == (Phase.CONNECT, "not connected in 0.03 s")
    monkeypatch.setattr(loop, "getaddrinfo", never)
    result = await open_relay(25, "timeout_scale=0.001", host="mx.example").deliver(an_envelope())
    assert (result.phase, result.error) == (Phase.CONNECT, "name not resolved in 0.03 s: mx.example")


async def test_the_second_address_is_tried_when_the_first_is_dead(sink, open_relay, monkeypatch):
    async def addresses(_host, _port):
        return [(socket.AF_INET, ("127.0.0.1", port)) for port in (1, sink.port)]

    monkeypatch.setattr(opening, "_addresses", addresses)
    assert (await open_relay(1).deliver(an_envelope())).accepted


async def test_a_name_is_looked_up_and_an_address_is_not(sink, open_relay, monkeypatch):
    assert (await open_relay(sink.port, host="localhost").deliver(an_envelope())).accepted
    monkeypatch.delattr(socket, "getaddrinfo")
    assert (await open_relay(sink.port).deliver(an_envelope())).accepted
    assert await opening._addresses("::1", 25) == [(socket.AF_INET6, ("::1", 25))]


async def test_a_server_that_only_knows_helo_gets_helo(open_sink, open_relay):
    said = []

    def rule(asked):
        if asked.phase is not Phase.EHLO:
            return None
        said.append(asked.command)
        return Answer(text="502 5.5.1 What?") if asked.command.startswith(b"EHLO") else None

    sink = await open_sink(rule=rule)
    assert (await open_relay(sink.port, "helo=out.example.com").deliver(an_envelope())).accepted
    assert said == [b"EHLO out.example.com", b"HELO out.example.com"]


@pytest.mark.parametrize(
    ("name", "said"), [("out.example.com", b"EHLO out.example.com"), ("box", b"EHLO [127.0.0.1]")]
)
async def test_we_call_ourselves_by_a_qualified_name_or_our_address(
    open_sink, open_relay, monkeypatch, name, said
):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    commands = []
    sink = await open_sink(rule=lambda asked: commands.append(asked.command))
    await open_relay(sink.port).deliver(an_envelope())
    assert said in commands


async def test_a_probe_logs_in_and_leaves(open_sink, open_relay):
    sink = await open_sink(user="u", password="p")
    result = await open_relay(sink.port, login="u:p@").probe()
    assert ready(result)
    assert (result.phase, result.reply.code, sink.connected) == (Phase.AUTH, 235, 1)
    plain = await open_sink()
    result = await open_relay(plain.port).probe()
    assert ready(result)
    assert (result.phase, result.reply.code) == (Phase.EHLO, 250)
    await plain.stop()
    result = await open_relay(plain.port).probe()
    assert not ready(result)
    assert result.phase is Phase.CONNECT


# --- TLS ---


async def test_starttls_is_used_and_told(open_sink, open_relay, server_tls, ca_file):
    sink = await open_sink(tls=server_tls)
    relay = open_relay(sink.port, f"tls=starttls&ca={ca_file}")
    result = await relay.deliver(an_envelope(lines=(b"x" * 98 + b"\r\n") * 100_000))
    assert result.accepted
    assert result.tls.startswith("TLSv1.3 TLS_")
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.connected == 1


async def test_implicit_tls_is_used_and_told(open_sink, open_relay, server_tls, ca_file):
    sink = await open_sink(tls=server_tls, implicit_tls=True)
    relay = open_relay(sink.port, f"ca={ca_file}", scheme="smtps", host="localhost")
    result = await relay.deliver(an_envelope())
    assert result.accepted
    assert result.tls.startswith("TLSv1.3 TLS_")


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_certificate_that_is_not_accepted_is_a_tls_fault(
    *, open_sink, open_relay, certificate_authority, ca_file, wrong, implicit
):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority = trustme.CA() if wrong == "authority" else certificate_authority
    authority.issue_cert("127.0.0.1" if wrong == "authority" else "mx.example").configure_cert(context)
    sink = await open_sink(tls=context, implicit_tls=implicit)
    relay = open_relay(sink.port, f"ca={ca_file}&tls={'implicit' if implicit else 'starttls'}", scheme="smtp")
    result = await relay.deliver(an_envelope())
    assert (result.phase, result.reply) == (Phase.STARTTLS, None)
    assert result.error.startswith("certificate not accepted: ")
    assert decide(result).reason == "tls_failed"
    assert sink.total == 0
    careless = open_relay(sink.port, f"verify=false&tls={'implicit' if implicit else 'starttls'}")
    assert (await careless.deliver(an_envelope())).accepted


async def test_starttls_required_and_not_offered_is_a_tls_fault(sink, open_relay):
    result = await open_relay(sink.port, "tls=starttls").deliver(an_envelope())
    assert result.phase is Phase.STARTTLS
    assert result.error == "the relay does not offer STARTTLS, which is required"


async def test_opportunistic_tls_takes_any_certificate_and_no_tls_takes_none(
    open_sink, open_relay, server_tls
):
    sink = await open_sink(tls=server_tls)
    assert (await open_relay(sink.port).deliver(an_envelope())).tls
    assert (await open_relay(sink.port, "tls=none").deliver(an_envelope())).tls is None


async def test_opportunistic_tls_goes_on_in_the_clear_when_it_fails(open_sink, open_relay):
    broken = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # has no certificate
    sink = await open_sink(tls=broken)
    result = await open_relay(sink.port).deliver(an_envelope())
    assert result.accepted
    assert result.tls is None


async def test_no_tls_at_all_where_tls_was_expected_is_a_tls_fault(sink, open_relay):
    result = await open_relay(sink.port, scheme="smtps").deliver(an_envelope())
    assert (result.phase, decide(result).kind) == (Phase.STARTTLS, "delay")
    assert result.error.startswith("TLS failed: ")


@pytest.mark.parametrize("then", ["close", "silence"])
async def test_with_implicit_tls_a_closed_greeting_is_told_from_a_closed_handshake(
    *, open_sink, open_script, open_relay, limits, server_tls, then
):
    if then == "silence":
        limits["greeting"] = 1.0
    answer = Answer(after="close" if then == "close" else "hang")
    sink = await open_sink(
        tls=server_tls, implicit_tls=True, rule=lambda a: answer if a.phase is Phase.GREETING else None
    )
    options = "verify=false"
    result = await open_relay(sink.port, options, scheme="smtps").deliver(an_envelope())
    # aiosmtplib does both in one step, and a step that takes too long does not say where it stood.
    assert result.phase is (Phase.GREETING if then == "close" else Phase.STARTTLS)
    assert result.reply is None

    async def serve(reader, writer):
        if then == "silence":
            await asyncio.Event().wait()

    result = await open_relay(await open_script(serve), options, scheme="smtps").deliver(an_envelope())
    assert (result.phase, result.reply) == (Phase.STARTTLS, None)
    assert result.error


def test_an_unreadable_authority_is_a_wrong_setting(tmp_path):
    with pytest.raises(ValueError, match="ca: cannot be read"):
        SmtpRelay.from_url(f"smtps://mx.example?ca={tmp_path / 'none.pem'}")


# --- AUTH ---


@pytest.mark.parametrize("refused", [None, b"PLAIN"])
async def test_a_right_password_lets_mail_through(open_sink, open_relay, server_tls, ca_file, refused):
    def rule(asked):
        wrong = refused and asked.phase is Phase.AUTH and refused in asked.command
        return Answer(text="504 5.5.4 Not that one") if wrong else None

    sink = await open_sink(user="ü@x", password="p:/?", tls=server_tls, rule=rule)
    relay = open_relay(sink.port, f"tls=starttls&ca={ca_file}", login="%C3%BC%40x:p%3A%2F%3F@")
    assert (await relay.deliver(an_envelope())).accepted


async def test_a_wrong_password_pauses_the_relay_and_is_tried_once(open_sink, open_relay):
    tried = []

    def rule(asked):
        if asked.phase is Phase.AUTH:
            tried.append(asked.command)

    sink = await open_sink(user="u", password="right", rule=rule)
    result = await open_relay(sink.port, login="u:wrong@").deliver(an_envelope())
    assert (result.phase, result.reply.code, result.reply.enhanced) == (Phase.AUTH, 535, "5.7.8")
    assert decide(result).kind == "pause_relay"
    assert len(tried) == 1


async def test_a_relay_that_wants_a_password_pauses_without_one(open_sink, open_relay):
    sink = await open_sink(user="u", password="p")
    result = await open_relay(sink.port).deliver(an_envelope())
    assert (result.phase, result.reply.code) == (Phase.MAIL, 530)
    assert decide(result).kind == "pause_relay"


async def test_auth_not_offered_is_an_auth_fault(sink, open_relay):
    result = await open_relay(sink.port, login="u:p@").deliver(an_envelope())
    assert result.phase is Phase.AUTH
    assert "offers none of AUTH" in result.error


async def test_a_password_does_not_go_over_the_network_in_the_clear(open_sink, open_relay, monkeypatch):
    monkeypatch.setattr(opening, "_is_local", lambda _smtp: False)
    words = []
    sink = await open_sink(user="u", password="p", rule=lambda asked: words.append(asked.command))
    result = await open_relay(sink.port, login="u:p@").deliver(an_envelope())
    assert result.phase is Phase.STARTTLS
    assert "not sent in the clear" in result.error
    assert not any(b"AUTH" in word for word in words)
    assert (await open_relay(sink.port, "tls=none", login="u:p@").deliver(an_envelope())).accepted


async def test_a_challenge_that_is_not_base64_is_an_auth_fault(open_script, open_relay):
    async def serve(reader, writer):
        writer.write(b"220 hello\r\n")
        await reader.readline()
        writer.write(b"250-script\r\n250 AUTH CRAM-MD5\r\n")
        await reader.readline()
        writer.write(b"334 a\r\n")
        await reader.read()

    result = await open_relay(await open_script(serve), login="u:p@").deliver(an_envelope())
    assert (result.phase, decide(result).kind) == (Phase.AUTH, "delay")


# --- what is said for a mail ---


async def test_size_and_body_type_are_declared_when_offered(open_sink, open_relay):
    said = []
    sink = await open_sink(rule=lambda asked: said.append(asked.command))
    relay = open_relay(sink.port)
    mail = an_envelope("jörg@example.org", eightbit=True, smtputf8=True)
    assert (await relay.deliver(mail)).accepted
    size = len(mail.body)
    assert f"MAIL FROM:<shop@example.com> SIZE={size} BODY=8BITMIME SMTPUTF8".encode() in said
    assert "RCPT TO:<jörg@example.org>".encode() in said
    assert sink.accepted[0].recipient == "jörg@example.org"


@pytest.mark.parametrize(
    ("changes", "without", "code", "enhanced"),
    [
        ({"smtputf8": True}, "SMTPUTF8", 553, "5.6.7"),
        ({"sender": "jörg@example.org"}, "SMTPUTF8", 553, "5.6.7"),
        ({"eightbit": True}, "8BITMIME", 554, "5.6.3"),
        ({"lines": b"x\r\n" * 2000}, "-", 552, "5.3.4"),
        ({"sender": "a@b.example>\r\nRCPT TO:<x@y.example"}, "-", 553, "5.1.3"),
        ({"recipient": "a\0@b.example"}, "-", 553, "5.1.3"),
        ({"lines": b"a\n.\nMAIL FROM:<evil@example.com>\r\n"}, "-", 554, "5.6.0"),
        ({"lines": b"a\r.\r\n"}, "-", 554, "5.6.0"),
    ],
)
async def test_what_the_relay_cannot_take_is_refused_before_a_word_is_said(
    *, open_sink, open_relay, changes, without, code, enhanced
):
    said = []
    sink = await open_sink(
        without=frozenset({without}), max_bytes=5000, rule=lambda asked: said.append(asked.phase)
    )
    relay = open_relay(sink.port)
    result = await relay.deliver(an_envelope(**changes))
    assert (result.phase, result.reply.code, result.reply.enhanced) == (Phase.MAIL, code, enhanced)
    assert decide(result).kind == "bounce"
    assert Phase.MAIL not in said
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.connected == 1


# --- the end of data ---


async def test_on_dot_is_awaited_before_the_mail_can_be_accepted(sink, open_relay):
    relay = open_relay(sink.port)
    seen = []

    async def on_dot():
        await asyncio.sleep(0)
        seen.append(sink.total)

    assert (await relay.deliver(an_envelope(), on_dot)).accepted
    assert (await relay.deliver(an_envelope("bounce.a@example.org"), on_dot)).reply.code == 550
    assert seen == [0]


async def test_an_error_of_on_dot_escapes_and_the_mail_is_not_sent(sink, open_relay):
    relay = open_relay(sink.port)

    async def on_dot():
        raise ConnectionError("the database is away")

    with pytest.raises(ConnectionError, match="database"):
        await relay.deliver(an_envelope(), on_dot)
    assert relay.idle_connections == 0
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.total == 1


async def test_a_connection_lost_during_on_dot_is_not_in_doubt(sink, open_relay):
    relay = open_relay(sink.port)
    await relay.deliver(an_envelope())
    session = relay._idle[-1][1]

    async def on_dot():
        await sink.drop_connections()
        await asyncio.wait_for(asyncio.shield(session._closed), 5)

    result = await relay.deliver(an_envelope(), on_dot)
    assert (result.phase, decide(result).kind) == (Phase.BODY, "defer")


async def test_a_cancelled_mail_is_not_half_sent(sink, open_relay):
    relay = open_relay(sink.port)
    reached = asyncio.Event()

    async def on_dot():
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(relay.deliver(an_envelope(), on_dot))
    await asyncio.wait_for(reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await relay.deliver(an_envelope())).accepted
    assert sink.total == 1


async def test_a_cancelled_connection_leaves_nothing_open(open_sink, open_relay):
    asked = asyncio.Event()

    def rule(at):
        if at.phase is phase:
            asked.set()
            return Answer(after="hang")
        return None

    sink = await open_sink(rule=rule)
    for phase in (Phase.GREETING, Phase.EHLO):  # noqa: B007 - the rule reads it
        asked.clear()
        task = asyncio.create_task(open_relay(sink.port).deliver(an_envelope()))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_one_timer_serves_all_waits_of_a_session(sink, open_relay):
    """A deadline later than the timer is kept when the timer fires early."""
    relay = open_relay(sink.port)
    seen = []

    async def on_dot():
        session = next(s for s in seen)
        session._watch.check()  # as if a timer set for an earlier wait fired now
        assert session.usable

    await relay.deliver(an_envelope())
    seen.append(relay._idle[-1][1])
    assert (await relay.deliver(an_envelope(), on_dot)).accepted
