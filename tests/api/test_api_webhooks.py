"""`/webhooks`: made, shown, changed, rotated, tested and replayed, by who may, and with its secret told once."""

import os
from uuid import UUID

import pytest

from pgmail.config import Settings
from pgmail.domain.keys import make_key
from pgmail.domain.webhooks import read_secret
from pgmail.sealing.keks import Keks
from tests.api.conftest import client, new_key
from tests.sql.kit import one, rows

URL = "https://hooks.example.com/mail"


@pytest.fixture
async def api(db, key):
    async with client(db.dsn_for("api"), key, keks=Keks({"first": os.urandom(32)})) as made:
        yield made


async def add(api, **more):
    answer = await api.post("/webhooks", json={"endpoint": URL} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_endpoint_shows_its_secret_once(api, owner):
    made = await add(api, events=["email.bounced", "email.c*"], streams=["transactional"], tags={"kind": "a"})
    assert len(read_secret(made["signing_secret"])) == 32
    shown = (await api.get(f"/webhooks/{made['id']}")).json()
    assert "signing_secret" not in shown
    assert shown == {name: value for name, value in made.items() if name != "signing_secret"}
    assert (shown["object"], shown["endpoint"], shown["status"]) == ("webhook", URL, "enabled")
    assert (shown["events"], shown["streams"]) == (["email.bounced", "email.c*"], ["transactional"])
    assert (shown["tags"], shown["waiting"]) == ({"kind": "a"}, 0)
    assert (await api.get("/webhooks")).json()["data"] == [shown]
    assert rows(owner, "select actor, action from pgmail.audit where action like 'webhook%'") == [
        ("key tests", "webhook.create")
    ]
    assert made["signing_secret"] not in str(rows(owner, "select * from pgmail.hook_secret"))


async def test_without_keys_to_seal_with_none_can_be_made_and_the_error_says_what_to_do(db, key):
    async with client(db.dsn_for("api"), key) as api:
        answer = await api.post("/webhooks", json={"endpoint": URL})
        assert (answer.status_code, answer.json()["code"]) == (503, "sealing_unavailable")
        assert "PGMAIL_SEAL_KEYS" in answer.json()["detail"]
        assert "pgmail seal key" in answer.json()["detail"]
        assert (await api.get("/webhooks")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "/endpoint", "missing_field"),
        ({"endpoint": "http://hooks.example.com/"}, "/endpoint", "invalid_url"),
        ({"endpoint": "https://127.0.0.1/"}, "/endpoint", "invalid_url"),
        ({"endpoint": "https://169.254.169.254/latest"}, "/endpoint", "invalid_url"),
        ({"endpoint": "https://user:pw@example.com/"}, "/endpoint", "invalid_url"),
        ({"endpoint": "https://example.com:25/"}, "/endpoint", "invalid_url"),
        ({"endpoint": "file:///etc/passwd"}, "/endpoint", "invalid_url"),
        ({"endpoint": URL, "events": []}, "/events", "invalid_body"),
        ({"endpoint": URL, "events": ["email.eaten"]}, "/events/0", "invalid_event_type"),
        ({"endpoint": URL, "events": ["email.sent", "sms.*"]}, "/events/1", "invalid_event_type"),
        ({"endpoint": URL, "events": ["email.*sent"]}, "/events/0", "invalid_event_type"),
        ({"endpoint": URL, "streams": [""]}, "/streams", "invalid_field"),
        ({"endpoint": URL, "tags": {}}, "/tags", "invalid_field"),
        ({"endpoint": URL, "tags": {"a": 1}}, "/tags", "invalid_body"),
        ({"endpoint": URL, "description": "x" * 501}, "/description", "invalid_field"),
        ({"endpoint": URL, "signing_secret": "short"}, "/signing_secret", "invalid_secret"),
        ({"endpoint": URL, "colour": "red"}, "/colour", "unknown_key"),
    ],
)
async def test_what_no_endpoint_can_be_is_refused_at_its_field(api, body, field, code):
    answer = await api.post("/webhooks", json=body)
    assert answer.status_code == 422, answer.text
    told = answer.json()
    assert (told["code"], told["field"].startswith(field)) == (code, True), told


async def test_allowed_networks_may_be_named_also_by_http(db, key):
    settings = Settings(hook_networks="10.0.0.0/8")
    async with client(db.dsn_for("api"), key, settings=settings, keks=Keks({"a": os.urandom(32)})) as api:
        await add(api, endpoint="http://10.1.2.3:8080/a")
        assert (await api.post("/webhooks", json={"endpoint": "http://11.1.2.3/"})).status_code == 422


async def test_changes_are_of_what_is_named_alone(api, owner):
    made = await add(api, streams=["transactional"])
    path = f"/webhooks/{made['id']}"
    changed = (await api.patch(path, json={"streams": None, "description": "ours"})).json()
    assert (changed["streams"], changed["description"], changed["events"]) == (None, "ours", ["email.*"])
    off = (await api.patch(path, json={"status": "disabled", "reason": "a fire"})).json()
    assert off["status"] == "disabled"
    assert off["reason"] == "disabled by key tests: a fire"
    owner.execute("update pgmail.hook set fails = 9, failing_since = now(), rest_until = 'infinity'")
    on = (await api.patch(path, json={"status": "enabled"})).json()
    assert (on["status"], on["reason"], on["failing_since"], on["rest_until"]) == (
        "enabled",
        None,
        None,
        None,
    )
    assert (await api.patch(path, json={"status": "asleep"})).status_code == 422
    assert (await api.patch(path, json={"endpoint": "https://10.0.0.1/"})).json()["code"] == "invalid_url"
    assert (await api.delete(path)).json() == {"object": "webhook", "id": made["id"], "deleted": True}
    assert (await api.get(path)).status_code == 404
    assert (await api.patch(path, json={"description": "x"})).status_code == 404


async def test_rotation_answers_the_new_secret_and_when_the_old_one_ends(api):
    made = await add(api)
    turned = (await api.post(f"/webhooks/{made['id']}/rotate", json={"overlap": 3600})).json()
    assert turned["signing_secret"] != made["signing_secret"]
    assert [secret["ends_at"] is None for secret in turned["secrets"]] == [True, False]
    assert turned["replaced_expires_at"] is not None
    again = (await api.post(f"/webhooks/{made['id']}/rotate")).json()
    assert len(again["secrets"]) == 2  # never more
    mine = "whsec_" + "QUJDRA" * 8
    own = await api.post(f"/webhooks/{made['id']}/rotate", json={"signing_secret": mine, "overlap": 0})
    assert own.json()["signing_secret"] == mine
    assert len(own.json()["secrets"]) == 1


async def test_a_sample_is_queued_and_the_log_is_listed_and_replayed(api, owner):
    made = await add(api)
    path = f"/webhooks/{made['id']}"
    event = (await api.post(f"{path}/test")).json()["event"]
    assert (await api.get(path)).json()["waiting"] == 1
    owner.execute("delete from pgmail.hook_queue")
    owner.execute(
        "insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, type, event_at, attempt, outcome, status, ms) "
        "values (1, %s, %s, 'webhook.test', now(), 10, 'failed', 500, 12)",
        [made["id"], event],
    )
    (call,) = (await api.get(f"{path}/deliveries")).json()["data"]
    assert (call["event"], call["outcome"], call["status"], call["ms"]) == (event, "failed", 500, 12)
    for query, found in (
        ({"outcome": "failed"}, 1),
        ({"outcome": "delivered"}, 0),
        ({"type": "email.sent"}, 0),
        ({"event": event}, 1),
        ({"since": "2099-01-01T00:00:00Z"}, 0),
        ({"after": call["id"]}, 0),
    ):
        assert len((await api.get(f"{path}/deliveries", params=query)).json()["data"]) == found, query
    assert (await api.get(f"{path}/deliveries", params={"outcome": "eaten"})).status_code == 422
    wanted = {"since": "2000-01-01T00:00:00Z", "reason": "mended"}
    would = await api.post(f"{path}/replay", json=wanted | {"dry_run": True})
    assert would.json() == {
        "object": "webhook_replay", "id": made["id"], "dry_run": True, "replayed": 1, "complete": True,
    }  # fmt: skip
    assert (await api.get(path)).json()["waiting"] == 0
    answer = await api.post(f"{path}/replay", json=wanted)
    assert answer.json() == would.json() | {"dry_run": False}
    assert (await api.post(f"{path}/replay", json={"until": "2000-01-01T00:00:00Z"})).json()["replayed"] == 0
    assert (await api.get(path)).json()["waiting"] == 1
    assert one(
        owner, "select reason from pgmail.audit where action = 'webhook.replay' order by id limit 1"
    ).endswith("mended")


async def test_a_key_that_may_not_read_lets_no_endpoint_be_told(db):
    key, hint, hash_ = make_key()
    with db.connect("admin") as admin:
        admin.execute(
            "select pgmail.make_key('manager', %s, %s, %s)", [hint, hash_, '{"scopes": ["manage"]}']
        )
    async with client(db.dsn_for("api"), key, keks=Keks({"a": os.urandom(32)})) as api:
        answers = [
            await api.post("/webhooks", json={"endpoint": URL}),
            await api.patch(f"/webhooks/{UUID(int=1)}", json={"endpoint": URL}),
        ]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
            (403, "missing_scope")
        ] * 2
        assert (await api.get("/webhooks")).status_code == 200


async def test_keys_that_only_send_or_are_limited_or_for_tests_have_no_endpoints(db):
    for limits in ('{"scopes": ["send", "read"]}', '{"streams": ["transactional"]}', '{"test": true}'):
        key, hint, hash_ = make_key(test="test" in limits)
        with db.connect("admin") as admin:
            admin.execute("select pgmail.make_key('limited', %s, %s, %s)", [hint, hash_, limits])
        async with client(db.dsn_for("api"), key, keks=Keks({"a": os.urandom(32)})) as api:
            assert (await api.post("/webhooks", json={"endpoint": URL})).status_code == 403
            assert (await api.get("/webhooks")).status_code == 403


async def test_a_tenant_has_a_hundred_endpoints_at_most(api, owner):
    owner.execute(
        "insert into pgmail.hook (tenant_id, id, url, types, created_by) "
        "select 1, pgmail.uuid7(), 'https://a.example', '{*}', 'x' from generate_series(1, 100)"
    )
    answer = await api.post("/webhooks", json={"endpoint": URL})
    assert (answer.status_code, answer.json()["code"]) == (429, "limit_reached")


async def test_an_unknown_id_is_unknown_on_every_route(api):
    await add(api)
    path = "/webhooks/0197c1f0-7a0e-7cc3-9d2e-6f1f5a2b9d11"
    for method, where, body in (
        ("GET", path, None),
        ("PATCH", path, {"description": "x"}),
        ("DELETE", path, None),
        ("POST", f"{path}/rotate", None),
        ("POST", f"{path}/test", None),
        ("POST", f"{path}/replay", {}),
        ("GET", f"{path}/deliveries", None),
    ):
        answer = await api.request(method, where, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), where


async def test_the_first_key_of_a_tenant_may_have_webhooks(db):
    async with client(db.dsn_for("api"), new_key(db, "second"), keks=Keks({"a": os.urandom(32)})) as api:
        assert (await add(api))["created_by"] == "key second"
