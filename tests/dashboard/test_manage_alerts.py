"""Alerts on pages: what fires stands on the overview too, leads to a page that is there, and is silenced."""

import json

import pytest

from pgmail.dashboard.mount import PAGES
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
    assert "pager is told" in toast(await page.act(f"{ROOT}/alerts/test", {"target": "pager"}))
    assert (await page.act(f"{ROOT}/alerts/test", {"target": "nobody"})).status_code == 422


async def test_who_is_limited_to_a_stream_silences_nothing_and_who_reads_sees_no_buttons(db, stock):
    given = {"rule": "in_doubt", "seconds": "3600", "why": "r"}
    limited = new_key(db, scopes=["manage"], streams=["careful"])
    async with browser(db.dsn_for("api"), limited) as page:
        assert (await page.act(f"{ROOT}/alerts/silence", given)).status_code == 422
    async with browser(db.dsn_for("api"), new_key(db, "eve", scopes=["read"])) as page:
        assert 'role="button"' not in (await page.get(f"{ROOT}/alerts")).text
        assert (await page.act(f"{ROOT}/alerts/silence", given)).status_code == 403
