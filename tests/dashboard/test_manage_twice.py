"""A form that is sent twice, by a second click or a page that is loaded again, does what it asks for once."""

import asyncio
import os
import re

import pytest

from pgmail.sealing.keks import Keks
from tests.dashboard.conftest import ROOT, browser, new_key
from tests.dashboard.stock import fill
from tests.sql import kit


@pytest.fixture
async def page(db):
    fill(db)
    async with browser(
        db.dsn_for("api"), new_key(db, scopes=["admin"]), keks=Keks({"first": os.urandom(32)})
    ) as made:
        yield made


HOOK = "select id::text from pgmail.hook limit 1"
DEEDS = {
    "/keys/create": ("", {"name": "shop", "scopes": "send"}, "key.create"),
    "/webhooks/add": ("", {"endpoint": "https://hooks.example.com/mail"}, "webhook.create"),
    "/webhooks/rotate": (HOOK, {"overlap": "3600", "why": "leaked"}, "webhook.rotate"),
    "/webhooks/test": (HOOK, {}, "webhook.test"),
    "/webhooks/replay": (HOOK, {"outcome": "failed", "count": "3 events", "why": "mended"}, "webhook.replay"),
    "/templates/edit": ("", {"name": "new", "subject": "Hi", "text": "Hi", "then": "publish"}, "template.%"),
    "/alerts/targets/test": ("", {"target": "pager"}, "alert.target.test"),
}


async def form_of(page, db, path):
    """Ask as a person does; what the form brings along, with what is filled in."""
    query, filled, action = DEEDS[path]
    with db.connect() as owner:
        id_ = {"id": kit.one(owner, query)} if query else {}
    asked = await page.get(ROOT + path, params=id_ | ({"target": "pager"} if "target" in path else {}))
    assert asked.status_code == 200, asked.text
    ours = asked.text[asked.text.index("<main") :]
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', ours))
    assert re.fullmatch("[0-9a-f-]{36}", form["once"])
    return form | id_ | filled, action


def done(db, action):
    with db.connect() as owner:
        return kit.one(owner, "select count(*) from pgmail.audit where action like %s", [action])


async def test_a_form_that_comes_twice_is_done_once_and_the_second_says_so(page, db):
    for path in DEEDS:
        form, action = await form_of(page, db, path)
        before = done(db, action)
        both = await asyncio.gather(*(page.act(ROOT + path, form) for _ in range(2)))
        assert sorted(answer.status_code for answer in both) == [200, 422], path
        (second,) = [answer for answer in both if answer.status_code == 422]
        assert "this was done already" in second.text, path
        assert done(db, action) == before + 1, path
        anew = re.search(r'name="once" value="([^"]+)"', second.text)[1]
        assert anew != form["once"], "who means it may go on"


async def test_a_form_that_was_refused_may_come_again(page, db):
    form, action = await form_of(page, db, "/keys/create")
    before = done(db, action)
    assert (await page.act(f"{ROOT}/keys/create", form | {"networks": "x"})).status_code == 422
    assert (await page.act(f"{ROOT}/keys/create", form)).status_code == 200
    assert done(db, action) == before + 1
