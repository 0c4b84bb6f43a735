"""Endpoints told: signed, tried again, given up, and none in another's way."""

import asyncio
import os
from datetime import UTC, datetime

from aiohttp import web

from pgmail.sealing.keks import Keks
from pgmail.store import hooks as store
from tests.sql.kit import one, recipients, rows, send
from tests.waiting import eventually


async def test_an_event_arrives_signed_with_its_facts_and_no_content(hooks, receiver, app):
    hook = await hooks.add(receiver.url + "/a", ["email.queued"])
    email = send(app, tags={"kind": "welcome"}, subject="Secret subject", text="Secret text")
    await hooks.fan_out()
    await hooks.deliver()
    (got,) = receiver.got
    (recipient,) = recipients(app, email)
    assert got.verify(hook.secret)
    assert got.id == str(recipient)
    assert abs(int(got.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert got.headers["content-type"] == "application/json"
    assert set(got.json) == {"type", "timestamp", "data"}
    assert got.json["type"] == "email.queued"
    data = got.json["data"]
    assert (data["id"], data["email_id"], data["address"]) == (got.id, str(email), "ada@example.org")
    assert (data["stream"], data["tags"], data["site"]) == (
        "transactional",
        {"kind": "welcome"},
        "example.org",
    )
    # To the microsecond, as GET /events has it.
    created = one(hooks.owner, "select created_at from pgmail.message where id = %s", [email])
    assert datetime.fromisoformat(data["email_created_at"]) == created
    assert b"Secret" not in got.body
    assert hooks.log() == [("email.queued", 1, "delivered", 204, None)]
    assert hooks.waiting() == []


async def test_an_event_row_arrives_under_its_own_id(hooks, receiver, app):
    await hooks.add(receiver.url, ["email.cancelled"])
    email = send(app)
    app.execute("select pgmail.cancel(%s)", [email])
    await hooks.fan_out()
    await hooks.deliver()
    (got,) = receiver.got
    event = one(hooks.owner, "select id from pgmail.event where type = 'email.cancelled'")
    assert got.id == str(event) == got.json["data"]["id"]
    assert "cancel" in got.json["type"]


async def test_what_fails_comes_again_under_the_same_id_until_it_is_taken(hooks, db_clock, receiver, app):
    hook = await hooks.add(receiver.url, ["email.queued"])
    answers = iter([500, 302, 404, 200])
    receiver.answers["/"] = lambda _: web.Response(status=next(answers), text="ask ada@example.org\nplease")
    send(app)
    await hooks.fan_out()
    for seconds in (0, 7, 360, 2_000):
        db_clock.advance(seconds)
        await hooks.deliver()
    assert len({got.id for got in receiver.got}) == 1
    assert len(receiver.got) == 4
    assert all(got.verify(hook.secret) for got in receiver.got)
    assert [row[1:4] for row in hooks.log()] == [
        (1, "retrying", 500),
        (2, "retrying", 302),
        (3, "retrying", 404),
        (4, "delivered", 200),
    ]
    assert one(hooks.owner, "select answer from pgmail.hook_attempt order by id limit 1") == "ask *** please"
    assert hooks.state(hook) == (True, None, 0, False)


async def test_the_schedule_ends_after_ten_calls_and_three_days_and_the_endpoint_is_disabled_after_five(
    hooks, db_clock, receiver, app
):
    hook = await hooks.add(receiver.url, ["email.queued"])
    receiver.answers["/"] = lambda _: web.Response(status=500)
    send(app)
    await hooks.fan_out()
    began = db_clock.now()
    for _ in range(10):
        await hooks.deliver(random=lambda: 0.5)
        if hooks.waiting():
            ((_, _, due),) = hooks.waiting()
            db_clock.advance(max((due - db_clock.now()).total_seconds(), 0) + 301)
    assert [row[2] for row in hooks.log()] == ["retrying"] * 9 + ["failed"]
    hours = (db_clock.now() - began).total_seconds() / 3_600
    assert 75 < hours < 78
    assert hooks.waiting() == []
    assert hooks.state(hook)[0]
    db_clock.advance(48 * 3_600)
    send(app)
    await hooks.fan_out()
    hooks.owner.execute("update pgmail.hook_queue set attempts = 9")
    await hooks.deliver()
    enabled, reason, _, _ = hooks.state(hook)
    assert not enabled
    assert "no call has gone well since" in reason
    assert one(hooks.owner, "select count(*) from pgmail.audit where action = 'webhook.disable'") == 1


async def test_410_disables_at_once_and_says_so(hooks, receiver, app):
    hook = await hooks.add(receiver.url, ["email.queued"])
    receiver.answers["/"] = lambda _: web.Response(status=410)
    send(app)
    send(app)
    await hooks.fan_out()
    await hooks.deliver(concurrency=4)
    assert hooks.state(hook)[:2] == (False, "it answered 410 Gone")
    assert len(receiver.got) == 1
    assert rows(hooks.owner, "select reason from pgmail.audit where action = 'webhook.disable'") == [
        ("it answered 410 Gone",)
    ]


async def test_retry_after_keeps_all_calls_to_a_busy_endpoint_back(hooks, db_clock, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    receiver.answers["/"] = lambda _: web.Response(status=429, headers={"Retry-After": "120"})
    for _ in range(2):
        send(app)
    await hooks.fan_out()
    await hooks.deliver(concurrency=4)
    assert len(receiver.got) == 1
    rest = one(hooks.owner, "select rest_until - pgmail.now() from pgmail.hook")
    assert 60 < rest.total_seconds() <= 120
    receiver.answers.clear()
    db_clock.advance(130)
    await hooks.deliver()
    assert len(receiver.got) == 3


async def test_an_endpoint_that_fails_is_called_less_and_less(hooks, db_clock, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    receiver.answers["/"] = lambda _: web.Response(status=500)
    for _ in range(40):
        send(app)
    await hooks.fan_out()
    await hooks.deliver(concurrency=16)
    calls = len(receiver.got)
    assert calls <= 8
    db_clock.advance(400)
    await hooks.deliver(concurrency=16)
    assert len(receiver.got) == calls + 1  # a probe
    receiver.answers.clear()
    db_clock.advance(400)
    await hooks.deliver(concurrency=16)
    assert len({got.id for got in receiver.got}) == 40


async def test_a_slow_endpoint_holds_up_no_other(hooks, receiver, app):
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return web.Response()

    receiver.answers["/slow"] = slow
    await hooks.add(receiver.url + "/slow", ["email.queued"])
    await hooks.add(receiver.url + "/fast", ["email.queued"])
    for _ in range(20):
        send(app)
    await hooks.fan_out()
    async with hooks.deliverer(concurrency=8):
        await eventually(lambda: len(receiver.of("/fast")) == 20)
        assert len(receiver.of("/slow")) == 2
        release.set()
        await eventually(lambda: len(receiver.of("/slow")) == 20)


async def test_a_tenant_with_many_slow_endpoints_leaves_what_gets_free_to_others(hooks, receiver):
    other = one(hooks.owner, "select pgmail.create_tenant('other')")
    mine = [(await hooks.add(f"{receiver.url}/{n}")).id for n in range(4)]
    theirs = (await hooks.add(f"{receiver.url}/theirs")).id
    for table, column in (("hook", "id"), ("hook_secret", "hook_id")):
        hooks.owner.execute(f"update pgmail.{table} set tenant_id = %s where {column} = %s", [other, theirs])
    hooks.owner.execute(
        "insert into pgmail.data_key (tenant_id, id, kek, wrapped, created_by) "
        "select %s, id, kek, wrapped, created_by from pgmail.data_key",
        [other],
    )
    hooks.owner.execute(
        "insert into pgmail.hook_queue (tenant_id, hook_id, event_id, type, at, due_at) "
        "select tenant_id, id, pgmail.uuid7(), 'webhook.test', now(), "
        "now() - case id when %s then 1 else 60 end * interval '1 s' "
        "from pgmail.hook, generate_series(1, 9)",
        [theirs],
    )  # what waits longest is the slow ones'
    busy = dict.fromkeys(mine[1:], 2)
    claimed = await store.claim(hooks.pool, ["first"], most=2, each=2, lease_seconds=60, busy=busy, turn=0.0)
    assert [row.hook_id for row in claimed] == [theirs, theirs]


async def test_calls_are_paced(hooks, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    for _ in range(12):
        send(app)
    await hooks.fan_out()
    began = asyncio.get_running_loop().time()
    await hooks.deliver(rate=8, concurrency=64)
    assert len(receiver.got) == 12
    assert asyncio.get_running_loop().time() - began > 0.4


async def test_a_process_that_dies_after_the_call_leaves_it_to_another(hooks, db_clock, receiver, app):
    """At least once, under the same id."""
    hook = await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    claimed = await store.claim(hooks.pool, ["first"], most=10, each=10, lease_seconds=60, busy={}, turn=0.0)
    assert len(claimed) == 1
    async with hooks.deliverer():
        await asyncio.sleep(0)
        assert receiver.got == []
    db_clock.advance(61)
    await hooks.deliver()
    (got,) = receiver.got
    assert got.id == str(claimed[0].event_id)
    assert got.verify(hook.secret)


async def test_a_result_of_a_lease_that_ran_out_is_logged_and_settles_nothing(hooks, db_clock, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    (first,) = await store.claim(hooks.pool, ["first"], most=1, each=1, lease_seconds=60, busy={}, turn=0.0)
    db_clock.advance(61)
    (second,) = await store.claim(hooks.pool, ["first"], most=1, each=1, lease_seconds=60, busy={}, turn=0.0)
    assert second.claims == first.claims + 1
    facts = {
        name: getattr(first, name)
        for name in (
            "tenant_id",
            "hook_id",
            "event_id",
            "email_id",
            "recipient_id",
            "type",
            "at",
            "attempt",
            "claims",
        )
    }
    await store.settle(hooks.pool, [store.Result(**facts, outcome="failed", status=500)])
    assert len(hooks.waiting()) == 1
    assert [row[2] for row in hooks.log()] == ["failed"]


async def test_of_very_many_endpoints_each_has_its_turn(hooks):
    """More than are looked at in one claim; tenants with one endpoint and with many."""
    hooks.owner.execute(
        """with t as (insert into pgmail.tenant (name) select 't' || n from generate_series(1, 40) n returning id),
        k as (insert into pgmail.data_key (tenant_id, id, wrapped, kek, created_by)
              select id, 1, 'x', 'first', 'x' from t),
        h as (insert into pgmail.hook (tenant_id, id, url, types, created_by)
              select id, gen_random_uuid(), 'https://a.example', '{*}', 'x'
              from t, generate_series(1, 1 + 60 * (t.id % 2)) returning *),
        s as (insert into pgmail.hook_secret (tenant_id, hook_id, id, key_id, sealed, created_by)
              select tenant_id, id, 1, 1, 'x', 'x' from h)
        insert into pgmail.hook_queue (tenant_id, hook_id, event_id, type, at)
        select tenant_id, id, gen_random_uuid(), 'webhook.test', now() from h"""
    )
    wanted = one(hooks.owner, "select count(*) from pgmail.hook_queue")
    assert wanted > 1_200
    seen = set()
    for n in range(40):
        rows_ = await store.claim(
            hooks.pool, ["first"], most=500, each=1, lease_seconds=600, busy={}, turn=n * 0.37 % 1
        )
        assert not {row.hook_id for row in rows_} & seen
        seen |= {row.hook_id for row in rows_}
    assert len(seen) == wanted


async def test_rotation_signs_with_both_secrets_until_the_old_one_ends(hooks, db, db_clock, receiver, app):
    hook = await hooks.add(receiver.url, ["email.queued"])
    connection = await db.aconnect("admin")
    new, _ = await hooks.endpoints.rotate(connection, hook.id, 3_600, reason="yearly")
    send(app)
    await hooks.fan_out()
    await hooks.deliver()
    assert receiver.got[0].verify(hook.secret)
    assert receiver.got[0].verify(new)
    db_clock.advance(3_700)
    send(app)
    await hooks.fan_out()
    await hooks.deliver()
    assert not receiver.got[1].verify(hook.secret)
    assert receiver.got[1].verify(new)


async def test_secrets_lie_sealed_and_open_at_their_own_endpoint_only(hooks, receiver, app):
    a = await hooks.add(receiver.url + "/a", ["email.queued"])
    b = await hooks.add(receiver.url + "/b", ["email.queued"])
    raw = one(hooks.owner, "select string_agg(s::text, ' ') from pgmail.hook_secret s")
    assert a.secret.removeprefix("whsec_") not in raw
    hooks.owner.execute(
        "update pgmail.hook_secret s set sealed = o.sealed from pgmail.hook_secret o"
        " where s.hook_id = %s and o.hook_id = %s",
        [b.id, a.id],
    )
    send(app)
    await hooks.fan_out()
    await hooks.deliver()
    assert [got.path for got in receiver.got] == ["/a"]
    assert any("cannot be signed" in (row[4] or "") for row in hooks.log())


async def test_a_process_without_the_key_leaves_it_to_one_that_has_it(hooks, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    async with hooks.deliverer(keks=Keks({"another": os.urandom(32)})):
        assert (
            await store.claim(hooks.pool, ["another"], most=9, each=9, lease_seconds=60, busy={}, turn=0.0)
            == []
        )
    assert receiver.got == []
    await hooks.deliver()
    assert len(receiver.got) == 1


async def test_a_private_address_is_not_called_and_the_log_says_why(hooks, receiver, app):
    from pgmail.transport.guarded_http import GuardedHttp

    await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    await hooks.deliver(client=GuardedHttp)
    assert receiver.got == []
    ((_, _, outcome, status, error),) = hooks.log()
    assert (outcome, status) == ("retrying", None)
    assert "PGMAIL_HOOK_NETWORKS" in error


async def test_what_was_erased_meanwhile_is_not_told(hooks, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    hooks.owner.execute("select pgmail.erase('ada@example.org', 'asked for it')")
    await hooks.deliver()
    assert b"ada@example.org" not in receiver.got[0].body


async def test_an_event_whose_email_is_past_its_retention_is_dropped_and_logged(hooks, receiver, app):
    await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    hooks.owner.execute("delete from pgmail.message")
    await hooks.deliver()
    assert receiver.got == []
    assert [row[2:] for row in hooks.log()] == [("dropped", None, "its email is past its retention")]


async def test_a_sample_arrives(hooks, db, receiver):
    hook = await hooks.add(receiver.url, ["email.bounced"])
    event = await store.test(await db.aconnect("admin"), hook.id)
    await hooks.deliver()
    (got,) = receiver.got
    assert (got.id, got.json["type"]) == (str(event), "webhook.test")
    assert got.verify(hook.secret)


async def test_replay_tells_what_failed_again_under_the_same_ids(hooks, db, receiver, app):
    hook = await hooks.add(receiver.url, ["email.queued"])
    receiver.answers["/"] = lambda got: web.Response(status=500 if len(receiver.got) <= 2 else 204)
    for _ in range(2):
        send(app)
    await hooks.fan_out()
    hooks.owner.execute("update pgmail.hook_queue set attempts = 9")
    await hooks.deliver()
    send(app)
    await hooks.fan_out()
    await hooks.deliver()
    assert sorted(row[2] for row in hooks.log()) == ["delivered", "failed", "failed"]
    connection = await db.aconnect("admin")
    assert await store.replay(connection, hook.id, {"type": "email.sent"}) == (0, None)
    assert await store.replay(connection, hook.id, {}, reason="they were down") == (2, None)
    await hooks.deliver()
    ids = [got.id for got in receiver.got]
    assert ids[3:] != []
    assert sorted(ids[3:]) == sorted(ids[:2])
    assert await store.replay(connection, hook.id, {}) == (0, None)
    assert (await store.replay(connection, hook.id, {"outcome": "all"}))[0] == 3


async def test_a_replay_of_ten_thousand_lets_what_is_new_go_first_and_goes_on_itself(hooks, db, app):
    hook = await hooks.add("https://a.example/", ["email.queued"])
    hooks.owner.execute(
        "insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, type, event_at, attempt, outcome) "
        "select 1, %s, pgmail.uuid7(), 'webhook.test', now(), 10, 'failed' from generate_series(1, 10000)",
        [hook.id],
    )
    connection, after, replayed = await db.aconnect("admin"), None, 0
    while replayed < 10_000:
        n, after = await store.replay(connection, hook.id, {}, after)
        replayed += n
    for _ in range(20):
        send(app)
    await hooks.fan_out()

    async def claim(room: int, turn: float) -> list[str]:
        taken = await store.claim(
            hooks.pool, ["first"], most=room, each=room, lease_seconds=60, busy={}, turn=turn
        )
        return [row.type.removeprefix("email.") for row in taken]

    found = await claim(16, 0.0)
    assert (found.count("queued"), found.count("webhook.test")) == (12, 4)
    assert [await claim(1, turn) for turn in (0.0, 0.3, 0.6, 0.9)] == [["queued"]] * 3 + [["webhook.test"]]
    assert (await claim(16, 0.0)).count("queued") == 5, "and the rest is of the replay"
    assert await claim(8, 0.0) == ["webhook.test"] * 8


async def test_tidying_drops_the_log_and_what_nobody_took_and_what_was_removed(
    hooks, db, db_clock, receiver, app
):
    hook = await hooks.add(receiver.url, ["email.queued"])
    send(app)
    await hooks.fan_out()
    db_clock.advance(15 * 86_400)
    assert await store.keep(hooks.pool, 14) == 1
    assert [row[2] for row in hooks.log()] == ["dropped"]
    assert hooks.waiting() == []
    send(app)
    await hooks.fan_out()
    await store.remove(await db.aconnect("admin"), hook.id, "not needed")
    await store.keep(hooks.pool, 14)
    assert hooks.waiting() == []
    assert hooks.log() == []
    db_clock.advance(7_200)
    await store.keep(hooks.pool, 14)
    assert one(hooks.owner, "select count(*) from pgmail.hook") == 0


async def test_the_database_going_away_loses_nothing(hooks, db, receiver, app, server_admin):
    await hooks.add(receiver.url, ["email.queued"])

    async def cutting(_):
        server_admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name = 'test'",
            [db.name],
        )
        return web.Response()

    receiver.answers["/"] = cutting
    send(app)
    await hooks.fan_out()
    async with hooks.deliverer():
        await eventually(lambda: [row[2] for row in hooks.log()] == ["delivered"], 30)
    assert len(receiver.got) == 1
