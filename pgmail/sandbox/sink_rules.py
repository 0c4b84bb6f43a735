"""What the sink answers: by the recipient's local part, as data, or by a rule of the test's own.

The word before the first dot of the local part decides: `bounce.anything@example.org`, or `bounce@...`. The
texts are those of large providers, so that what reads replies (classification, people) meets the real thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from pgmail.domain.reply import Phase

After = Literal["go", "close", "reset", "hang"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What to do at one step. Without `text` and `raw` nothing is said."""

    text: str = ""  # "550 5.1.1 No such user"; LF makes it a reply of several lines, each with the code
    raw: bytes | None = None  # sent as it is, in place of `text`
    after: After = "go"  # then: go on, close, reset (TCP RST), or never say anything again
    delay_seconds: float = 0.0  # before it
    store: bool | None = None  # at DOT: keep the mail? None: if the answer is 2xx


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The step at which a rule is asked.

    At RCPT `recipient` is the one named; later the rule is asked for each recipient accepted, and the first
    answer that is not None holds for the mail. `source` (the message) is there at DOT only.
    """

    phase: Phase
    connection: int  # counted from 1
    command: bytes = b""  # the line, without CRLF
    sender: str = ""
    recipient: str = ""
    message_id: str = ""
    source: bytes = b""
    tries: int = 1  # at DOT: how often this (sender, recipient, Message-ID) came, this time included


Rule = Callable[[Asked], Answer | None]
"""None: as if there was no rule."""


class Behaviour(msgspec.Struct, frozen=True):
    """At `phase` answer so; with `first_only` just the first time for this sender, recipient, Message-ID."""

    phase: Phase
    answer: Answer
    first_only: bool = False


_UNKNOWN = (
    "550 5.1.1 The email account that you tried to reach does not exist. Please try\n"
    "5.1.1 double-checking the recipient's email address for typos or\n"
    "5.1.1 unnecessary spaces. For more information, go to\n"
    "5.1.1  https://support.example.com/mail/?p=NoSuchUser - gsmtp"
)
# A wait that is asked for is kept, so it is one that a demo has time for.
_GREYLISTED = "451 4.7.1 Greylisting in action, please come back in 00:00:01"
_THROTTLED = (
    "451 4.7.500 Server busy. Please try again later from [198.51.100.7]. (S77719) "
    "[AM7EUR03FT012.eop-EUR03.prod.protection.example.com]"
)
_FULL = (
    "452 4.2.2 The recipient's inbox is out of storage space. Please direct the recipient to clean up space"
)
_BLOCKED = (
    "550 5.7.1 [198.51.100.7] Our system has detected that this message is likely\n"
    "5.7.1 unsolicited mail. To reduce the amount of spam sent, this message\n"
    "5.7.1 has been blocked. - gsmtp"
)

BEHAVIOURS: dict[str, Behaviour] = {
    "deferonce": Behaviour(Phase.DOT, Answer(text=_GREYLISTED), first_only=True),
    "defer": Behaviour(Phase.RCPT, Answer(text=_THROTTLED)),
    "bounce": Behaviour(Phase.RCPT, Answer(text=_UNKNOWN)),
    "full": Behaviour(Phase.RCPT, Answer(text=_FULL)),
    "blocked": Behaviour(Phase.DATA, Answer(text=_BLOCKED)),
    "drop": Behaviour(Phase.DOT, Answer(after="close", store=True)),
    "dropbefore": Behaviour(Phase.BODY, Answer(after="close")),
    "slow": Behaviour(Phase.DOT, Answer(text="250 2.0.0 Ok: queued, at last", delay_seconds=5.0)),
    "reset": Behaviour(Phase.RCPT, Answer(after="reset")),
    "busy": Behaviour(
        Phase.MAIL, Answer(text="421 4.3.2 Service shutting down, closing channel", after="close")
    ),
}
"""By the first word of the local part. `busy` is by the sender's, for it is answered at MAIL."""


def first_word(address: str) -> str:
    """Return what decides: the local part up to its first dot, lower case."""
    return address.partition("@")[0].partition(".")[0].lower()


def behave(asked: Asked, tarpit_seconds: float) -> Answer | None:
    """Answer by `BEHAVIOURS`. `tarpit_seconds` replaces the delays in it."""
    address = asked.sender if asked.phase is Phase.MAIL else asked.recipient
    behaviour = BEHAVIOURS.get(first_word(address))
    if behaviour is None or behaviour.phase is not asked.phase or (behaviour.first_only and asked.tries > 1):
        return None
    answer = behaviour.answer
    if answer.delay_seconds:
        return msgspec.structs.replace(answer, delay_seconds=tarpit_seconds)
    return answer
