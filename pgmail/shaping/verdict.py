"""From what a transport came to, to what pgmail does about it. One `Result` in, one `Verdict` out.

| kind | meaning | attempt spent |
|---|---|---|
| `sent` | the next hop took responsibility | yes |
| `bounce` | refused for good; the recipient fails | yes |
| `defer` | refused, or broken off, for now; the recipient waits for its next attempt | yes |
| `delay` | the relay itself is away or busy; nobody's fault but its, and its circuit opens | no |
| `pause_relay` | the relay does not let us in; trying again would only lock the account | no |
| `in_doubt` | may have been taken; the stream decides between sending again and holding | yes |

The tables below are read from the top, the first row that fits decides. The moment that matters is the first
answer to a command of the mail itself (MAIL answered): before it a fault is the relay's (`delay`), after it a
fault may well be this mail's. Was it always `delay`, one mail that makes its relay hang up would be tried for
ever and open the circuit for all the others.

Why a mail was refused, whose fault it is and what follows beside comes from the rules for replies
(`pgmail.domain.replies`). They may turn a bounce into `defer`: a full mailbox gets another chance though its server
said 552. A 4xx always waits, whatever its text: who means it for good says so with a 5xx.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pgmail.domain.reply import Phase, Result
from pgmail.shaping.asked import asked_seconds
from pgmail.shaping.rulebook import book

Kind = Literal["sent", "defer", "bounce", "delay", "in_doubt", "pause_relay"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why. `reason` is a stable word; the rest is copied from the result."""

    kind: Kind
    reason: str
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None  # the remote's text
    error: str | None = None  # ours, when there was no reply
    blame: str | None = None  # as the rules have it; None where they were not asked
    rule: str | None = None  # which rule said so
    suppress: bool = False  # a fact about the address: no more mail to it
    slow: bool = False  # several of these pause the site
    alert: bool = False  # a person should look
    again_seconds: float | None = None  # what they asked us to wait, at least


class Row(msgspec.Struct, frozen=True):
    """If the reply came in one of `phases` and its code is one of `codes`, then `kind` for `reason`."""

    phases: frozenset[Phase]
    codes: range | tuple[int, ...]
    kind: Kind
    reason: str


ANY = frozenset(Phase)
LOGIN = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS})
AUTH = frozenset({Phase.AUTH})
MAIL = frozenset({Phase.MAIL})
MESSAGE = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT})
DOT = frozenset({Phase.DOT})

_4XX = range(400, 500)
_5XX = range(500, 600)

REPLIED: tuple[Row, ...] = (
    Row(DOT, range(200, 300), "sent", "accepted"),
    # RFC 4954, section 6; many only say so at MAIL. Later it is about a recipient: a relay that passes on what the next
    # server said must not stop all mail.
    Row(LOGIN | AUTH | MAIL, (530, 534, 535, 538), "pause_relay", "authentication_refused"),
    Row(AUTH, _5XX, "pause_relay", "authentication_refused"),
    Row(AUTH, _4XX, "delay", "authentication_unavailable"),
    # RFC 5321, section 3.8: the remote shuts down, or wants fewer connections.
    Row(LOGIN | MAIL, (421,), "delay", "relay_busy"),
    Row(LOGIN, _4XX, "delay", "relay_busy"),
    # "554 no SMTP service here": we may be blocked there, but it says nothing about this recipient.
    Row(LOGIN, _5XX, "delay", "relay_refuses_us"),
    Row(MESSAGE, _5XX, "bounce", "refused"),
    Row(MESSAGE, _4XX, "defer", "refused_for_now"),
)
"""What a reply means."""

BROKEN: dict[Phase, tuple[Kind, str]] = {
    Phase.CONNECT: ("delay", "relay_unreachable"),
    Phase.GREETING: ("delay", "relay_unreachable"),
    Phase.EHLO: ("delay", "relay_unreachable"),
    Phase.STARTTLS: ("delay", "tls_failed"),
    Phase.AUTH: ("delay", "authentication_unavailable"),
    Phase.MAIL: ("delay", "connection_lost"),
    Phase.RCPT: ("defer", "connection_lost"),
    Phase.DATA: ("defer", "connection_lost"),
    Phase.BODY: ("defer", "connection_lost"),
    Phase.DOT: ("in_doubt", "reply_lost"),
}
"""What it means that there was no reply."""


def decide(result: Result) -> Verdict:
    """Decide what to do about one result. Never raises: what no row knows is `defer`, `unexpected_reply`."""
    reply = result.reply
    if reply is None:
        kind, reason = BROKEN[result.phase]
        return Verdict(kind=kind, reason=reason, error=result.error)
    if result.accepted:  # nearly all of them; the first row below says the same
        return Verdict(
            kind="sent", reason="accepted", code=reply.code, enhanced=reply.enhanced, reply=reply.text,
            error=result.error,
        )  # fmt: skip
    kind, reason = "defer", "unexpected_reply"
    for row in REPLIED:
        if result.phase in row.phases and reply.code in row.codes:
            kind, reason = row.kind, row.reason
            break
    if kind not in ("bounce", "defer") or reply.code < 400:
        return Verdict(
            kind=kind, reason=reason, code=reply.code, enhanced=reply.enhanced, reply=reply.text, error=result.error,
        )  # fmt: skip
    meaning = book().classify(reply.code, reply.enhanced, result.phase.value, reply.text)
    why = meaning.reason
    if kind == "bounce" and why.follows == "retry":
        kind = "defer"
    return Verdict(
        kind=kind, reason=why.name, code=reply.code, enhanced=reply.enhanced, reply=reply.text, error=result.error,
        blame=why.blame, rule=meaning.rule, suppress=why.suppress and kind == "bounce", slow=why.slow, alert=why.alert,
        again_seconds=asked_seconds(reply.text) if kind == "defer" else None,
    )  # fmt: skip
