"""Quotas in SQL: what producers hand over beyond a rule waits, is held or is refused; nobody waits for anybody."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgmail.domain.keys import make_key
from tests.sql import kit
from tests.sql.kit import NOBODY, body, one, rows, send, send_many, state
from tests.worker.kit import most_in_a_window

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def look(db_clock: Any, owner: Any) -> Callable[[float], int]:
    """Let time pass, then do what the leader does about once a second; how many doors are closed."""
    db_clock.freeze(NOON)
    owner.execute("select pgmail.doors_v1()")

    def look(seconds: float = 1.0) -> int:
        db_clock.advance(seconds)
        owner.execute("select pgmail.fold_tallies_v1()")
        return one(owner, "select pgmail.doors_v1()")

    return look


def rule(owner: Any, scope: str, name: str = "", **settings: Any) -> str:
    return one(owner, "select pgmail.set_quota(%s, %s, %s)", [scope, name, Jsonb(settings)])


def flood(app: Any, n: int, **more: Any) -> list[Any]:
    return send_many(app, [body(f"u{i}@example.org", **more) for i in range(n)])


def dues(owner: Any) -> list[datetime]:
    return [
        row[0] for row in rows(owner, "select due_at from pgmail.queue where wait = 'delayed' order by 1")
    ]


def refused(connection: Any, **more: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        send(connection, **more)
    return caught.value


@pytest.mark.parametrize(("scope", "name"), [("tenant", ""), ("stream", "transactional")])
def test_a_producer_over_its_rate_is_delayed_at_the_rate_and_says_why(app, owner, look, scope, name):
    rule(owner, scope, name, per_second=10)
    assert look() == 0
    flood(app, 300)
    assert look() == 1
    assert dues(owner) == []  # what came before the leader looked: a second of the producer's own speed
    flood(app, 300)
    delayed = dues(owner)
    # 300 at 10 a second are 30 s of mail; they were taken in from NOON + 1 s on.
    assert len(delayed) == 300
    assert delayed[0] >= NOON + timedelta(seconds=31)
    assert delayed[-1] <= NOON + timedelta(seconds=61)
    for start in range(
        31, 61, 10
    ):  # 100 on average in each ten seconds; chance is bound by far less than this
        part = [
            d for d in delayed if NOON + timedelta(seconds=start) <= d < NOON + timedelta(seconds=start + 10)
        ]
        assert 60 < len(part) < 140
    one_of = one(owner, "select message_id from pgmail.queue where wait = 'delayed' limit 1")
    assert state(app, one_of) == "queued"
    who = "the tenant" if scope == "tenant" else "stream transactional"
    assert "waits for a limit until 2026-11-21 12:0" in one(app, "select pgmail.why(%s)", [one_of])
    assert f"{who} takes in 10 emails a second" in one(app, "select pgmail.why(%s)", [one_of])
    assert kit.events(app, one_of)[-1] == "delayed"
    look(), look()
    assert kit.differences(owner) == [0]


def test_what_is_delayed_pushes_what_comes_later_further_back(app, owner, look):
    rule(owner, "tenant", per_second=10)
    for _ in range(5):
        flood(app, 100)
        look()
    delayed = dues(owner)
    assert len(delayed) == 400
    # Five seconds of 100 a second are 50 s at the rate; in no ten seconds come due two herds of a hundred.
    assert NOON + timedelta(seconds=48) < delayed[-1] < NOON + timedelta(seconds=60)
    assert all(
        later - sooner > timedelta(seconds=5) for sooner, later in zip(delayed, delayed[100:], strict=False)
    )


def test_a_producer_within_its_rate_never_meets_a_door(app, owner, look):
    rule(owner, "tenant", per_second=10)
    for n in (10, 9, 10, 19, 1, 10):
        flood(app, n)
        assert look() == 0
    assert dues(owner) == []


def test_a_door_opens_again_once_all_is_paid_for(app, owner, look):
    rule(owner, "tenant", per_second=10)
    flood(app, 50)
    assert look() == 1
    assert look(2.0) == 1
    assert look(2.0) == 0
    assert state(app, send(app)) == "queued"
    assert dues(owner) == []


@pytest.mark.parametrize("many", [False, True])
def test_on_limit_decides_what_becomes_of_it(app, owner, look, many):
    def put(**more: Any) -> Any:
        return send_many(app, [body(**more)])[0][1] if many else send(app, **more)

    rule(owner, "tenant", per_second=10)
    flood(app, 100)
    look()
    waits, held = put(on_limit="delay"), put(on_limit="hold")
    assert state(app, waits) == "queued"
    assert one(
        owner,
        "select due_at > pgmail.now() + interval '5 s' from pgmail.queue where message_id = %s",
        [waits],
    )
    assert state(app, held) == "held"
    assert "the tenant takes in 10 emails a second" in one(app, "select pgmail.why(%s)", [held])
    with pytest.raises(psycopg.Error) as caught:
        put(on_limit="error")
    error = caught.value
    assert kit.refusal(error) == ("limit_reached", "/0/stream" if many else "/stream", "PM429")
    assert "try again after 2026-11-21T12:00:1" in str(error)
    assert "Try again after 2026-11-21T12:00:1" in error.diag.message_hint
    answer = send_many(app, [body(on_limit="error"), body()], strict=False)
    assert [row[2] for row in answer] == ["limit_reached", None]


def test_a_key_that_was_used_answers_with_what_it_holds_though_the_door_is_closed(app, owner, look):
    first = send(app, idempotency_key="a", on_limit="error")
    rule(owner, "tenant", per_second=10, bound_mails=100)
    flood(app, 120)
    look()
    assert send(app, idempotency_key="a", on_limit="error") == first
    assert kit.refusal(refused(app)).state == "PM429"


def test_mail_for_later_is_not_delayed_by_a_door_that_will_be_open_then(app, owner, look):
    rule(owner, "tenant", per_second=10)
    flood(app, 100)
    look()
    at = NOON + timedelta(hours=1)
    later = send(app, scheduled_at=at.isoformat())
    assert state(app, later) == "scheduled"
    assert one(owner, "select due_at from pgmail.queue where message_id = %s", [later]) == at


def test_a_day_is_one_of_utc_and_what_exceeds_it_is_paced_over_the_next(app, owner, look, db_clock):
    rule(owner, "tenant", per_day=100)
    flood(app, 100)
    assert look() == 1
    flood(app, 50)
    # Taken in on the first day, of the second day's hundred: at its beginning, a day's hundredth each.
    assert dues(owner)[0] >= MIDNIGHT
    assert dues(owner)[-1] <= MIDNIGHT + timedelta(days=1)
    look()
    db_clock.freeze(MIDNIGHT - timedelta(seconds=1))
    send(app)
    assert len(dues(owner)) == 51
    assert look(2.0) == 0  # past midnight: 51 of the new day's hundred are used
    flood(app, 48)
    assert look() == 0
    flood(app, 1)
    assert look() == 1
    assert len(dues(owner)) == 51
    assert kit.differences(owner) == [0]


def test_a_day_rule_holds_nothing_against_mail_that_came_before_it(app, owner, look):
    flood(app, 500)
    look()
    rule(owner, "tenant", per_day=100)
    look()
    found = rows(owner, "select until from pgmail.door")
    assert all(until <= NOON + timedelta(days=1) for (until,) in found)


def test_a_day_with_nothing_owed_begins_with_all_of_its_allowance(app, owner, look, db_clock):
    rule(owner, "tenant", per_day=100)
    flood(app, 99)
    assert look() == 0
    db_clock.freeze(MIDNIGHT)
    assert look(0) == 0
    flood(app, 99)
    assert look() == 0
    flood(app, 1)
    assert look() == 1


@pytest.mark.parametrize(("scope", "name"), [("tenant", ""), ("stream", "broadcast")])
def test_a_full_queue_delays_until_it_is_less_full(app, owner, look, scope, name):
    rule(owner, scope, name, max_queued=5)
    ids = flood(app, 5, stream="broadcast")
    assert look() == 1
    waits = send(app, stream="broadcast")
    assert "holds as many queued emails as it may (5)" in one(app, "select pgmail.why(%s)", [waits])
    other = send(app, stream="transactional")
    assert (one(owner, "select wait from pgmail.queue where message_id = %s", [other]) is None) is (
        scope == "stream"
    )
    for row in ids[:4]:
        app.execute("select pgmail.cancel(%s)", [row[1]])
    assert look() == 0


def test_backpressure_by_depth_stops_low_priority_only_and_as_on_limit_says(app, owner, look):
    rule(owner, "fleet", pressure_depth=10)
    flood(app, 11)
    assert look() == 1
    assert one(owner, "select wait from pgmail.queue where message_id = %s", [send(app)]) is None
    low = send(app, stream="broadcast")
    assert "backpressure: more than 10 emails wait" in one(app, "select pgmail.why(%s)", [low])
    assert state(app, send(app, priority="low", on_limit="hold")) == "held"
    assert kit.refusal(refused(app, priority="low", on_limit="error")) == ("backpressure", "/stream", "PM503")
    assert (
        one(
            owner,
            "select wait from pgmail.queue where message_id = %s",
            [send(app, stream="broadcast", priority="high")],
        )
        is None
    )


def test_backpressure_by_age_counts_mail_that_is_due_and_not_paused(app, owner, look, db, db_clock):
    rule(owner, "tenant", pressure_seconds=60)
    send(app)
    hand = kit.Hand(db.connect("worker"))
    hand.fold()
    assert look(59) == 0
    assert look(2) == 1
    app_wait = send(app, stream="broadcast")
    assert "has been due for more than 60 seconds" in one(app, "select pgmail.why(%s)", [app_wait])
    owner.execute("select pgmail.pause_mail('stream', 'transactional', 'maintenance')")
    assert look() == 0


@pytest.mark.parametrize("rule_", [{"pressure_seconds": 60}, {"pressure_depth": 1}])
def test_the_mail_of_a_suspended_tenant_is_no_pressure_on_the_others(app, owner, look, db, rule_):
    other = one(owner, "select pgmail.create_tenant('shop')")
    rule(owner, "fleet", **rule_)
    with db.connect("api") as api:
        api.execute("select set_config('pgmail.tenant', %s, false)", [str(other)])
        for _ in range(2):
            send(api)
    send(app)
    hand = kit.Hand(db.connect("worker"))
    hand.fold()
    for lease in hand.claim(traced=False):
        hand.settle(lease)
    look(61)
    assert look() > 0
    owner.execute("select pgmail.suspend_tenant('shop', 'unpaid')")
    assert look() == 0
    owner.execute("select pgmail.resume_tenant('shop')")
    assert look() > 0


def test_a_bound_refuses_whatever_on_limit_says_until_the_day_is_over(app, owner, look, db_clock):
    rule(owner, "tenant", bound_mails=10)
    flood(app, 10)
    assert look() == 1
    for word in ("delay", "hold", "error"):
        error = refused(app, on_limit=word)
        assert kit.refusal(error) == ("limit_reached", "/stream", "PM429")
        assert "2026-11-22T00:00:00Z" in error.diag.message_hint
    db_clock.freeze(MIDNIGHT)
    assert state(app, send(app)) == "queued"  # without waiting for the leader
    assert look() == 0


def test_bytes_are_bound_as_well_attachments_and_variables_included(app, owner, look):
    rule(owner, "fleet", bound_bytes=100_000)
    file = {"filename": "a.bin", "content": "QUJD" * 10_000}
    send(app, attachments=[file])
    assert look() == 0
    assert 30_000 < one(owner, "select bytes from pgmail.quota_meter where scope = 'tenant'") < 31_000
    big = [
        {"address": "a@example.org", "variables": {"x": "y" * 40_000}},
        {"address": "b@example.org", "variables": {"x": "y" * 40_000}},
    ]
    send(app, to=big, mode="personal")
    assert look() == 1
    assert "bytes today" in str(refused(app))


def test_what_is_rolled_back_uses_nothing(db, owner, look):
    rule(owner, "tenant", per_second=1, per_day=10)
    with db.connect("producer", autocommit=False) as producer:
        flood(producer, 100)
        producer.rollback()
    assert look() == 0


def test_a_rule_counts_from_when_it_was_made(app, owner, look):
    flood(app, 500, stream="broadcast")
    look()
    rule(owner, "stream", "broadcast", per_second=10, per_day=600)
    assert look() == 0
    flood(app, 500, stream="broadcast")
    assert look() == 1


def test_a_rule_that_is_changed_or_removed_holds_nothing_of_the_old_one_against_new_mail(app, owner, look):
    rule(owner, "tenant", per_second=1)
    flood(app, 100)
    assert look() == 1
    rule(owner, "tenant", per_second=1000)
    assert look() == 0
    rule(owner, "tenant", per_second=1)
    flood(app, 100)
    assert look() == 1
    assert one(owner, "select pgmail.remove_quota('tenant', '')")
    assert look() == 0
    assert not one(owner, "select pgmail.remove_quota('tenant', '')")
    assert rows(
        owner, "select action, object from pgmail.audit where action like 'quota.%%' order by id"
    ) == [("quota.set", "tenant")] * 3 + [("quota.remove", "tenant")]


@pytest.mark.parametrize(
    ("scope", "name", "settings", "fault"),
    [
        ("site", "", {"per_second": 1}, ("invalid_scope", "/scope")),
        ("stream", "none", {"per_second": 1}, ("unknown_stream", "/name")),
        ("key", "none", {"per_second": 1}, ("unknown_key", "/name")),
        ("tenant", "nobody", {"per_second": 1}, ("unknown_tenant", "/tenant")),
        ("tenant", "", {}, ("invalid_body", "")),
        ("tenant", "", {"per_second": 0}, ("invalid_quota", "/per_second")),
        ("tenant", "", {"per_second": 1.5}, ("invalid_quota", "/per_second")),
        ("tenant", "", {"per_second": "1"}, ("invalid_quota", "/per_second")),
        ("tenant", "", {"per_day": 10**13}, ("invalid_quota", "/per_day")),
        ("tenant", "", {"per_week": 1}, ("unknown_key", "/per_week")),
        ("fleet", "", {"per_second": 1}, ("unknown_key", "/per_second")),
        ("stream", "broadcast", {"bound_mails": 1}, ("unknown_key", "/bound_mails")),
        ("tenant", "", {"note": 1}, ("invalid_quota", "/note")),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(owner, scope, name, settings, fault):
    with pytest.raises(psycopg.Error) as caught:
        rule(owner, scope, name, **settings)
    assert kit.refusal(caught.value)[:2] == fault


def test_a_tenants_rule_is_no_other_tenants(app, owner, look, db):
    owner.execute("select pgmail.create_tenant('second')")
    one(owner, "select pgmail.set_quota('tenant', null, '{\"per_second\": 1}', 'second')")
    flood(app, 100)
    assert look() == 0
    reader = db.connect("reader")
    assert {row[0] for row in rows(reader, "select tenant_id from pgmail.quota")} == {None}
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute("select pgmail.set_quota('tenant', '', '{\"per_second\": 1}')")


def test_by_http_no_window_of_a_second_ever_holds_more_than_the_rate_and_nearly_all_of_it_is_used(
    db, owner, db_clock
):
    """Two ask by turns, at moments that fall anywhere, and far more than they get."""
    db_clock.freeze(NOON)
    rule(owner, "tenant", per_second=50)
    first, second = db.connect("api"), db.connect("api")
    for connection in (first, second):
        connection.execute("select set_config('pgmail.tenant', '1', false)")
    random, at, let_in, slowest = Random(7), 0.0, [], 0.0
    while at < 6.0:
        step = random.choice((0.0, 0.003, 0.011, 0.03, 0.05))
        at += step
        db_clock.advance(step)
        asked = [random.choice((1, 1, 2, 5)) for _ in range(random.randint(1, 4))]
        values = [NOBODY, list(range(len(asked))), ["transactional"] * len(asked), asked]
        began = time.monotonic()
        taken = one(random.choice((first, second)), "select pgmail.take_quota_v1(%s, %s, %s, %s)", values)
        slowest = max(slowest, time.monotonic() - began)
        for count, answer in zip(asked, taken["answers"], strict=True):
            let_in += [at] * count if answer["granted"] else []
    # What a call takes counts on top of the clock that stands still: one that a busy machine held up by more than the
    # two slots to spare was let in at another moment than is written down here.
    assert most_in_a_window(let_in) <= (50 if slowest < 0.03 else 75)
    assert len(let_in) >= 6 * 50 * 0.95


def test_a_rule_of_a_key_follows_it_through_rotations_which_share_it(db, owner):
    def rotated(key):
        _, hint, hash_ = make_key()
        return one(
            owner, "select id from pgmail.rotate_key(%s, %s, %s, interval '1 day')", [key, hint, hash_]
        )

    _, hint, hash_ = make_key()
    first = one(
        owner, "select id from pgmail.make_key('app', %s, %s, %s)", [hint, hash_, Jsonb({"scopes": ["send"]})]
    )
    rule(owner, "key", str(first), per_day=3)
    second = rotated(first)
    third = rotated(second)
    api = db.connect("api")
    api.execute("select set_config('pgmail.tenant', '1', false)")
    for key in (first, second, third):
        gate = one(api, "select pgmail.quota_gate_v1(%s)", [key])
        assert gate["rules"] == [["key", str(first)]], key
        took = one(api, "select pgmail.take_quota_v1(%s, '{1}', '{transactional}', '{1}')", [key])
        assert took["answers"][0]["granted"], key
    full = one(api, "select pgmail.take_quota_v1(%s, '{1}', '{transactional}', '{1}')", [third])
    assert full["answers"][0]["kind"] == "day"
    rule(owner, "key", str(third), per_day=5)
    assert rows(owner, "select name, per_day from pgmail.quota where scope = 'key'") == [(str(first), 5)]
    assert one(owner, "select pgmail.remove_quota('key', %s)", [str(second)])
    assert one(api, "select pgmail.quota_gate_v1(%s)", [third])["rules"] == []


def test_a_place_that_is_refused_says_when_there_is_one(db, owner, db_clock):
    db_clock.freeze(NOON)
    rule(owner, "tenant", per_second=5)
    api = db.connect("api")
    api.execute("select set_config('pgmail.tenant', '1', false)")

    def take(count: int) -> Any:
        return one(api, "select pgmail.take_quota_v1(%s, '{1}', '{transactional}', %s)", [NOBODY, [count]])[
            "answers"
        ][0]

    assert take(3)["granted"]
    db_clock.advance(0.5)
    assert take(2)["granted"]
    sooner, later = take(3), take(4)
    assert (sooner["granted"], later["granted"]) == (False, False)
    assert 0.4 < sooner["seconds"] <= 0.56
    assert 0.98 < later["seconds"] <= 1.04
    db_clock.advance(sooner["seconds"])
    assert not take(4)["granted"]
    assert take(3)["granted"]
    assert take(6)["most"] == 5


def test_nobody_waits_for_a_leader_in_the_middle_of_it(db, app, owner, look):
    rule(owner, "tenant", per_second=10)
    flood(app, 100)
    with db.connect(autocommit=False) as leader, db.connect() as second:
        leader.execute("select pgmail.fold_tallies_v1(), pgmail.doors_v1()")
        app.execute("set lock_timeout = '100ms'")
        send(app)
        assert one(second, "select pgmail.doors_v1()") is None
        leader.rollback()


def crowd(owner: Any, tenants: int) -> None:
    """So many tenants that sent before and are at rest."""
    owner.execute(
        "insert into pgmail.tally_total (tenant_id, stream, kind, n, bytes)"
        " select t, s, k, case k when 'enqueued' then 1000 else 300 end, 100000 from generate_series(1000, 999 + %s) t,"
        " unnest(array['transactional', 'broadcast']) s, unnest(array['enqueued', 'sent', 'bounced', 'dead']) k",
        [tenants],
    )
    owner.execute("insert into pgmail.tally_moved select distinct tenant_id from pgmail.tally_total")
    owner.execute("analyze pgmail.tally_total")


def test_a_look_reads_the_totals_of_those_who_sent_and_of_nobody_else(app, owner, look):
    crowd(owner, 3000)
    assert look() == 0
    owner.execute("analyze pgmail.quota_meter")
    flood(app, 10)
    owner.execute("select pgmail.fold_tallies_v1()")

    def read() -> int:
        """Rows of the totals that this session read so far."""
        return one(
            owner,
            "select sum(pg_stat_get_xact_tuples_returned(x.oid))::int from ("
            " select 'pgmail.tally_total'::regclass::oid union all"
            " select indexrelid from pg_index where indrelid = 'pgmail.tally_total'::regclass) x(oid)",
        )

    with owner.transaction():
        before = read()
        owner.execute("select pgmail.doors_v1()")
        assert read() - before < 100
    assert one(owner, "select depth from pgmail.quota_meter where tenant_id = 1 and scope = 'tenant'") == 10
    assert one(owner, "select mails from pgmail.quota_meter where tenant_id = 1 and scope = 'tenant'") == 10


def test_a_tenant_at_rest_is_judged_by_what_the_meter_has_of_it(app, owner, look, db_clock):
    ids = flood(app, 20)
    assert look() == 0
    assert look() == 0
    rule(owner, "tenant", max_queued=20)
    assert look() == 1  # nothing was folded since: the depth is remembered
    rule(owner, "tenant", max_queued=None, bound_mails=20)
    assert look() == 1
    db_clock.freeze(MIDNIGHT)
    assert look(0) == 0  # a new day, though nobody sent
    rule(owner, "tenant", bound_mails=None)
    rule(owner, "stream", "transactional", max_queued=20)
    assert look() == 1
    app.execute("select pgmail.cancel(%s)", [ids[0][1]])
    assert look() == 0


def test_nothing_is_left_of_who_moved_once_the_doors_were_looked_at(app, owner, look):
    flood(app, 20)
    look()
    assert kit.count(owner, "tally_moved") == 0
