"""Alerts on pages: what fires stands on the overview too, leads to a page that is there, and is silenced."""

import json
import os

import pytest

from pgmail.config import Settings
from pgmail.dashboard.mount import PAGES
from pgmail.sealing.keks import Keks
from tests.dashboard.conftest import ROOT, browser, new_key
from tests.dashboard.stock import fill
from tests.sql import kit


@pytest.fixture
def key(db):
    return new_key(db, scopes=["admin"])


@pytest.fixture
def stock(db):
    return fill(db)


def toast(answer):
    assert answer.status_code == 200, answer.text
    assert "HX-Trigger" in answer.headers, answer.text
    return json.loads(answer.headers["HX-Trigger"])["toast"]["text"]


def last_act(db):
    with db.connect() as owner:
        return kit.rows(owner, "select actor, action, reason from pgmail.audit order by id desc limit 1")[0]


async def test_every_alert_leads_to_a_page_that_is_there(db):
    with db.connect() as owner:
        told = {row[0] for row in kit.rows(owner, "select path from pgmail.alert_kinds()")}
    assert told
    assert told <= {path for handler in PAGES for path in handler.paths}


async def test_what_fires_stands_on_the_overview_and_what_is_silenced_does_not(page, db, stock):
    text = (await page.get(ROOT)).text
    assert "2 alerts:" in text
    assert f'href="{ROOT}/alerts"' in text
    given = {"rule": "bounce_rate", "subject": "careful", "seconds": "3600", "why": "known"}
    assert "bounce_rate of careful is silenced" in toast(await page.act(f"{ROOT}/alerts/silence", given))
    assert last_act(db)[0] == "key dash"
    assert "known" in last_act(db)[2]
    text = (await page.get(ROOT)).text
    assert "1 alert:" in text
    assert "dead_letters of receipts" in text
    assert "bounce_rate of careful" not in text
    assert "bounce_rate of careful" in (await page.get(f"{ROOT}/alerts")).text
    assert "is told again" in toast(await page.act(f"{ROOT}/alerts/unsilence", given))
    assert "2 alerts:" in (await page.get(ROOT)).text
    assert (await page.act(f"{ROOT}/alerts/unsilence", given)).status_code == 422


async def test_a_silence_takes_a_reason_an_end_and_a_rule_that_is_there(page, db, stock):
    for wrong in ({"why": ""}, {"seconds": "soon"}, {"rule": "moon"}):
        given = {"rule": "in_doubt", "seconds": "3600", "why": "r"} | wrong
        assert (await page.act(f"{ROOT}/alerts/silence", given)).status_code == 422, wrong


async def test_what_is_open_and_what_is_over_stand_apart(page, db, stock):
    now, over = [(await page.get(f"{ROOT}/alerts{query}")).text for query in ("", "?state=resolved")]
    assert "queue_depth of careful" not in now
    assert "queue_depth of careful" in over
    assert "dead_letters of receipts" not in over
    assert f'href="{ROOT}/dead-letters"' in now


async def test_a_rule_is_changed_for_the_tenant_and_wrong_numbers_stay_in_the_form(page, db):
    form = {"rule": "in_doubt", "enabled": "yes", "severity": "info", "threshold": "7", "for_seconds": "60"}
    assert "in_doubt is changed" in toast(await page.act(f"{ROOT}/alerts/rule", form | {"why": "larger"}))
    with db.connect() as owner:
        found = kit.rows(
            owner,
            "select threshold, for_seconds, severity from pgmail.alert_rule where name = 'in_doubt' and tenant_id = 1",
        )
    assert found == [(7.0, 60, "info")]
    assert "Nothing was changed" in toast(await page.act(f"{ROOT}/alerts/rule", form | {"why": "larger"}))
    for name, text in (
        ("threshold", "nan"),
        ("threshold", "many"),
        ("threshold", "-1"),
        ("threshold", "1e400"),
        ("for_seconds", "0.5"),
        ("for_seconds", "1e9"),
        ("severity", "bad"),
        ("enabled", "perhaps"),
    ):
        wrong = await page.act(f"{ROOT}/alerts/rule", form | {"why": "r", name: text})
        assert wrong.status_code == 422, (name, text)


async def test_a_trial_is_queued_for_a_target_and_none_for_nobody(page, db, stock):
    assert "pager is told" in toast(await page.act(f"{ROOT}/alerts/targets/test", {"target": "pager"}))
    assert (await page.act(f"{ROOT}/alerts/targets/test", {"target": "nobody"})).status_code == 422


async def test_who_is_limited_to_a_stream_silences_nothing_and_who_reads_sees_no_buttons(db, stock):
    given = {"rule": "in_doubt", "seconds": "3600", "why": "r"}
    limited = new_key(db, scopes=["manage"], streams=["careful"])
    async with browser(db.dsn_for("api"), limited) as page:
        assert (await page.act(f"{ROOT}/alerts/silence", given)).status_code == 422
    async with browser(db.dsn_for("api"), new_key(db, "eve", scopes=["read"])) as page:
        assert 'role="button"' not in (await page.get(f"{ROOT}/alerts")).text
        assert (await page.act(f"{ROOT}/alerts/silence", given)).status_code == 403


async def test_who_is_told_is_added_sealed_shown_without_its_secret_tried_and_removed(db):
    url, keks = "https://hooks.example.com/services/T0/B0/secret", Keks({"k": os.urandom(32)})
    settings = Settings(hook_networks="127.0.0.0/8")
    async with browser(
        db.dsn_for("api"), new_key(db, scopes=["admin"]), settings=settings, keks=keks
    ) as page:
        form = {"name": "chat", "kind": "slack", "where": url, "severity": "critical"}
        assert "chat is told from now on" in toast(await page.act(f"{ROOT}/alerts/targets/add", form))
        assert last_act(db)[:2] == ("key dash", "alert.target.add")
        mails = {"name": "ops", "kind": "email", "where": "a@example.org, b@example.org", "severity": "info"}
        toast(await page.act(f"{ROOT}/alerts/targets/add", mails))
        text = (await page.get(f"{ROOT}/alerts")).text
        assert "hooks.example.com/..." in text
        assert "a@example.org, b@example.org" in text
        assert "T0/B0" not in text
        with db.connect() as owner:
            assert {row[0] for row in kit.rows(owner, "select kek from pgmail.alert_target")} == {"k"}
        assert "chat is told within" in toast(
            await page.act(f"{ROOT}/alerts/targets/test", {"target": "chat"})
        )
        gone = {"target": "chat", "why": "we moved"}
        assert (await page.act(f"{ROOT}/alerts/targets/remove", gone | {"why": ""})).status_code == 422
        assert "of nothing any more" in toast(await page.act(f"{ROOT}/alerts/targets/remove", gone))
        assert last_act(db) == ("key dash", "alert.target.remove", "we moved")
        assert (await page.act(f"{ROOT}/alerts/targets/remove", gone)).status_code == 422


async def test_a_target_that_is_none_is_asked_for_again_at_its_field_and_takes_the_sessions_token(page, db):
    form = {"name": "ops", "kind": "webhook", "where": "https://x.example.com/", "severity": "warning"}
    for field, text in (
        ("where", ""),
        ("where", "https://10.0.0.1/x"),
        ("name", "no name"),
        ("kind", "pager"),
        ("signs", "short"),
        ("severity", "loud"),
    ):
        wrong = await page.act(f"{ROOT}/alerts/targets/add", form | {field: text})
        assert wrong.status_code == 422, (field, text)
        assert f'id="f-{field}"' in wrong.text.partition('class="my-field wrong"')[2], (field, wrong.text)
        assert "short" not in wrong.text  # what signs is not shown again
    refused = await page.act(f"{ROOT}/alerts/targets/add", form, X_CSRF_Token="x")
    assert refused.status_code == 403
    limited = new_key(db, "lim", scopes=["manage"], streams=["transactional"])
    async with browser(db.dsn_for("api"), limited) as other:
        assert (await other.act(f"{ROOT}/alerts/targets/add", form)).status_code == 422
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.alert_target") == 0


async def test_rules_that_an_operator_sets_have_no_button_that_is_refused(page, db):
    text = (await page.get(f"{ROOT}/alerts")).text
    assert 'aria-label="Change oldest_due"' in text
    assert 'aria-label="Change no_worker"' not in text
    assert "an operator's" in text
