"""From a lease to a settlement: render, send, judge. One slot a mail at a time, `concurrency` slots a process.

Nothing here touches the queue: a slot hands its finding to the settler, or gives the lease back. A fault of
ours while making a mail (a template, a missing asset) is a dead letter; a relay that is away is a delay.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from pgmail.domain.reply import Envelope, Phase, Result
from pgmail.errors import DatabaseAway, PgmailError, TemplateFault
from pgmail.render.mime import Wire
from pgmail.shaping.retry import RetryPolicy, next_delay
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store.work import Lease, Settlement
from pgmail.transport.base import Withheld
from pgmail.worker.content import Impossible, Library
from pgmail.worker.job import Job
from pgmail.worker.relays import Relays
from pgmail.worker.settler import Settler

_log = structlog.get_logger()

GiveBack = Callable[[Lease, str | None], Awaitable[None]]
Begin = Callable[[Lease, str], Awaitable[None]]

NOT_EIGHTBIT = "5.6.3"  # RFC 3463, section 3.7: conversion required and not supported
MOST_RESCUES = 10  # workers that died holding a mail, before it is taken for what kills them


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
        lapsed: Callable[[Job], None] | None = None,
        begin: Begin | None = None,
    ) -> None:
        """`fresh` tells whether this worker is surely alive to others; it begins no mail otherwise.

        `lapsed` takes mail back that missed the moment its tokens were for. `begin` commits the intent to send a
        lease to a relay, or raises Withheld; without it, mail that needs one is not sent.
        """
        self._library, self._relays, self._settler = library, relays, settler
        self._give_back, self._worker, self._fresh = give_back, worker, fresh
        self._lapsed, self._begin = lapsed, begin
        self.withheld = 0  # mails whose end of data was not sent, at our own wish
        # Else a line that nobody reads would be made for each mail.
        self._tells = _log.is_enabled_for(logging.INFO)

    async def send(self, job: Job) -> None:
        """Bring one job to its end: a settlement, or the lease given back."""
        lease = job.lease
        if job.message is None or job.person is None:
            self._settle(job, "dead", reason="poison", error="its content is gone or cannot be read")
            return
        if lease.rescues >= MOST_RESCUES:
            self._settle(
                job, "dead", reason="poison", error=f"{lease.rescues} workers died while they held it"
            )
            return
        if not self._fresh():
            await self._give_back(lease, None)  # others may count us as dead by now, and send it themselves
            return
        if job.person.suppressed is not None:
            self._settle(job, "suppressed", reason=job.person.suppressed)
            return
        if lease.expires_at is not None and lease.expires_at.timestamp() <= time.time():
            self._settle(job, "expired", reason="expires_at passed before it was sent")
            return
        if self._late(job):
            return
        transport = self._relays.get(job.relay)
        if transport is None or self._relays.blocked(job.relay):
            # It was claimed before the relay was found away, or names a relay that this process has not.
            reason = None if transport else f"relay {job.relay} is not configured in this worker"
            await self._give_back(lease, reason)
            return
        eightbit = self._relays.eightbit(job.relay)
        while True:
            wire = await self._wire(job, eightbit=eightbit)
            if wire is None:
                return
            if self._late(job):  # what it needed had to be fetched
                return
            rcpt = job.person.rcpt
            envelope = Envelope(
                sender=job.message.content.sender.address, recipient=rcpt, body=wire.body,
                smtputf8=wire.smtputf8 or not rcpt.isascii(), eightbit=wire.eightbit,
            )  # fmt: skip
            intent = _Intent(self._begin, lease, job.relay) if lease.vowed else None
            try:
                result = await (
                    transport.deliver(envelope) if intent is None else transport.deliver(envelope, intent)
                )
            except Withheld as why:
                self.withheld += 1
                _log.warning(
                    "mail.withheld", id=str(lease.id), message=str(lease.message_id), reason=str(why)
                )
                await self._give_back(lease, None)
                return
            except Exception as fault:  # noqa: BLE001
                # Transports return what remotes do; this is a fault of ours, at a moment that nobody knows: in doubt,
                # unless the end of data was not allowed yet.
                _log.exception("mail.transport_failed", id=str(lease.id), message=str(lease.message_id))
                phase = Phase.DOT if intent is None or intent.committed else Phase.BODY
                result = Result(phase=phase, error=f"{type(fault).__name__}: {fault}")
            if not (wire.eightbit and result.reply is not None and result.reply.enhanced == NOT_EIGHTBIT):
                break
            if result.phase not in (Phase.MAIL, Phase.RCPT, Phase.DATA):
                break
            eightbit = False  # another host of the same relay, which does not take what the last one did
        await self._judge(job, result)

    def _late(self, job: Job) -> bool:
        """Hand a mail back whose tokens' moment has passed. True if it has."""
        if self._lapsed is None or not job.until or time.monotonic() <= job.until:
            return False
        self._lapsed(job)
        return True

    async def _wire(self, job: Job, *, eightbit: bool) -> Wire | None:
        """The mail's bytes; None where it cannot be made, which is settled, or not now: its lease is given back."""
        lease = job.lease
        assert job.message is not None and job.person is not None  # noqa: S101, PT018 - looked at by `send`
        try:
            wire = self._library.wire_now(lease.tenant, job.message, job.person, eightbit=eightbit)
            if wire is None:
                wire = await self._library.wire(lease.tenant, job.message, job.person, eightbit=eightbit)
        except (TemplateFault, Impossible) as fault:
            _log.warning("mail.impossible", id=str(lease.id), message=str(lease.message_id), error=str(fault))
            self._settle(job, "dead", reason="template", error=str(fault))
            return None
        except DatabaseAway:
            await self._give_back(lease, None)
            return None
        except PgmailError:
            raise
        except Exception as fault:  # noqa: BLE001
            # A fault of ours that this mail brings out. It must not end the worker, which holds others too.
            _log.exception("mail.poison", id=str(lease.id), message=str(lease.message_id))
            self._settle(job, "dead", reason="poison", error=f"{type(fault).__name__}: {fault}")
            return None
        return wire

    def _settle(self, job: Job, kind: str, **facts: Any) -> None:
        """Settle a mail that the remote side was never asked about."""
        self._settler.add(job.lease.tenant, job.settlement(kind, began=False, **facts))

    async def _judge(self, job: Job, result: Result) -> None:
        lease, relay = job.lease, job.relay
        verdict = decide(result)
        facts: dict[str, Any] = {
            "relay": relay, "code": verdict.code, "enhanced": verdict.enhanced, "reply": verdict.reply,
            "error": verdict.error, "phase": result.phase.value, "remote_host": result.remote_host,
            "tls": result.tls, "ms": result.ms,
        }  # fmt: skip
        outcome = self._outcome(job, verdict, facts)
        if self._tells:
            # One line a delivery: ids and codes, no address, no body.
            log = _log.debug if verdict.kind == "delay" else _log.info
            log(
                "mail", verdict=verdict.kind, id=str(lease.id), message=str(lease.message_id), tenant=lease.tenant,
                site=job.lane.site, stream=job.lane.stream, attempt=lease.attempts + 1, code=verdict.code,
                enhanced=verdict.enhanced, reason=verdict.reason, phase=result.phase.value, ms=result.ms,
                relay=relay, host=result.remote_host, worker=self._worker(),
            )  # fmt: skip
        if outcome is not None:
            self._settler.add(lease.tenant, outcome)
        if not self._relays.well(relay, verdict):
            await self._relays.record(relay, verdict)
        if outcome is None:
            said = " ".join(str(x) for x in (verdict.code, verdict.reply) if x) or verdict.error
            await self._give_back(lease, f"relay {relay}: {verdict.reason}" + (f": {said}" if said else ""))

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


class _Intent:
    """What a transport awaits right before the end of data of one mail."""

    __slots__ = ("_begin", "_lease", "_relay", "committed")

    def __init__(self, begin: Begin | None, lease: Lease, relay: str) -> None:
        self._begin, self._lease, self._relay = begin, lease, relay
        self.committed = False

    async def __call__(self) -> None:
        if self._begin is None:
            raise Withheld("nobody commits intents here")
        await self._begin(self._lease, self._relay)
        self.committed = True
