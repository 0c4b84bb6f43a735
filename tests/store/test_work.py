"""The queue as a worker sees it: each function around its query."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from pgmail.store import work
from pgmail.store.database import Database as Pool
from pgmail.store.faults import FencedOut
from pgmail.store.work import Claim, Settlement, StreamRow
from tests.fix_db import PREFIX
from tests.sql.kit import SESSIONS_HERE, Hand, events, one, recipients, rows, send, state, stream
from tests.waiting import eventually, eventually_now

START = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def pool(db) -> AsyncIterator[Pool]:
    made = Pool(db.dsn_for("worker"), name="test")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def epoch(db) -> int:
    return one(db.connect("worker"), "select pgmail.worker_start_v1('host', 1, 'test', 10)")


async def claim(pool: Pool, epoch: int, limit: int = 10) -> list[work.Lease]:
    lanes, _ = await work.fold_and_refresh(pool, None)
    claims = [Claim(lane.id, START, UUID(int=0), limit, True) for lane in lanes]
    (found,) = await work.claim_each(pool, epoch, [(1, claims)], [])
    return found


def result(lease: work.Lease, kind: str = "sent", **more) -> Settlement:
    return Settlement(
        id=lease.id, message_id=lease.message_id, claims=lease.claims, kind=kind, lane=lease.lane,
        stream="transactional", priority=2, site="example.org", attempts=lease.attempts, **more,
    )  # fmt: skip


async def test_claimed_rows_come_as_leases_oldest_first_and_settle(app, owner, pool, epoch):
    mails = [send(app, f"a{n}@d{n}.example") for n in range(3)]
    leases = await claim(pool, epoch)
    assert [lease.message_id for lease in leases] == mails
    assert {(lease.tenant, lease.claims, lease.attempts, lease.rescues) for lease in leases} == {(1, 1, 0, 0)}
    assert await claim(pool, epoch) == []
    answers = await work.settle(pool, 1, epoch, [result(lease) for lease in leases])
    assert answers == {}
    assert [state(app, mail) for mail in mails] == ["sent"] * 3


async def test_every_fact_of_a_settlement_reaches_the_record(app, owner, pool, epoch):
    send(app)
    (lease,) = await claim(pool, epoch)
    facts = {
        "relay": "default", "code": 250, "enhanced": "2.0.0", "reply": "ok “quoted” \\u0000 text", "phase": "dot",
        "remote_host": "mx:25", "tls": "TLSv1.3", "ms": 12,
    }  # fmt: skip
    await work.settle(pool, 1, epoch, [result(lease, **facts)])
    found = rows(
        owner,
        "select relay, code, enhanced, reply, phase, remote_host, tls, ms, attempt, worker from pgmail.event "
        "where type = 'email.sent'",
    )
    assert found == [(*facts.values(), 1, epoch)]


async def test_a_worker_that_was_declared_dead_claims_nothing(app, owner, pool, epoch):
    send(app)
    one(owner, "select pgmail.rescue_v1(%s)", [epoch])
    with pytest.raises(FencedOut):
        await claim(pool, epoch)


async def test_leases_given_back_are_free_and_a_reason_is_told(app, owner, pool, epoch):
    mail = send(app)
    leases = await claim(pool, epoch)
    assert await work.release(pool, 1, epoch, leases, "relay away") == {leases[0].id}
    assert state(app, mail) == "queued"
    assert events(app, mail) == ["queued", "sending", "delayed"]
    assert await work.release(pool, 1, epoch, leases) == set()
    assert await work.still_leased(pool, 1, epoch, leases) == set()
    (again,) = await claim(pool, epoch)
    assert again.claims == 2


async def test_a_lease_that_a_lock_keeps_is_known_to_be_still_ours(db, app, pool, epoch):
    send(app), send(app)
    leases = await claim(pool, epoch)
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue where id = %s for update", [leases[0].id])
        assert await work.release(pool, 1, epoch, leases) == {leases[1].id}
        assert await work.still_leased(pool, 1, epoch, leases) == {leases[0].id}
        holder.rollback()


async def test_recipients_come_with_their_variables_and_what_suppresses_them(app, owner, pool, epoch):
    people = [{"address": "Ada@Example.org", "name": "Ada", "variables": {"n": 1}}, "bob@example.org"]
    send(app, people, mode="personal")
    one(owner, "select pgmail.suppress('bob@example.org', 'manual', null, 'transactional')")
    leases = await claim(pool, epoch)
    ids = [x.id for x in leases]
    ((people, messages), (others, _)), later = await work.contents(
        pool, [(1, "transactional", ids, []), (1, "another", ids, [])], 1
    )
    assert later == set()
    ada, bob = sorted(people, key=lambda x: x.address)
    assert messages == []
    assert (ada.rcpt, ada.address, ada.name, ada.suppressed) == (
        "Ada@example.org",
        "ada@example.org",
        "Ada",
        None,
    )
    assert ada.variables.replace(b" ", b"") == b'{"n":1}'
    assert (bob.rcpt, bob.variables, bob.suppressed) == ("bob@example.org", None, "manual")
    assert {person.suppressed for person in others} == {None}


async def test_of_large_messages_as_many_are_read_as_there_is_memory_for(app, pool):
    mails = [send(app, text="x" * 50_000) for _ in range(4)]
    people = [recipients(app, mail)[0] for mail in mails]
    for most, read in ((1, 1), (50_000, 1), (60_000, 2), (1_000_000, 4)):
        ((found, rows_),), later = await work.contents(pool, [(1, "transactional", people, mails)], most)
        assert (len(found), {row.id for row in rows_}, later) == (4, set(mails[:read]), set(mails[read:]))


async def test_messages_attachments_and_templates_are_read_by_id(app, owner, pool):
    owner.execute("select pgmail.save_template('hello', 'S', 'T', null, '{}', '{\"x\": 1}', true)")
    due = datetime.now(UTC) + timedelta(hours=1)
    mail = send(
        app, subject=None, text=None, template={"id": "hello"}, scheduled_at=due.isoformat(),
        attachments=[{"filename": "a.txt", "content": "aGk="}],
    )  # fmt: skip
    (recipient,) = recipients(app, mail)
    (([person], [row]),), _ = await work.contents(pool, [(1, "transactional", [recipient], [mail])], 1)
    assert person.id == recipient
    assert (row.id, row.mode, row.recipients, row.template, row.template_version) == (
        mail,
        "envelope",
        1,
        "hello",
        1,
    )
    assert row.scheduled_at == due
    (file,) = await work.attachments(pool, 1, mail)
    assert (file.filename, bytes(file.body)) == ("a.txt", b"hi")
    source = await work.template(pool, 1, "hello", 1)
    assert (source.subject, source.body_text, source.depends) == ("S", "T", {"x": 1})
    assert await work.template(pool, 1, "hello", 2) is None


async def test_streams_are_read_whole_and_their_defaults_are_those_of_the_table(owner, pool):
    stream(owner, "plain")
    found = {row.name: row for row in await work.streams(pool)}
    assert set(found) == {"transactional", "broadcast", "plain"}
    plain, mine = found["plain"], StreamRow(1, "plain")
    for name in StreamRow.__struct_fields__:
        assert getattr(plain, name) == pytest.approx(getattr(mine, name)), name


async def test_what_a_worker_says_of_a_relay_is_read_by_the_others(pool):
    await work.relay_state(pool, "default", "away", "gone", 30)
    await work.relay_state(pool, "second", "paused", "login", None)
    found = {row.name: row for row in await work.relays(pool)}
    assert (found["default"].state, found["default"].reason) == ("away", "gone")
    assert 25 < found["default"].seconds <= 30
    assert (found["second"].state, found["second"].seconds) == ("paused", None)


async def test_lanes_are_folded_and_read_in_one_go_and_then_by_version(app, owner, pool):
    send(app)
    (lane,), now = await work.fold_and_refresh(pool, None)
    assert abs(now - one(owner, "select pgmail.now()")) < timedelta(minutes=1)
    assert (lane.tenant, lane.stream, lane.priority, lane.site, lane.active) == (
        1,
        "transactional",
        2,
        "example.org",
        True,
    )
    assert (await work.fold_and_refresh(pool, lane.version))[0] == []
    send(app, "eve@example.net")
    (newer,), _ = await work.fold_and_refresh(pool, lane.version)
    assert newer.site == "example.net"
    assert len((await work.fold_and_refresh(pool, None))[0]) == 2


async def test_an_empty_lane_goes_idle_and_one_with_mail_does_not(app, owner, pool):
    send(app), send(app, "eve@example.net")
    lanes, _ = await work.fold_and_refresh(pool, None)
    owner.execute("update pgmail.lane set changed_at = now() - interval '1 hour'")
    owner.execute(
        "delete from pgmail.queue q using pgmail.lane l where l.id = q.lane and l.site = 'example.net'"
    )
    assert await work.idle(pool, 1, [lane.id for lane in lanes]) == 1
    left, _ = await work.fold_and_refresh(pool, None)
    assert [lane.site for lane in left] == ["example.org"]


async def test_several_tenants_claim_in_one_round_trip_each_its_own_in_the_order_asked(
    app, owner, pool, epoch
):
    other = one(owner, "select pgmail.create_tenant('other')")
    mine = send(app)
    owner.execute(
        "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'other')",
        {"role": PREFIX + "producer"},
    )
    theirs = [send(app), send(app, "eve@example.net")]
    lanes, _ = await work.fold_and_refresh(pool, None)
    asked = [
        (tenant, [Claim(lane.id, START, UUID(int=0), 10, True) for lane in lanes if lane.tenant == tenant])
        for tenant in (other, 1)
    ]
    seen: list[work.Lease] = []
    found = await work.claim_each(pool, epoch, asked, seen)
    assert seen == [lease for leases in found for lease in leases]
    assert [{(lease.tenant, lease.message_id) for lease in leases} for leases in found] == [
        {(other, mail) for mail in theirs},
        {(1, mine)},
    ]
    assert await work.claim_each(pool, epoch, asked, seen) == [[], []]
    assert await work.claim_each(pool, epoch, asked[:1], seen) == [[]]


async def test_several_tenants_settle_in_one_go_and_only_what_did_not_settle_is_answered(
    app, owner, pool, epoch
):
    other = one(owner, "select pgmail.create_tenant('other')")
    first = send(app)
    (mine,) = await claim(pool, epoch)
    owner.execute(
        "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'other')",
        {"role": PREFIX + "producer"},
    )
    mails = [send(app), send(app)]
    hand = Hand(owner, tenant=other)
    leases = [work.Lease(other, *row) for row in hand.claim()]
    lost = [result(lease, "bounced") for lease in leases]  # by another worker's epoch
    answers = await work.settle_each(pool, epoch, [(1, [result(mine)]), (other, lost)])
    assert answers == [{}, {lease.id: "fenced" for lease in leases}]
    assert await work.settle_each(pool, hand.epoch, [(other, [result(x) for x in leases])]) == [{}]
    assert [state(app, mail) for mail in mails] == ["sent"] * 2
    assert one(owner, "select count(*) from pgmail.outcome where message_id = %s", [first]) == 1


async def test_a_batch_of_unlike_results_keeps_each_with_its_own_facts(app, owner, pool, epoch):
    for n in range(6):
        send(app, f"a{n}@example.org")
    leases = await claim(pool, epoch)
    kinds = ["sent", "bounced", "sent", "deferred", "dead", "held"]
    results = [
        result(
            lease,
            kind,
            code=250 + n,
            reply=f"said {n}",
            ms=n,
            delay=60.0 if kind == "deferred" else None,
            reason="r",
        )
        for n, (lease, kind) in enumerate(zip(leases, kinds, strict=True))
    ]
    assert await work.settle(pool, 1, epoch, results) == {}
    told = rows(
        owner,
        "select recipient_id, code, reply, ms from pgmail.event where ms is not null",
    )
    assert {row[0]: tuple(row[1:]) for row in told} == {
        lease.id: (250 + n, f"said {n}", n) for n, lease in enumerate(leases)
    }
    assert [state(app, lease.message_id) for lease in leases] == kinds


async def test_what_a_remote_says_is_written_whatever_characters_it_is_made_of(app, owner, pool, epoch):
    """A result that cannot be written would be lost, and the mail sent again."""
    send(app)
    (lease,) = await claim(pool, epoch)
    said = "no\0thing \udcff\r\ntwo lines “quoted” \\u0000"
    assert (
        await work.settle(pool, 1, epoch, [result(lease, "bounced", reply=said, error="x\0", code=550)]) == {}
    )
    assert one(owner, "select reply from pgmail.outcome") == "no\ufffdthing ?\r\ntwo lines “quoted” \\u0000"


async def test_the_server_counts_the_time_of_a_claim_whose_worker_froze_before_it_read_the_answer(
    db, app, pool, epoch
):
    """So it is cut off. Had it not been asked to synchronise, it would call itself active, and wait for ever."""
    send(app)
    lanes, _ = await work.fold_and_refresh(pool, None)
    claims = [Claim(lane.id, START, UUID(int=0), 10, True) for lane in lanes]
    looking = psycopg.connect(db.superuser_dsn, autocommit=True)
    with looking, db.connect(autocommit=False) as blocking:

        def waits_for(text: str) -> bool:
            return one(
                looking, f"select bool_or({text}) from {SESSIONS_HERE} where application_name = 'test'"
            )

        blocking.execute("select from pgmail.worker for update")
        claiming = asyncio.create_task(work.claim_each(pool, epoch, [(1, claims)], []))
        await eventually(lambda: waits_for("wait_event_type = 'Lock'"))
        blocking.rollback()
        eventually_now(lambda: waits_for("state = 'idle in transaction'"))  # nothing else runs here meanwhile
        assert len((await claiming)[0]) == 1
