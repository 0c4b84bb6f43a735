"""The feed of events: every fact once, in one order, whatever commits when."""

from typing import Any, NamedTuple
from uuid import UUID

import pytest

from tests.sql.kit import body, one, rows, send, send_many


class Place(NamedTuple):
    """How far a reader is: its two snapshots and the row told last."""

    seen: str
    now: str
    xid: int | None = None
    place: UUID | None = None
    id: UUID | None = None


def now(connection: Any) -> str:
    return one(connection, "select now_::text from pgmail.feed_now_v1()")


def page(
    connection: Any,
    at: Place,
    tenants: list[int] | None = None,
    most: int = 1000,
    wanted: tuple[list[Any] | None, list[Any] | None] = (None, None),
) -> list[Any]:
    return rows(
        connection,
        "select xid::text::bigint, place, id, type, tenant_id, email_id, recipient_id, address, stream, tags "
        "from pgmail.feed_v1(%s, %s, %s::text::xid8, %s, %s, %s, %s, %s::text[], %s::uuid[])",
        [at.seen, at.now, None if at.xid is None else str(at.xid), at.place, at.id, tenants, most, *wanted],
    )


def read(
    connection: Any,
    seen: str,
    tenants: list[int] | None = None,
    most: int = 1000,
    wanted: tuple[list[Any] | None, list[Any] | None] = (None, None),
) -> tuple[list[Any], str]:
    """All that is new since a snapshot, page by page; and the snapshot that it is complete for."""
    at, found = Place(seen, now(connection)), []
    while True:
        got = page(connection, at, tenants, most, wanted)
        found += [row for row in got if row[3] is not None]
        if not got or got[-1][3] is not None:
            return found, at.now
        at = at._replace(xid=got[-1][0], place=got[-1][1], id=got[-1][2])


def types(found: list[Any]) -> list[str]:
    return [row[3] for row in found]


def test_an_email_is_told_for_each_recipient_before_what_happens_to_it(db):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    email = send(producer, ["ada@example.org", "bob@example.org"], tags={"kind": "welcome"})
    producer.execute("select pgmail.cancel(%s)", [email])
    found, _ = read(owner, start)
    assert types(found) == ["email.queued", "email.queued", "email.cancelled", "email.cancelled"]
    assert [row[7] for row in found[:2]] == ["ada@example.org", "bob@example.org"]
    assert {row[5] for row in found} == {email}
    assert {row[8] for row in found} == {"transactional"}
    assert [row[9] for row in found] == [{"kind": "welcome"}] * 4
    assert [row[2] for row in found[:2]] == [row[6] for row in found[:2]], "queued has its recipient's id"


def test_what_commits_late_is_told_once_and_delays_nobody(db):
    late, producer, owner = db.connect("producer", autocommit=False), db.connect("producer"), db.connect()
    start = now(owner)
    slow = send(late)
    fast = send(producer)
    found, then = read(owner, start)
    assert [row[5] for row in found] == [fast]
    late.commit()
    found, then = read(owner, then)
    assert [row[5] for row in found] == [slow]
    assert read(owner, then)[0] == []


def test_a_transaction_that_finishes_after_thousands_of_others_is_found_by_itself(db):
    late, producer, owner = db.connect("producer", autocommit=False), db.connect("producer"), db.connect()
    slow = send(late)
    start = now(owner)
    for _ in range(2500):
        owner.execute("select pg_current_xact_id()")
    fast = send(producer)
    found, then = read(owner, start)
    assert [row[5] for row in found] == [fast]
    late.commit()
    low, high = rows(
        owner,
        "select low::text::bigint, high::text::bigint from pgmail.feed_stretches(%s, %s, null)",
        [then, now(owner)],
    )[0]
    assert high == low + 1
    assert [row[5] for row in read(owner, then)[0]] == [slow]


def test_what_is_rolled_back_is_never_told(db):
    undone, owner = db.connect("producer", autocommit=False), db.connect()
    start = now(owner)
    send(undone)
    undone.rollback()
    assert read(owner, start)[0] == []


@pytest.mark.parametrize("most", [2, 3, 7, 1000])
def test_a_giant_transaction_is_told_in_steps_and_each_fact_once(db, most):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    with producer.transaction():
        made = send_many(producer, [body([f"a{i}@example.org", f"b{i}@example.org"]) for i in range(20)])
        producer.execute(
            "select pgmail.cancel(id) from unnest(%s::uuid[]) u(id)", [[row[1] for row in made[:5]]]
        )
    send(producer)
    found, _ = read(owner, start, most=most)
    assert types(found) == ["email.queued"] * 40 + ["email.cancelled"] * 10 + ["email.queued"]
    assert len({row[2] for row in found}) == len(found)
    assert [row[2] for row in found] == [row[2] for row in read(owner, start)[0]]


def test_a_reader_goes_on_in_the_middle_of_one_email(db):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    send(producer, [f"a{i}@example.org" for i in range(5)])
    send(producer)
    then = now(owner)
    whole = page(owner, Place(start, then))
    for told in range(1, len(whole)):
        last = whole[told - 1]
        assert page(owner, Place(start, then, *last[:3])) == whole[told:]


def test_other_tenants_are_passed_over_and_the_reader_learns_how_far_it_is(db):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    for _ in range(5):
        send(producer)
    got = page(owner, Place(start, now(owner)), [4711], most=3)
    assert len(got) == 1
    assert got[0][3] is None
    found, _ = read(owner, start, [4711], most=3)
    assert found == []
    assert len(read(owner, start, [1], most=3)[0]) == 5


@pytest.mark.parametrize("most", [1, 2, 5, 1000])
def test_what_nobody_wants_is_passed_over_and_the_rest_is_told_as_it_would_have_been(db, most):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    emails = []
    for number in range(6):
        with producer.transaction():
            emails += [send(producer, [f"a{i}@example.org" for i in range(number % 3 + 1)]) for _ in range(2)]
            if number % 2:
                producer.execute("select pgmail.cancel(%s)", [emails[-1]])
    everything, _ = read(owner, start)
    assert len(everything) == 24 + 6

    def told(*wanted: tuple[int, str | None, UUID | None]) -> list[Any]:
        tenants, types, mails = (list(each) for each in zip(*wanted, strict=True))
        return read(owner, start, tenants, most, (types, mails))[0]

    for kind in ("email.queued", "email.cancelled", "email.bounced"):
        assert told((1, kind, None)) == [row for row in everything if row[3] == kind]
    both = [row for row in everything if row[3] == "email.cancelled" or row[5] == emails[3]]
    assert told((1, "email.cancelled", None), (1, None, emails[3])) == both
    assert told((1, "email.bounced", None), (1, None, None), (7, None, None)) == everything
    person = next(row[6] for row in everything if row[5] == emails[-1])
    assert told((1, None, person)) == [
        row for row in everything if row[6] == person or (row[3] == "email.queued" and row[5] == emails[-1])
    ]
    assert told((7, None, None), (7, "email.queued", None), (7, None, emails[3])) == []


def test_a_step_over_mailings_is_short_too(db):
    producer, owner = db.connect("producer"), db.connect()
    start = now(owner)
    for number in range(4):
        send(producer, [f"a{number}-{i}@example.org" for i in range(20)])
    (most,) = {len(page(owner, Place(start, now(owner)), [1], each)) for each in (1, 20)}
    assert most == 20 + 1, "one email, and up to where it looked"
    assert len(read(owner, start, [1], most=1)[0]) == 80
    unwanted = page(owner, Place(start, now(owner)), [1], 1000, (["email.sent"], None))
    assert unwanted == []


def test_rows_of_another_cluster_are_never_new(db):
    owner, producer = db.connect(), db.connect("producer")
    start = now(owner)
    send(producer)
    owner.execute("update pgmail.message set xid = '99999999999'")
    assert read(owner, start)[0] == []


def test_what_a_dump_brought_is_not_told_again_when_its_numbers_come_up(db):
    owner, producer = db.connect(), db.connect("producer")
    mark = "select pgmail.feed_settle_in()"
    owner.execute(mark)
    told = "select count(*) from pgmail.audit where action = 'feed.settle_in'"
    assert one(owner, told) == 0, "this database is at home"
    start = now(owner)
    email = send(producer)
    producer.execute("select pgmail.cancel(%s)", [email])
    for table in ("message", "event"):  # as if by the cluster that was dumped, which was ahead
        owner.execute(
            f"update pgmail.{table} set xid = (pg_current_xact_id()::text::bigint + 30)::text::xid8"
        )
    owner.execute(
        "update pgmail.feed_home set from_xid = null"
    )  # another than `written` says: a dump brought it
    owner.execute(mark)
    owner.execute(mark)
    assert one(owner, told) == 1
    for _ in range(60):
        owner.execute("select pg_current_xact_id()")
    new = send(producer)
    assert [event[5] for event in read(owner, start)[0]] == [new]
    owner.execute(mark)
    assert one(owner, told) == 1


def test_since_begins_before_the_moment_and_not_long_before(db):
    owner, producer = db.connect(), db.connect("producer")
    late = db.connect("producer", autocommit=False)
    send(late)  # a transaction that is older than all, and is not over
    for minutes in (120, 60, 15, 5, 0):
        email = send(producer)
        owner.execute(
            "update pgmail.message set created_at = now() - %s * interval '1 minute' where id = %s",
            [minutes, email],
        )
    snapshot = one(owner, "select pgmail.feed_since_v1(now() - interval '4 minutes')::text")
    assert len(read(owner, snapshot)[0]) == 2
    snapshot = one(owner, "select pgmail.feed_since_v1(now() - interval '400 minutes')::text")
    assert len(read(owner, snapshot)[0]) == 5
    snapshot = one(owner, "select pgmail.feed_since_v1(now() + interval '1 hour')::text")
    assert read(owner, snapshot)[0] == []
    late.commit()
    assert len(read(owner, snapshot)[0]) == 1


def test_another_history_is_another_cursor(db):
    owner = db.connect()
    before = one(owner, "select history from pgmail.feed_now_v1()")
    assert one(owner, "select history from pgmail.feed_now_v1()") == before
    owner.execute(
        "insert into pgmail.history (generation, root) select generation + 1, root from pgmail.history"
    )
    assert one(owner, "select history from pgmail.feed_now_v1()") != before


def test_a_restore_that_was_noticed_is_another_history_before_anybody_decides(db):
    owner, seen = db.connect(), []
    for step in (
        "select 1",
        "select pgmail.stop_for_restore('x')",
        "select pgmail.accept_restore('hold', 'y')",
    ):
        owner.execute(step)
        for zone in ("UTC", "Asia/Tokyo"):
            owner.execute(f"set timezone = '{zone}'")
            seen.append(one(owner, "select history from pgmail.feed_now_v1()"))
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 3


def test_keys_that_ended_are_not_alive(db):
    owner = db.connect()
    made = [one(owner, "select pgmail.create_key('a', 'h', %s)", [bytes([i]) * 32]) for i in range(3)]
    owner.execute("update pgmail.api_key set revoked_at = now() where id = %s", [made[0]])
    owner.execute("update pgmail.api_key set expires_at = now() - interval '1 s' where id = %s", [made[1]])
    alive = rows(
        owner, "select pgmail.live_keys_v1(%s::integer[], %s::uuid[])", [[1, 1, 1, 2], [*made, made[2]]]
    )
    assert alive == [(made[2],)]
