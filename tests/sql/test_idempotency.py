"""Idempotency keys: one key is one email, however often and from wherever it is sent."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server

_SEND = "select pgmail.send(%s)"


async def test_the_same_key_from_eight_connections_at_once_is_one_email_with_one_id(db, owner):
    connections = [await db.aconnect("producer") for _ in range(8)]

    async def send(connection):
        cursor = await connection.execute(_SEND, [Jsonb(kit.body(idempotency_key="order-1"))])
        return (await cursor.fetchone())[0]

    ids = await asyncio.gather(*map(send, connections))
    assert len(set(ids)) == 1
    assert kit.count(owner, "message") == 1
    assert kit.differences(owner) == [0]


def test_the_same_key_with_another_body_is_a_conflict(app, owner):
    kit.send(app, idempotency_key="k")
    with pytest.raises(psycopg.Error) as refused:
        kit.send(app, idempotency_key="k", subject="Other")
    assert kit.refusal(refused.value) == Refusal("idempotency_conflict", "/idempotency_key", "PM409")
    assert kit.count(owner, "message") == 1


def test_keys_in_another_order_null_keys_and_other_times_are_the_same_body(app):
    soon = datetime.now(UTC) + timedelta(hours=1)
    first = kit.send(app, idempotency_key="k", scheduled_at=soon.isoformat())
    later = (soon + timedelta(minutes=1)).isoformat()
    turned = dict(reversed(list(kit.body(idempotency_key="k", scheduled_at=later).items()))) | {"html": None}
    assert kit.one(app, _SEND, [Jsonb(turned)]) == first


async def test_a_rollback_frees_the_key_for_whoever_waits(db, owner):
    first = await db.aconnect("producer", autocommit=False)
    second = await db.aconnect("producer")
    body = Jsonb(kit.body(idempotency_key="k"))
    await first.execute(_SEND, [body])
    waiting = asyncio.ensure_future(second.execute(_SEND, [body]))
    await _until_blocked(owner, second.info.backend_pid)
    await first.rollback()
    (mail,) = await (await waiting).fetchone()
    assert kit.rows(owner, "select id from pgmail.message") == [(mail,)]


async def test_a_commit_gives_its_id_to_whoever_waits(db, owner):
    first = await db.aconnect("producer", autocommit=False)
    second = await db.aconnect("producer")
    body = Jsonb(kit.body(idempotency_key="k"))
    (mail,) = await (await first.execute(_SEND, [body])).fetchone()
    waiting = asyncio.ensure_future(second.execute(_SEND, [body]))
    await _until_blocked(owner, second.info.backend_pid)
    await first.commit()
    assert await (await waiting).fetchone() == (mail,)


def test_a_key_is_free_again_after_a_day(db_clock, app, owner):
    first = kit.send(app, idempotency_key="k")
    db_clock.advance(timedelta(hours=23, minutes=59))
    assert kit.send(app, idempotency_key="k") == first
    db_clock.advance(timedelta(minutes=2))
    second = kit.send(app, idempotency_key="k", subject="Another day")
    assert second != first
    assert kit.send(app, idempotency_key="k", subject="Another day") == second
    assert kit.count(owner, "idempotency") == 1


def test_purging_takes_only_keys_past_their_day(db_clock, app, hand, owner):
    kit.send(app, idempotency_key="old")
    db_clock.advance(timedelta(hours=25))
    kit.send(app, idempotency_key="new")
    assert kit.one(hand.connection, "select pgmail.purge_idempotency_v1()") == 1
    assert kit.rows(owner, "select key from pgmail.idempotency") == [("new",)]


def test_one_key_twice_in_a_batch_is_one_email(app, owner):
    same = kit.body(idempotency_key="k")
    answer = kit.send_many(
        app, [same, kit.body(), same, kit.body(subject="x", idempotency_key="k")], strict=False
    )
    assert answer[0][1] == answer[2][1]
    assert answer[3][1:3] == (None, "idempotency_conflict")
    assert kit.count(owner, "message") == 2


async def test_batches_with_their_keys_in_opposite_order_do_not_deadlock(db, owner):
    keys = [f"k{n}" for n in range(30)]
    forth = [kit.body(idempotency_key=key) for key in keys]
    connections = [await db.aconnect("producer") for _ in range(4)]

    async def send(connection, items, key):
        text = "select array_agg(id order by position) from pgmail.send_many(%s, idempotency_key => %s)"
        return (await (await connection.execute(text, [Jsonb(items), key])).fetchone())[0]

    answers = await asyncio.gather(
        send(connections[0], forth, None),
        send(connections[1], forth[::-1], None),
        send(connections[2], forth, "k29"),
        send(connections[3], forth[::-1], "k0"),
    )
    assert answers[0] == answers[1][::-1] == answers[2] == answers[3][::-1]
    assert kit.count(owner, "message") == 30


def test_a_batch_sent_again_answers_the_same_ids_and_the_same_faults(app, owner):
    items = [kit.body(f"u{n}@example.org") for n in range(3)] + [7]
    first = kit.send_many(app, items, strict=False, key="batch")
    assert kit.send_many(app, items, strict=False, key="batch") == first
    assert kit.count(owner, "message") == 3
    with pytest.raises(psycopg.Error) as refused:
        kit.send_many(app, items[:2], strict=False, key="batch")
    assert kit.refusal(refused.value) == Refusal("idempotency_conflict", "/idempotency_key", "PM409")


def test_a_replay_of_a_batch_answers_its_ids_though_its_times_have_passed(db_clock, app):
    at = (db_clock.now() + timedelta(hours=1)).isoformat()
    items = [kit.body(scheduled_at=at), kit.body("b@example.org")]
    first = kit.send_many(app, items, key="batch")
    db_clock.advance(timedelta(hours=2))
    assert kit.send_many(app, items, key="batch") == first


def test_a_replay_of_an_email_answers_its_id_though_its_times_have_passed(db_clock, app, owner):
    soon = datetime.now(UTC) + timedelta(hours=1)
    times = {"scheduled_at": soon.isoformat(), "expires_at": (soon + timedelta(hours=1)).isoformat()}
    first = kit.send(app, idempotency_key="k", **times)
    db_clock.advance(3 * 3600)
    assert kit.send(app, idempotency_key="k", **times) == first
    with pytest.raises(psycopg.Error) as refused:
        kit.send(app, idempotency_key="another", **times)
    assert kit.refusal(refused.value).code == "time_in_past"
    assert kit.count(owner, "message") == 1


def test_a_replay_never_answers_neither_an_id_nor_a_fault(app, owner):
    items = [kit.body(), kit.body(stream="later")]
    first = kit.send_many(app, items, strict=False, key="batch")
    assert first[1][2] == "unknown_stream"
    kit.stream(owner, "later")
    again = kit.send_many(app, items, strict=False, key="batch")
    assert again[0] == first[0]
    assert again[1][1:4] == (None, "idempotency_conflict", "/idempotency_key")


def test_a_refused_strict_batch_frees_its_key(app):
    with pytest.raises(psycopg.Error):
        kit.send_many(app, [kit.body(), 7], key="batch")
    assert len(kit.send_many(app, [kit.body()], key="batch")) == 1


def test_a_used_key_answers_its_id_though_the_stream_is_full_by_now(app, owner):
    kit.stream(owner, "tiny", max_queued=1)
    first = kit.send(app, stream="tiny", on_limit="error", idempotency_key="k")
    owner.execute("select pgmail.fold_tallies_v1()")
    assert kit.send(app, stream="tiny", on_limit="error", idempotency_key="k") == first
    with pytest.raises(psycopg.Error) as refused:
        kit.send(app, stream="tiny", on_limit="error", idempotency_key="other")
    assert kit.refusal(refused.value) == Refusal("limit_reached", "/stream", "PM429")
    assert kit.count(owner, "idempotency") == 1


async def _until_blocked(owner, pid):
    async with asyncio.timeout(20):
        while not kit.one(owner, "select pg_blocking_pids(%s) <> '{}'", [pid]):  # noqa: ASYNC110 - the event is the server's
            await asyncio.sleep(0)
