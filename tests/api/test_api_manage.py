"""Templates, assets, streams, suppressions, dead letters, the queue: kept by tenant, shown as kept."""

import pytest

from tests.api.conftest import EMAIL
from tests.sql.kit import Hand, stream


async def put(api, method, path, body=None):
    answer = await api.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, code, field):
    found = answer.json()
    return (answer.status_code, found["code"], found["field"]) == (status, code, field) or found


async def test_a_template_is_saved_published_and_used(api):
    new = {"name": "welcome", "subject": "Hi {{ name }}", "text": "Hello {{ name }}"}
    draft = await put(api, "POST", "/templates", new)
    assert (draft["version"], draft["state"], draft["required"]) == (1, "draft", ["name"])
    mail = {
        "from": "a@example.com",
        "to": "b@example.org",
        "template": {"id": "welcome"},
        "variables": {"name": "B"},
    }
    assert refused(await api.post("/emails", json=mail), 422, "unknown_template", "/template/id") is True
    published = await put(api, "POST", "/templates/welcome/publish")
    assert (published["version"], published["state"]) == (1, "published")
    email = (await put(api, "POST", "/emails", mail))["id"]
    assert (await api.get(f"/emails/{email}")).json()["template"] == {"id": "welcome", "version": 1}
    assert (
        refused(
            await api.post("/emails", json=mail | {"variables": {}}), 422, "missing_variable", "/variables"
        )
        is True
    )


async def test_templates_are_listed_by_name_and_shown_by_version(api):
    for name in ("b", "a", "c"):
        await put(api, "POST", "/templates", {"name": name, "text": "1", "publish": True})
    await put(api, "POST", "/templates", {"name": "a", "text": "2"})
    listed = await put(api, "GET", "/templates?limit=2")
    assert [(item["name"], item["newest_version"], item["published_version"]) for item in listed["data"]] == [
        ("a", 2, 1),
        ("b", 1, 1),
    ]
    assert listed["has_more"]
    rest = await put(api, "GET", "/templates?after=b")
    assert ([item["name"] for item in rest["data"]], rest["has_more"]) == (["c"], False)
    shown = await put(api, "GET", "/templates/a")
    assert (shown["version"], shown["text"], len(shown["versions"])) == (1, "1", 2)
    assert (await put(api, "GET", "/templates/a?version=2"))["text"] == "2"
    assert (await put(api, "POST", "/templates/a/publish", {"version": 2}))["version"] == 2


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/templates", {"name": "x", "html": "{{ x"}, (422, "invalid_template", "/html")),
        ("/templates", {"name": "x"}, (422, "missing_field", "/text")),
        ("/templates", {"text": "x"}, (422, "missing_field", "/name")),
        ("/templates", {"name": "a b", "text": "x"}, (422, "invalid_name", "/name")),
        ("/templates", {"name": "x", "text": "a\0b"}, (422, "invalid_body", "/text")),
        ("/templates", {"name": "x", "text": 1}, (422, "invalid_body", "/text")),
        ("/templates", {"name": "x", "text": "x", "html_": "y"}, (422, "unknown_key", "/html_")),
        ("/templates/none/publish", {}, (404, "unknown_template", "/name")),
        ("/templates/none/publish", {"version": 2**40}, (404, "unknown_template", "/version")),
        ("/templates/none/publish", {"version": "1"}, (422, "invalid_body", "/version")),
    ],
)
async def test_a_wrong_template_is_refused_at_its_field(api, path, body, expected):
    assert refused(await api.post(path, json=body), *expected) is True


@pytest.mark.parametrize("path", ["/templates/none", "/templates/a%00b", "/assets/none", "/streams/none"])
async def test_an_unknown_name_is_not_found(api, path):
    assert refused(await api.get(path), 404, "not_found", "/name") is True


async def test_a_version_that_is_no_number_is_refused(api):
    assert refused(await api.get("/templates/a?version=0"), 422, "invalid_parameter", "/version") is True


async def test_an_asset_is_stored_shown_and_attached(api, db):
    made = await put(api, "POST", "/assets", {"name": "logo.png", "content": "aGk="})
    assert (made["filename"], made["content_type"], made["size_bytes"]) == ("logo.png", "image/png", 2)
    octets = {
        "name": "terms",
        "content": [1, 2, 3],
        "filename": "t.bin",
        "content_type": "application/x-terms",
    }
    assert (await put(api, "POST", "/assets", octets))["size_bytes"] == 3
    assert await put(api, "GET", "/assets/logo.png") == made
    listed = await put(api, "GET", "/assets?limit=1")
    assert ([item["name"] for item in listed["data"]], listed["has_more"]) == (["logo.png"], True)
    assert [item["name"] for item in (await put(api, "GET", "/assets?after=logo.png"))["data"]] == ["terms"]
    await put(api, "POST", "/emails", EMAIL | {"attachments": [{"asset": "logo.png"}]})
    with db.connect() as connection:
        assert connection.execute("select asset from pgmail.attachment").fetchall() == [("logo.png",)]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"content": "%"}, "invalid_attachment", "/content"),
        ({"content": [256]}, "invalid_attachment", "/content"),
        ({"content": None}, "invalid_body", "/content"),
        ({"name": "a/b"}, "invalid_name", "/name"),
        ({"filename": "a\nb"}, "invalid_attachment", "/filename"),
        ({"filename": " "}, "invalid_attachment", "/filename"),
        ({"content_type": "multipart/mixed"}, "invalid_attachment", "/content_type"),
        ({"content_type": "pdf"}, "invalid_attachment", "/content_type"),
    ],
)
async def test_a_wrong_asset_is_refused_at_its_field(api, change, code, field):
    answer = await api.post("/assets", json={"name": "a", "content": "aGk="} | change)
    assert refused(answer, 422, code, field) is True


async def test_a_stream_is_made_changed_and_used(api):
    made = await put(api, "PUT", "/streams/alerts", {"priority": "high", "max_attempts": 3, "max_queued": 9})
    assert (made["id"], made["priority"], made["max_attempts"], made["max_queued"]) == (
        "alerts",
        "high",
        3,
        9,
    )
    changed = await put(api, "PUT", "/streams/alerts", {"max_queued": None, "on_doubt": "hold"})
    assert (changed["priority"], changed["max_queued"], changed["on_doubt"]) == ("high", None, "hold")
    assert await put(api, "GET", "/streams/alerts") == changed
    listed = await put(api, "GET", "/streams")
    assert [item["name"] for item in listed["data"]] == ["alerts", "broadcast", "transactional"]
    email = (await put(api, "POST", "/emails", EMAIL | {"stream": "alerts"}))["id"]
    assert (await api.get(f"/emails/{email}")).json()["priority"] == "high"


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        ("/streams/Alerts", {}, "invalid_name", "/name"),
        ("/streams/a", {"priority": "urgent"}, "invalid_body", "/priority"),
        ("/streams/a", {"max_attempts": 0}, "invalid_body", "/max_attempts"),
        ("/streams/a", {"retry_jitter": 2}, "invalid_body", "/retry_jitter"),
        ("/streams/a", {"speed": 1}, "unknown_key", "/speed"),
        ("/streams/a", [], "invalid_body", ""),
    ],
)
async def test_a_wrong_stream_is_refused_at_its_field(api, path, body, code, field):
    assert refused(await api.put(path, json=body), 422, code, field) is True


async def test_a_full_stream_is_429_with_the_seconds_to_wait(api, db):
    await put(api, "PUT", "/streams/tiny", {"max_queued": 0})
    answer = await api.post("/emails", json=EMAIL | {"stream": "tiny", "on_limit": "error"})
    assert refused(answer, 429, "limit_reached", "/stream") is True
    assert (answer.headers["retry-after"], answer.json()["name"]) == ("60", "rate_limit_exceeded")


async def test_many_addresses_are_suppressed_at_once_or_none_and_exported(api):
    bad = [{"address": "a@example.org"}, {"email": "nobody"}]
    assert refused(await api.post("/suppressions", json=bad), 422, "invalid_address", "/1/address") is True
    unknown = [{"address": "a@example.org", "why": "x"}]
    assert refused(await api.post("/suppressions", json=unknown), 422, "unknown_key", "/0/why") is True
    too_many = [{"address": f"u{n}@example.org"} for n in range(1001)]
    assert refused(await api.post("/suppressions", json=too_many), 413, "batch_too_large", "") is True
    assert (await put(api, "GET", "/suppressions"))["data"] == []
    good = [
        {"address": "B@example.org"},
        {"email": "a@example.org", "stream": "broadcast", "reason": "bounced"},
    ]
    answer = await put(api, "POST", "/suppressions", good)
    assert [entry["id"] for entry in answer["data"]] == ["b@example.org", "a@example.org broadcast"]
    assert (answer["added"], answer["changed"], answer["unchanged"]) == (2, 0, 0)
    assert (await put(api, "POST", "/suppressions", good))["unchanged"] == 2
    file = await api.get("/suppressions/export")
    assert file.headers["content-type"].startswith("text/csv")
    lines = [line.split(",")[:3] for line in file.text.splitlines()]
    assert lines == [
        ["address", "stream", "reason"], ["a@example.org", "broadcast", "bounced"], ["b@example.org", "", "manual"],
    ]  # fmt: skip
    assert len((await api.get("/suppressions/export?stream=broadcast")).text.splitlines()) == 2


async def test_a_suppressed_address_is_shown_and_set_free(api):
    entry = await put(api, "POST", "/suppressions", {"address": "Gone@Example.org", "source": "by hand"})
    assert (entry["id"], entry["address"], entry["stream"]) == ("gone@example.org", "gone@example.org", None)
    assert entry["reason"] == "manual"
    one = {"email": "a/b@example.org", "stream": "broadcast", "reason": "unsubscribed"}
    one |= {"expires_at": "2099-01-01T00:00:00Z"}
    assert (await put(api, "POST", "/suppressions", one))["id"] == "a/b@example.org broadcast"
    listed = await put(api, "GET", "/suppressions?limit=1")
    assert ([item["id"] for item in listed["data"]], listed["has_more"]) == (
        ["a/b@example.org broadcast"],
        True,
    )
    rest = await put(api, "GET", "/suppressions?after=a/b@example.org%20broadcast")
    assert [item["id"] for item in rest["data"]] == ["gone@example.org"]
    for query in ("address=GONE@example.org", "reason=manual"):
        assert [item["id"] for item in (await put(api, "GET", f"/suppressions?{query}"))["data"]] == [
            "gone@example.org"
        ]
    assert len((await put(api, "GET", "/suppressions?stream=broadcast"))["data"]) == 1
    assert (await put(api, "DELETE", "/suppressions/GONE@example.org"))["deleted"] is True
    assert refused(await api.delete("/suppressions/gone@example.org"), 404, "not_found", "/address") is True
    gone = await put(api, "DELETE", "/suppressions/a%2Fb@example.org?stream=broadcast")
    assert gone["id"] == "a/b@example.org broadcast"
    assert (await put(api, "GET", "/suppressions"))["data"] == []


async def test_an_id_of_a_suppression_removes_it(api):
    new = {"address": '"a b"@example.org', "stream": "broadcast"}
    entry = await put(api, "POST", "/suppressions", new)
    await put(api, "DELETE", f"/suppressions/{entry['id']}")
    await put(api, "POST", "/suppressions", {"address": '"a b"@example.org'})
    await put(api, "DELETE", '/suppressions/"a b"@example.org')


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "/address"),
        ({"address": "nobody"}, "invalid_address", "/address"),
        ({"address": "a@b.co", "reason": "x"}, "invalid_reason", "/reason"),
        ({"address": "a@b.co", "expires_at": "soon"}, "invalid_time", "/expires_at"),
        ({"address": "a@b.co", "expires_at": "2020-01-01T00:00:00Z"}, "time_in_past", "/expires_at"),
    ],
)
async def test_a_wrong_suppression_is_refused_at_its_field(api, body, code, field):
    assert refused(await api.post("/suppressions", json=body), 422, code, field) is True
    assert refused(await api.get("/suppressions?address=nobody"), 422, "invalid_address", "/address") is True


async def dead(api, db, count, reason="poison"):
    ids = [(await put(api, "POST", "/emails", EMAIL))["id"] for _ in range(count)]
    with db.connect() as connection:
        connection.execute(
            "with gone as (delete from pgmail.queue where message_id = any (%s::uuid[]) returning *)"
            " insert into pgmail.dead_letter"
            " (tenant_id, recipient_id, message_id, lane, stream, priority, site, reason, attempts)"
            " select tenant_id, id, message_id, lane, 'transactional', 2, 'example.org', %s, 3 from gone",
            [ids, reason],
        )
    return ids


async def test_dead_letters_are_listed_in_pages(api, db):
    ids = await dead(api, db, 3)
    first = await put(api, "GET", "/dead-letters?limit=2")
    assert ([item["email_id"] for item in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    assert (first["data"][0]["address"], first["data"][0]["attempts"]) == ("ada@example.org", 3)
    rest = await put(api, "GET", f"/dead-letters?after={first['data'][1]['id']}")
    assert ([item["email_id"] for item in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    back = await put(api, "GET", f"/dead-letters?limit=1&before={rest['data'][0]['id']}")
    assert ([item["email_id"] for item in back["data"]], back["has_more"]) == ([ids[1]], True)
    assert len((await put(api, "GET", "/dead-letters?reason=poison&site=example.org"))["data"]) == 3
    assert (await put(api, "GET", "/dead-letters?reason=template"))["data"] == []


async def test_dead_letters_are_retried_by_ids_and_by_filter(api, db):
    poison, template = await dead(api, db, 2), await dead(api, db, 2, "template")
    waiting = (await put(api, "POST", "/emails", EMAIL))["id"]
    one = (await put(api, "GET", "/dead-letters?limit=1&reason=poison"))["data"][0]
    by_ids = {"ids": [one["id"], poison[0], waiting], "reason": "fixed"}
    assert (await put(api, "POST", "/dead-letters/retry", by_ids))["retried"] == 2
    old = {"filter": {"reason": "template", "died_before": "2020-01-01T00:00:00Z"}}
    assert (await put(api, "POST", "/dead-letters/retry", old))["retried"] == 0
    some = {"filter": {"reason": "template", "died_after": "2020-01-01T00:00:00Z"}}
    answer = await put(api, "POST", "/dead-letters/retry", some)
    assert answer == {"object": "dead_letters", "retried": 2, "has_more": False}
    states = {email: (await api.get(f"/emails/{email}")).json()["last_event"] for email in poison + template}
    assert set(states.values()) == {"queued"}
    journey = (await put(api, "GET", f"/emails/{poison[0]}/events"))["data"]
    assert journey[-1]["detail"] == "retried by key tests: fixed"


async def test_dead_letters_are_discarded(api, db):
    ids = await dead(api, db, 2)
    answer = await put(api, "POST", "/dead-letters/discard", {"filter": {}})
    assert answer == {"object": "dead_letters", "discarded": 2, "has_more": False}
    assert (await api.get(f"/emails/{ids[0]}")).json()["last_event"] == "canceled"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "/ids"),
        ({"ids": [], "filter": {}}, "missing_field", "/ids"),
        ({"ids": ["x"]}, "invalid_body", "/ids/0"),
        ({"filter": {"state": "x"}}, "unknown_key", "/filter/state"),
        ({"filter": {"died_before": "2020-01-01T00:00:00"}}, "invalid_time", "/filter/died_before"),
        ({"filter": {"stream": "a\0"}}, "invalid_body", "/filter/stream"),
    ],
)
async def test_a_retry_of_everything_by_accident_is_refused(api, body, code, field):
    assert refused(await api.post("/dead-letters/retry", json=body), 422, code, field) is True


async def in_doubt(api, db, *to, relay="default"):
    """Mail whose worker died after the dot; the emails' ids."""
    with db.connect() as owner, db.connect("worker") as connection:
        stream(owner, "careful", on_doubt="hold")
        ids = [
            (await put(api, "POST", "/emails", EMAIL | {"to": address, "stream": "careful"}))["id"]
            for address in to
        ]
        hand = Hand(connection)
        assert set(hand.begin(hand.claim(holds=True), relay)) == {"begun"}
        hand.rescue()
    return ids


async def test_what_is_in_doubt_is_listed_in_pages_and_by_filter(api, db):
    a, b = await in_doubt(api, db, "a@example.org", "b@example.net", relay="second")
    first = await put(api, "GET", "/in-doubt?limit=1")
    assert ([item["email_id"] for item in first["data"]], first["has_more"]) == ([b], True)
    item = first["data"][0]
    assert (item["object"], item["address"], item["relay"]) == ("in_doubt", "b@example.net", "second")
    assert item["reason"].startswith("in doubt: ")
    rest = await put(api, "GET", f"/in-doubt?after={item['id']}")
    assert ([item["email_id"] for item in rest["data"]], rest["has_more"]) == ([a], False)
    back = await put(api, "GET", f"/in-doubt?before={rest['data'][0]['id']}")
    assert [item["email_id"] for item in back["data"]] == [b]
    query = f"site=example.org&relay=second&recipient=A@example.org&worker={item['worker']}"
    query += "&doubted_after=2020-01-01T00:00:00Z"
    assert [item["email_id"] for item in (await put(api, "GET", f"/in-doubt?{query}"))["data"]] == [a]
    assert (await put(api, "GET", "/in-doubt?doubted_before=2020-01-01T00:00:00Z"))["data"] == []


async def test_what_is_in_doubt_is_resolved_by_ids_and_by_filter(api, db):
    a, b = await in_doubt(api, db, "a@example.org", "b@example.net")
    by_id = {"how": "assume_sent", "ids": [a], "reason": "in their log"}
    answer = await put(api, "POST", "/in-doubt/resolve", by_id)
    assert answer == {"object": "in_doubt", "resolved": 1, "has_more": False}
    journey = (await put(api, "GET", f"/emails/{a}/events"))["data"]
    assert (journey[-1]["type"], journey[-1]["detail"]) == (
        "email.sent",
        "assumed sent by key tests: in their log",
    )
    by_filter = {"how": "resend", "filter": {"site": "example.net"}}
    assert (await put(api, "POST", "/in-doubt/resolve", by_filter))["resolved"] == 1
    assert (await put(api, "GET", f"/emails/{b}"))["last_event"] == "queued"
    assert (await put(api, "GET", "/in-doubt"))["data"] == []


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"filter": {}}, "missing_field", "/how"),
        ({"how": "resend"}, "missing_field", "/ids"),
        ({"how": "forget", "filter": {}}, "invalid_body", "/how"),
        ({"how": "resend", "filter": {"lane": "x"}}, "unknown_key", "/filter/lane"),
        ({"how": "resend", "filter": {"recipient": "nobody"}}, "invalid_address", "/filter/recipient"),
        (
            {"how": "resend", "filter": {"doubted_after": "2020-01-01T00:00:00"}},
            "invalid_time",
            "/filter/doubted_after",
        ),
    ],
)
async def test_a_slip_resolves_nothing(api, body, code, field):
    assert refused(await api.post("/in-doubt/resolve", json=body), 422, code, field) is True


async def test_dead_letters_are_found_by_recipient_text_and_time(api, db):
    (mail,) = await dead(api, db, 1)
    with db.connect() as connection:
        connection.execute("update pgmail.dead_letter set error = 'no variable NAME', reply = 'mailbox full'")
    for query in (
        "recipient=Ada@example.org",
        "text=variable+name",
        "text=FULL",
        "died_after=2020-01-01T00:00:00Z",
    ):
        assert [x["email_id"] for x in (await put(api, "GET", f"/dead-letters?{query}"))["data"]] == [mail]
    for query in ("recipient=eve@example.org", "text=other", "died_before=2020-01-01T00:00:00Z"):
        assert (await put(api, "GET", f"/dead-letters?{query}"))["data"] == []
    some = {"filter": {"text": "full", "recipient": "ada@example.org"}}
    assert (await put(api, "POST", "/dead-letters/retry", some))["retried"] == 1


async def test_the_queue_tells_depth_and_age_by_stream_and_site(api, db):
    empty = await put(api, "GET", "/queue")
    assert empty.pop("counted_at")
    assert empty == {
        "object": "queue",
        **dict.fromkeys(("depth", "queued", "scheduled", "deferred", "held", "sending"), 0),
        "oldest_due_at": None,
        "lanes": 0,
        "has_more": False,
        "data": [],
    }
    await put(api, "POST", "/emails", EMAIL | {"to": ["a@example.org", "b@gmail.com", "c@googlemail.com"]})
    await put(api, "POST", "/emails", EMAIL | {"stream": "broadcast", "scheduled_at": "in 1 hour"})
    with db.connect() as connection:
        connection.execute("select pgmail.fold_touches_v1()")
    await put(api, "POST", "/emails", EMAIL | {"priority": "high", "to": "d@example.net"})
    told = await put(api, "GET", "/queue")
    assert (told["depth"], told["queued"], told["scheduled"]) == (5, 4, 1)
    assert {(item["stream"], item["priority"], item["site"], item["depth"]) for item in told["data"]} == {
        ("broadcast", "low", "example.org", 1),
        ("transactional", "high", "example.net", 1),
        ("transactional", "normal", "example.org", 1),
        ("transactional", "normal", "gmail.com", 2),
    }
    assert told["oldest_due_at"] == min(
        item["oldest_due_at"] for item in told["data"] if item["oldest_due_at"]
    )
    deepest = await put(api, "GET", "/queue?limit=1")
    assert (deepest["depth"], deepest["lanes"], deepest["has_more"]) == (5, 4, True)
    assert [item["site"] for item in deepest["data"]] == ["gmail.com"]
    for query, depth, lanes in (
        ("stream=transactional", 4, 3),
        ("site=EXAMPLE.org", 2, 2),
        ("site=nowhere.org", 0, 0),
    ):
        some = await put(api, "GET", f"/queue?{query}")
        assert (some["depth"], some["lanes"], some["has_more"]) == (depth, lanes, False), query
