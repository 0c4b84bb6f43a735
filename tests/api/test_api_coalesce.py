"""Single sends that come at once go together, and nobody can tell but by the clock."""

import asyncio
import contextlib
import json

import psycopg
import pytest

from pgmail.api import coalesce
from pgmail.clock import ManualClock
from tests.api.conftest import EMAIL, client, new_key, waits_for_a_lock


def ask(api, changes=None, key=None):
    """Begin to send an email."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return asyncio.create_task(api.post("/emails", json=EMAIL | (changes or {}), headers=headers))


async def in_line(api, count):
    """Return when so many emails wait for the statement under way to end."""
    coalescer = api.app.state.enqueue._coalescer
    async with asyncio.timeout(30):
        while sum(len(line.waiting) for line in coalescer._lines.values()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def held_up(db, api, *, first=None):
    """A statement is under way and goes on at the end of the block; what is asked for meanwhile waits."""
    with db.connect(autocommit=False) as other, db.connect() as watcher:
        other.execute("lock table pgmail.message in access exclusive mode")
        began = first or ask(api)
        await waits_for_a_lock(watcher)
        yield began
        other.rollback()


def transactions(db):
    """The subjects of all emails, by the transaction that stored them."""
    with db.connect() as connection:
        rows = connection.execute(
            "select array_agg(convert_from(content, 'UTF8')::jsonb->>'subject') from pgmail.message group by xmin::text"
        ).fetchall()
    return sorted((sorted(subjects) for (subjects,) in rows), key=lambda group: (len(group), group))


def count(db):
    with db.connect() as connection:
        return connection.execute("select count(*) from pgmail.message").fetchone()[0]


async def test_the_first_goes_at_once_and_those_that_come_meanwhile_go_together(api, db):
    async with held_up(db, api) as first:
        others = [ask(api, {"subject": f"{i:02}"}) for i in range(20)]
        await in_line(api, 20)
    answers = await asyncio.gather(first, *others)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 21
    assert transactions(db) == [["Hi"], [f"{i:02}" for i in range(20)]]
    for i, answer in enumerate(answers[1:]):
        assert (await api.get(f"/emails/{answer.json()['id']}")).json()["subject"] == f"{i:02}"


async def test_a_group_has_its_limits(api, db, monkeypatch):
    monkeypatch.setattr(coalesce, "MAX_EMAILS", 4)
    monkeypatch.setattr(coalesce, "MAX_OCTETS", 30_000)
    async with held_up(db, api) as first:
        small = [ask(api, {"subject": "s"}) for _ in range(6)]
        large = [ask(api, {"subject": "l", "text": "x" * 20_000}) for _ in range(2)]
        await in_line(api, 8)
    await asyncio.gather(first, *small, *large)
    assert transactions(db) == [["Hi"], ["l"], ["l", "s", "s"], ["s"] * 4]


async def test_a_large_email_goes_by_itself_and_waits_for_nobody(api, db):
    async with held_up(db, api) as first:
        small = [ask(api, {"subject": "s"}) for _ in range(3)]
        large = ask(api, {"subject": "l", "text": "x" * 70_000})
        await in_line(api, 3)
    answers = await asyncio.gather(first, large, *small)
    assert {answer.status_code for answer in answers} == {200}
    assert transactions(db) == [["Hi"], ["l"], ["s"] * 3]


async def test_bad_ones_are_refused_as_they_would_be_alone_and_hurt_no_neighbour(api, db):
    with db.connect() as connection:
        connection.execute("select pgmail.save_stream('full', '{\"max_queued\": 0}')")
    used = await api.post("/emails", json=EMAIL, headers={"Idempotency-Key": "used"})
    assert used.status_code == 200
    bad = [
        ({"stream": "none"}, None),
        ({"to": ["a@example.org", "nobody"]}, None),
        ({"from": None}, None),
        ({"template": {"id": "none"}, "subject": None, "text": None}, None),
        ({"stream": "full", "on_limit": "error"}, None),
        ({"subject": "Other"}, "used"),
        ({"subject": "x" * 999}, None),
        ({"headers": {"Bcc": "x"}}, None),
        ({}, "\x21 "),
        ({"colour": "red"}, None),
    ]
    alone = [await ask(api, *item) for item in bad]
    assert {answer.status_code for answer in alone} == {409, 422, 429}
    async with held_up(db, api) as first:
        together = [ask(api, *item) for item in bad]
        good = [ask(api, {"subject": f"{i}"}) for i in range(5)]
        await in_line(api, 9)
    assert {answer.status_code for answer in await asyncio.gather(first, *good)} == {200}
    for one, other in zip(alone, await asyncio.gather(*together), strict=True):
        assert (one.status_code, one.json()) == (other.status_code, other.json())
        assert one.headers.get("retry-after") == other.headers.get("retry-after")
    assert transactions(db) == [["Hi"], ["Hi"], ["0", "1", "2", "3", "4"]]


async def test_a_key_twice_in_a_group_is_one_email_and_with_another_body_a_conflict(api, db):
    async with held_up(db, api) as first:
        asked = [ask(api, {}, "a"), ask(api, {}, "a"), ask(api, {"subject": "Other"}, "a"), ask(api, {}, "b")]
        await in_line(api, 4)
    one, again, other, free = await asyncio.gather(*asked)
    assert one.json() == again.json()
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert free.status_code == (await first).status_code == 200
    assert transactions(db) == [["Hi"], ["Hi", "Hi"]]


async def test_a_key_that_is_under_way_is_waited_for_in_the_process_itself(api, db):
    async with held_up(db, api, first=ask(api, {}, "a")) as first:
        asked = [ask(api, {}, "a"), ask(api, {"subject": "Other"}, "a"), ask(api)]
        await in_line(api, 3)
    one, again, other, free = await asyncio.gather(first, *asked)
    assert one.json() == again.json()
    assert other.status_code == 409
    assert free.status_code == 200
    assert count(db) == 2


async def test_a_key_that_another_holds_keeps_no_neighbour_waiting(api, db):
    await api.post("/emails", json=EMAIL | {"subject": "before"})
    with db.connect(autocommit=False) as other:
        email = EMAIL | {"idempotency_key": "order-1"}
        (held,) = other.execute("select pgmail.send(%s::jsonb)", [json.dumps(email)]).fetchone()
        busy = [ask(api, {}, "order-1") for _ in range(3)]
        others = [ask(api, {"subject": "plain"}) for _ in range(5)]
        others += [ask(api, {"subject": "keyed"}, f"key-{i}") for i in range(5)]
        assert {answer.status_code for answer in await asyncio.gather(*others)} == {200}
        assert not any(task.done() for task in busy)
        other.commit()
    assert {(await task).json()["id"] for task in busy} == {str(held)}
    assert count(db) == 12


async def test_a_key_that_another_goes_on_holding_is_a_conflict_for_all_who_ask_and_for_no_other(api, db):
    with db.connect(autocommit=False) as other:
        email = EMAIL | {"idempotency_key": "order-1"}
        other.execute("select pgmail.send(%s::jsonb)", [json.dumps(email)])
        answers = await asyncio.gather(*(ask(api, {}, "order-1") for _ in range(3)))
        assert [answer.status_code for answer in answers] == [409] * 3
        assert {answer.json()["code"] for answer in answers} == {"idempotency_in_flight"}
        other.rollback()
    assert (await ask(api, {}, "order-1")).status_code == 200
    assert count(db) == 1


async def test_an_answer_is_given_after_the_commit(api, db):
    with db.connect() as other:

        async def send_and_look(i):
            id_ = (await ask(api, {"subject": f"{i}"})).json()["id"]
            return other.execute("select count(*) from pgmail.message where id = %s", [id_]).fetchone()[0]

        assert await asyncio.gather(*(send_and_look(i) for i in range(40))) == [1] * 40


async def test_who_hangs_up_takes_no_answer_away_and_their_mail_is_sent(api, db):
    async with held_up(db, api) as first:
        asked = [ask(api, {"subject": f"{i}"}) for i in range(4)]
        await in_line(api, 4)
        for task in (first, asked[1]):
            task.cancel()
        await asyncio.wait({first, asked[1]})
    answers = await asyncio.gather(asked[0], asked[2], asked[3])
    assert {answer.status_code for answer in answers} == {200}
    assert transactions(db) == [["Hi"], ["0", "1", "2", "3"]]


BOOM = """
create function public.boom() returns trigger language plpgsql as $$
begin
  if convert_from(new.content, 'UTF8')::jsonb->>'subject' = 'boom' then
    raise exception 'boom' using errcode = '{}';
  end if;
  return new;
end $$;
create trigger boom before insert on pgmail.message for each row execute function public.boom();
"""


@pytest.mark.parametrize(("state", "status"), [("22000", 500), ("40P01", 503), ("40001", 503)])
async def test_one_that_undoes_the_whole_group_is_found_and_the_others_are_sent(api, db, state, status):
    with db.connect() as connection:
        connection.execute(BOOM.format(state))
    async with held_up(db, api) as first:
        asked = [ask(api, {"subject": subject}) for subject in ("0", "1", "boom", "3")]
        asked.append(ask(api, {"subject": "4"}, "key"))
        await in_line(api, 5)
    statuses = [(await task).status_code for task in (first, *asked)]
    assert statuses == [200, 200, 200, status, 200, 200]
    assert count(db) == 5


async def test_a_connection_closed_while_nobody_used_it_is_replaced_unnoticed(db, key):
    # The key and its quotas are looked up once: those connections are tried before use only in a real pool.
    async with client(db.dsn_for("api"), key, clock=ManualClock()) as api:
        for _ in range(3):
            assert (await ask(api)).status_code == 200
            with psycopg.connect(db.superuser_dsn, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
                    " where application_name = 'api-test' and datname = %s",
                    [db.name],
                )
        assert (await ask(api)).status_code == 200
    assert count(db) == 4


async def test_a_connection_lost_under_a_statement_is_not_tried_again_for_mail_without_a_key(wire, key, db):
    async with client(wire.dsn, key, wait_seconds=5.0) as api:
        async with held_up(db, api) as first:
            also = ask(api, {"subject": "also"})
            await in_line(api, 1)
            await wire.cut()
            await wire.mend()
            answer = await first
            assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
            assert "may have been stored" in answer.json()["detail"]
        assert (await also).status_code == 200
    # The server never heard of the cut, and stored what it was told: once.
    assert [item for group in transactions(db) for item in group].count("Hi") <= 1


async def test_a_connection_lost_under_a_statement_is_tried_again_for_mail_with_keys(wire, key, db):
    async with client(wire.dsn, key, wait_seconds=5.0) as api:
        async with held_up(db, api, first=ask(api, {}, "order-1")) as first:
            await wire.cut()
            await wire.mend()
        answer = await first
        assert answer.status_code == 200, answer.text
        assert (await ask(api, {}, "order-1")).json() == answer.json()
    assert count(db) == 1


async def test_each_tenant_has_groups_of_its_own(db):
    first, second = new_key(db, "a"), new_key(db, "b")
    with db.connect() as connection:
        (tenant,) = connection.execute("select pgmail.create_tenant('second')").fetchone()
        connection.execute("update pgmail.api_key set tenant_id = %s where name = 'b'", [tenant])
    async with client(db.dsn_for("api"), None) as api:
        tokens = [{"Authorization": f"Bearer {(first, second)[i % 2]}"} for i in range(20)]
        answers = await asyncio.gather(
            *(api.post("/emails", json=EMAIL | {"subject": f"{i}"}, headers=tokens[i]) for i in range(20))
        )
        assert {answer.status_code for answer in answers} == {200}
    with db.connect() as connection:
        found = connection.execute(
            "select tenant_id, array_agg((convert_from(content, 'UTF8')::jsonb->>'subject')::int % 2)"
            " from pgmail.message group by 1 order by 1"
        ).fetchall()
    assert [set(parities) for _, parities in found] == [{0}, {1}]


async def test_who_waits_too_long_for_a_statement_is_told_and_nothing_of_it_is_sent(api, db, monkeypatch):
    monkeypatch.setattr(coalesce, "WAIT_SECONDS", 0.01)
    async with held_up(db, api) as first:
        answer = await ask(api, {"subject": "late"})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
        assert "nothing was stored" in answer.json()["detail"]
    assert (await first).status_code == 200
    assert transactions(db) == [["Hi"]]


async def test_draining_waits_for_what_was_handed_over(api, db):
    coalescer = api.app.state.enqueue._coalescer
    assert await coalescer.drain(0)
    async with held_up(db, api) as first:
        second = ask(api)
        await in_line(api, 1)
        assert not await coalescer.drain(0)
    assert await coalescer.drain(60)
    assert {(await first).status_code, (await second).status_code} == {200}
    assert count(db) == 2
    assert coalescer._lines == {}
