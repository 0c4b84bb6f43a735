"""The table of verdicts, written out once more from the side of what must follow."""

import pytest

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.shaping.verdict import BROKEN, decide


@pytest.mark.parametrize(
    ("phase", "code", "kind"),
    [
        (Phase.DOT, 250, "sent"),
        (Phase.DOT, 299, "sent"),
        *((phase, 550, "bounce") for phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT)),
        *((phase, 451, "defer") for phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT)),
        *((phase, 421, "delay") for phase in (Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS)),
        (Phase.MAIL, 421, "delay"),
        *((phase, 421, "defer") for phase in (Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT)),
        (Phase.GREETING, 554, "delay"),
        (Phase.EHLO, 450, "delay"),
        (Phase.STARTTLS, 454, "delay"),
        (Phase.AUTH, 500, "pause_relay"),
        (Phase.AUTH, 535, "pause_relay"),
        (Phase.AUTH, 454, "delay"),
        (Phase.AUTH, 421, "delay"),
        *((Phase.MAIL, code, "pause_relay") for code in (530, 534, 535, 538)),
        (Phase.RCPT, 530, "bounce"),
        (Phase.DOT, 530, "bounce"),
        (Phase.RCPT, 250, "defer"),
        (Phase.DOT, 354, "defer"),
    ],
)
def test_a_reply_leads_to_its_verdict(phase, code, kind):
    verdict = decide(Result(phase=phase, reply=Reply(code, "text", "4.0.0")))
    assert (verdict.kind, verdict.code, verdict.reply, verdict.enhanced) == (kind, code, "text", "4.0.0")
    assert verdict.reason


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        *((phase, "delay") for phase in list(Phase)[:6]),
        (Phase.RCPT, "defer"),
        (Phase.DATA, "defer"),
        (Phase.BODY, "defer"),
        (Phase.DOT, "in_doubt"),
    ],
)
def test_a_break_leads_to_its_verdict(phase, kind):
    verdict = decide(Result(phase=phase, error="the remote closed the connection"))
    assert (verdict.kind, verdict.code) == (kind, None)
    assert verdict.error == "the remote closed the connection"


def test_in_doubt_is_exactly_what_a_result_calls_so():
    for phase in Phase:
        result = Result(phase=phase)
        assert (decide(result).kind == "in_doubt") is result.in_doubt


def test_only_an_accepted_result_is_sent():
    for phase in Phase:
        for code in range(200, 600):
            result = Result(phase=phase, reply=Reply(code, ""))
            assert (decide(result).kind == "sent") is result.accepted


def test_every_phase_has_its_row():
    assert set(BROKEN) == set(Phase)
