"""Every phase of a mail meets every fault, in every mode of a session, with another mail before or behind it.

What must hold in each cell: "may have been accepted" is said exactly when the end of data may have left us and
no definite reply came; the other mail goes through, once; nothing escapes, nothing outlasts its time limit;
a connection whose state is unknown carries no other mail.
"""

import asyncio

import pytest

from pgmail.domain.reply import Phase
from pgmail.shaping.verdict import decide
from tests.rogue import BOTH, CHUNKING, FAULTS, PIPELINING, PLAIN, Rogue, Strike, a_mail

LIMIT = 0.2  # seconds, of the phase that is struck; a fault that is not slow meets none
AT_MOST = 8.0  # seconds for a cell: far above any limit set, far below those not set


class Mode:
    """How a session carries mails. `hold`: a mail's intent is written down before its end of data."""

    def __init__(self, offers, *, hold=False):
        self.offers, self.hold = offers, hold
        self.chunking = "CHUNKING" in offers
        self.at_once = offers == BOTH and not hold  # all of a mail is said before any reply


MODES = {
    "plain": Mode(PLAIN),
    "pipelining": Mode(PIPELINING),
    "chunking": Mode(CHUNKING),
    "both": Mode(BOTH),
    "pipelining, hold": Mode(PIPELINING, hold=True),
    "both, hold": Mode(BOTH, hold=True),
}
LIMITS = {Phase.MAIL: "mail", Phase.RCPT: "rcpt", Phase.DATA: "data", Phase.BODY: "block", Phase.DOT: "dot"}
CODES = {"4xx": 451, "5xx": 554, "421": 421}


def expected(mode, phase, fault, mail):
    """(phase told, code, in doubt) for the mail that is struck; "accepted" where nobody need hear of it."""
    if fault.means == "harmless":
        return "accepted"
    # On a connection that was used before, the remote may have closed it for another reason: nothing of the
    # mail was answered, so it goes over another one. By BDAT all of it may have been said by then.
    if mail == 2 and phase is Phase.MAIL and (fault.means == "421" or (fault.gone and not mode.at_once)):
        return "accepted"
    if fault.means in CODES:
        return phase, CODES[fault.means], False
    if mode.at_once or phase is Phase.DOT:
        return Phase.DOT, None, True
    return phase, None, False


CELLS = [
    (mode, phase)
    for mode in MODES
    for phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT)
    if not (MODES[mode].chunking and phase is Phase.DATA)
]


class Dots:
    """Counts the intents that were written down, by mail."""

    def __init__(self):
        self.said = set()

    def of(self, number):
        async def on_dot():
            self.said.add(number)

        return on_dot


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("mode", "phase"), CELLS)
async def test_a_fault_at_one_mail_is_told_truly_and_leaves_the_other_alone(
    *, open_script, open_relay, limits, mode, phase, fault
):
    mode, fault = MODES[mode], FAULTS[fault]
    limits["quit"] = 0.05
    strikes = 0
    if fault.slow:
        limits[LIMITS[phase]] = LIMIT

    def on_strike():
        nonlocal strikes
        strikes += 1
        if strikes == 2:  # for connections to come: they meet no fault, and are to meet no limit
            limits.pop(LIMITS[phase], None)

    async def strike(number):
        rogue = Rogue(Strike(phase, fault, number), offers=mode.offers, on_strike=on_strike)
        relay, dots = open_relay(await open_script(rogue.serve), "tls=none&max_connections=1"), Dots()
        results = await asyncio.gather(
            *(relay.deliver(a_mail(n), dots.of(n) if mode.hold else None) for n in (1, 2))
        )
        return rogue, relay, dots, results

    async with asyncio.timeout(AT_MOST):
        struck_first, struck_second = await asyncio.gather(strike(1), strike(2))
    for number, (rogue, relay, dots, results) in ((1, struck_first), (2, struck_second)):
        told, other = results[number - 1], results[2 - number]
        wanted = expected(mode, phase, fault, number)
        where = f"mail {number} struck: {told}"
        assert rogue.struck
        if wanted == "accepted":
            assert told.accepted, where
        else:
            code = told.reply.code if told.reply else None
            assert (told.phase, code, told.in_doubt) == wanted, where
            assert bool(told.error) is (code is None), where
            assert decide(told).kind == kind(*wanted), where
            assert bool(rogue.taken[f"m{number}"]) <= told.in_doubt, where
            if mode.hold:
                assert (number in dots.said) >= told.in_doubt, where
        assert other.accepted, f"the other of mail {number}: {other}"
        assert max(rogue.taken.values()) == 1
        assert rogue.taken[f"m{3 - number}"] == 1
        if fault.means == "broken":
            assert rogue.taken_after_strike == 0
        assert relay.open_connections <= 1


def kind(phase, code, in_doubt):
    if in_doubt:
        return "in_doubt"
    if code is None or code == 421:
        return "delay" if phase is Phase.MAIL else "defer"
    return "defer" if code < 500 else "bounce"


# --- the body of a big mail ---

BIG = (b"x" * 998 + b"\r\n") * 8_000  # more than the buffers of two sockets take
EARLY = {**CODES, "broken": None}
# Where no reply is due while the body goes (DATA), a remote that reads on and says little is in time.
BODY_CELLS = [
    (mode, fault)
    for mode in ("plain", "pipelining", "chunking", "both")
    for fault in FAULTS
    if FAULTS[fault].means in EARLY and (MODES[mode].chunking or not FAULTS[fault].slow)
]


@pytest.mark.parametrize(("mode", "fault"), BODY_CELLS)
async def test_a_fault_while_the_body_is_under_way_is_never_in_doubt(
    *, open_script, open_relay, limits, mode, fault
):
    mode, fault = MODES[mode], FAULTS[fault]
    limits["quit"] = 0.05
    if fault.slow:
        limits["block"] = LIMIT
    rogue = Rogue(
        Strike(Phase.BODY, fault, 1), offers=mode.offers, on_strike=lambda: limits.pop("block", None)
    )
    relay = open_relay(await open_script(rogue.serve), "tls=none&max_connections=1")
    async with asyncio.timeout(AT_MOST):
        told, other = await asyncio.gather(relay.deliver(a_mail(1, lines=BIG)), relay.deliver(a_mail(2)))
    assert rogue.struck
    assert (told.phase, told.in_doubt) == (Phase.BODY, False), told
    assert (told.reply.code if told.reply else None) == EARLY[fault.means]
    assert other.accepted
    assert rogue.taken == {"m2": 1}
