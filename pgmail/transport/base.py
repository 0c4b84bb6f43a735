"""What every transport promises: one envelope in, one `Result` out.

A transport turns bytes into a reply. It decides nothing (`shaping.verdict` does) and it never raises for what
a remote did: a refusal, a reset, a missing name or a bad certificate are all a `Result`. What escapes is
`CancelledError`, an error raised by `on_dot`, `TooLate`, and a programming error such as a delivery after `close`.

The dangerous moment is the same everywhere: after the end of data was handed over and before the reply was
read, the mail may have been taken. `Result.in_doubt` says so and nobody may send again silently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from pgmail.domain.reply import Envelope, Result
from pgmail.errors import PgmailError

OnDot = Callable[[], Awaitable[None]]
"""Awaited right before the mail becomes deliverable (SMTP: before the end of data is written).

It is where a stream that holds mail in doubt commits its intent. If it raises, the mail was not sent, the
connection is dropped and the error escapes from `deliver`.
"""


class Withheld(PgmailError):  # noqa: N818 - it is a state of affairs
    """The end of data was not sent, at our own wish: the mail surely did not go out."""


class TooLate(Exception):  # noqa: N818 - nothing went wrong
    """The moment by which a mail was to begin (`Envelope.not_after`) passed. Nothing of it was said."""


@runtime_checkable
class Transport(Protocol):
    """A way to hand mail over. Used by many tasks of one event loop at the same time."""

    name: str
    """How logs and events call it; never holds a password."""

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Hand one envelope over and say what came of it."""
        ...

    async def probe(self) -> Result:
        """Find out whether the remote is ready, without a mail. `ready(result)` reads the answer."""
        ...

    async def close(self) -> None:
        """Let go of everything, in bounded time. Calling it twice is fine; `deliver` afterwards is not."""
        ...


def ready(result: Result) -> bool:
    """Tell whether a probe's result means that mail can be handed over: the last step was answered 2xx."""
    return result.reply is not None and 200 <= result.reply.code < 300


def closed_error(name: str) -> RuntimeError:
    """Make the error for a use after `close`: a fault of ours, hence raised and not returned."""
    return RuntimeError(f"transport {name} is closed")
