"""What a key may do over HTTP: its scopes, its limits, its end, and keys that make keys."""

import contextlib
import re
from uuid import uuid4

import pytest

from pgmail.access import guesses, keyring
from pgmail.api.app import GUARDED, create_app
from pgmail.clock import ManualClock
from pgmail.config import Settings
from pgmail.domain.keys import SCOPES, make_key
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Limits
from tests.api.conftest import EMAIL, client

NEWS = EMAIL | {"stream": "news"}


@pytest.fixture
async def admin(db):
    """The command line's connection."""
    database = Database(db.dsn_for("admin"), name="test", low=0, high=2)
    await database.open()
    async with database.connection() as connection:
        await connection.execute("select pgmail.save_stream('news', '{}')")
        yield connection
    await database.close()


@pytest.fixture
async def door(db, admin):
    """Make a key with these limits, and speak with it: `door(scopes=["send"])`."""
    async with contextlib.AsyncExitStack() as stack:

        async def enter(**limits):
            settings, clock = limits.pop("settings", None), limits.pop("clock", None)
            made = await keys.create(admin, "limited", Limits(**limits))
            opened = client(db.dsn_for("api"), made.key, settings=settings, clock=clock)
            return await stack.enter_async_context(opened), made

        yield enter


def doubt(owner, *ids):
    owner.execute(
        "update pgmail.queue set in_doubt = true, wait = null, due_at = 'infinity', held_due_at = now(),"
        " hold_reason = 'test' where message_id = any (%s)",
        [list(ids)],
    )


def bury(owner, *ids):
    owner.execute(
        "with gone as (delete from pgmail.queue where message_id = any (%s) returning *)"
        " insert into pgmail.dead_letter"
        " (tenant_id, recipient_id, message_id, lane, stream, priority, site, died_at, reason, attempts)"
        " select g.tenant_id, g.id, g.message_id, g.lane, m.stream, m.priority, r.site, now(), 'poison', 1"
        " from gone g"
        " join pgmail.message m on m.tenant_id = g.tenant_id and m.id = g.message_id"
        " join pgmail.recipient r on r.tenant_id = g.tenant_id and r.id = g.id",
        [list(ids)],
    )


def routes():
    app = create_app(Settings(), Database("postgresql:///none", name="none"))
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if handler.resolve_guards():
                for method in handler.http_methods - {"OPTIONS"}:
                    yield method, re.sub(r"\{\w+:\w+\}", str(uuid4()), route.path), handler.opt.get("scope")


def test_every_guarded_route_declares_scopes_that_there_are():
    found = list(routes())
    assert len(found) == len(GUARDED)
    for method, path, scope in found:
        wanted = (scope,) if isinstance(scope, str) else scope
        assert wanted, f"{method} {path} declares no scope"
        assert set(wanted) <= set(SCOPES), f"{method} {path}"


ENDLESS = {"/events/stream"}  # its answer does not end; tests/api/test_api_feed.py has it
ALSO_READ = {"POST /webhooks", "PATCH /webhooks/{id}"}  # who hears of events must be allowed to read, too


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_passes_the_routes_of_its_scope_and_no_others(door, scope):
    api, _ = await door(scopes=[scope])
    for method, path, declared in routes():
        wanted = {declared} if isinstance(declared, str) else set(declared)
        if path in ENDLESS:
            continue
        answer = await api.request(method, path, content=b"[", headers={"Content-Type": "application/json"})
        refused = answer.status_code == 403 and answer.json()["code"] == "missing_scope"
        if f"{method} {re.sub('[0-9a-f-]{36}', '{id}', path)}" in ALSO_READ and scope in wanted:
            wanted = {"read"}
        assert refused == (scope != "admin" and scope not in wanted), (method, path, answer.text)
        if refused:
            assert answer.json()["name"] == "restricted_api_key"
            assert all(word in answer.json()["detail"] for word in wanted)


async def test_any_valid_key_may_ask_which_methods_a_route_has(door):
    for scope in SCOPES:
        api, _ = await door(scopes=[scope])
        answer = await api.options("/keys")
        assert (answer.status_code, "POST" in answer.headers["allow"]) == (204, True)


async def test_keys_of_before_do_all_but_keys(db, api):
    assert (await api.post("/emails", json=EMAIL)).status_code == 200
    assert (await api.get("/emails")).status_code == 200
    assert (await api.put("/streams/more", json={})).status_code == 200
    assert (await api.get("/keys")).status_code == 403


async def test_a_key_that_may_only_send_changes_what_it_sent_and_nothing_else(door, api):
    mine, made = await door(scopes=["send"])
    later = {"scheduled_at": "in 2 hours"}
    single = (await mine.post("/emails", json=EMAIL | later)).json()["id"]
    (batched,) = (await mine.post("/emails/batch", json=[EMAIL | later])).json()["data"]
    theirs = (await api.post("/emails", json=EMAIL | later)).json()["id"]
    assert (await mine.get(f"/emails/{single}")).status_code == 403
    for other in (theirs, str(uuid4())):
        for answer in (
            await mine.post(f"/emails/{other}/cancel"),
            await mine.patch(f"/emails/{other}", json={"scheduled_at": "in 1 hour"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert answer.json()["detail"] == f"no email or recipient has the id {other}"
    assert (await mine.patch(f"/emails/{single}", json={"scheduled_at": "in 1 hour"})).json()["reached"] == 1
    (recipient,) = (await api.get(f"/emails/{single}")).json()["recipients"]
    assert (await mine.post(f"/emails/{recipient['id']}/cancel")).json()["reached"] == 1
    # Who follows it by rotation has sent it too.
    boss, _ = await door(scopes=["admin"])
    second = (await boss.post(f"/keys/{made.id}/rotate")).json()["key"]
    header = {"Authorization": f"Bearer {second}"}
    assert (await mine.post(f"/emails/{batched['id']}/cancel", headers=header)).json()["reached"] == 1
    assert (await mine.post(f"/emails/{theirs}/cancel", headers=header)).status_code == 404


async def test_a_key_of_one_stream_sees_and_changes_no_other(door, api, owner):
    mine, _ = await door(streams=["news"])
    other = (await api.post("/emails", json=EMAIL)).json()["id"]
    inside = (await api.post("/emails", json=NEWS)).json()["id"]
    refused = await mine.post("/emails", json=EMAIL)
    assert (refused.status_code, refused.json()["field"]) == (403, "/stream")
    assert (await mine.post("/emails", json=NEWS)).status_code == 200

    assert {row["stream"] for row in (await mine.get("/emails")).json()["data"]} == {"news"}
    assert {row["stream"] for row in (await mine.get("/queue")).json()["data"]} == {"news"}
    assert (await mine.get("/emails?stream=transactional")).json()["field"] == "/stream"
    for path in ("", "/events"):
        assert (await mine.get(f"/emails/{inside}{path}")).status_code == 200
        assert (await mine.get(f"/emails/{other}{path}")).status_code == 404
    for act in ("cancel", "hold", "release"):
        assert (await mine.post(f"/emails/{other}/{act}")).status_code == 404
    assert (await mine.post(f"/emails/{inside}/hold")).status_code == 200
    for path, body in (
        ("/lanes/pause", {"stream": "transactional", "reason": "r"}),
        ("/lanes/pause", {"site": "example.org", "reason": "r"}),
        ("/erase", {"address": "ada@example.org", "reason": "r"}),
        ("/suppressions", {"address": "ada@example.org"}),
        ("/suppressions", [{"address": "ada@example.org", "stream": "transactional"}]),
    ):
        answer = await mine.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "stream_not_allowed"), path
    assert (await mine.put("/streams/broadcast", json={})).status_code == 403
    assert (await mine.post("/lanes/pause", json={"stream": "news", "reason": "r"})).status_code == 200


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"streams": ["news"]}, "stream_not_allowed"), ({"from_domains": ["news.example"]}, "from_not_allowed")],
)
async def test_a_limited_key_decides_on_no_domain_of_the_whole_tenant(door, owner, limits, code):
    owner.execute("select pgmail.trust_domain('example.com', 'a test')")
    mine, _ = await door(**limits)
    for answer in (
        await mine.delete("/domains/example.com"),
        await mine.post("/domains", json={"name": "other.example"}),
        await mine.post("/domains/example.com/verify"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, code)
    assert [row["name"] for row in (await mine.get("/domains")).json()["data"]] == ["example.com"]


async def test_the_audit_tells_of_all_streams_so_a_key_of_one_does_not_see_it(door, api):
    mine, _ = await door(streams=["news"])
    answer = await mine.get("/audit")
    assert (answer.status_code, answer.json()["code"]) == (403, "stream_not_allowed")
    assert (await api.get("/audit")).status_code == 200


async def test_dead_letters_and_doubts_of_other_streams_stay_out_of_reach(door, api, owner):
    mine, _ = await door(streams=["news"])
    ids = [(await api.post("/emails", json=body)).json()["id"] for body in (EMAIL, NEWS, EMAIL, NEWS)]
    doubt(owner, *ids[2:])
    bury(owner, *ids[:2])
    for path in ("/dead-letters", "/in-doubt"):
        assert [row["stream"] for row in (await mine.get(path)).json()["data"]] == ["news"]
        assert (await mine.get(f"{path}?stream=transactional")).status_code == 403
        assert len((await api.get(path)).json()["data"]) == 2
    assert (await mine.post("/dead-letters/discard", json={"ids": ids[:1]})).json()["discarded"] == 0
    assert (await mine.post("/dead-letters/discard", json={"filter": {}})).json()["discarded"] == 1
    resolve = {"how": "assume_sent"}
    assert (await mine.post("/in-doubt/resolve", json=resolve | {"ids": ids[2:3]})).status_code == 404
    assert (await mine.post("/in-doubt/resolve", json=resolve | {"filter": {}})).json()["resolved"] == 1
    assert len((await api.get("/in-doubt")).json()["data"]) == 1


async def test_a_key_sends_from_its_domains_only_alone_and_in_batches(door):
    mine, _ = await door(from_domains=["*.example.com"])
    good = EMAIL | {"from": "a@mail.example.com"}
    refused = await mine.post("/emails", json=EMAIL)
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        403, "from_not_allowed", "/from",
    )  # fmt: skip
    assert (await mine.post("/emails", json=good)).status_code == 200
    assert (await mine.post("/emails/batch", json=[good, EMAIL])).json()["field"] == "/1/from"
    loose = {"x-batch-validation": "permissive"}
    answer = (await mine.post("/emails/batch", json=[good, EMAIL], headers=loose)).json()
    assert len(answer["data"]) == 1
    assert [(fault["index"], fault["code"]) for fault in answer["errors"]] == [(1, "from_not_allowed")]


async def test_a_key_of_a_network_works_from_there_only(door):
    proxied = Settings(trusted_proxies="127.0.0.0/8")
    mine, _ = await door(networks=["192.0.2.0/24"], settings=proxied)
    for address, status in (
        ("192.0.2.7", 200),
        ("192.0.3.7", 403),
        ("::ffff:192.0.2.9", 200),
        ("x", 403),
        ("192.0.2.7:4711", 200),
        ("192.0.3.7:4711", 403),
        ("[::ffff:192.0.2.9]:4711", 200),
        ("[2001:db8::7]:4711", 403),
    ):
        headers = {"X-Forwarded-For": f"192.0.2.1, {address}"}
        assert (await mine.get("/queue", headers=headers)).status_code == status, address
        assert (await mine.post("/emails", json=EMAIL, headers=headers)).status_code == status, address
    unproxied, _ = await door(networks=["192.0.2.0/24"])
    answer = await unproxied.get("/queue", headers={"X-Forwarded-For": "192.0.2.7"})
    assert (answer.status_code, answer.json()["code"]) == (403, "network_not_allowed")


async def test_a_use_from_a_network_that_is_refused_is_not_the_last_use(door, owner):
    proxied = Settings(trusted_proxies="127.0.0.0/8")
    mine, made = await door(networks=["192.0.2.0/24"], settings=proxied)

    async def used(address):
        answer = await mine.get("/queue", headers={"X-Forwarded-For": address})
        await mine.app.state.keyring.notes.flush()
        told = "select host(last_used_from) from pgmail.api_key where id = %s"
        return answer.status_code, owner.execute(told, [made.id]).fetchone()[0]

    assert await used("198.51.100.7") == (403, None)
    assert await used("192.0.2.7") == (200, "192.0.2.7")  # though the look-up was the other one's
    assert await used("198.51.100.7") == (403, "192.0.2.7")


async def test_a_key_ends_when_it_expires_though_its_answer_is_kept(door, owner, monkeypatch):
    clock = ManualClock()
    mine, made = await door(clock=clock)
    # Half a minute by the real clock, which a busy machine may use up some of; by the process's own all of it is over.
    monkeypatch.setattr(keyring, "TTL_SECONDS", 3600.0)
    owner.execute(
        "update pgmail.api_key set expires_at = pgmail.now() + interval '30 s' where id = %s", [made.id]
    )
    assert (await mine.get("/queue")).status_code == 200
    owner.execute("update pgmail.api_key set expires_at = pgmail.now() where id = %s", [made.id])
    assert (await mine.get("/queue")).status_code == 200  # by the answer that is kept
    await clock.advance(30)  # less than what an answer is kept for otherwise
    assert (await mine.get("/queue")).status_code == 401


async def test_a_rotated_key_and_its_follower_both_work_until_the_overlap_has_passed(door, owner):
    clock = ManualClock()
    boss, _ = await door(scopes=["admin"])
    mine, made = await door(streams=["news"], scopes=["read", "send"], networks=["127.0.0.1"], clock=clock)
    answer = (await boss.post(f"/keys/{made.id}/rotate", json={"overlap": 60})).json()
    assert answer["replaces"] == str(made.id)
    assert (answer["scopes"], answer["streams"], answer["networks"]) == (
        ["read", "send"], ["news"], ["127.0.0.1/32"],
    )  # fmt: skip
    new = {"Authorization": f"Bearer {answer['key']}"}
    assert (await mine.get("/queue")).status_code == 200
    assert (await mine.get("/queue", headers=new)).status_code == 200
    assert (await boss.post(f"/keys/{made.id}/rotate")).json()["code"] == "already_rotated"
    (ends,) = owner.execute(
        "select expires_at between now() + interval '20 s' and now() + interval '60 s' from pgmail.api_key"
        " where id = %s", [made.id]).fetchone()  # fmt: skip
    assert ends
    owner.execute("update pgmail.api_key set expires_at = pgmail.now() where id = %s", [made.id])
    await clock.advance(1)
    assert (await mine.get("/queue")).status_code == 401
    assert (await mine.get("/queue", headers=new)).status_code == 200
    gone = await boss.delete(f"/keys/{answer['id']}")
    assert gone.json() == {"object": "key", "id": answer["id"], "deleted": True}
    await clock.advance(1)
    assert (await mine.get("/queue", headers=new)).status_code == 401
    assert (await boss.delete(f"/keys/{answer['id']}")).status_code == 404
    done = owner.execute(
        "select action, actor from pgmail.audit where action ~ '^key' order by id"
    ).fetchall()
    assert done[-2:] == [("key.rotate", "key limited"), ("key.revoke", "key limited")]


async def test_a_key_is_made_by_an_admin_key_and_works(door):
    boss, _ = await door(scopes=["admin"])
    made = (
        await boss.post("/keys", json={"name": "shop", "scopes": ["send"], "from_domains": ["Example.COM"]})
    ).json()
    assert re.fullmatch(r"pgm_live_[\w-]{43}", made["key"])
    assert (made["scopes"], made["from_domains"], made["expires_at"]) == (["send"], ["example.com"], None)
    answer = await boss.post("/emails", json=EMAIL, headers={"Authorization": f"Bearer {made['key']}"})
    assert answer.status_code == 200
    listed = (await boss.get("/keys")).json()["data"]
    assert [row["name"] for row in listed] == ["limited", "shop"]
    assert made["key"] not in str(listed)


MORE = [
    ({}, None),
    ({"streams": ["news", "transactional"]}, "/streams"),
    ({"from_domains": ["example.org"]}, "/from_domains"),
    ({"from_domains": ["*.example.com"]}, None),
    ({"networks": ["127.0.0.0/8"]}, "/networks"),
    ({"networks": ["127.0.0.1"]}, None),
    ({"expires_at": "in 3 days"}, "/expires_at"),
    ({"test": False}, "/test"),
]


async def test_no_key_gets_more_than_its_maker_has(door):
    limits = {
        "streams": ["news"], "from_domains": ["example.com", "*.example.com"], "networks": ["127.0.0.1", "10.0.0.0/8"],
    }  # fmt: skip
    plain, maker = await door(scopes=["admin"])
    made = (
        await plain.post(
            "/keys", json={"name": "boss", "scopes": ["admin"], "expires_at": "in 2 days"} | limits
        )
    ).json()
    boss = {"Authorization": f"Bearer {made['key']}"}
    for more, field in MORE[:-1]:
        answer = await plain.post("/keys", json={"name": "shop"} | more, headers=boss)
        if field is None:
            assert answer.json()["streams"] == ["news"]
            assert answer.json()["expires_at"] == made["expires_at"]
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "exceeds_key"), more
            assert answer.json()["field"] == field
    # Nor does it get one by rotation, nor end one that has more.
    for answer in (
        await plain.post(f"/keys/{maker.id}/rotate", headers=boss),
        await plain.delete(f"/keys/{maker.id}", headers=boss),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert str(maker.id) not in (await plain.get("/keys", headers=boss)).text
    again = (await plain.post(f"/keys/{made['id']}/rotate", headers=boss)).json()
    assert again["expires_at"] <= made["expires_at"]


async def test_a_key_for_tests_sees_and_changes_tests_only(door, api):
    mine, _ = await door(test=True, scopes=["admin"])
    later = EMAIL | {"scheduled_at": "in 2 hours"}
    live = (await api.post("/emails", json=later)).json()["id"]
    test = (await mine.post("/emails", json=later)).json()["id"]
    assert [row["id"] for row in (await mine.get("/emails")).json()["data"]] == [test]
    assert len((await api.get("/emails")).json()["data"]) == 2
    (recipient,) = (await api.get(f"/emails/{live}")).json()["recipients"]
    for query in (
        "recipient=ada@example.org",
        "state=scheduled",
        f"stream={EMAIL.get('stream', 'transactional')}",
    ):
        assert [row["id"] for row in (await mine.get(f"/emails?{query}")).json()["data"]] == [test], query
    queue = (await mine.get("/queue")).json()
    assert (queue["depth"], [row["site"] for row in queue["data"]]) == (1, ["test:"])
    for id_, status in ((live, 404), (recipient["id"], 404), (test, 200)):
        for path in ("", "/events"):
            assert (await mine.get(f"/emails/{id_}{path}")).status_code == status
        assert (await mine.patch(f"/emails/{id_}", json={"scheduled_at": "in 1 hour"})).status_code == status
        for act in ("hold", "release", "cancel"):
            assert (await mine.post(f"/emails/{id_}/{act}")).status_code == status, act


async def test_a_key_for_tests_decides_on_no_live_mail(door, api, owner):
    mine, _ = await door(test=True, scopes=["manage", "send"])
    dead, doubted = [
        [(await who.post("/emails", json=EMAIL)).json()["id"] for who in (api, mine)] for _ in range(2)
    ]
    bury(owner, *dead)
    doubt(owner, *doubted)
    for path, (live, test) in (("/dead-letters", dead), ("/in-doubt", doubted)):
        assert [row["email_id"] for row in (await mine.get(path)).json()["data"]] == [test]
        refused = await mine.get(f"{path}?site=example.org")
        assert (refused.status_code, refused.json()["code"]) == (403, "live_only")
        assert {row["email_id"] for row in (await api.get(path)).json()["data"]} == {live, test}
    for path, how, (live, _) in (
        ("/dead-letters/retry", {}, dead),
        ("/dead-letters/discard", {}, dead),
        ("/in-doubt/resolve", {"how": "resend"}, doubted),
    ):
        assert (await mine.post(path, json=how | {"ids": [live]})).status_code == 404
        assert (await mine.post(path, json=how | {"filter": {"site": "example.org"}})).status_code == 403
    retried = (await mine.post("/dead-letters/retry", json={"filter": {}})).json()
    resolved = (await mine.post("/in-doubt/resolve", json={"how": "resend", "filter": {}})).json()
    assert (retried["retried"], resolved["resolved"]) == (1, 1)
    for path in ("/dead-letters", "/in-doubt"):
        assert len((await api.get(path)).json()["data"]) == 1


TESTS_MAY = {
    "POST /emails", "POST /emails/batch", "PATCH /emails/{id}", "POST /emails/{id}/cancel", "POST /emails/{id}/hold",
    "POST /emails/{id}/release", "POST /dead-letters/retry", "POST /dead-letters/discard", "POST /in-doubt/resolve",
    "POST /keys", "POST /keys/{id}/rotate", "DELETE /keys/{id}",
}  # fmt: skip
HIDDEN = {
    "GET /alerts",
    "GET /audit",
    "GET /suppressions",
    "GET /suppressions/export",
    "GET /reports",
    "GET /reports/causes",
    "GET /webhooks",
    "GET /webhooks/{id}",
    "GET /webhooks/{id}/deliveries",
}


async def test_a_key_for_tests_changes_nothing_that_is_the_whole_tenants(door):
    """A route that changes something is closed to such keys until it says otherwise."""
    mine, _ = await door(test=True, scopes=["admin"])
    wrong = []
    for method, path, _ in routes():
        if path in ENDLESS:
            continue
        answer = await mine.request(method, path, content=b"[", headers={"Content-Type": "application/json"})
        refused = answer.status_code == 403 and answer.json()["code"] == "live_only"
        name = f"{method} {re.sub('[0-9a-f-]{36}', '{id}', path)}"
        shut = name not in TESTS_MAY if method != "GET" else name in HIDDEN
        if refused != shut:
            wrong.append((name, answer.text))
    assert not wrong


async def test_a_key_for_tests_may_send_unless_more_is_said(door):
    assert [(await door(test=test))[1].scopes for test in (True, False)] == [
        ["send"],
        ["send", "read", "manage"],
    ]
    boss, _ = await door(test=True, scopes=["admin"])
    assert (await boss.post("/keys", json={"name": "t"})).json()["scopes"] == ["send"]


async def test_a_key_for_tests_makes_keys_for_tests_only(door):
    boss, _ = await door(scopes=["admin"], test=True)
    assert (await boss.post("/keys", json={"name": "t"})).json()["key"].startswith("pgm_test_")
    answer = await boss.post("/keys", json={"name": "t", "test": False})
    assert answer.status_code in {403, 422}
    assert answer.json()["field"] == "/test"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "/name"),
        ({"name": " "}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "x", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "streams": ["none"]}, "/streams/0"),
        ({"name": "x", "from_domains": ["example.com", "*"]}, "/from_domains/1"),
        ({"name": "x", "networks": ["10.0.0.1/8"]}, "/networks/0"),
        ({"name": "x", "networks": ["everywhere"]}, "/networks/0"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "expires_at": "some day"}, "/expires_at"),
        ({"name": "x", "limits": 1}, "/limits"),
    ],
)
async def test_limits_that_are_none_are_refused_with_their_field(door, body, field):
    boss, _ = await door(scopes=["admin"])
    answer = await boss.post("/keys", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_who_tries_keys_is_slowed_and_told_while_valid_keys_work(door, db, owner, monkeypatch):
    monkeypatch.setattr(guesses, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(guesses, "FREE", 3)
    mine, _ = await door(clock=ManualClock())
    bad = {"Authorization": f"Bearer {make_key()[0]}"}
    for _ in range(3):
        assert (await mine.get("/queue", headers=bad)).status_code == 401
    answer = await mine.get("/queue", headers=bad)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_tries")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await mine.post("/emails", json=EMAIL, headers=bad)).status_code == 429
    assert (await mine.get("/queue")).status_code == 200  # a key that this process has not seen before
    notes = mine.app.state.keyring.notes
    await notes.flush()
    await notes.flush()
    told = owner.execute("select object, reason from pgmail.audit where action = 'key.guess'").fetchall()
    assert told == [("127.0.0.1", "5 tries with keys that are none")]


async def test_the_last_use_of_a_key_is_told_once_a_minute(door, owner):
    clock = ManualClock()
    mine, made = await door(clock=clock)
    notes = mine.app.state.keyring.notes

    def told():
        return owner.execute(
            "select last_used_at > now() - interval '1 min', host(last_used_from) from pgmail.api_key where id = %s",
            [made.id],
        ).fetchone()

    assert (await mine.get("/queue")).status_code == 200
    assert told() == (None, None)
    await notes.flush()
    assert told() == (True, "127.0.0.1")
    owner.execute("update pgmail.api_key set last_used_at = null, last_used_from = null")
    await clock.advance(10)
    assert (await mine.get("/queue")).status_code == 200
    await notes.flush()
    assert told() == (None, None)
    await clock.advance(60)
    await notes.flush()
    assert told()[1] == "127.0.0.1"
