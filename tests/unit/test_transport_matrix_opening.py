"""Every step up to the login meets every fault: what is told, and that no mail went out, least of all in the clear.

Also certificates, real ones: expired, not valid yet, for another host, of an unknown authority.
"""

import asyncio
import datetime as dt
import socket
import ssl

import pytest
import trustme

from pgmail.domain.reply import Phase
from pgmail.shaping.verdict import decide
from tests.rogue import FAULTS, HANDSHAKE, PIPELINING, Fault, Rogue, Strike, Wire, a_mail

AT_MOST = 8.0  # seconds
AGAIN = "ehlo after tls"
LIMITS = {Phase.GREETING: {"greeting": 0.2}}  # else that of each command, the handshake with its STARTTLS
TOLD = {HANDSHAKE: Phase.STARTTLS, AGAIN: Phase.EHLO}
CODES = {"4xx": 451, "5xx": 554, "421": 421}


async def _alert(wire: Wire, _usual: bytes) -> None:
    await wire.say(b"\x15\x03\x03\x00\x02\x02\x28")  # RFC 8446, section 6: fatal, handshake_failure


FAULTS_HERE = {**FAULTS, "TLS alert": Fault(_alert)}
CELLS = [
    (phase, fault)
    for phase in (Phase.GREETING, Phase.EHLO, Phase.STARTTLS, HANDSHAKE, AGAIN, Phase.AUTH)
    for fault in FAULTS_HERE
    if (fault != "TLS alert" if phase != HANDSHAKE else FAULTS_HERE[fault].means != "harmless")
]


def expected(phase, name):
    """(phase told, code, kind of verdict)."""
    means = FAULTS_HERE[name].means
    told = TOLD.get(phase, phase)
    code = None if phase == HANDSHAKE else CODES.get(means)
    if name == "two codes" and phase != HANDSHAKE:
        code = 559  # aiosmtplib goes by the last line
    if code in (554, 559) and told is Phase.EHLO:
        code = 500  # it was asked again in its own language, by HELO
    return told, code, "pause_relay" if told is Phase.AUTH and code in (554, 559) else "delay"


@pytest.mark.parametrize(("phase", "fault"), CELLS)
async def test_a_fault_before_the_mail_is_the_relays_and_sends_nothing(
    *, open_script, open_relay, limits, server_tls, ca_file, phase, fault
):
    act = FAULTS_HERE[fault]
    limits["quit"] = 0.05
    if act.slow or phase == HANDSHAKE:  # some octets look like the begin of a TLS record
        limits.update(LIMITS.get(phase, {"command": 0.6}))
    rogue = Rogue(Strike(phase, act), offers=PIPELINING, tls=server_tls, login=True)
    relay = open_relay(await open_script(rogue.serve), f"tls=starttls&ca={ca_file}", login="u:p@")
    async with asyncio.timeout(AT_MOST):
        told = await relay.deliver(a_mail(1))
    assert rogue.struck
    if act.means == "harmless":
        assert told.accepted
        return
    code = told.reply.code if told.reply else None
    assert (told.phase, code, decide(told).kind) == expected(phase, fault), told
    assert bool(told.error) is (code is None)
    assert not told.in_doubt
    assert (rogue.taken, relay.open_connections) == ({}, 0)
    limits.clear()
    assert (await relay.deliver(a_mail(2))).accepted
    assert rogue.taken == {"m2": 1}
    assert rogue.mails_in_clear == 0


@pytest.mark.parametrize(
    ("phase", "fault"), [cell for cell in CELLS if cell[0] in (Phase.STARTTLS, HANDSHAKE)]
)
async def test_opportunistic_tls_that_fails_in_any_way_falls_back_to_clear_text(
    *, open_script, open_relay, limits, server_tls, phase, fault
):
    """RFC 7435. Where TLS is required the same faults delay the mail: the test above."""
    limits["quit"] = 0.05
    if FAULTS_HERE[fault].slow or phase == HANDSHAKE:
        limits["command"] = 0.6
    rogue = Rogue(Strike(phase, FAULTS_HERE[fault]), tls=server_tls)
    relay = open_relay(await open_script(rogue.serve), "tls=opportunistic")
    async with asyncio.timeout(AT_MOST):
        told = await relay.deliver(a_mail(1))
    assert told.accepted
    clear = FAULTS_HERE[fault].means != "harmless"
    assert (told.tls is None, rogue.mails_in_clear, rogue.connections) == (clear, clear, 1 + clear)


async def test_a_server_that_does_not_answer_a_connection_is_a_connect_fault(open_relay, limits):
    """Its queue of connections is full: the kernel drops what comes."""
    limits["connect"] = 0.3
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        async with asyncio.timeout(AT_MOST):
            told = await open_relay(port, "tls=none").deliver(a_mail(1))
        for one in crowd:
            one.close()
    assert (told.phase, told.error, decide(told).kind) == (Phase.CONNECT, "not connected in 0.3 s", "delay")


# --- certificates ---

DAY = dt.timedelta(days=1)


@pytest.fixture
def certificates(certificate_authority):
    """A server's TLS context by what is wrong with its certificate."""
    now = dt.datetime.now(dt.UTC)

    def make(wrong):
        authority = trustme.CA() if wrong == "authority" else certificate_authority
        names = ("mx.example",) if wrong == "name" else ("127.0.0.1", "localhost")
        valid = {
            "expired": {"not_before": now - 9 * DAY, "not_after": now - DAY},
            "early": {"not_before": now + DAY, "not_after": now + 9 * DAY},
        }.get(wrong, {})
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*names, **valid).configure_cert(context)
        return context

    return make


WRONG = {
    "expired": "certificate has expired",
    "early": "certificate is not yet valid",
    "name": "IP address mismatch",
    "authority": "unable to get local issuer certificate",
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_bad_certificate_delays_where_it_is_looked_at_and_says_why(
    *, open_sink, open_relay, certificates, ca_file, tls, wrong
):
    sink = await open_sink(tls=certificates(wrong), implicit_tls=tls == "implicit")
    told = await open_relay(sink.port, f"tls={tls}&ca={ca_file}").deliver(a_mail(1))
    assert (told.phase, told.reply) == (Phase.STARTTLS, None)
    assert told.error.startswith("certificate not accepted: ")
    assert WRONG[wrong] in told.error
    assert (decide(told).kind, decide(told).reason) == ("delay", "tls_failed")
    assert sink.total == 0


@pytest.mark.parametrize("wrong", WRONG)
async def test_opportunistic_tls_encrypts_with_any_certificate(open_sink, open_relay, certificates, wrong):
    sink = await open_sink(tls=certificates(wrong))
    told = await open_relay(sink.port, "tls=opportunistic").deliver(a_mail(1))
    assert told.accepted
    assert told.tls
