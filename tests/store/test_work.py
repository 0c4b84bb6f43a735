"""The queue as a worker sees it: each function around its query."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pgmail.store import work
from pgmail.store.database import Database as Pool
from pgmail.store.faults import FencedOut
from pgmail.store.work import Claim, Settlement, StreamRow
from tests.sql.kit import events, one, rows, send, state, stream

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
    lanes = await work.fold_and_refresh(pool, None)
    return await work.claim(
        pool, 1, epoch, [Claim(lane.id, START, UUID(int=0), limit, True) for lane in lanes]
    )


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
    assert answers == {lease.id: "settled" for lease in leases}
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
    ada, bob = sorted(
        await work.recipients(pool, 1, "transactional", [x.id for x in leases]), key=lambda x: x.address
    )
    assert (ada.rcpt, ada.address, ada.name, ada.suppressed) == (
        "Ada@example.org",
        "ada@example.org",
        "Ada",
        None,
    )
    assert ada.variables.replace(b" ", b"") == b'{"n":1}'
    assert (bob.rcpt, bob.variables, bob.suppressed) == ("bob@example.org", None, "manual")
    other = await work.recipients(pool, 1, "another", [x.id for x in leases])
    assert {person.suppressed for person in other} == {None}


async def test_messages_attachments_and_templates_are_read_by_id(app, owner, pool):
    owner.execute("select pgmail.save_template('hello', 'S', 'T', null, '{}', '{\"x\": 1}', true)")
    due = datetime.now(UTC) + timedelta(hours=1)
    mail = send(
        app, subject=None, text=None, template={"id": "hello"}, scheduled_at=due.isoformat(),
        attachments=[{"filename": "a.txt", "content": "aGk="}],
    )  # fmt: skip
    (row,) = await work.messages(pool, 1, [mail])
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
    (lane,) = await work.fold_and_refresh(pool, None)
    assert (lane.tenant, lane.stream, lane.priority, lane.site, lane.active) == (
        1,
        "transactional",
        2,
        "example.org",
        True,
    )
    assert await work.fold_and_refresh(pool, lane.version) == []
    send(app, "eve@example.net")
    (newer,) = await work.fold_and_refresh(pool, lane.version)
    assert newer.site == "example.net"
    assert len(await work.fold_and_refresh(pool, None)) == 2


async def test_an_empty_lane_goes_idle_and_one_with_mail_does_not(app, owner, pool):
    send(app), send(app, "eve@example.net")
    lanes = await work.fold_and_refresh(pool, None)
    owner.execute("update pgmail.lane set changed_at = now() - interval '1 hour'")
    owner.execute(
        "delete from pgmail.queue q using pgmail.lane l where l.id = q.lane and l.site = 'example.net'"
    )
    assert await work.idle(pool, 1, [lane.id for lane in lanes]) == 1
    assert [lane.site for lane in await work.fold_and_refresh(pool, None)] == ["example.org"]
