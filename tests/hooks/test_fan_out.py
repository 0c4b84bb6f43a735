"""From the feed into the queue: each event once to each endpoint that wants it, and to no other."""

import pytest
from psycopg import errors

from pgmail.store import hooks as store
from tests.sql.kit import body, count, one, rows, send, send_many

URL = "https://example.com/hook"


def queued(owner):
    return rows(owner, "select type from pgmail.hook_queue order by at, event_id")


async def test_nothing_is_read_while_nobody_has_an_endpoint(hooks, app):
    send(app)
    found = await store.fan_out(hooks.pool, 100)
    assert (found.idle, found.queued, found.more) == (True, 0, False)
    assert one(hooks.owner, "select seen from pgmail.hook_cursor") is None


async def test_an_endpoint_is_told_what_happens_from_its_making_on(hooks, app):
    before = send(app)
    hook = await hooks.add(URL)
    after = send(app)
    app.execute("select pgmail.cancel(%s)", [after])
    assert await hooks.fan_out() == 2
    assert rows(hooks.owner, "select distinct email_id, hook_id from pgmail.hook_queue") == [(after, hook.id)]
    assert queued(hooks.owner) == [("email.queued",), ("email.cancelled",)]
    assert before != after
    assert await hooks.fan_out() == 0


async def test_each_event_is_queued_once_however_the_steps_fall(hooks, app):
    await hooks.add(URL)
    send_many(app, [body(f"a{n}@example.org") for n in range(25)])
    assert await hooks.fan_out(most=4) == 25
    assert await hooks.fan_out(most=4) == 0


async def test_what_a_slow_transaction_brings_is_told_when_it_commits(hooks, db, app):
    await hooks.add(URL)
    slow = db.connect("producer", autocommit=False)
    late = send(slow)
    early = send(app)
    assert await hooks.fan_out() == 1
    slow.commit()
    assert await hooks.fan_out() == 1
    assert [
        row[0] for row in rows(hooks.owner, "select email_id from pgmail.hook_queue order by queued_at")
    ] == [
        early,
        late,
    ]


async def test_a_step_that_is_rolled_back_queues_the_same_again(hooks, db, app):
    await hooks.add(URL)
    send(app)
    other = db.connect("worker", autocommit=False)
    assert one(other, "select queued from pgmail.fan_out_hooks_v1(100)") == 1
    assert (await store.fan_out(hooks.pool, 100)).queued == 0  # another process is at it
    other.rollback()
    assert await hooks.fan_out() == 1


async def test_what_a_dump_of_another_cluster_brought_is_not_told_when_its_numbers_come_up(hooks, app):
    await hooks.add(URL)
    await hooks.fan_out()
    send(app)  # as if by the cluster that was dumped, which was ahead
    old = one(hooks.owner, "select pgmail.uuid_floor(now() - interval '3 days')")
    hooks.owner.execute(
        "update pgmail.message set xid = (pg_current_xact_id()::text::bigint + 20)::text::xid8, id = %s",
        [old],
    )
    hooks.owner.execute("update pgmail.recipient set message_id = %s, id = %s", [old, old])
    for _ in range(40):
        hooks.owner.execute("select pg_current_xact_id()")
    new = send(app)
    await hooks.fan_out()
    assert rows(hooks.owner, "select email_id from pgmail.hook_queue") == [(new,)]


@pytest.mark.parametrize(
    ("wish", "types"),
    [
        ({"types": ["email.cancelled"]}, ["email.cancelled"]),
        ({"types": ["email.*"]}, ["email.queued", "email.cancelled"]),
        ({"types": ["*"]}, ["email.queued", "email.cancelled"]),
        ({"types": ["email.c*", "email.sent"]}, ["email.cancelled"]),
        ({"streams": ["broadcast"]}, []),
        ({"streams": ["broadcast", "transactional"]}, ["email.queued", "email.cancelled"]),
        ({"tags": {"kind": "welcome"}}, ["email.queued", "email.cancelled"]),
        ({"tags": {"kind": "welcome", "shop": "north"}}, []),
    ],
)
async def test_an_endpoint_is_told_what_it_asked_for(hooks, app, wish, types):
    await hooks.add(URL, **wish)
    email = send(app, tags={"kind": "welcome", "shop": "south"})
    app.execute("select pgmail.cancel(%s)", [email])
    await hooks.fan_out()
    assert [row[0] for row in queued(hooks.owner)] == types


async def test_no_tenant_hears_of_anothers_mail(hooks, app):
    hooks.owner.execute("select pgmail.create_tenant('other')")
    hook = await hooks.add(URL)
    hooks.owner.execute("update pgmail.hook set tenant_id = 2 where id = %s", [hook.id])
    send(app)
    assert await hooks.fan_out() == 0
    assert count(hooks.owner, "hook_queue") == 0


async def test_a_disabled_endpoint_is_told_nothing_of_the_time_between(hooks, db, app):
    hook = await hooks.add(URL)
    connection = await db.aconnect("admin")
    await hooks.endpoints.change(connection, hook.id, {"status": "disabled"}, "a pause")
    send(app)
    assert await hooks.fan_out() == 0
    await hooks.endpoints.change(connection, hook.id, {"status": "enabled"})
    later = send(app)
    assert await hooks.fan_out() == 1
    assert one(hooks.owner, "select email_id from pgmail.hook_queue") == later


async def test_a_cursor_that_a_dump_brought_begins_anew_and_the_audit_says_from_when_on(hooks, app):
    await hooks.add(URL)
    await hooks.fan_out()
    send(app)
    hooks.owner.execute("update pgmail.hook_cursor set singleton = true")  # as if read in: another wrote it
    assert await hooks.fan_out() == 0
    told = "select reason from pgmail.audit where action = 'webhook.begin_anew'"
    assert "a dump was restored" in one(hooks.owner, told)
    send(app)
    assert await hooks.fan_out() == 1
    assert len(rows(hooks.owner, told)) == 1


async def test_what_is_decided_after_a_restore_of_the_same_database_leaves_no_event_out(hooks, app):
    await hooks.add(URL)
    send(app)
    hooks.owner.execute("select pgmail.stop_for_restore('the disk died')")
    send(app)
    hooks.owner.execute("select pgmail.accept_restore('hold', 'looked at')")
    assert await hooks.fan_out() == 2
    send(app)
    assert await hooks.fan_out() == 1


async def test_a_cursor_that_was_begun_behind_a_savepoint_is_of_this_database(hooks, db, app):
    hook = await hooks.add(URL)
    hooks.owner.execute("update pgmail.hook set enabled = false")
    await hooks.fan_out()
    maker = db.connect("admin", autocommit=False)
    maker.execute("savepoint a")
    maker.execute('select pgmail.set_hook(%s, \'{"status": "enabled"}\')', [hook.id])
    maker.execute("release a")
    maker.commit()
    send(app)
    assert await hooks.fan_out() == 1


async def test_an_endpoint_that_is_made_keeps_the_reader_from_stopping(hooks, db, app):
    """The reader sees no endpoint, and one is being made: what happens after its making is told."""
    maker = db.connect("admin", autocommit=False)
    hook = await hooks.add(URL)
    hooks.owner.execute("update pgmail.hook set enabled = false")
    maker.execute('select pgmail.set_hook(%s, \'{"status": "enabled"}\')', [hook.id])
    found = await store.fan_out(hooks.pool, 100)  # does not wait, and does not stop
    assert (found.idle, found.queued) == (False, 0)
    maker.commit()
    send(app)
    assert await hooks.fan_out() == 1


async def test_other_types_wait_for_who_looked_already_which_are_wanted(hooks, db, app):
    hook = await hooks.add(URL, ["email.sent"])
    reader, admin = db.connect("worker", autocommit=False), db.connect("admin")
    reader.execute("select pgmail.fan_out_hooks_v1(100)")
    admin.execute("set lock_timeout = '200ms'")
    change = "select pgmail.set_hook(%s, jsonb_build_object('events', jsonb_build_array('email.queued')))"
    with pytest.raises(errors.LockNotAvailable):
        admin.execute(change, [hook.id])
    reader.rollback()
    admin.execute(change, [hook.id])
    send(app)
    assert await hooks.fan_out() == 1
