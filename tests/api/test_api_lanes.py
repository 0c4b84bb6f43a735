"""Lanes, pauses and limits over HTTP: what stands still and why, and pausing one's own."""

from datetime import UTC, datetime, timedelta

import pytest

from pgmail.domain.keys import make_key
from tests.api.conftest import EMAIL, client
from tests.sql.kit import Hand


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


def key_of_another_tenant(db):
    key, hint, hash_ = make_key()
    with db.connect() as connection:
        connection.execute("select pgmail.create_tenant('neighbour')")
        connection.execute(
            "insert into pgmail.api_key (tenant_id, name, hint, hash)"
            " select id, 'n', %s, %s from pgmail.tenant where name = 'neighbour'",
            [hint, hash_],
        )
    return key


async def test_lanes_are_listed_page_by_page_with_what_stops_each(api, db, hand, owner):
    for to, stream in (
        ("a@gmail.com", "broadcast"),
        ("b@example.org", "transactional"),
        ("c@a.example", "transactional"),
    ):
        assert (await api.post("/emails", json=EMAIL | {"to": to, "stream": stream})).status_code == 200
    hand.fold()
    owner.execute("select pgmail.set_limit('site', 'example.org', 1, 3600)")
    owner.execute(
        "select pgmail.take_tokens_v1(%s, array['site'], array['example.org'], array[1])", [hand.epoch]
    )
    made = await api.post("/lanes/pause", json={"site": "googlemail.com", "reason": "they throttle"})
    assert made.status_code == 200
    assert made.json() | {"paused_at": None} == {
        "object": "pause", "scope": "site", "name": "gmail.com", "fleet": False, "reason": "they throttle",
        "until": None, "paused_at": None, "paused_by": "key tests",
    }  # fmt: skip
    page = (await api.get("/lanes", params={"limit": 2})).json()
    assert [lane["id"] for lane in page["data"]] == [
        "broadcast/low/gmail.com",
        "transactional/normal/a.example",
    ]
    assert page["has_more"]
    assert page["pauses"] == [made.json()]
    paused, free = page["data"]
    assert free["stopped"] is None
    assert paused["stopped"]["by"] == "pause"
    assert paused["stopped"]["waits_for"].startswith("site gmail.com is paused by key tests since ")
    rest = (await api.get("/lanes", params={"after": free["id"]})).json()
    (limited,) = rest["data"]
    assert (limited["id"], limited["priority"]) == ("transactional/normal/example.org", "normal")
    assert limited["stopped"]["by"] == "limit"
    assert limited["stopped"]["until"] is not None
    assert not rest["has_more"]
    found = await api.get("/lanes", params={"stream": "broadcast", "site": "gmail.com"})
    assert len(found.json()["data"]) == 1
    queue = {row["site"]: row["waits_for"] for row in (await api.get("/queue")).json()["data"]}
    assert queue["a.example"] is None
    assert queue["gmail.com"] == paused["stopped"]["waits_for"]
    assert queue["example.org"].startswith("site example.org is limited to 1 an hour; ")


async def test_a_pause_ends_when_it_is_resumed_and_only_then_may_it_be(api):
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = (
        await api.post(
            "/lanes/pause", json={"lane": "broadcast/low/a.example", "reason": "r", "until": until}
        )
    ).json()
    assert datetime.fromisoformat(made["until"]) == datetime.fromisoformat(until)
    ended = await api.post("/lanes/resume", json={"lane": "broadcast/low/a.example", "reason": "done"})
    assert ended.json() == {
        "object": "pause", "scope": "lane", "name": "broadcast/low/a.example", "resumed": True,
    }  # fmt: skip
    again = await api.post("/lanes/resume", json={"lane": "broadcast/low/a.example"})
    assert (again.status_code, again.json()["code"]) == (404, "not_paused")
    assert (await api.get("/lanes")).json()["pauses"] == []


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"reason": "r"}, "missing_field", "/site"),
        ({"site": "a.example", "stream": "broadcast", "reason": "r"}, "missing_field", "/site"),
        ({"site": "a.example"}, "missing_field", "/reason"),
        ({"site": "no domain", "reason": "r"}, "invalid_site", "/site"),
        ({"stream": "nothing", "reason": "r"}, "unknown_stream", "/stream"),
        ({"lane": "broadcast", "reason": "r"}, "invalid_lane", "/lane"),
        ({"site": "a.example", "reason": "r", "until": "soon"}, "invalid_time", "/until"),
        ({"site": "a.example", "reason": "r", "until": "2020-01-01T00:00:00Z"}, "time_in_past", "/until"),
        ({"site": "a.example", "reason": "r", "fleet": True}, "unknown_key", "/fleet"),
        ({"relay": "default", "reason": "r"}, "unknown_key", "/relay"),
    ],
)
async def test_a_pause_that_is_wrong_is_refused_with_its_field(api, body, code, field):
    answer = await api.post("/lanes/pause", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)


@pytest.mark.parametrize("after", ["broadcast", "broadcast/urgent/a.example", "broadcast/low/"])
async def test_a_page_after_what_is_no_lane_is_refused(api, after):
    answer = await api.get("/lanes", params={"after": after})
    assert (answer.status_code, answer.json()["field"]) == (422, "/after")


async def test_a_tenant_sees_its_own_pauses_and_limits_and_the_fleets(api, db, owner):
    owner.execute("select pgmail.set_limit('tenant', 'default', 5, 60)")
    owner.execute("select pgmail.pause_mail('site', 'b.example', 'all of us', null, true)")
    await api.post("/lanes/pause", json={"site": "a.example", "reason": "ours"})
    assert [item["name"] for item in (await api.get("/lanes")).json()["pauses"]] == ["b.example", "a.example"]
    (mine,) = (await api.get("/limits", params={"scope": "tenant"})).json()["data"]
    assert mine | {"changed_at": None} == {
        "object": "limit", "scope": "tenant", "name": "default", "messages": 5, "per_seconds": 60.0,
        "connections": None, "ramp_seconds": None, "note": None, "shipped": False, "changed_at": None,
        "changed_by": "pgmail_owner",
    }  # fmt: skip
    (site,) = (await api.get("/limits", params={"name": "gmail.com"})).json()["data"]
    assert site["shipped"]
    async with client(db.dsn_for("api"), key_of_another_tenant(db)) as neighbour:
        assert (await neighbour.get("/limits", params={"scope": "tenant"})).json()["data"] == []
        (pause,) = (await neighbour.get("/lanes")).json()["pauses"]
        assert pause["fleet"]
        assert (await neighbour.post("/lanes/resume", json={"site": "a.example"})).status_code == 404
        there = await neighbour.post("/lanes/resume", json={"site": "b.example"})
        assert "for the whole fleet" in there.json()["message"]


async def test_an_unknown_scope_of_limits_is_refused(api):
    answer = await api.get("/limits", params={"scope": "planet"})
    assert (answer.status_code, answer.json()["field"]) == (422, "/scope")


async def test_a_stream_takes_and_shows_several_relays(api, owner):
    owner.execute("select pgmail.register_relays_v1(array['ses'])")
    weighted = [{"name": "ses", "weight": 3.0}, {"name": "default", "weight": 1.0}]
    for relay in ("ses", ["ses", "default"], weighted):
        answer = await api.put("/streams/bulk", json={"relay": relay})
        assert answer.json()["relay"] == relay
        assert (await api.get("/streams/bulk")).json()["relay"] == relay
    refused = await api.put("/streams/bulk", json={"relay": ["ses", "nowhere"]})
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        422,
        "unknown_relay",
        "/relay/1",
    )
