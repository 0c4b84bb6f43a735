"""Live events over HTTP: pages, server-sent events and a WebSocket tell the same, once each, and to nobody else."""

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from psycopg.types.json import Jsonb
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pgmail.domain.cursor import parse
from pgmail.domain.keys import hash_key, make_key
from tests.api.conftest import EMAIL, new_key
from tests.api.test_api_server import serving
from tests.sse import listening
from tests.waiting import eventually


def enqueue(db, to="ada@example.org", **more):
    """Send as the first tenant's application."""
    with db.connect("producer") as connection:
        body = {**EMAIL, "to": to} | more
        return str(connection.execute("select pgmail.send(%s)", [Jsonb(body)]).fetchone()[0])


async def ask(url, key, path="/events", json=None, **query):
    """A request of its own."""
    async with httpx.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {key}"}) as client:
        return await client.request("POST" if json else "GET", url + path, params=query, json=json)


def cancel(db, email):
    with db.connect("producer") as connection:
        connection.execute("select pgmail.cancel(%s)", [email])


def stranger(db):
    """The key of another tenant."""
    key, hint, hash_ = make_key()
    with db.connect() as connection:
        tenant = connection.execute("select pgmail.create_tenant('stranger')").fetchone()[0]
        connection.execute("update pgmail.tenant set senders = 'any'")
        connection.execute(
            "insert into pgmail.api_key (tenant_id, name, hint, hash, scopes) "
            "values (%s, 'x', %s, %s, '{send,read,manage}')",
            [tenant, hint, hash_],
        )
    return key


async def test_pages_tell_what_happens_after_a_cursor(api, db):
    first = (await api.get("/events")).json()
    assert first["data"] == []
    assert first["has_more"] is False
    email = enqueue(db, ["ada@example.org", "bob@example.org"], tags={"kind": "welcome"})
    cancel(db, email)
    cursor, found = first["cursor"], []
    for more in (True, True, False):
        page = (await api.get("/events", params={"cursor": cursor, "limit": 2 if more else 100})).json()
        cursor = page["cursor"]
        found += page["data"]
    assert [event["type"] for event in found] == ["email.queued"] * 2 + ["email.cancelled"] * 2
    assert page["has_more"] is False
    assert (await api.get("/events", params={"cursor": cursor})).json()["data"] == []
    queued = found[0]
    assert queued["object"] == "event"
    assert queued["data"]["email_id"] == email
    assert queued["data"]["address"] == "ada@example.org"
    assert queued["data"]["tags"] == {"kind": "welcome"}
    assert queued["id"] == queued["data"]["recipient_id"]
    journey = (await api.get(f"/emails/{email}/events")).json()["data"]
    assert {event["id"] for event in journey} == {event["id"] for event in found}, (
        "the same ids as its journey"
    )


@pytest.mark.parametrize(
    ("filter", "count"),
    [
        ({"type": "email.cancelled"}, 1),
        ({"type": "email.cancelled,email.queued"}, 3),
        ({"tag": "kind:other"}, 1),
        ({"tag": "kind:none"}, 0),
        ({"stream": "broadcast"}, 1),
        ({"email": "first"}, 2),
    ],
)
async def test_filters_leave_what_was_asked_for(api, db, filter, count):
    cursor = (await api.get("/events")).json()["cursor"]
    first = enqueue(db, tags={"kind": "first"})
    cancel(db, first)
    enqueue(db, tags={"kind": "other"}, stream="broadcast")
    asked = {name: first if value == "first" else value for name, value in filter.items()}
    page = (await api.get("/events", params={"cursor": cursor, **asked})).json()
    assert len(page["data"]) == count


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ({"cursor": "nonsense"}, "invalid_parameter", "/cursor"),
        ({"type": "email.lost"}, "invalid_parameter", "/type"),
        ({"tag": "kind"}, "invalid_parameter", "/tag"),
        ({"email": "x"}, "invalid_parameter", "/email"),
        ({"limit": "1001"}, "invalid_parameter", "/limit"),
        ({"colour": "red"}, "invalid_parameter", "/colour"),
    ],
)
async def test_a_bad_question_is_refused_by_name(api, query, code, field):
    answer = await api.get("/events", params=query)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)


async def test_since_begins_in_the_past_and_not_before_what_is_kept(api, db):
    old = enqueue(db)
    with db.connect() as connection:
        connection.execute(
            "update pgmail.message set created_at = now() - interval '5 minutes' where id = %s", [old]
        )
    new = enqueue(db)
    since = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    page = (await api.get("/events", params={"since": since})).json()
    assert [event["data"]["email_id"] for event in page["data"]] == [new]
    answer = await api.get("/events", params={"since": "2020-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["code"]) == (410, "since_too_old")


async def test_what_retention_took_is_an_answer_and_not_silence(api, db):
    """Content goes before the record does, and with it that emails were queued."""
    found = parse((await api.get("/events")).json()["cursor"])
    for days, cursor_code, bounced in ((20, 200, 200), (40, 410, 200), (100, 410, 410)):
        cursor = str(found._replace(made=found.made - days * 86_400))
        at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        for start, code in (({"cursor": cursor}, "cursor_too_old"), ({"since": at}, "since_too_old")):
            for path in ("/events", "/events/stream"):
                if path == "/events" or cursor_code == 410:
                    answer = await api.get(path, params=start)
                    assert answer.status_code == cursor_code
                    assert cursor_code == 200 or answer.json()["code"] == code
            answer = await api.get("/events", params={**start, "type": "email.bounced,email.sent"})
            assert answer.status_code == bounced
            answer = await api.get("/events", params={**start, "type": "email.sent", "tag": "a:b"})
            assert answer.status_code == cursor_code


async def test_a_moment_to_come_is_refused(api):
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for path in ("/events", "/events/stream"):
        answer = await api.get(path, params={"since": at})
        assert (answer.status_code, answer.json()["field"]) == (422, "/since")
        assert "in the future" in answer.json()["detail"]


async def test_after_a_restore_an_old_cursor_is_refused_with_what_to_do(api, db):
    cursor = (await api.get("/events")).json()["cursor"]
    with db.connect() as connection:
        connection.execute(
            "insert into pgmail.history (generation, root) select generation + 1, root from pgmail.history"
        )
    answer = await api.get("/events", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (410, "cursor_gone")
    assert "without a cursor" in answer.json()["detail"]


async def test_a_cursor_of_the_future_is_of_another_database(api, db):
    found = parse((await api.get("/events")).json()["cursor"])
    ahead = found._replace(seen=found.seen._replace(xmax=found.seen.xmax + 10_000))
    for cursor in (ahead, found._replace(made=found.made + 2 * 86_400)):
        answer = await api.get("/events", params={"cursor": str(cursor)})
        assert (answer.status_code, answer.json()["code"]) == (410, "cursor_gone")
    answer = await api.get("/events", params={"cursor": str(found._replace(made=10**17))})
    assert (answer.status_code, answer.json()["field"]) == (422, "/cursor")


async def test_what_a_dump_of_another_cluster_brought_is_not_told_when_its_numbers_come_up(api, db):
    cursor = (await api.get("/events")).json()["cursor"]
    enqueue(db)  # as if by the cluster that was dumped, which was ahead
    with db.connect() as connection:
        old = connection.execute("select pgmail.uuid_floor(now() - interval '3 days')").fetchone()[0]
        connection.execute(
            "update pgmail.message set id = %s, xid = (pg_current_xact_id()::text::bigint + 20)::text::xid8",
            [old],
        )
        connection.execute("update pgmail.recipient set message_id = %s, id = %s", [old, old])
        for _ in range(40):
            connection.execute("select pg_current_xact_id()")
    new = enqueue(db)
    page = (await api.get("/events", params={"cursor": cursor})).json()
    assert [event["data"]["email_id"] for event in page["data"]] == [new]


async def test_until_the_indexes_are_whole_the_feed_says_so(api, db):
    with db.connect() as connection:
        connection.execute("drop index pgmail.event_feed")
        connection.execute("create index event_feed on only pgmail.event (xid, id)")
    answer = await api.get("/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "feed_not_ready")
    assert answer.headers["retry-after"] == "60"


async def test_a_limited_key_is_told_of_its_streams_only(api, db):
    key = new_key(db)
    with db.connect() as connection:
        connection.execute(
            "update pgmail.api_key set streams = '{broadcast}', scopes = '{read}' where hash = %s",
            [hash_key(key)],
        )
    headers = {"Authorization": f"Bearer {key}"}
    cursor = (await api.get("/events", headers=headers)).json()["cursor"]
    enqueue(db)
    email = enqueue(db, stream="broadcast")
    page = (await api.get("/events", params={"cursor": cursor}, headers=headers)).json()
    assert [event["data"]["email_id"] for event in page["data"]] == [email]
    answer = await api.get("/events", params={"stream": "transactional"}, headers=headers)
    assert answer.status_code == 403


async def test_a_stream_tells_live_and_goes_on_after_the_last_event_that_was_read(db, key):
    with serving(db.dsn_for("api")) as url:
        async with listening(url, key) as stream:
            assert stream.answer.headers["content-type"].startswith("text/event-stream")
            email = enqueue(db, ["ada@example.org", "bob@example.org"])
            first, _ = await stream.take(2)
            assert first.type == "email.queued"
            assert first.data["data"]["email_id"] == email
        cancel(db, email)
        async with listening(url, key, last=first.id) as stream:
            again = await stream.take(3)
            assert [told.type for told in again] == ["email.queued", "email.cancelled", "email.cancelled"]
            assert first.data["id"] not in {told.data["id"] for told in again}
            later = enqueue(db)
            (told,) = await stream.take(1)
            assert told.data["data"]["email_id"] == later


async def test_who_comes_with_a_wider_filter_is_told_what_was_passed_over_before(db, key):
    """The reader asks for no more than those want who listen, and where it is says nothing of what it skipped."""
    with serving(db.dsn_for("api")) as url:
        async with listening(url, key, type="email.cancelled") as narrow:
            start = narrow.last
            emails = [enqueue(db)]
            cancel(db, emails[0])
            (told,) = await narrow.take(1)
            assert (told.type, told.data["data"]["email_id"]) == ("email.cancelled", emails[0])
            async with listening(url, key) as wide:
                emails.append(enqueue(db))
                cancel(db, emails[1])
                assert [each.type for each in await wide.take(2)] == ["email.queued", "email.cancelled"]
                assert [each.data["data"]["email_id"] for each in await narrow.take(1)] == [emails[1]]
                async with listening(url, key, email=emails[0], last=start) as one:
                    assert [each.type for each in await one.take(2)] == ["email.queued", "email.cancelled"]
            async with listening(url, key, last=start) as again:
                told = [each.data["data"]["email_id"] for each in await again.take(4)]
                assert told == [emails[0]] * 2 + [emails[1]] * 2
            async with listening(url, key, last=narrow.last) as after:
                emails.append(enqueue(db))
                assert [each.data["data"]["email_id"] for each in await after.take(1)] == emails[2:]


async def test_an_event_has_its_facts_as_they_are_and_nothing_empty(api, db):
    email = enqueue(db, "ada@example.org", tags={"kind": "a-b"})
    start = (await api.get("/events")).json()["cursor"]
    reply = '250 "ok"\\\r\ndata: \u2028 caf\u00e9 \U0001f600\x01'
    with db.connect() as connection:
        connection.execute(
            "insert into pgmail.event "
            "(tenant_id, recipient_id, message_id, type, at, attempt, code, reply, ms, detail) "
            "select r.tenant_id, r.id, r.message_id, 'email.sent', '2026-01-02 03:04:05Z', 2, 250, %s, 0, '' "
            "from pgmail.recipient r",
            [reply],
        )
        person, made = connection.execute(
            "select r.id::text, m.created_at from pgmail.recipient r, pgmail.message m"
        ).fetchone()
    (event,) = (await api.get("/events", params={"cursor": start})).json()["data"]
    assert event.pop("id") != person
    assert datetime.fromisoformat(event["data"].pop("email_created_at")) == made
    assert event == {
        "object": "event",
        "type": "email.sent",
        "created_at": "2026-01-02T03:04:05Z",
        "data": {
            "email_id": email,
            "recipient_id": person,
            "address": "ada@example.org",
            "stream": "transactional",
            "tags": {"kind": "a-b"},
            "attempt": 2,
            "code": 250,
            "reply": reply,
            "site": "example.org",
            "ms": 0,
        },
    }


async def test_nobody_is_told_of_another_tenant(db, key):
    other = stranger(db)
    with serving(db.dsn_for("api")) as url:
        async with listening(url, other) as theirs, listening(url, key) as ours:
            enqueue(db)
            await ours.take(1)
            own = await ask(url, other, "/emails", EMAIL)
            (told,) = await theirs.take(1)
            assert told.data["data"]["email_id"] == own.json()["id"]
        cursor = (await ask(url, key)).json()["cursor"]
        enqueue(db)
        page = (await ask(url, other, cursor=cursor)).json()
        assert page["data"] == []


async def test_a_revoked_key_ends_its_streams(db, key):
    with serving(db.dsn_for("api")) as url:
        async with listening(url, key) as stream, asyncio.timeout(20):
            with db.connect() as connection:
                connection.execute("update pgmail.api_key set revoked_at = now()")
            (told,) = await stream.take(1)
            assert told.type == "dropped"
            assert told.data["reason"] == "key_ended"
            assert await stream.next() is None, "and the connection ends"

        async def refused() -> bool:
            return (await ask(url, key)).status_code == 401

        await eventually(refused, 5)  # a key's check is believed for a second


async def test_when_the_server_ends_streams_say_so_and_come_back_for_the_rest(db, key):
    async with contextlib.AsyncExitStack() as stack:
        with serving(db.dsn_for("api"), drain_seconds=20) as url:
            stream = await stack.enter_async_context(listening(url, key))
            began = time.monotonic()
        assert time.monotonic() - began < 10, "it waits for no stream"
        (told,) = await stream.take(1)
        assert (told.type, told.data["reason"]) == ("dropped", "shutting_down")
    email = enqueue(db)
    with serving(db.dsn_for("api")) as url:
        async with listening(url, key, last=stream.last) as stream:
            (event,) = await stream.take(1)
            assert event.data["data"]["email_id"] == email


async def test_no_more_listen_than_the_setting_says(db, key):
    with serving(db.dsn_for("api"), api_listeners=1) as url:
        async with listening(url, key):
            answer = await ask(url, key, "/events/stream")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_listeners")
            assert answer.headers["retry-after"] == "5"

        async def let_in():
            with contextlib.suppress(AssertionError):
                async with listening(url, key):
                    return True

        await eventually(let_in, what="its place is free once it is gone")


async def test_a_tenant_that_took_all_places_makes_room_for_another(db, key):
    with serving(db.dsn_for("api"), api_listeners=2) as url:
        async with listening(url, key) as first, listening(url, key) as second, listening(url, stranger(db)):
            (told,) = await second.take(1)
            assert (told.type, told.data["reason"]) == ("dropped", "crowded")
            answer = await ask(url, key, "/events/stream")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_listeners")
            email = enqueue(db)
            (event,) = await first.take(1)
            assert event.data["data"]["email_id"] == email


def socket(url, **more):
    return connect(url.replace("http", "ws") + "/events/ws" + more.pop("query", ""), **more)


async def heard(connection, count=1):
    """So many events of a WebSocket."""
    found = []
    async with asyncio.timeout(20):
        while len(found) < count:
            message = json.loads(await connection.recv())
            if "event" in message:
                found.append(message)
    return found


async def test_a_websocket_tells_the_same_events_and_goes_on_after_a_cursor(db, key):
    with serving(db.dsn_for("api")) as url:
        headers = {"Authorization": f"Bearer {key}"}
        async with socket(url, additional_headers=headers) as ws, listening(url, key) as stream:
            assert set(json.loads(await ws.recv())) == {"cursor"}
            email = enqueue(db)
            (message,) = await heard(ws)
            (told,) = await stream.take(1)
            assert message["event"] == told.data
        cancel(db, email)
        async with socket(url) as ws:
            await ws.send(json.dumps({"key": key, "cursor": message["cursor"]}))
            (after,) = await heard(ws)
            assert after["event"]["type"] == "email.cancelled"


async def test_a_websocket_is_closed_with_a_code_that_says_why(db, key):
    with serving(db.dsn_for("api")) as url:
        for first, code in (({"key": "pgm_live_nobody"}, 4401), ({"cursor": "x"}, 4401), ([1], 4400)):
            async with socket(url) as ws:
                await ws.send(json.dumps(first))
                with pytest.raises(ConnectionClosed) as closed:
                    await ws.recv()
                assert closed.value.rcvd.code == code
        headers = {"Authorization": f"Bearer {key}"}
        async with socket(url, query="?cursor=nonsense", additional_headers=headers) as ws:
            with pytest.raises(ConnectionClosed) as closed:
                await ws.recv()
            assert closed.value.rcvd.code == 4422
        async with socket(url, additional_headers=headers) as ws:
            await ws.recv()
            with db.connect() as connection:
                connection.execute("update pgmail.api_key set revoked_at = now()")
            with pytest.raises(ConnectionClosed) as closed:
                async with asyncio.timeout(20):
                    await ws.recv()
            assert closed.value.rcvd.code == 4401
            assert closed.value.rcvd.reason.startswith("key_ended")


async def test_a_page_of_another_site_gets_no_websocket(db, key):
    with serving(db.dsn_for("api")) as url:
        with pytest.raises(InvalidStatus) as refused:
            async with socket(url, origin="https://elsewhere.example"):
                pass
        assert refused.value.response.status_code == 403
        async with socket(url, origin=url) as ws:
            await ws.send(json.dumps({"key": key}))
            assert "cursor" in json.loads(await ws.recv())
