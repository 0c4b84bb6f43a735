"""From a result to a settlement: what a reply means for this mail, its site and its relay.

`shaping.verdict` says what kind of answer it is; here it becomes a settlement, a lease given back, or a relay that is
away. What can go wrong: the record of a relay cannot be written. The mail is settled or given back all the same.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog

from pgmail.domain.reply import Result
from pgmail.shaping.retry import RetryPolicy, next_delay
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store.work import Lease, Settlement
from pgmail.worker.deliveries import Deliveries
from pgmail.worker.job import Delay, Job
from pgmail.worker.relays import Relays
from pgmail.worker.settler import Settler
from pgmail.worker.slowing import Slowing
from pgmail.worker.staging import TEST_RELAY, Staging

_log = structlog.get_logger()

GiveBack = Callable[[Lease, str | Delay | None], Awaitable[None]]


class Judge:
    """Judges the results of a process. Shared by all its slots."""

    def __init__(
        self,
        relays: Relays,
        settler: Settler,
        give_back: GiveBack,
        worker: Callable[[], int],
        *,
        present: Callable[[], datetime],
        slowing: Slowing | None,
        staging: Staging,
        deliveries: Deliveries,
    ) -> None:
        """As of `Sender`."""
        self._relays, self._settler, self._give_back = relays, settler, give_back
        self._worker, self._present = worker, present
        self._slowing, self._staging, self._deliveries = slowing, staging, deliveries
        self._staged = staging.note()
        # Else a line that nobody reads would be made for each mail.
        self._tells = _log.is_enabled_for(logging.INFO)

    async def judge(self, job: Job, result: Result) -> None:
        """Settle a mail by what came of it, or give its lease back; learn of its site and relay."""
        lease, relay = job.lease, job.relay
        verdict = decide(result)
        self._deliveries.answered(self._staging.redirect_domain or job.lane.site, verdict)
        outcome: Settlement | None
        if verdict.kind == "sent":
            outcome = job.sent(verdict, result, verdict.error or self._note(job))
        else:
            outcome = self._outcome(job, verdict, self._facts(job, verdict, result))
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
        try:
            if self._slowing is not None and (verdict.slow or verdict.alert):
                site = self._staging.redirect_domain or job.lane.site  # who answered
                await self._slowing.learn(lease.tenant, site, relay, verdict)
            # Before the lease goes back, or the mail is claimed for the same relay again.
            if not self._relays.well(relay, verdict):
                await self._relays.record(relay, verdict)
        finally:
            # Whatever happened there: a lease that is neither settled nor given back is held while this worker lives.
            if outcome is None:
                said = " ".join(str(x) for x in (verdict.code, verdict.reply) if x) or verdict.error
                await self._give_back(
                    lease, f"relay {relay}: {verdict.reason}" + (f": {said}" if said else "")
                )

    def _note(self, job: Job) -> str | None:
        """What its events say of where it went, if that is not to its recipient."""
        return "a test: not sent" if job.relay == TEST_RELAY else self._staged

    def _facts(self, job: Job, verdict: Verdict, result: Result) -> dict[str, Any]:
        """What a settlement tells of the attempt."""
        return {
            "relay": job.relay, "code": verdict.code, "enhanced": verdict.enhanced, "reply": verdict.reply,
            "error": verdict.error or self._note(job), "phase": result.phase.value, "remote_host": result.remote_host,
            "tls": result.tls, "ms": result.ms,
        }  # fmt: skip

    def _outcome(self, job: Job, verdict: Verdict, facts: dict[str, Any]) -> Settlement | None:
        """The settlement that a verdict asks for; None to give the lease back."""
        match verdict.kind:
            case "bounce":
                # Never their own address: who writes from it would not get the copy of a mail to himself any more.
                # Nor one that a redirect spared: it was another that bounced.
                spared = self._staging.redirect_to != ""
                own = job.message is not None and job.person is not None and (
                    job.person.address == job.message.content.sender.address.lower()
                )  # fmt: skip
                return job.settlement(
                    "bounced",
                    reason=verdict.reason,
                    suppress=verdict.suppress and not (own or spared),
                    **facts,
                )
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
                age = 0.0 if since is None else max(0.0, (self._present() - since).total_seconds())
                attempt = job.lease.attempts + 1
                delay = next_delay(policy, attempt, random.random, age_seconds=age)
                doubt = verdict.kind == "in_doubt"
                if delay is not None:
                    # What they asked for is the earliest; if it ends past the greatest age, it is the last.
                    delay = max(delay, verdict.again_seconds or 0.0)
                    return job.settlement(
                        "deferred", delay=delay, doubt=doubt, reason=verdict.reason, **facts
                    )
                if verdict.code is not None and verdict.code >= 500:
                    return job.settlement(
                        "bounced", reason=verdict.reason, **facts
                    )  # a no, asked often enough
                reason = "attempts_exhausted" if attempt >= stream.max_attempts else "too_old"
                return job.settlement("dead", reason=reason, doubt=doubt, **facts)
            case _:
                return None
