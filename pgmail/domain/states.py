"""The life of one recipient as data: phases, states, event types, and who moves what to where.

SQL moves the states (`sql/functions/`) and derives them from `queue`, `outcome` and `dead_letter`; this table
is what documentation and tests hold it against, and what the ways out (API, command line, dashboard) take
their words from.

What can go wrong: a word added in SQL and not here is a word that users cannot look up; a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec


class Phase(StrEnum):
    """What users see first; each state is in one phase."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SENT = "sent"
    FAILED = "failed"


class State(StrEnum):
    """Where one recipient stands. Each is a term of the ledger."""

    SCHEDULED = "scheduled"  # due in the future, at the sender's wish
    QUEUED = "queued"  # due; waits for a worker or a limit
    SENDING = "sending"  # leased by a live worker
    DEFERRED = "deferred"  # 4xx: waits for its next attempt
    HELD = "held"  # stopped by an operator, or in doubt on a stream that holds
    SENT = "sent"  # the next hop said 250; final for the ledger
    BOUNCED = "bounced"  # 5xx
    SUPPRESSED = "suppressed"  # the address is on the suppression list
    EXPIRED = "expired"  # `expires_at` passed first
    CANCELLED = "cancelled"  # by the sender or an operator
    DEAD = "dead"  # attempts exhausted, or it cannot be processed; stands in `dead_letter`


PHASE_OF: Mapping[State, Phase] = MappingProxyType(
    {
        State.SCHEDULED: Phase.QUEUED,
        State.QUEUED: Phase.QUEUED,
        State.SENDING: Phase.PROCESSING,
        State.DEFERRED: Phase.QUEUED,
        State.HELD: Phase.QUEUED,
        State.SENT: Phase.SENT,
        State.BOUNCED: Phase.FAILED,
        State.SUPPRESSED: Phase.FAILED,
        State.EXPIRED: Phase.FAILED,
        State.CANCELLED: Phase.FAILED,
        State.DEAD: Phase.FAILED,
    }
)

# Nothing moves these again; to send once more is a new email with `replay_of`.
FINAL = frozenset({State.SENT, State.BOUNCED, State.SUPPRESSED, State.EXPIRED, State.CANCELLED})
# Rows in the hot table; the others have left it.
IN_QUEUE = frozenset({State.SCHEDULED, State.QUEUED, State.SENDING, State.DEFERRED, State.HELD})


class EventType(StrEnum):
    """What the record tells about a recipient, in the words of webhooks and `GET /events`."""

    QUEUED = "email.queued"
    SCHEDULED = "email.scheduled"
    SENDING = "email.sending"
    DEFERRED = "email.deferred"
    DELAYED = "email.delayed"
    SENT = "email.sent"
    DELIVERED = "email.delivered"
    BOUNCED = "email.bounced"
    COMPLAINED = "email.complained"
    SUPPRESSED = "email.suppressed"
    EXPIRED = "email.expired"
    CANCELLED = "email.cancelled"
    HELD = "email.held"
    IN_DOUBT = "email.in_doubt"
    FAILED = "email.failed"  # the dead letter's
    OPENED = "email.opened"
    CLICKED = "email.clicked"
    UNSUBSCRIBED = "email.unsubscribed"


# Facts that may arrive on a settled recipient; they do not move the ledger.
LATER = frozenset(
    {
        EventType.DELIVERED,
        EventType.BOUNCED,
        EventType.COMPLAINED,
        EventType.OPENED,
        EventType.CLICKED,
        EventType.UNSUBSCRIBED,
    }
)


class Move(msgspec.Struct, frozen=True):
    """One legal transition. `state` None is before the enqueue; `event` None means no event row."""

    state: State | None
    mover: str
    next: State
    event: EventType | None
    who: str


_S, _E = State, EventType

MOVES: tuple[Move, ...] = (
    Move(None, "send", _S.QUEUED, _E.QUEUED, "application"),
    Move(None, "send", _S.SCHEDULED, _E.SCHEDULED, "application"),
    Move(None, "send", _S.SUPPRESSED, _E.SUPPRESSED, "application"),
    Move(None, "send", _S.HELD, _E.HELD, "application"),  # on_limit = hold
    Move(_S.SCHEDULED, "due", _S.QUEUED, None, "time"),
    Move(_S.SCHEDULED, "reschedule", _S.SCHEDULED, _E.SCHEDULED, "sender"),
    Move(_S.SCHEDULED, "reschedule", _S.QUEUED, _E.QUEUED, "sender"),  # to a moment that has come
    Move(_S.SCHEDULED, "cancel", _S.CANCELLED, _E.CANCELLED, "sender"),
    Move(_S.SCHEDULED, "hold", _S.HELD, _E.HELD, "operator"),
    Move(_S.QUEUED, "claim", _S.SENDING, _E.SENDING, "worker"),
    Move(_S.QUEUED, "reschedule", _S.SCHEDULED, _E.SCHEDULED, "sender"),
    Move(_S.QUEUED, "reschedule", _S.QUEUED, _E.QUEUED, "sender"),
    Move(_S.QUEUED, "cancel", _S.CANCELLED, _E.CANCELLED, "sender"),
    Move(_S.QUEUED, "hold", _S.HELD, _E.HELD, "operator"),
    Move(_S.QUEUED, "expire", _S.EXPIRED, _E.EXPIRED, "maintain"),
    Move(_S.QUEUED, "restore", _S.HELD, _E.IN_DOUBT, "operator"),  # may have been sent before the restore
    Move(_S.QUEUED, "restore", _S.QUEUED, _E.IN_DOUBT, "operator"),
    Move(_S.QUEUED, "restore", _S.SENT, _E.SENT, "operator"),  # assumed
    Move(_S.QUEUED, "late 250", _S.SENT, _E.SENT, "worker"),  # of an attempt whose lease was lost
    Move(_S.SENDING, "settle", _S.SENT, _E.SENT, "worker"),
    Move(_S.SENDING, "settle", _S.BOUNCED, _E.BOUNCED, "worker"),
    Move(_S.SENDING, "settle", _S.DEFERRED, _E.DEFERRED, "worker"),
    Move(_S.SENDING, "settle", _S.DEFERRED, _E.IN_DOUBT, "worker"),  # reply lost, on_doubt = resend
    Move(_S.SENDING, "settle", _S.DEAD, _E.FAILED, "worker"),
    Move(_S.SENDING, "settle", _S.SUPPRESSED, _E.SUPPRESSED, "worker"),  # suppressed after the enqueue
    Move(_S.SENDING, "settle", _S.EXPIRED, _E.EXPIRED, "worker"),  # expired in the worker's hands
    Move(_S.SENDING, "settle", _S.HELD, _E.IN_DOUBT, "worker"),  # reply lost, on_doubt = hold
    Move(_S.SENDING, "release", _S.QUEUED, _E.DELAYED, "worker"),  # we waited: the relay is away
    Move(_S.SENDING, "release", _S.QUEUED, None, "worker"),  # given back on drain
    Move(_S.SENDING, "rescue", _S.QUEUED, _E.IN_DOUBT, "maintain"),  # may have begun, on_doubt = resend
    Move(_S.SENDING, "rescue", _S.QUEUED, _E.DELAYED, "maintain"),  # surely not sent, on_doubt = hold
    Move(_S.SENDING, "rescue", _S.HELD, _E.IN_DOUBT, "maintain"),  # may have begun, on_doubt = hold
    Move(_S.SENDING, "restore", _S.HELD, _E.IN_DOUBT, "operator"),  # until the decision all of them are held
    Move(_S.SENDING, "restore", _S.QUEUED, _E.IN_DOUBT, "operator"),
    Move(_S.SENDING, "restore", _S.SENT, _E.SENT, "operator"),
    Move(_S.DEFERRED, "due", _S.QUEUED, None, "time"),
    Move(_S.DEFERRED, "reschedule", _S.SCHEDULED, _E.SCHEDULED, "sender"),
    Move(_S.DEFERRED, "reschedule", _S.QUEUED, _E.QUEUED, "sender"),
    Move(_S.DEFERRED, "cancel", _S.CANCELLED, _E.CANCELLED, "sender"),
    Move(_S.DEFERRED, "hold", _S.HELD, _E.HELD, "operator"),
    Move(_S.DEFERRED, "expire", _S.EXPIRED, _E.EXPIRED, "maintain"),
    Move(_S.DEFERRED, "retry", _S.QUEUED, _E.QUEUED, "operator"),
    Move(_S.DEFERRED, "late 250", _S.SENT, _E.SENT, "worker"),
    Move(_S.HELD, "retry", _S.QUEUED, _E.QUEUED, "operator"),
    Move(_S.HELD, "retry", _S.SCHEDULED, _E.SCHEDULED, "operator"),  # held before its time
    Move(_S.HELD, "release", _S.QUEUED, _E.QUEUED, "operator"),
    Move(_S.HELD, "release", _S.SCHEDULED, _E.SCHEDULED, "operator"),
    Move(_S.HELD, "release", _S.DEFERRED, _E.QUEUED, "operator"),  # its next attempt is when it was
    Move(_S.HELD, "resolve", _S.SENT, _E.SENT, "operator"),  # in doubt, and taken for sent
    Move(_S.HELD, "resolve", _S.QUEUED, _E.QUEUED, "operator"),  # in doubt, and sent again
    Move(_S.HELD, "cancel", _S.CANCELLED, _E.CANCELLED, "sender"),
    Move(_S.HELD, "late 250", _S.SENT, _E.SENT, "worker"),
    Move(_S.DEAD, "retry", _S.QUEUED, _E.QUEUED, "operator"),
    Move(_S.DEAD, "discard", _S.CANCELLED, _E.CANCELLED, "operator"),
)


def next_states(state: State | None, mover: str) -> frozenset[State]:
    """Return where `mover` may take a recipient in `state`; empty if it may not move it at all."""
    return frozenset(move.next for move in MOVES if move.state is state and move.mover == mover)


def movers(state: State | None) -> frozenset[str]:
    """Return what may move a recipient out of `state`."""
    return frozenset(move.mover for move in MOVES if move.state is state)
