"""`/alerts` over HTTP: what fires, silences, rules and targets, for the key's tenant alone."""

import pytest

from pgmail.config import Settings
from pgmail.sealing.keks import Keks
from tests.api.conftest import client
from tests.dashboard.conftest import new_key
from tests.sql.kit import one, rows


@pytest.fixture
async def sealed(db, key):
    """A client of an API that has a key to seal with, and may call the loopback."""
    settings = Settings(hook_networks="127.0.0.0/8")
    async with client(db.dsn_for("api"), key, settings=settings, keks=Keks({"k": bytes(32)})) as made:
        yield made


def look(db):
    with db.connect("worker") as worker:
        worker.execute("select pgmail.alert_step_v1()")


def fence(owner):
    owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', 'an hour is missing')")


async def test_what_fires_is_listed_with_words_and_a_page(db, owner, api):
    assert (await api.get("/alerts")).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "silences": [],
    }
    fence(owner)
    look(db)
    (alert,) = (await api.get("/alerts")).json()["data"]
    assert (alert["rule"], alert["state"], alert["severity"]) == ("restored_database", "firing", "critical")
    assert alert["words"].startswith("All sending is stopped since ")
    assert alert["path"] == "/queue"
    owner.execute("delete from pgmail.fence")
    look(db)
    assert (await api.get("/alerts")).json()["data"] == []
    (over,) = (await api.get("/alerts", params={"state": "resolved"})).json()["data"]
    assert over["id"] == alert["id"]
    assert (await api.get("/alerts", params={"state": "loud"})).status_code == 422


async def test_a_silence_has_a_reason_an_end_and_is_audited(owner, api):
    answer = await api.post("/alerts/oldest_due/silence", json={})
    assert (answer.status_code, answer.json()["field"]) == (422, "/reason")
    made = await api.post("/alerts/oldest_due/silence", json={"reason": "a release", "until": "in 2 hours"})
    assert made.status_code == 200
    (silence,) = (await api.get("/alerts")).json()["silences"]
    assert (silence["rule"], silence["reason"], silence["silenced_by"]) == (
        "oldest_due",
        "a release",
        "key tests",
    )
    assert silence["until"] is not None
    assert (await api.post("/alerts/oldest_due/unsilence", json={"reason": "done"})).json()["ended"] is True
    again = await api.post("/alerts/oldest_due/unsilence", json={})
    assert (again.status_code, again.json()["code"]) == (404, "not_silenced")
    assert (await api.post("/alerts/nothing/silence", json={"reason": "x"})).status_code == 404
    told = rows(
        owner, "select actor, action, reason from pgmail.audit where action like 'alert.%' order by id"
    )
    assert told == [("key tests", "alert.silence", "a release"), ("key tests", "alert.unsilence", "done")]


async def test_a_tenants_rule_takes_the_place_of_the_fleets_until_it_is_removed(api):
    shipped = {row["name"]: row for row in (await api.get("/alerts/rules")).json()["data"]}
    assert shipped["queue_depth"]["shipped"] is True
    made = await api.put("/alerts/rules/queue_depth", json={"threshold": 5, "reason": "we are small"})
    assert (made.status_code, made.json()["threshold"], made.json()["tenant"]) == (200, 5.0, "default")
    bad = await api.put("/alerts/rules/queue_depth", json={"threshold": "many"})
    assert (bad.status_code, bad.json()["field"]) == (422, "/threshold")
    assert (await api.put("/alerts/rules/no_worker", json={"threshold": 5})).status_code == 403
    assert (await api.delete("/alerts/rules/queue_depth")).json()["deleted"] is True
    assert (await api.delete("/alerts/rules/queue_depth")).status_code == 404
    (row,) = [row for row in (await api.get("/alerts/rules")).json()["data"] if row["name"] == "queue_depth"]
    assert row == shipped["queue_depth"]


async def test_a_target_is_made_sealed_shown_without_its_secret_tested_and_removed(owner, sealed):
    url = "https://hooks.example.com/services/T0/B0/secret"
    made = await sealed.post("/alerts/targets", json={"name": "ops", "kind": "slack", "url": url})
    assert made.status_code == 200, made.text
    assert (made.json()["shown"], made.json()["sealed"]) == ("https://hooks.example.com/...", True)
    assert "secret" not in (await sealed.get("/alerts/targets")).text
    assert b"T0" not in one(owner, "select secret from pgmail.alert_target")
    again = await sealed.post("/alerts/targets", json={"name": "ops", "kind": "slack", "url": url})
    assert (again.status_code, again.json()["code"]) == (409, "already_there")
    assert (await sealed.post("/alerts/targets/ops/test")).json()["state"] == "waiting"
    assert one(owner, "select event from pgmail.alert_delivery") == "test"
    assert (await sealed.delete("/alerts/targets/ops")).json()["deleted"] is True
    assert one(owner, "select count(*) from pgmail.alert_delivery where state = 'waiting'") == 0
    assert (await sealed.post("/alerts/targets/ops/test")).status_code == 404


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "https://10.0.0.1/x", "https://[::1]/x", "ftp://x.example/"]
)
async def test_a_url_that_leads_inside_is_refused(api, url):
    answer = await api.post("/alerts/targets", json={"name": "ops", "kind": "webhook", "url": url})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_url")


async def test_a_key_that_is_limited_to_streams_sees_alerts_and_changes_nothing(db, owner):
    limited = new_key(db, "lim", scopes=["read", "manage"], streams=["transactional"])
    body = {"name": "x", "kind": "email", "to": "a@example.org"}
    async with client(db.dsn_for("api"), limited) as api:
        assert (await api.get("/alerts")).status_code == 200
        asked = [
            await api.post("/alerts/targets", json=body),
            await api.put("/alerts/rules/queue_depth", json={"threshold": 5}),
            await api.post("/alerts/queue_depth/silence", json={"reason": "x"}),
            await api.delete("/alerts/targets/x"),
        ]
    assert [answer.status_code for answer in asked] == [403] * 4
    assert one(owner, "select count(*) from pgmail.alert_target") == 0


async def test_rules_say_which_of_them_a_tenant_may_set(api):
    levels = {row["name"]: row["level"] for row in (await api.get("/alerts/rules")).json()["data"]}
    for name, level in levels.items():
        set_ = await api.put(f"/alerts/rules/{name}", json={"note": "x"})
        assert set_.status_code == (200 if level == "tenant" else 403), name
