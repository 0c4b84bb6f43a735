"""The intent before the final dot: committed, or the mail is not sent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from pgmail.errors import DatabaseAway
from pgmail.store import work
from pgmail.store.work import Lease
from pgmail.transport.base import Withheld
from pgmail.worker import intents as module
from pgmail.worker.intents import Intents
from tests.sql.kit import Hand, differences, events, one, send, send_many, state, stream
from tests.waiting import eventually
from tests.worker.cable import cable_to
from tests.worker.kit import Scripted, doubts, leased, settled

pytestmark = pytest.mark.usefixtures("careful", "trusted")


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


@pytest.fixture
def careful(owner):
    return stream(owner, "careful", on_doubt="hold", trace="full")


@pytest.fixture
async def office(pool, hand) -> AsyncIterator[Callable[..., Awaitable[Intents]]]:
    made: list[Intents] = []

    async def start(database: Any = pool, **settings: Any) -> Intents:
        facts = {"interval_ms": 3, "batch": 50, "fresh": lambda: True} | settings
        intents = Intents(database, lambda: hand.epoch, **facts)
        await intents.start()
        made.append(intents)
        return intents

    yield start
    for intents in made:
        await intents.stop()


def claimed(app, hand, n=1):
    send_many(
        app,
        [
            {
                "from": "a@example.com",
                "subject": "s",
                "text": "t",
                "to": f"x{k}@example.org",
                "stream": "careful",
            }
            for k in range(n)
        ],
    )
    return [Lease(1, *lease) for lease in hand.claim(holds=True)]


def unsent(owner):
    return one(owner, "select count(*) from pgmail.queue where unsent_claims = claims")


async def test_intents_of_many_slots_go_in_one_statement(app, owner, hand, office, monkeypatch):
    real, sizes = work.begin_each, []

    async def begin_each(database, epoch, batches):
        sizes.append(sum(len(mine) for _, mine in batches))
        return await real(database, epoch, batches)

    monkeypatch.setattr(work, "begin_each", begin_each)
    intents = await office(interval_ms=50)
    await asyncio.gather(*(intents.commit(lease, "default") for lease in claimed(app, hand, 30)))
    assert sizes == [30]
    assert unsent(owner) == 0


async def test_a_lease_that_was_lost_is_withheld_and_the_others_are_not(app, hand, office):
    mine, lost = claimed(app, hand, 2)
    hand.connection.execute("select pgmail.release_v1(1, %s, %s, %s)", [hand.epoch, [lost.id], [lost.claims]])
    intents = await office()
    answers = await asyncio.gather(
        intents.commit(mine, "default"), intents.commit(lost, "default"), return_exceptions=True
    )
    assert answers[0] is None
    assert isinstance(answers[1], Withheld)


async def test_a_worker_that_may_count_as_dead_withholds_before_and_after_the_commit(
    app, owner, hand, office
):
    answers = [True]
    intents = await office(fresh=lambda: answers.pop() if answers else False)
    (lease,) = claimed(app, hand)
    with pytest.raises(Withheld):
        await intents.commit(lease, "default")
    assert unsent(owner) == 0  # it was committed, and then it was too late
    with pytest.raises(Withheld):
        await intents.commit(lease, "default")


async def test_a_row_that_another_transaction_holds_is_waited_for_shortly(db, app, hand, office, monkeypatch):
    intents = await office()
    (lease,) = claimed(app, hand)
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue for update")
        asked, real = [], module.work.begin_each

        async def begin_each(*arguments):
            asked.append(arguments)
            return await real(*arguments)

        monkeypatch.setattr(module.work, "begin_each", begin_each)
        monkeypatch.setattr(module, "LOCKED_SECONDS", 30.0)
        waiting = asyncio.create_task(intents.commit(lease, "default"))
        await eventually(lambda: len(asked) > 2)  # some rounds pass
        assert not waiting.done()
        holder.rollback()
        await waiting
        monkeypatch.setattr(module, "LOCKED_SECONDS", 0.1)
        holder.execute("select from pgmail.queue for update")
        with pytest.raises(Withheld):
            await intents.commit(lease, "default")


async def test_without_the_database_mail_is_withheld_at_once_and_not_sent_later(app, db, hand, office):
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = module.Database(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        intents = await office(pool)
        (lease,) = claimed(app, hand)
        cable.cut()
        with pytest.raises(Withheld):
            await intents.commit(lease, "default")
        cable.mend()
        await intents.stop()
        await pool.close()
    with pytest.raises(Withheld):
        await intents.commit(lease, "default")  # it is over


class Dotted(Scripted):
    """Awaits the intent, as all transports do, and says when."""

    def __init__(self, *results: Any, **more: Any) -> None:
        super().__init__(*results, **more)
        self.intents: list[bool] = []
        self.look: Callable[[], Any] = lambda: None

    async def deliver(self, envelope: Any, on_dot: Any = None) -> Any:
        self.intents.append(on_dot is not None)
        if on_dot is not None:
            await on_dot()
        self.look()
        return await super().deliver(envelope, on_dot)


async def test_a_worker_commits_the_intent_before_the_dot_on_streams_that_hold_and_on_no_others(
    app, owner, crew
):
    transport = Dotted()
    seen = []
    transport.look = lambda: seen.append((leased(owner), unsent(owner)))
    await crew.hire({"default": transport})
    held = send(app, stream="careful")
    await eventually(lambda: state(app, held) == "sent")
    sent = send(app)
    await eventually(lambda: state(app, sent) == "sent")
    assert transport.intents == [True, False]
    assert seen[0] == (1, 0)


async def test_a_commit_that_failed_costs_neither_attempt_nor_mail(app, owner, crew, monkeypatch):
    real, failed = work.begin_each, []

    async def begin_each(*arguments):
        if len(failed) < 2:
            failed.append(True)
            raise DatabaseAway("gone for a moment")
        return await real(*arguments)

    monkeypatch.setattr(work, "begin_each", begin_each)
    transport = Dotted()
    await crew.hire({"default": transport})
    mail = send(app, stream="careful")
    await eventually(lambda: state(app, mail) == "sent")
    assert (len(failed), len(transport.delivered), doubts(owner)) == (2, 1, 0)
    assert one(owner, "select attempts from pgmail.outcome") == 1
    assert events(app, mail) == ["queued", "sending", "sending", "sending", "sent"]


async def test_a_real_server_sees_no_dot_without_the_intent(app, owner, crew, sink, monkeypatch):
    real, dots = work.begin_each, []

    async def begin_each(*arguments):
        dots.append(len(sink.accepted))
        if len(dots) == 1:
            raise DatabaseAway("gone for a moment")
        return await real(*arguments)

    monkeypatch.setattr(work, "begin_each", begin_each)
    await crew.hire()
    send_many(
        app,
        [
            {
                "from": "a@example.com",
                "subject": "s",
                "text": "t",
                "to": f"x{n}@example.org",
                "stream": "careful",
            }
            for n in range(40)
        ],
    )
    await eventually(lambda: settled(owner) == {"sent": 40})
    assert dots[:2] == [0, 0]
    assert set(sink.by_message_id.values()) == {1}
    assert (doubts(owner), differences(owner)) == (0, [0])


async def test_stopping_holds_what_is_past_its_dot_and_gives_back_the_rest_without_doubt(
    app, owner, crew, monkeypatch
):
    past, before = (
        send(app, "past@example.org", stream="careful"),
        send(app, "x@example.org", stream="careful"),
    )
    both = asyncio.Event()

    class Stuck(Dotted):
        async def deliver(self, envelope: Any, on_dot: Any = None) -> Any:
            self.begun += 1
            if envelope.recipient.startswith("past"):
                await on_dot()
            if self.begun == 2:
                both.set()
            await asyncio.Event().wait()

    hired = await crew.hire({"default": Stuck()}, drain_seconds=0.2)
    await both.wait()
    await eventually(lambda: unsent(owner) == 1)
    await hired.stop()
    assert (state(app, past), state(app, before)) == ("held", "queued")
    assert doubts(owner) == 1
    assert "in_doubt" in events(app, past)


async def test_intents_that_fail_for_long_do_not_have_bodies_written_again_and_again(
    app, owner, crew, monkeypatch
):
    fails = True
    real = work.begin_each

    async def begin_each(*arguments):
        if fails:
            raise DatabaseAway("refused, each time")
        return await real(*arguments)

    monkeypatch.setattr(work, "begin_each", begin_each)
    transport = Dotted()
    await crew.hire({"default": transport})
    mail = send(app, stream="careful")
    said = "select count(*) from pgmail.event where type = 'email.delayed' and detail like '%%could not be committed'"
    await eventually(lambda: one(owner, said))
    assert len(transport.intents) <= 8  # each wait is as long as all before together
    fails = False
    await eventually(lambda: state(app, mail) == "sent")
