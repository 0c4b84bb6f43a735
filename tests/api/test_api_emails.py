"""POST, GET, PATCH /emails: what goes in comes out, in Resend's shape and with the state of each recipient."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.domain import ids
from tests.api.conftest import EMAIL, client, new_key

NOBODY = "01900000-0000-7000-8000-000000000000"


async def send(api, **changes):
    answer = await api.post("/emails", json=EMAIL | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def listed(api, **query):
    answer = await api.get("/emails", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_sent_email_is_shown_as_it_was_handed_over(api):
    email = await send(
        api,
        to=["Ada <ada@example.org>", {"address": "b@example.org", "name": 'B "the" Bee'}],
        cc="c@example.org",
        bcc=["Dee <d@example.org>"],
        reply_to="help@example.com",
        html="<p>Hello</p>",
        tags=[{"name": "kind", "value": "welcome"}],
        metadata={"order": 1},
        headers={"X-Shop": "1"},
        priority="high",
        scheduled_at="in 1 hour",
    )
    shown = (await api.get(f"/emails/{email}")).json()
    assert shown["object"] == "email"
    assert shown["id"] == email
    assert shown["from"] == "Shop <shop@example.com>"
    assert shown["to"] == ["Ada <ada@example.org>", '"B \\"the\\" Bee" <b@example.org>']
    assert shown["cc"] == ["c@example.org"]
    assert shown["bcc"] == ["Dee <d@example.org>"]
    assert shown["reply_to"] == ["help@example.com"]
    assert (shown["subject"], shown["text"], shown["html"]) == ("Hi", "Hello", "<p>Hello</p>")
    assert shown["headers"] == {"X-Shop": "1"}
    assert shown["tags"] == [{"name": "kind", "value": "welcome"}]
    assert shown["metadata"] == {"order": 1}
    assert (shown["stream"], shown["priority"]) == ("transactional", "high")
    assert shown["last_event"] == "scheduled"
    assert datetime.fromisoformat(shown["created_at"]).utcoffset() == timedelta(0)
    due = datetime.fromisoformat(shown["scheduled_at"])
    assert timedelta(minutes=59) < due - datetime.now(UTC) < timedelta(minutes=61)
    assert [person["role"] for person in shown["recipients"]] == ["to", "to", "cc", "bcc"]
    assert {person["state"] for person in shown["recipients"]} == {"scheduled"}
    assert {person["phase"] for person in shown["recipients"]} == {"queued"}


async def test_one_recipients_id_shows_the_email_with_that_recipient(api):
    email = await send(api, to=["a@example.org", "b@example.org"])
    second = (await api.get(f"/emails/{email}")).json()["recipients"][1]
    shown = (await api.get(f"/emails/{second['id']}")).json()
    assert (shown["id"], shown["to"]) == (email, ["b@example.org"])


async def test_a_personal_email_shows_all_its_recipients(api):
    people = [{"address": f"u{i}@example.org", "variables": {"n": i}} for i in range(60)]
    email = await send(api, to=people, mode="personal", variables={}, text="You are {{ n }}")
    assert len((await api.get(f"/emails/{email}")).json()["to"]) == 60
    item = (await listed(api))["data"][0]
    assert (item["id"], len(item["to"]), item["states"]) == (email, 50, {"queued": 60})


async def test_an_outcome_is_told_with_its_reply(api, db):
    email = await send(api)
    settle(db, email, "bounced")
    shown = (await api.get(f"/emails/{email}")).json()
    assert shown["last_event"] == "bounced"
    person = shown["recipients"][0]
    assert (person["state"], person["code"], person["reply"]) == ("bounced", 550, "no such user")


def settle(db, email, state):
    """Settle an email's recipients as a worker would, without one."""
    with db.connect() as connection:
        connection.execute(
            "with gone as (delete from pgmail.queue where message_id = %s returning *)"
            " insert into pgmail.outcome"
            " (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, reply)"
            " select tenant_id, id, message_id, %s, now(), 'transactional', 'example.org', 1, 550, 'no such user'"
            " from gone",
            [email, state],
        )


@pytest.mark.parametrize("id", [NOBODY, "not-an-id", "%00"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/emails/{}", None),
        ("GET", "/emails/{}/events", None),
        ("POST", "/emails/{}/cancel", {}),
        ("PATCH", "/emails/{}", {"scheduled_at": "in 1 hour"}),
    ],
)
async def test_an_unknown_id_is_not_found(api, id, method, path, body):
    answer = await api.request(method, path.format(id), json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["name"]) == (
        404,
        "not_found",
        "not_found",
    )


async def test_another_tenants_email_is_not_found(api, db):
    email = await send(api)
    with db.connect() as connection:
        connection.execute("select pgmail.create_tenant('other')")
        connection.execute("update pgmail.api_key set tenant_id = 2 where name = 'tests'")
        key = new_key(db, "mine")
    async with client(db.dsn_for("api"), key) as mine:
        assert (await mine.get(f"/emails/{email}")).status_code == 200
    async with client(db.dsn_for("api"), None) as fresh:
        fresh.headers["Authorization"] = api.headers["Authorization"]
        assert (await fresh.get(f"/emails/{email}")).status_code == 404
        assert (await listed(fresh))["data"] == []
        assert (await fresh.post(f"/emails/{email}/cancel")).status_code == 404


async def test_a_scheduled_email_is_moved_and_says_so(api):
    email = await send(api, scheduled_at="in 1 hour")
    at = (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    answer = await api.patch(f"/emails/{email}", json={"scheduled_at": at, "id": email})
    assert answer.json() == {
        "object": "email",
        "id": email,
        "status": "rescheduled",
        "reached": 1,
        "too_late": 0,
    }
    person = (await api.get(f"/emails/{email}")).json()["recipients"][0]
    assert datetime.fromisoformat(person["due_at"]) == datetime.fromisoformat(at)


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "/scheduled_at"),
        ({"scheduled_at": 5}, "invalid_body", "/scheduled_at"),
        ({"scheduled_at": "soon"}, "invalid_time", "/scheduled_at"),
        ({"scheduled_at": "2020-01-01T00:00:00Z"}, "time_in_past", "/scheduled_at"),
        ({"scheduled_at": "in 400 days"}, "time_too_far", "/scheduled_at"),
        ({"scheduled_at": "in 1 hour", "id": "else"}, "invalid_body", "/id"),
        ({"scheduled_at": "in 1 hour", "subject": "x"}, "unknown_key", "/subject"),
        ([], "invalid_body", ""),
    ],
)
async def test_a_wrong_change_is_refused_at_its_field(api, body, code, field):
    email = await send(api, scheduled_at="in 1 hour")
    answer = await api.patch(f"/emails/{email}", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)


async def test_cancelling_twice_is_fine_and_keeps_the_reason(api):
    email = await send(api)
    first = await api.post(f"/emails/{email}/cancel", json={"reason": "sold out"})
    again = await api.post(f"/emails/{email}/cancel")
    assert first.json() == again.json()
    assert first.json() == {
        "object": "email",
        "id": email,
        "status": "cancelled",
        "reached": 1,
        "too_late": 0,
    }
    shown = (await api.get(f"/emails/{email}")).json()
    assert (shown["last_event"], shown["recipients"][0]["reason"]) == ("canceled", "by key tests: sold out")


async def test_too_late_is_a_refusal_and_partly_too_late_is_not(api, db):
    email = await send(api, to=["a@example.org", "b@example.org"])
    with db.connect() as connection:
        lease = "update pgmail.queue set leased_by = 1, leased_at = now() where message_id = %s"
        connection.execute(
            lease + " and id = (select id from pgmail.recipient where address = 'a@example.org')", [email]
        )
        partly = (await api.patch(f"/emails/{email}", json={"scheduled_at": "in 1 hour"})).json()
        assert (partly["status"], partly["reached"], partly["too_late"]) == ("partly_rescheduled", 1, 1)
        connection.execute(lease, [email])
    for answer in (
        await api.patch(f"/emails/{email}", json={"scheduled_at": "in 1 hour"}),
        await api.post(f"/emails/{email}/cancel"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "too_late")


async def test_a_held_email_waits_until_it_is_released(api):
    email = await send(api)
    held = (await api.post(f"/emails/{email}/hold", json={"reason": "wrong text"})).json()
    assert held == {"object": "email", "id": email, "status": "held", "reached": 1, "too_late": 0}
    assert (await api.get(f"/emails/{email}")).json()["recipients"][0]["reason"] == "by key tests: wrong text"
    released = (await api.post(f"/emails/{email}/release")).json()
    assert (released["status"], released["reached"], released["in_doubt"]) == ("released", 1, 0)
    again = await api.post(f"/emails/{email}/release")
    assert (again.status_code, again.json()["code"]) == (409, "not_held")
    await api.post(f"/emails/{email}/cancel")
    late = await api.post(f"/emails/{email}/hold")
    assert (late.status_code, late.json()["code"]) == (422, "too_late")


async def test_the_journey_is_told_oldest_first(api):
    email = await send(api)
    await api.post(f"/emails/{email}/cancel")
    told = (await api.get(f"/emails/{email}/events")).json()
    assert (told["object"], told["has_more"]) == ("list", False)
    assert [event["type"] for event in told["data"]] == ["email.queued", "email.cancelled"]
    assert told["data"][1]["detail"] == "by key tests"


async def test_pages_cover_everything_once_in_both_directions(api):
    sent = [await send(api, subject=str(i)) for i in range(7)]
    seen, after = [], None
    while True:
        page = await listed(api, limit=3, **({"after": after} if after else {}))
        seen += [item["id"] for item in page["data"]]
        after = seen[-1]
        if not page["has_more"]:
            break
    assert seen == sent[::-1]
    back = await listed(api, limit=3, before=seen[5])
    assert ([item["id"] for item in back["data"]], back["has_more"]) == (seen[2:5], True)
    back = await listed(api, limit=3, before=seen[2])
    assert ([item["id"] for item in back["data"]], back["has_more"]) == (seen[:2], False)


async def test_each_filter_finds_its_own(api, db):
    with db.connect() as connection:
        connection.execute("select pgmail.suppress('gone@example.org')")
    plain = await send(api)
    tagged = await send(api, tags={"kind": "welcome"}, to="T.Ag@Example.org")
    later = await send(api, scheduled_at="in 1 hour")
    bulk = await send(api, stream="broadcast", tags={"kind": "welcome"})
    gone = await send(api, to=["gone@example.org", "ada@example.org"])
    bounced = await send(api)
    settle(db, bounced, "bounced")
    dead = await send(api)
    bury(db, dead)

    async def found(**query):
        return {item["id"] for item in (await listed(api, **query))["data"]}

    assert await found(state="scheduled") == {later}
    assert await found(state="queued") == {plain, tagged, bulk, gone}
    assert await found(state="suppressed") == {gone}
    assert await found(state="bounced") == {bounced}
    assert await found(state="dead") == {dead}
    assert await found(stream="broadcast") == {bulk}
    assert await found(tag="kind:welcome") == {tagged, bulk}
    assert await found(tag="kind:welcome", stream="transactional") == {tagged}
    assert await found(tag="kind:other") == set()
    assert await found(tag="kind:welcome", state="queued", recipient="ada@example.org") == {bulk}
    assert await found(recipient="t.ag@example.ORG") == {tagged}
    assert await found(recipient="ada@example.org", state="suppressed") == set()
    assert await found(recipient="gone@example.org", state="suppressed") == {gone}
    assert await found(state="bounced", tag="kind:welcome") == set()
    moment = ids.time_of(uuid.UUID(later)).isoformat()
    assert await found(created_after=moment) == {later, bulk, gone, bounced, dead}
    assert await found(created_before=moment) == {plain, tagged}
    assert await found(created_before=moment, created_after=moment) == set()


def bury(db, email):
    """Make an email's recipients dead letters as a worker would."""
    with db.connect() as connection:
        connection.execute(
            "with gone as (delete from pgmail.queue where message_id = %s returning *)"
            " insert into pgmail.dead_letter"
            " (tenant_id, recipient_id, message_id, lane, stream, priority, site, reason, attempts)"
            " select tenant_id, id, message_id, lane, 'transactional', 2, 'example.org', 'poison', 3 from gone",
            [email],
        )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=%D9%A1", "/limit"),
        ("limit=1&limit=2", "/limit"),
        ("after=x", "/after"),
        ("before=x", "/before"),
        (f"after={NOBODY}&before={NOBODY}", "/before"),
        ("state=lost", "/state"),
        ("tag=kind", "/tag"),
        ("recipient=nobody", "/recipient"),
        ("created_after=yesterday", "/created_after"),
        ("created_before=1960-01-01T00:00:00Z", "/created_before"),
        ("sate=dead", "/sate"),
        ("stream=a%00b", "/stream"),
    ],
)
async def test_a_wrong_filter_is_refused_by_name(api, query, field):
    answer = await api.get(f"/emails?{query}")
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "invalid_parameter",
        field,
    )
