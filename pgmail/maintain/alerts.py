"""What the leading process does for alerts: looks every few seconds, and tells.

Looking (`AlertLook`) is one statement; telling (`AlertTeller`) is a chore of its own, so that no target keeps the next
look waiting. Each target is told by a task of its own, one delivery after the other: one that is dead waits alone.
An email goes straight to a relay from here, the next one where that does not answer, and a call straight to its URL:
neither needs the queue that may be the trouble.

What can go wrong: the process dies between an answer and its record; that delivery comes again after two minutes,
with the same id. One that stops, or leads no more, gives back what it was about to tell, and the next tells it at once:
twice, where it got through. Nothing of a target's address is logged but its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import structlog

from pgmail import alerting
from pgmail.domain.reply import Envelope
from pgmail.errors import DatabaseAway, KeyMissing, PgmailError, SealBroken
from pgmail.maintain import alert_forms as forms
from pgmail.sealing.keks import Keks
from pgmail.store import alerts as store
from pgmail.store.database import Database
from pgmail.transport.base import Transport

if TYPE_CHECKING:  # the library below it is large, and most processes tell nobody
    from pgmail.transport.guarded_http import GuardedHttp

LOOK_SECONDS = 10.0
LOOK_PART = 0.02  # of the time, at most, goes into looking: the longer it takes, the more rarely it comes
TELL_SECONDS = 2.0  # between looks for what is to be told
BUSY_SECONDS = 0.5
PURGE_SECONDS = 3_600.0
CALL_SECONDS = 15.0
RELAY_SECONDS = 20.0  # a relay's part of
MAIL_SECONDS = 60.0  # all of one email, connecting included; a delivery counts as lost after two minutes
MOST = 16  # targets told at once

_log = structlog.get_logger()


class AlertLook:
    """The chore that looks."""

    name = "alerts"

    def __init__(self, database: Database, seconds: float = LOOK_SECONDS) -> None:
        self._database, self._seconds = database, seconds
        self._purge_at = 0.0
        self._took = 0.0

    async def step(self) -> float:
        """Look once, and log what moved."""
        began = time.monotonic()
        moved = await store.step(self._database)
        took = time.monotonic() - began
        for row in moved:
            facts = {"rule": row.rule, "subject": row.subject, "tenant": row.tenant, "words": row.words}
            if row.move == "blind":
                _log.warning("alert.blind", family=row.rule, error=row.words)
            elif row.move == "resolved":
                _log.info("alert.resolved", **facts)
            else:
                say = _log.error if row.severity == "critical" else _log.warning
                say("alert.firing", severity=row.severity, silenced=row.silenced, **facts)
        if time.monotonic() >= self._purge_at and await store.purge(self._database) == 0:
            self._purge_at = time.monotonic() + PURGE_SECONDS  # until nothing is left, a part each look
        # The quicker of the last two: the first one of a leader, with cold plans, or one slow one must not keep it
        # from looking for minutes.
        usual, self._took = min(took, self._took), took
        return max(self._seconds, usual / LOOK_PART)


class Outcome(NamedTuple):
    """How telling went: whether it was taken, what was said, and whether another try is in vain."""

    ok: bool
    answer: str | None
    final: bool = False


class AlertTeller:
    """The chore that tells."""

    name = "alert targets"

    def __init__(
        self,
        database: Database,
        *,
        keks: Keks,
        http: Callable[[], GuardedHttp],
        relays: Sequence[Transport],
        sender: str,
        public_url: str = "",
        seconds: float = TELL_SECONDS,
    ) -> None:
        """`http` makes the client of webhooks when the first is called.

        Emails, from `sender`, go to the first of `relays` that takes them: the one that mail goes through may be what
        is told of.
        """
        self._database, self._keks, self._make_http, self._relays = database, keks, http, tuple(relays)
        self._http: GuardedHttp | None = None
        self._sender, self._public_url, self._seconds = sender, public_url, seconds
        self._busy: dict[UUID, tuple[UUID, asyncio.Task[None]]] = {}  # by target: the delivery, and who tells
        self._ways: dict[str, Callable[[Any, alerting.Secret], Awaitable[Outcome]]] = {
            "webhook": self._call,
            "slack": self._slack,
            "email": self._mail,
        }

    async def step(self) -> float:
        """Tell what is due, and return when nobody is being told: no task outlives this call."""
        try:
            while True:
                for target, (_, task) in list(self._busy.items()):
                    if task.done():
                        del self._busy[target]
                        task.result()  # what it crashed of is the chore's to log
                for row in await store.take(self._database, max(MOST - len(self._busy), 0), self._busy):
                    telling = asyncio.create_task(self._tell(row), name=f"alert {row.target}")
                    self._busy[row.target_id] = row.id, telling
                if not self._busy:
                    return self._seconds
                tasks = [task for _, task in self._busy.values()]
                await asyncio.wait(tasks, timeout=BUSY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left, self._busy = {id_: task for id_, task in self._busy.values() if not task.done()}, {}
            for task in left.values():
                task.cancel()
            await asyncio.gather(*left.values(), return_exceptions=True)
            if left:
                with contextlib.suppress(PgmailError):  # they come again in two minutes
                    await store.give_back(self._database, left)

    async def _tell(self, row: Any) -> None:
        try:
            secret = alerting.opened(self._keks, row.tenant_id, row.target_id, row.kek, bytes(row.secret))
            how = await self._ways[row.target_kind](row, secret)
        except (KeyMissing, SealBroken) as error:
            how = Outcome(ok=False, answer=f"its address is sealed: {error}")
        except Exception as error:  # noqa: BLE001 - one target's trouble is its own
            _log.exception("alert.tell_crashed", target=row.target)
            how = Outcome(
                ok=False, answer=f"a fault of pgmail itself ({type(error).__name__}); the log says more"
            )
        if not how.ok:
            _log.warning(
                "alert.not_told", target=row.target, what=row.event, attempt=row.attempts, error=how.answer
            )
        with contextlib.suppress(DatabaseAway):  # it comes again
            await store.told(self._database, row.id, ok=how.ok, answer=how.answer, final=how.final)

    async def _call(self, row: Any, secret: alerting.Secret) -> Outcome:
        body = forms.webhook(row, self._public_url)
        return await self._post(secret.url, body, forms.signed(row, body, secret.secret, datetime.now(UTC)))

    async def _slack(self, row: Any, secret: alerting.Secret) -> Outcome:
        headers = {"Content-Type": "application/json", "User-Agent": "pgmail"}
        return await self._post(secret.url, forms.slack(row, self._public_url), headers)

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Outcome:
        if self._http is None:
            self._http = self._make_http()
        answer = await self._http.post(url, body, headers, seconds=CALL_SECONDS)
        said = " ".join(answer.text.split())[:200]
        said = answer.error or f"HTTP {answer.status}" + (f": {said}" if said else "")
        return Outcome(answer.good, said, final=answer.status == 410)  # Gone (RFC 9110, section 15.5.11)

    async def _mail(self, row: Any, secret: alerting.Secret) -> Outcome:
        relays, refused = list(self._relays), []
        ends = time.monotonic() + MAIL_SECONDS
        for recipient in secret.to:
            body = forms.email(row, self._sender, recipient, self._public_url, datetime.now(UTC))
            utf8 = not recipient.isascii()
            envelope = Envelope(
                sender=self._sender, recipient=recipient, body=body, smtputf8=utf8, eightbit=utf8
            )
            if (said := await self._through(relays, envelope, ends)) is not None:
                refused.append(f"{recipient}: {said}")
        # Who got it would get it again: one that took it is enough.
        return Outcome(len(refused) < len(secret.to), "; ".join(refused) or None)

    async def _through(self, relays: list[Transport], envelope: Envelope, ends: float) -> str | None:
        """Hand one email to the first relay that takes it; else what the last said.

        One that does not answer leaves the list. What may have been taken there is told once more by the next: of an
        alert twice is better than not at all.
        """
        said = "no relay answers"
        for relay in tuple(relays):
            try:
                async with asyncio.timeout(max(0.0, min(RELAY_SECONDS, ends - time.monotonic()))):
                    result = await relay.deliver(envelope)
            except TimeoutError:
                said = f"{relay.name}: no answer in time"
                relays.remove(relay)
                continue
            if result.accepted:
                return None
            if (reply := result.reply) is None:
                said = f"{relay.name}: {result.error}"
                relays.remove(relay)
            else:
                said = f"{relay.name}: {reply.code} {reply.enhanced or ''} {reply.text}"
        return said
