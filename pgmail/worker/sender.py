"""From a lease to a settlement: render, send, judge. One slot a mail at a time, `concurrency` slots a process.

Nothing here touches the queue: a slot hands its finding to the settler, or gives the lease back. A fault of
ours while making a mail (a template, a missing asset) is a dead letter; a relay that is away is a delay.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from pgmail.domain.reply import Envelope, Phase, Result
from pgmail.errors import DatabaseAway, PgmailError, TemplateFault
from pgmail.shaping.retry import RetryPolicy, next_delay
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store.work import Lease, RecipientRow, Settlement, StreamRow
from pgmail.worker.content import Impossible, Library, Message
from pgmail.worker.lanes import Lane
from pgmail.worker.relays import Relays
from pgmail.worker.settler import Settler

_log = structlog.get_logger()

GiveBack = Callable[[Lease, str | None], Awaitable[None]]

MOST_RESCUES = 10  # workers that died holding a mail, before it is taken for what kills them


class Job:
    """A lease with all that is needed to send it."""

    __slots__ = ("lane", "lease", "message", "person", "stream")

    def __init__(
        self,
        lease: Lease,
        lane: Lane,
        stream: StreamRow,
        message: Message | None,
        person: RecipientRow | None,
    ) -> None:
        self.lease, self.lane, self.stream, self.message, self.person = lease, lane, stream, message, person

    def settlement(self, kind: str, **facts: Any) -> Settlement:
        """What became of it."""
        lease, lane = self.lease, self.lane
        return Settlement(
            id=lease.id, message_id=lease.message_id, claims=lease.claims, kind=kind, lane=lease.lane,
            stream=lane.stream, priority=lane.priority, site=lane.site, attempts=lease.attempts, **facts,
        )  # fmt: skip


class Sender:
    """Sends jobs. Shared by all slots of a process."""

    def __init__(
        self,
        library: Library,
        relays: Relays,
        settler: Settler,
        give_back: GiveBack,
        worker: Callable[[], int],
        *,
        fresh: Callable[[], bool] = lambda: True,
    ) -> None:
        """`fresh` tells whether this worker is surely alive to others; it begins no mail otherwise."""
        self._library, self._relays, self._settler = library, relays, settler
        self._give_back, self._worker, self._fresh = give_back, worker, fresh

    async def send(self, job: Job) -> None:
        """Bring one job to its end: a settlement, or the lease given back."""
        lease, stream = job.lease, job.stream
        settle = self._settler.add
        if job.message is None or job.person is None:
            settle(
                lease.tenant,
                job.settlement(
                    "dead", reason="poison", error="its content is gone or cannot be read", began=False
                ),
            )
            return
        if lease.rescues >= MOST_RESCUES:
            error = f"{lease.rescues} workers died while they held it"
            settle(lease.tenant, job.settlement("dead", reason="poison", error=error, began=False))
            return
        if not self._fresh():
            await self._give_back(lease, None)  # others may count us as dead by now, and send it themselves
            return
        if job.person.suppressed is not None:
            settle(lease.tenant, job.settlement("suppressed", reason=job.person.suppressed, began=False))
            return
        if lease.expires_at is not None and lease.expires_at.timestamp() <= time.time():
            reason = "expires_at passed before it was sent"
            settle(lease.tenant, job.settlement("expired", reason=reason, began=False))
            return
        transport = self._relays.get(stream.relay)
        if transport is None or self._relays.blocked(stream.relay):
            # It was claimed before the relay was found away, or names a relay that this process has not.
            reason = "relay is blocked" if transport else "is not configured in this worker"
            await self._give_back(lease, f"relay {stream.relay} {reason}" if transport is None else None)
            return
        try:
            wire = await self._library.wire(lease.tenant, job.message, job.person, eightbit=False)
        except (TemplateFault, Impossible) as fault:
            settle(lease.tenant, job.settlement("dead", reason="template", error=str(fault), began=False))
            _log.warning("mail.impossible", id=str(lease.id), message=str(lease.message_id), error=str(fault))
            return
        except DatabaseAway:
            await self._give_back(lease, None)
            return
        except PgmailError:
            raise
        except Exception as fault:  # noqa: BLE001
            # A fault of ours that this mail brings out. It must not end the worker, which holds others too.
            _log.exception("mail.poison", id=str(lease.id), message=str(lease.message_id))
            error = f"{type(fault).__name__}: {fault}"
            settle(lease.tenant, job.settlement("dead", reason="poison", error=error, began=False))
            return
        envelope = Envelope(
            sender=job.message.content.sender.address,
            recipient=job.person.rcpt,
            body=wire.body,
            smtputf8=wire.smtputf8 or not job.person.rcpt.isascii(),
            eightbit=wire.eightbit,
        )
        try:
            result = await transport.deliver(envelope)
        except Exception as fault:  # noqa: BLE001
            # Transports return what remotes do; this is a fault of ours, at a moment that nobody knows: in doubt.
            _log.exception("mail.transport_failed", id=str(lease.id), message=str(lease.message_id))
            result = Result(phase=Phase.DOT, error=f"{type(fault).__name__}: {fault}")
        await self._judge(job, result)

    async def _judge(self, job: Job, result: Result) -> None:
        lease, stream = job.lease, job.stream
        verdict = decide(result)
        facts: dict[str, Any] = {
            "relay": stream.relay, "code": verdict.code, "enhanced": verdict.enhanced, "reply": verdict.reply,
            "error": verdict.error, "phase": result.phase.value, "remote_host": result.remote_host,
            "tls": result.tls, "ms": result.ms,
        }  # fmt: skip
        outcome = self._outcome(job, verdict, facts)
        # One line a delivery: ids and codes, no address, no body.
        log = _log.debug if verdict.kind == "delay" else _log.info
        log(
            "mail", verdict=verdict.kind, id=str(lease.id), message=str(lease.message_id), tenant=lease.tenant,
            site=job.lane.site, stream=job.lane.stream, attempt=lease.attempts + 1, code=verdict.code,
            enhanced=verdict.enhanced, reason=verdict.reason, phase=result.phase.value, ms=result.ms,
            relay=stream.relay, host=result.remote_host, worker=self._worker(),
        )  # fmt: skip
        if outcome is None:
            said = " ".join(str(x) for x in (verdict.code, verdict.reply) if x) or verdict.error
            await self._relays.record(stream.relay, verdict)
            await self._give_back(
                lease, f"relay {stream.relay}: {verdict.reason}" + (f": {said}" if said else "")
            )
            return
        self._settler.add(lease.tenant, outcome)
        await self._relays.record(stream.relay, verdict)

    @staticmethod
    def _outcome(job: Job, verdict: Verdict, facts: dict[str, Any]) -> Settlement | None:
        """The settlement that a verdict asks for; None to give the lease back."""
        match verdict.kind:
            case "sent":
                return job.settlement("sent", **facts)
            case "bounce":
                return job.settlement("bounced", **facts)
            case "in_doubt" if job.stream.on_doubt == "hold":
                why = "in doubt: the reply to the end of data was lost"
                return job.settlement("held", reason=why, doubt=True, **facts)
            case "defer" | "in_doubt":
                stream = job.stream
                policy = RetryPolicy(
                    base_seconds=stream.retry_base_seconds, factor=stream.retry_factor,
                    cap_seconds=max(stream.retry_cap_seconds, stream.retry_base_seconds),
                    jitter=stream.retry_jitter, max_attempts=stream.max_attempts,
                    max_age_seconds=stream.max_age_seconds,
                )  # fmt: skip
                since = job.lease.tried_since
                age = 0.0 if since is None else max(0.0, time.time() - since.timestamp())
                attempt = job.lease.attempts + 1
                delay = next_delay(policy, attempt, random.random, age_seconds=age)
                doubt = verdict.kind == "in_doubt"
                if delay is not None:
                    return job.settlement(
                        "deferred", delay=delay, doubt=doubt, reason=verdict.reason, **facts
                    )
                reason = "attempts_exhausted" if attempt >= stream.max_attempts else "too_old"
                return job.settlement("dead", reason=reason, doubt=doubt, **facts)
            case _:
                return None
