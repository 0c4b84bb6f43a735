"""Webhooks on pages: made with a secret that is shown once, changed, switched, rotated, tried, replayed and removed."""

import json
import os
import re

import pytest

from pgmail.domain.keys import make_key
from pgmail.sealing.keks import Keks
from tests.dashboard.conftest import ROOT, browser, new_key
from tests.dashboard.stock import fill
from tests.sql import kit

URL = "https://hooks.example.com/mail"


@pytest.fixture
async def page(db):
    keks = Keks({"first": os.urandom(32)})
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read", "manage"]), keks=keks) as made:
        yield made


def toast(answer):
    assert answer.status_code == 200, answer.text
    assert "HX-Trigger" in answer.headers, answer.text
    return json.loads(answer.headers["HX-Trigger"])["toast"]["text"]


def secret_in(answer):
    assert answer.status_code == 200, answer.text
    return re.search(r'id="new-secret">(whsec_[^<]+)<', answer.text)[1]


async def add(page, **more):
    made = await page.act(f"{ROOT}/webhooks/add", {"endpoint": URL, "events": "email.bounced"} | more)
    return secret_in(made), re.search(r"endpoint\?id=([0-9a-f-]{36})", made.text)[1]


def acts(db):
    with db.connect() as owner:
        return kit.rows(
            owner, "select action, reason from pgmail.audit where action ~ '^webhook' order by id desc"
        )


async def test_a_secret_is_shown_once_and_rotated_with_an_overlap(page, db):
    secret, id_ = await add(page, streams="transactional", tags="shop=eu, kind=a", description="our CRM")
    place = f"{ROOT}/webhooks/endpoint?id={id_}"
    for path in (f"{ROOT}/webhooks", place):
        shown = (await page.get(path)).text
        assert secret not in shown
        for word in (URL, "our CRM", "email.bounced", "transactional", "shop=eu", "enabled"):
            assert word in shown, (path, word)
    wrong = await page.act(f"{ROOT}/webhooks/rotate", {"id": id_, "overlap": "3600"})
    assert wrong.status_code == 422
    given = {"id": id_, "overlap": "3600", "why": "every month"}
    other = secret_in(await page.act(f"{ROOT}/webhooks/rotate", given))
    assert other != secret
    assert (await page.get(place)).text.count("a secret made") == 2
    assert acts(db)[0][0] == "webhook.rotate"
    assert "every month" in acts(db)[0][1]


async def test_what_no_endpoint_can_be_is_refused_and_stays_in_the_form(page):
    for name, text in (
        ("endpoint", "http://hooks.example.com/"),
        ("endpoint", "https://127.0.0.1/private"),
        ("events", "email.eaten"),
        ("tags", "nothing"),
        ("description", "x" * 501),
    ):
        answer = await page.act(f"{ROOT}/webhooks/add", {"endpoint": URL, name: text})
        assert answer.status_code == 422, (name, text)
        assert text in answer.text
        assert 'class="my-field wrong"' in answer.text, (name, text)


async def test_without_keys_to_seal_with_the_question_says_what_to_do(db):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read", "manage"])) as page:
        answer = await page.act(f"{ROOT}/webhooks/add", {"endpoint": URL})
        assert answer.status_code == 422
        assert "PGMAIL_SEAL_KEYS" in answer.text


async def test_an_endpoint_is_changed_disabled_enabled_and_removed_with_reasons(page, db):
    _, id_ = await add(page)
    form = {"id": id_, "endpoint": URL + "/2", "events": "email.*", "why": "it moved"}
    assert "is changed" in toast(await page.act(f"{ROOT}/webhooks/change", form))
    assert "Nothing was changed" in toast(await page.act(f"{ROOT}/webhooks/change", form))
    off = {"id": id_, "to": "disabled", "why": "taken down"}
    assert "disabled" in toast(await page.act(f"{ROOT}/webhooks/switch", off))
    place = f"{ROOT}/webhooks/endpoint?id={id_}"
    assert "taken down" in (await page.get(place)).text
    assert (await page.act(f"{ROOT}/webhooks/test", {"id": id_})).status_code == 422
    assert "enabled" in toast(await page.act(f"{ROOT}/webhooks/switch", off | {"to": "enabled"}))
    assert "sample event" in toast(await page.act(f"{ROOT}/webhooks/test", {"id": id_}))
    with db.connect() as owner:
        assert kit.one(owner, "select type from pgmail.hook_queue") == "webhook.test"
    assert (await page.act(f"{ROOT}/webhooks/remove", {"id": id_})).status_code == 422
    assert "removed" in toast(await page.act(f"{ROOT}/webhooks/remove", {"id": id_, "why": "over"}))
    assert (await page.get(place)).status_code == 404
    assert [action for action, _ in acts(db)] == [
        *("webhook.remove", "webhook.test", "webhook.enable", "webhook.disable", "webhook.set"),
        "webhook.create",
    ]


async def test_the_log_is_filtered_and_told_once_more(page, db):
    fill(db)
    with db.connect() as owner:
        id_ = kit.one(owner, "select id::text from pgmail.hook")
        event = kit.one(owner, "select event_id::text from pgmail.hook_attempt limit 1")
    place = f"{ROOT}/webhooks/endpoint?id={id_}"
    assert (await page.get(place)).text.count("<b>500</b>") == 3
    assert "No call matches" in (await page.get(place + "&outcome=delivered")).text
    assert (await page.get(place + "&outcome=moon")).status_code == 422
    assert (await page.get(place + "&after=x")).status_code == 404
    one = {"id": id_, "event": event, "outcome": "all", "why": "they lost it"}
    assert "1 event told" in toast(await page.act(f"{ROOT}/webhooks/replay", one))
    every = {"id": id_, "outcome": "failed", "since": "24h", "why": "they lost it"}
    asked = await page.act(f"{ROOT}/webhooks/replay", every)
    assert "3 events once more?" in asked.text
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.hook_queue") == 1, "it was a question"
    sure = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
    assert sure["why"] == "they lost it"
    assert "3 events told" in toast(await page.act(f"{ROOT}/webhooks/replay", sure))
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.hook_queue") == 3
    none = await page.act(f"{ROOT}/webhooks/replay", every | {"outcome": "delivered"})
    assert "nothing to tell" in none.text
    assert none.status_code == 422
    assert "they lost it" in acts(db)[0][1]


@pytest.mark.parametrize(
    "limits",
    [
        {"scopes": ["read"]},
        {"scopes": ["manage"], "streams": ["careful"]},
        {"scopes": ["manage"], "test": True},
    ],
)
async def test_who_reads_or_is_limited_or_tests_sees_and_changes_no_webhook(db, limits):
    fill(db)
    with db.connect() as owner:
        id_ = kit.one(owner, "select id::text from pgmail.hook")
    async with browser(db.dsn_for("api"), new_key(db, **limits)) as page:
        assert f'href="{ROOT}/webhooks"' not in (await page.get(f"{ROOT}/queue")).text
        for path in ("", f"/endpoint?id={id_}", "/add", f"/change?id={id_}", f"/rotate?id={id_}"):
            answer = await page.get(f"{ROOT}/webhooks{path}")
            assert answer.status_code == 403, path
            assert URL not in answer.text
        for path in ("add", "change", "switch", "rotate", "test", "replay", "remove"):
            answer = await page.act(f"{ROOT}/webhooks/{path}", {"id": id_, "why": "r", "endpoint": URL})
            assert answer.status_code in {403, 422}, path
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.hook where removed_at is null and enabled") == 1
        assert kit.one(owner, "select count(*) from pgmail.hook_queue") == 0


async def test_another_tenants_endpoint_is_not_there(db):
    fill(db)
    with db.connect() as owner:
        id_ = kit.one(owner, "select id::text from pgmail.hook")
        owner.execute("select pgmail.create_tenant('neighbour')")
        key, hint, hash_ = make_key()
        owner.execute(
            "insert into pgmail.api_key (tenant_id, name, hint, hash, scopes)"
            " select id, 'theirs', %s, %s, '{admin}' from pgmail.tenant where name = 'neighbour'",
            [hint, hash_],
        )
    async with browser(db.dsn_for("api"), key) as stranger:
        assert "No webhooks yet" in (await stranger.get(f"{ROOT}/webhooks")).text
        assert (await stranger.get(f"{ROOT}/webhooks/endpoint?id={id_}")).status_code == 404
        answer = await stranger.act(f"{ROOT}/webhooks/remove", {"id": id_, "why": "mine"})
        assert answer.status_code == 404
        assert "All is well" in (await stranger.get(f"{ROOT}/alerts")).text
        assert "receipts" not in (await stranger.get(f"{ROOT}/alerts")).text


async def test_a_key_that_may_not_read_lets_no_webhook_be_told(db):
    keks = Keks({"first": os.urandom(32)})
    async with browser(db.dsn_for("api"), new_key(db, scopes=["manage"]), keks=keks) as page:
        answer = await page.act(f"{ROOT}/webhooks/add", {"endpoint": URL})
        assert answer.status_code == 422
        assert "the scope read" in answer.text
    assert acts(db) == []
