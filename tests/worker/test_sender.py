"""What one mail comes to: every verdict, on streams that resend and on streams that hold."""

import gc
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest

from pgmail.domain import ids
from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.errors import DatabaseAway
from pgmail.render.mime import Wire
from pgmail.shaping.verdict import BROKEN
from pgmail.store.faults import FencedOut
from pgmail.store.work import Lease, MessageRow, RecipientRow, Settlement, StreamRow
from pgmail.transport.base import TooLate, Withheld
from pgmail.worker import sender as module
from pgmail.worker.apart import Render
from pgmail.worker.content import Library, Message
from pgmail.worker.intents import Uncommitted
from pgmail.worker.job import Job
from pgmail.worker.lanes import Lane, LaneRow
from pgmail.worker.sender import Sender
from pgmail.worker.ward import Crashed
from tests.worker.kit import ACCEPTED, AWAY, LOCKED_OUT, Scripted

CONTENT: dict[str, Any] = {
    "from": {"address": "shop@example.com"},
    "to": [{"address": "ada@example.org"}],
    "subject": "Hi",
    "text": "Hello",
}


class Desk:
    """A sender whose findings are kept: settlements, and leases given back."""

    def __init__(
        self,
        *results: Result | BaseException,
        fresh: bool = True,
        blocked: bool = False,
        eightbit: bool = False,
        well: bool = False,
        ward: Any = None,
    ) -> None:
        self.transport: Scripted | None = Scripted(*results)
        self.settled: list[Settlement] = []
        self.returned: list[str | None] = []
        self.recorded: list[str] = []
        self.lapsed: list[Job] = []
        self.library = Library(None, "")
        self._blocked, self._eightbit, self._well = blocked, eightbit, well
        self.sender = Sender(
            self.library, self, self, self._give_back, lambda: 7,
            fresh=lambda: fresh, present=lambda: datetime.now(UTC), lapsed=self.lapsed.append,
            begin=self._begin, ward=ward,
        )  # fmt: skip

    # what a sender asks of relays and of the settler
    def get(self, name: str) -> Scripted | None:
        return self.transport

    def blocked(self, name: str) -> bool:
        return self._blocked

    def eightbit(self, name: str) -> bool:
        return self._eightbit

    def well(self, name: str, verdict: Any) -> bool:
        return self._well

    async def record(self, name: str, verdict: Any) -> None:
        self.recorded.append(verdict.kind)

    def add(self, tenant: int, settlement: Settlement) -> None:
        self.settled.append(settlement)

    async def _begin(self, lease: Lease, relay: str) -> None:
        """Every intent is committed."""

    async def _give_back(self, lease: Lease, reason: str | None) -> None:
        self.returned.append(reason)

    @property
    def found(self) -> str:
        """`kind`, or `back` where the lease was given back."""
        assert len(self.settled) + len(self.returned) == 1
        return self.settled[0].kind if self.settled else "back"


def a_job(
    *,
    on_doubt: str = "resend",
    attempts: int = 0,
    rescues: int = 0,
    age: timedelta = timedelta(0),
    tried_for: timedelta | None = None,
    expires_at: datetime | None = None,
    suppressed: str | None = None,
    content: dict[str, Any] | None = None,
    **policy: Any,
) -> Job:
    now = datetime.now(UTC)
    written = now - age
    id_ = ids.make(written)
    stream = StreamRow(1, "transactional", on_doubt=on_doubt, **{"retry_jitter": 0.0, **policy})
    row = MessageRow(id_, written, "envelope", 1, None, None, msgspec.json.encode(content or CONTENT))
    since = None if tried_for is None else now - tried_for
    lease = Lease(1, ids.make(written), id_, 5, written, 1, attempts, rescues, expires_at, since)
    lane = Lane(LaneRow(1, 5, "transactional", 2, "example.org", True, 1, None), 0.0)
    person = RecipientRow(lease.id, "ada@example.org", "ada@example.org", None, None, suppressed)
    return Job(lease, lane, stream, Message(row), person)


class Case(NamedTuple):
    """A result, and what it comes to on a stream that resends and on one that holds."""

    name: str
    result: Result
    resend: str
    hold: str


def refused(phase: Phase, code: int) -> Result:
    return Result(phase=phase, reply=Reply(code, "said so"))


CASES = [
    Case("accepted", ACCEPTED, "sent", "sent"),
    Case("no such user", refused(Phase.RCPT, 550), "bounced", "bounced"),
    Case("content refused", refused(Phase.DOT, 554), "bounced", "bounced"),
    Case("greylisted", refused(Phase.DOT, 451), "deferred", "deferred"),
    Case("mailbox full", refused(Phase.RCPT, 452), "deferred", "deferred"),
    Case("busy", refused(Phase.MAIL, 421), "back", "back"),
    Case("refuses us", refused(Phase.GREETING, 554), "back", "back"),
    Case("wrong password", LOCKED_OUT, "back", "back"),
    Case("wrong password at MAIL", refused(Phase.MAIL, 530), "back", "back"),
    *(
        Case(
            f"broken in {phase.value}",
            Result(phase=phase, error="reset"),
            {"delay": "back", "defer": "deferred", "in_doubt": "deferred"}[kind],
            {"delay": "back", "defer": "deferred", "in_doubt": "held"}[kind],
        )
        for phase, (kind, _) in BROKEN.items()
    ),
]


@pytest.mark.parametrize("on_doubt", ["resend", "hold"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_result_becomes_what_the_table_says(case, on_doubt):
    desk = Desk(case.result)
    await desk.sender.send(a_job(on_doubt=on_doubt))
    assert desk.found == getattr(case, on_doubt)
    in_doubt = case.result.phase is Phase.DOT and case.result.reply is None
    assert any(settlement.doubt for settlement in desk.settled) is in_doubt
    assert len(desk.recorded) == 1


@pytest.mark.parametrize(
    ("attempts", "reason"), [(0, None), (18, None), (19, "attempts_exhausted"), (40, "attempts_exhausted")]
)
async def test_the_last_attempt_of_the_policy_is_a_dead_letter(attempts, reason):
    desk = Desk(refused(Phase.RCPT, 450))
    await desk.sender.send(a_job(attempts=attempts))
    assert desk.found == ("dead" if reason else "deferred")
    assert desk.settled[0].reason == (reason or "temporary")


async def test_a_doubt_on_the_last_attempt_is_a_dead_letter_that_says_so():
    desk = Desk(Result(phase=Phase.DOT, error="reset"))
    await desk.sender.send(a_job(attempts=19))
    assert (desk.found, desk.settled[0].doubt) == ("dead", True)


async def test_delays_grow_by_the_streams_own_factors():
    delays = []
    for attempts in range(4):
        desk = Desk(refused(Phase.RCPT, 450))
        await desk.sender.send(
            a_job(attempts=attempts, retry_base_seconds=10, retry_factor=4, retry_cap_seconds=200)
        )
        delays.append(desk.settled[0].delay)
    assert delays == [10, 40, 160, 200]


async def test_a_cap_below_the_base_is_no_reason_to_crash():
    desk = Desk(refused(Phase.RCPT, 450))
    await desk.sender.send(a_job(retry_base_seconds=100, retry_cap_seconds=1))
    assert desk.settled[0].delay == 100


async def test_mail_past_its_greatest_age_is_a_dead_letter():
    desk = Desk(refused(Phase.RCPT, 450))
    await desk.sender.send(a_job(tried_for=timedelta(days=4), attempts=3))
    assert (desk.found, desk.settled[0].reason) == ("dead", "too_old")


async def test_mail_that_waited_for_a_month_without_an_attempt_is_young():
    """Scheduled, rescheduled, or behind a relay that was away: its age counts from its first attempt."""
    desk = Desk(refused(Phase.RCPT, 450))
    await desk.sender.send(a_job(age=timedelta(days=30)))
    assert desk.found == "deferred"


async def test_a_suppressed_or_expired_recipient_is_settled_without_asking_anybody():
    for job, kind in (
        (a_job(suppressed="complained"), "suppressed"),
        (a_job(expires_at=datetime.now(UTC) - timedelta(seconds=1)), "expired"),
    ):
        desk = Desk()
        await desk.sender.send(job)
        assert (desk.found, desk.settled[0].began, desk.transport.begun) == (kind, False, 0)


async def test_a_mail_without_content_is_a_dead_letter():
    job = a_job()
    job.message = None
    desk = Desk()
    await desk.sender.send(job)
    assert (desk.found, desk.settled[0].reason) == ("dead", "poison")


async def test_however_many_workers_died_with_a_mail_that_alone_does_not_blame_it():
    desk = Desk()
    await desk.sender.send(a_job(rescues=50))
    assert desk.found == "sent"


async def test_a_worker_that_may_count_as_dead_starts_no_mail():
    desk = Desk(fresh=False)
    await desk.sender.send(a_job())
    assert (desk.found, desk.transport.begun) == ("back", 0)


async def test_a_relay_that_was_found_blocked_meanwhile_gets_no_mail():
    desk = Desk(blocked=True)
    await desk.sender.send(a_job())
    assert (desk.returned, desk.transport.begun) == ([None], 0)


async def test_a_relay_that_is_not_configured_here_is_told_as_the_reason_of_the_delay():
    desk = Desk()
    desk.transport = None
    await desk.sender.send(a_job())
    assert desk.returned == ["relay default is not configured in this worker"]


async def test_a_delay_says_what_the_relay_said_and_spends_no_attempt():
    desk = Desk(AWAY)
    await desk.sender.send(a_job())
    assert desk.returned == ["relay default: relay_unreachable: connection refused"]
    assert desk.recorded == ["delay"]


async def test_a_template_that_fails_is_a_dead_letter_that_spent_no_attempt():
    desk = Desk()
    await desk.sender.send(a_job(content={**CONTENT, "text": "{{ name }}", "variables": {}}))
    (settlement,) = desk.settled
    assert (settlement.kind, settlement.reason, settlement.began) == ("dead", "template", False)
    assert "name" in settlement.error


async def test_a_fault_of_ours_while_making_a_mail_is_its_dead_letter_and_not_the_workers(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pgmail.worker.content.assemble", broken)
    desk = Desk()
    await desk.sender.send(a_job())
    (settlement,) = desk.settled
    assert (settlement.kind, settlement.reason, settlement.error) == (
        "dead",
        "poison",
        "ZeroDivisionError: a bug",
    )


async def test_a_database_that_is_away_while_making_a_mail_gives_the_lease_back(monkeypatch):
    async def away(*_: object, **__: object) -> None:
        raise DatabaseAway("gone")

    desk = Desk()
    monkeypatch.setattr(desk.library, "wire", away)
    await desk.sender.send(a_job(content={**CONTENT, "attachments": 1}))
    assert desk.returned == [None]


@pytest.mark.parametrize(("on_doubt", "kind"), [("resend", "deferred"), ("hold", "held")])
async def test_a_transport_that_raises_leaves_the_mail_in_doubt(on_doubt, kind):
    """A fault of ours at a moment that nobody knows: the mail may have been sent."""
    desk = Desk(RuntimeError("a bug"))
    await desk.sender.send(a_job(on_doubt=on_doubt))
    (settlement,) = desk.settled
    assert (settlement.kind, settlement.doubt, settlement.error) == (kind, True, "RuntimeError: a bug")


async def test_an_address_that_is_not_ascii_asks_for_smtputf8():
    desk, job = Desk(), a_job()
    job.person = RecipientRow(job.lease.id, "müller@example.org", "müller@example.org", None, None, None)
    await desk.sender.send(job)
    (envelope,) = desk.transport.delivered
    assert envelope.smtputf8
    assert (envelope.sender, envelope.recipient) == ("shop@example.com", "müller@example.org")


async def test_the_settlement_carries_the_lease_and_the_reply():
    desk, job = Desk(refused(Phase.RCPT, 550)), a_job(attempts=2)
    await desk.sender.send(job)
    (settlement,) = desk.settled
    assert (settlement.id, settlement.claims, settlement.attempts) == (job.lease.id, 1, 2)
    assert (settlement.code, settlement.reply, settlement.phase) == (550, "said so", "rcpt")
    assert (settlement.site, settlement.relay, settlement.lane) == ("example.org", "default", 5)
    assert isinstance(settlement.id, UUID)


async def test_mail_that_missed_the_moment_of_its_tokens_asks_for_others_and_is_not_sent():
    desk, job = Desk(), a_job()
    job.at, job.until = time.monotonic() - 2, time.monotonic() - 1
    await desk.sender.send(job)
    assert (desk.lapsed, desk.transport.begun) == ([job], 0)
    assert not desk.settled
    assert not desk.returned
    job.until = time.monotonic() + 60
    await desk.sender.send(job)
    assert desk.found == "sent"


async def test_mail_that_waited_too_long_for_a_connection_asks_for_other_tokens():
    desk, job = Desk(TooLate()), a_job()
    job.at, job.until = time.monotonic(), time.monotonic() + 60
    await desk.sender.send(job)
    assert (desk.lapsed, desk.settled, desk.returned, desk.recorded) == ([job], [], [], [])
    assert desk.transport.delivered[0].not_after == job.until


def slow_to_make(desk, job, monkeypatch):
    """Making this mail takes so long that its tokens' moment is over by then; counts how often it is made."""
    real, made = desk.library.wire_now, []

    def wire_now(*facts: Any, **more: Any) -> Any:
        made.append(more["eightbit"])
        job.until = time.monotonic() - 1
        return real(*facts, **more)

    monkeypatch.setattr(desk.library, "wire_now", wire_now)
    job.at, job.until = time.monotonic(), time.monotonic() + 60
    return made


async def test_mail_that_takes_longer_to_make_than_its_moment_lasts_goes_at_the_next_one(monkeypatch):
    desk, job = Desk(), a_job()
    made = slow_to_make(desk, job, monkeypatch)
    await desk.sender.send(job)
    assert (desk.lapsed, desk.transport.begun, made) == ([job], 0, [False])
    job.until = time.monotonic() + 60
    await desk.sender.send(job)
    assert (desk.found, made) == ("sent", [False])
    assert not desk.sender._kept


async def test_bytes_that_waited_for_a_connection_in_vain_are_kept_and_8bit_ones_only_for_who_takes_them():
    for takes, bodies in ((True, 1), (False, 2)):
        desk, job = Desk(TooLate(), eightbit=True), a_job(content=EIGHTBIT)
        job.at, job.until = time.monotonic(), time.monotonic() + 60
        await desk.sender.send(job)
        desk._eightbit = takes
        await desk.sender.send(job)
        first, second = desk.transport.delivered
        assert (first.eightbit, second.eightbit) == (True, takes)
        assert len({id(first.body), id(second.body)}) == bodies


async def test_kept_bytes_are_bounded_and_end_with_their_job(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 10)
    desk, first, second = Desk(TooLate(), TooLate()), a_job(), a_job()
    for job in (first, second):
        job.at, job.until = time.monotonic(), time.monotonic() + 60
        await desk.sender.send(job)
    assert list(desk.sender._kept) == [first]  # one is kept whatever its size, or none would ever go
    desk.lapsed.clear()
    del first, job
    gc.collect()
    assert not desk.sender._kept


async def test_one_recipient_made_apart_well_lets_the_others_of_a_mailing_be_made_here():
    apart = []

    class Watched:
        async def render(self, order: Render) -> Wire:
            apart.append(order.person.id)
            return Wire(b"Subject: x\r\n\r\nHi\r\n", smtputf8=False, eightbit=False)

    desk = Desk(ward=Watched())
    rescued, fresh, late = a_job(rescues=1), a_job(), a_job(rescues=1)
    for job in (fresh, late):
        job.message = rescued.message
    rescued.message.suspect = True
    for job in (rescued, fresh, late):
        await desk.sender.send(job)
    assert apart == [rescued.person.id, late.person.id]
    assert [settlement.kind for settlement in desk.settled] == ["sent"] * 3


async def test_an_intent_that_the_database_does_not_take_makes_its_mail_wait_and_says_why(monkeypatch):
    monkeypatch.setattr(module, "UNCOMMITTED_SECONDS", (0.1, 0.3))
    told = "its stream holds what is in doubt, and no"
    for fault, since, waits, reason in (
        (Uncommitted("no"), 0, 0.1, None),  # once is an accident
        (Uncommitted("no"), 60, 0.3, told),
        (Withheld("silent"), 60, 0, None),
    ):
        desk = Desk(fault)
        began = time.monotonic()
        desk.sender._uncommitted_since = began - since if since else 0.0
        await desk.sender.send(a_job(on_doubt="hold"))
        assert time.monotonic() - began >= waits
        assert desk.returned == [reason]


async def test_a_delivery_apart_asks_right_before_the_dot_whether_this_worker_is_alive_to_others():
    alive, dots = [True], []

    class Slow:
        async def render(self, order: Render) -> Wire:
            return Wire(b"Subject: x\r\n\r\nHi\r\n", smtputf8=False, eightbit=False)

        async def deliver(self, relay: str, envelope: Envelope, on_dot: Any, *_: Any) -> Result:
            alive[0] = False  # silent for too long, while the body was on its way
            await on_dot()
            dots.append(envelope)
            return ACCEPTED

    desk = Desk(ward=Slow())
    desk.sender._fresh = lambda: alive[0]
    await desk.sender.send(a_job(rescues=2))
    assert (desk.returned, dots) == ([None], [])


async def test_a_poison_that_may_have_been_sent_is_held_on_a_stream_that_holds():
    for on_doubt, dots, kind, doubt in (
        ("hold", True, "held", True),
        ("hold", False, "dead", False),
        ("resend", True, "dead", True),
        ("resend", False, "dead", False),
    ):

        class Deadly:
            async def render(self, order: Render) -> Wire:
                return Wire(b"Subject: x\r\n\r\nHi\r\n", smtputf8=False, eightbit=False)

            async def deliver(
                self, relay: str, envelope: Envelope, on_dot: Any, *_: Any, dots: bool = dots
            ) -> Result:
                if dots:
                    await on_dot()
                raise Crashed("was ended by SIGSEGV")

        desk = Desk(ward=Deadly())
        job = a_job(on_doubt=on_doubt, rescues=2)
        job.lease = msgspec.structs.replace(job.lease, vowed=on_doubt == "hold")
        await desk.sender.send(job)
        (settlement,) = desk.settled
        assert (settlement.kind, settlement.doubt, settlement.relay) == (kind, doubt, "default")
        assert "SIGSEGV" in settlement.error
        if kind == "held":
            assert settlement.reason.startswith("in doubt: sending it crashed a process apart")


@pytest.mark.parametrize("fault", [FencedOut("declared dead"), RuntimeError("a fault of ours")])
async def test_a_lease_is_given_back_whatever_happens_while_its_relay_is_recorded(fault, monkeypatch):
    desk = Desk(Result(phase=Phase.CONNECT, error="connection refused"))

    async def record(*_: object) -> None:
        raise fault

    monkeypatch.setattr(desk, "record", record)
    with pytest.raises(type(fault)):
        await desk.sender.send(a_job())
    assert desk.found == "back"


async def test_mail_goes_by_the_relay_that_was_picked_for_it():
    desk, job = Desk(), a_job()
    job.relay = "second"
    await desk.sender.send(job)
    assert desk.settled[0].relay == "second"


async def test_an_answer_that_changes_nothing_about_its_relay_is_not_recorded():
    desk = Desk(well=True)
    await desk.sender.send(a_job())
    assert (desk.found, desk.recorded) == ("sent", [])


EIGHTBIT = {**CONTENT, "text": "Grüße aus Köln"}
NOT_CONVERTED = Reply(554, "8bit is not for us", module.NOT_EIGHTBIT)


async def test_a_relay_that_takes_8bit_text_gets_it_and_one_that_does_not_gets_ascii():
    for takes in (True, False):
        desk = Desk(eightbit=takes)
        await desk.sender.send(a_job(content=EIGHTBIT))
        (envelope,) = desk.transport.delivered
        assert (envelope.eightbit, envelope.body.isascii()) == (takes, not takes)


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA])
async def test_a_host_that_refuses_8bit_before_the_content_gets_the_mail_converted_at_once(phase):
    """Another host of the same relay, which does not take what the last one did."""
    desk = Desk(Result(phase=phase, reply=NOT_CONVERTED), eightbit=True)
    await desk.sender.send(a_job(content=EIGHTBIT))
    assert [envelope.eightbit for envelope in desk.transport.delivered] == [True, False]
    assert desk.found == "sent"


async def test_a_refusal_of_8bit_after_the_content_is_an_answer_as_any_other():
    desk = Desk(Result(phase=Phase.DOT, reply=NOT_CONVERTED), eightbit=True)
    await desk.sender.send(a_job(content=EIGHTBIT))
    assert (len(desk.transport.delivered), desk.found) == (1, "bounced")


async def test_a_host_that_refuses_8bit_though_it_got_none_is_not_asked_again():
    desk = Desk(Result(phase=Phase.MAIL, reply=NOT_CONVERTED))
    await desk.sender.send(a_job(content=EIGHTBIT))
    assert len(desk.transport.delivered) == 1


def said(code: int, text: str, phase: Phase = Phase.RCPT) -> Result:
    return Result(phase=phase, reply=Reply(code, text))


async def test_a_bounce_says_why_and_whether_the_address_is_gone():
    desk = Desk(said(550, "User unknown"))
    await desk.sender.send(a_job())
    assert (desk.found, desk.settled[0].reason, desk.settled[0].suppress) == (
        "bounced",
        "recipient-gone",
        True,
    )


async def test_a_refusal_for_our_name_suppresses_nobody():
    desk = Desk(said(554, "Client host [192.0.2.1] blocked using zen.spamhaus.org"))
    await desk.sender.send(a_job())
    assert (desk.found, desk.settled[0].reason, desk.settled[0].suppress) == ("bounced", "blocked", False)


async def test_a_senders_own_address_is_never_suppressed():
    desk = Desk(said(550, "User unknown"))
    await desk.sender.send(a_job(content=CONTENT | {"from": {"address": "Ada@example.org"}}))
    assert (desk.found, desk.settled[0].suppress) == ("bounced", False)


async def test_a_full_mailbox_waits_after_a_5xx_and_bounces_in_the_end():
    desk = Desk(said(552, "mailbox full"))
    await desk.sender.send(a_job())
    assert (desk.found, desk.settled[0].reason) == ("deferred", "mailbox-full")
    last = Desk(said(552, "mailbox full"))
    await last.sender.send(a_job(attempts=19))
    assert (last.found, last.settled[0].suppress) == ("bounced", False)


async def test_a_wait_that_they_ask_for_is_kept_but_a_shorter_one_does_not_hurry():
    for text, delay in (
        ("greylisted, try again in 30 minutes", 1800),
        ("greylisted, try again in 5 seconds", 30),
    ):
        desk = Desk(said(450, text))
        await desk.sender.send(a_job())
        assert desk.settled[0].delay == delay
