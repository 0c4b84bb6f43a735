"""What may be done on these pages, by whom, and what stands in the audit afterwards."""

import asyncio
import json
import re
from urllib.parse import urlencode

import pytest

from pgmail.dashboard.manage import preview, streams
from pgmail.dashboard.manage.pages import HANDLERS
from pgmail.domain.keys import make_key
from tests.dashboard.conftest import HOST, ROOT, browser, new_key
from tests.dashboard.stock import fill
from tests.sql import kit

CHANGES = sorted(
    next(iter(handler.paths))
    for handler in HANDLERS
    if "POST" in handler.http_methods and "preview" not in str(handler.paths)
)


@pytest.fixture
def key(db):
    return new_key(db, scopes=["admin"])


@pytest.fixture
def stock(db):
    return fill(db)


def acts(db):
    """The newest act: actor, action, object, reason."""
    with db.connect() as owner:
        return kit.rows(owner, "select actor, action, object, reason from pgmail.audit order by id desc")


def toast(answer):
    assert answer.status_code == 200, answer.text
    assert "HX-Trigger" in answer.headers, answer.text
    return json.loads(answer.headers["HX-Trigger"])["toast"]["text"]


async def test_there_are_changes_at_all():
    assert len(CHANGES) >= 17
    assert all(handler.opt.get("scope") for handler in HANDLERS)


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_without_the_sessions_token_or_from_another_site_is_refused(page, path):
    for headers in (
        {"X-CSRF-Token": "guessed", "Origin": HOST},
        {"X-CSRF-Token": page.csrf, "Origin": "https://evil.example"},
    ):
        answer = await page.post(ROOT + path, data={"why": "r"}, headers=headers)
        assert answer.status_code == 403, answer.text
    assert (await page.post(ROOT + path, data={"why": "r"})).status_code == 403


@pytest.mark.parametrize("path", CHANGES)
async def test_a_key_that_only_reads_changes_nothing_and_sees_no_buttons(db, path):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read"])) as reader:
        answer = await reader.act(ROOT + path, {"why": "r"})
        assert answer.status_code == 403, answer.text
        assert (await reader.get(ROOT + path)).status_code in {200, 403, 405}


async def test_a_key_that_only_reads_sees_what_is_there_and_no_button_to_change_it(db, stock):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read"])) as reader:
        for name in (
            "queue",
            "dead-letters",
            "in-doubt",
            "templates",
            "suppressions",
            "streams",
            "domains",
            "workers",
        ):
            answer = await reader.get(f"{ROOT}/{name}")
            assert answer.status_code == 200, answer.text
            assert 'role="button"' not in answer.text, name
        menu = (await reader.get(f"{ROOT}/queue")).text
        assert f'href="{ROOT}/keys"' not in menu
        assert f'href="{ROOT}/audit"' not in menu
        assert (await reader.get(f"{ROOT}/keys")).status_code == 403
        assert (await reader.get(f"{ROOT}/audit")).status_code == 403


async def test_another_tenant_sees_and_changes_nothing_of_the_first(db, stock):
    with db.connect() as owner:
        owner.execute("select pgmail.create_tenant('neighbour')")
        tenant = kit.one(owner, "select id from pgmail.tenant where name = 'neighbour'")
        key, hint, hash_ = make_key()
        owner.execute(
            "insert into pgmail.api_key (tenant_id, name, hint, hash, scopes) values (%s, 'theirs', %s, %s, '{admin}')",
            [tenant, hint, hash_],
        )
    async with browser(db.dsn_for("api"), key) as stranger:
        for name in (
            "queue",
            "dead-letters",
            "in-doubt",
            "templates",
            "suppressions",
            "streams",
            "domains",
            "keys",
            "audit",
        ):
            text = (await stranger.get(f"{ROOT}/{name}")).text
            for word in ("gmail.com", "doubt0", "welcome", "gone@", "receipts", "example.com</h2>"):
                assert word not in re.sub('placeholder="[^"]*"', "", text), (name, word)
        answer = await stranger.act(
            f"{ROOT}/dead-letters/retry", {"id": str(stock["dead_people"][0]), "why": "mine"}
        )
        assert answer.status_code == 422
        answer = await stranger.act(
            f"{ROOT}/in-doubt/resolve", {"how": "resend", "id": str(stock["doubts"][0]), "why": "r"}
        )
        assert answer.status_code == 422
        assert (await stranger.get(f"{ROOT}/templates/edit?name=welcome")).status_code == 404
        workers = (await stranger.get(f"{ROOT}/workers")).text
        assert "test #" in workers
        assert (
            "host, process" not in workers
        )  # where several share the fleet, machines are the operator's to know
        toast(
            await stranger.act(f"{ROOT}/queue/pause", {"scope": "site", "name": "gmail.com", "why": "mine"})
        )
    with db.connect() as owner:
        paused = kit.rows(owner, "select tenant_id from pgmail.pause where name = 'gmail.com'")
        assert paused == [(tenant,)]
        assert {kit.state(owner, mail) for mail in stock["dead"]} == {"dead"}


async def test_a_key_limited_to_a_stream_sees_and_changes_that_one_only(db, stock):
    async with browser(
        db.dsn_for("api"), new_key(db, scopes=["read", "manage"], streams=["careful"])
    ) as page:
        assert "gmail.com</" not in (await page.get(f"{ROOT}/queue/live")).text
        assert "dead0" not in (await page.get(f"{ROOT}/dead-letters")).text
        assert "doubt0" in (await page.get(f"{ROOT}/in-doubt")).text
        assert (await page.get(f"{ROOT}/streams/edit?name=receipts")).status_code == 404
        refused = await page.act(f"{ROOT}/queue/pause", {"scope": "stream", "name": "receipts", "why": "r"})
        assert refused.status_code == 422
        refused = await page.act(f"{ROOT}/streams/edit", {"name": "receipts", "max_attempts": "3"})
        assert refused.status_code == 422
        answer = await page.act(f"{ROOT}/dead-letters/retry", {"why": "r", "count": "9"})
        assert answer.status_code == 422
        assert (await page.get(f"{ROOT}/audit")).status_code == 403


async def test_a_reason_is_asked_for_and_stands_in_the_audit(page, db, stock):
    answer = await page.act(f"{ROOT}/queue/pause", {"scope": "stream", "name": "receipts", "seconds": "900"})
    assert answer.status_code == 422
    assert "say why" in answer.text
    assert 'name="name" value="receipts"' in answer.text
    given = {"scope": "stream", "name": "receipts", "seconds": "900", "why": "they throttle"}
    assert "Paused stream receipts" in toast(await page.act(f"{ROOT}/queue/pause", given))
    assert acts(db)[0][0] == "key dash"
    assert "they throttle" in str(acts(db)[0])
    with db.connect() as owner:
        seconds = kit.one(
            owner,
            "select extract(epoch from until - paused_at)::integer from pgmail.pause where scope = 'stream'",
        )
    assert abs(seconds - 900) < 5
    assert "Resumed" in toast(await page.act(f"{ROOT}/queue/resume", given | {"why": "they stopped"}))
    assert "they stopped" in str(acts(db)[0])
    wrong = await page.act(f"{ROOT}/queue/pause", {"scope": "moon", "name": "x", "why": "r"})
    assert wrong.status_code == 422


async def test_a_bulk_deed_takes_what_its_question_counted_and_no_more(page, db, stock):
    question = await page.get(f"{ROOT}/dead-letters/retry?stream=receipts", headers={"HX-Request": "true"})
    assert "Retry 3 dead letters?" in question.text
    assert 'name="count" value="3"' in question.text
    other = {"reason": "template", "count": "2", "why": "attempts_exhausted"}
    assert (
        await page.act(f"{ROOT}/dead-letters/retry", other)
    ).status_code == 422  # why it is done narrows nothing
    given = {"stream": "receipts", "reason": "attempts_exhausted", "count": "2", "why": "mended"}
    assert toast(await page.act(f"{ROOT}/dead-letters/retry", given)).startswith("2 dead letters put back")
    with db.connect() as owner:
        states = sorted(kit.state(owner, mail) for mail in stock["dead"])
    assert states == ["dead", "queued", "queued"]
    assert toast(await page.act(f"{ROOT}/dead-letters/discard", {"count": "9", "why": "over"})).startswith(
        "1 dead letter "
    )
    again = await page.act(f"{ROOT}/dead-letters/discard", {"count": "9", "why": "over"})
    assert again.status_code == 422


async def test_dead_letters_are_found_by_reason_template_reply_and_time(page, db, stock):
    for query, found in (
        ({"reason": "attempts_exhausted"}, True),
        ({"reason": "template"}, False),
        ({"text": "MAILBOX"}, True),
        ({"text": "nothing like it"}, False),
        ({"template": "welcome"}, False),
        ({"died": "1h"}, True),
        ({"recipient": "dead1@gmail.com"}, True),
    ):
        text = (await page.get(f"{ROOT}/dead-letters?{urlencode(query)}")).text
        assert ("dead1<wbr>@gmail.com</a>" in text) is found, query


async def test_doubt_is_ended_one_by_one_and_by_filter(page, db, stock):
    with db.connect() as owner:
        one = kit.recipients(owner, stock["doubts"][0])[0]
    assert "counted as sent" in toast(
        await page.act(
            f"{ROOT}/in-doubt/resolve", {"how": "assume_sent", "id": str(one), "why": "in the log"}
        )
    )
    assert "put back into the queue" in toast(
        await page.act(
            f"{ROOT}/in-doubt/resolve", {"how": "resend", "stream": "careful", "why": "not in the log"}
        )
    )
    with db.connect() as owner:
        assert [kit.state(owner, mail) for mail in stock["doubts"]] == ["sent", "queued"]
    assert (await page.act(f"{ROOT}/in-doubt/resolve", {"how": "perhaps", "why": "r"})).status_code == 422


async def test_a_template_that_is_wrong_stays_in_the_editor_with_its_line(page, db):
    given = {"name": "hello", "subject": "Hi", "html": "<p>\n{% if %}", "text": "", "then": "publish"}
    answer = await page.act(f"{ROOT}/templates/edit", given)
    assert answer.status_code == 422
    assert "line 2" in answer.text
    assert "{% if %}" in answer.text
    assert "as a draft" in toast(
        await page.act(f"{ROOT}/templates/edit", given | {"html": "<p>{{ name }}</p>", "then": "draft"})
    )
    answer = await page.act(f"{ROOT}/templates/publish", {"name": "hello", "version": "1"})
    assert toast(answer) == "Version 1 of hello is published."
    edited = await page.get(f"{ROOT}/templates/edit?name=hello")
    assert "&#34;name&#34;: &#34;…&#34;" in edited.text


async def test_a_preview_is_rendered_bounded_and_locked_up(page, db, stock):
    given = {
        "subject": "Hi {{ name }}",
        "html": "<b>{{ name }}</b><script>1</script>",
        "variables": '{"name": "A<b>"}',
    }
    facts = await page.act(f"{ROOT}/templates/preview", given)
    assert "Hi A&lt;b&gt;" in facts.text
    frame = await page.act(f"{ROOT}/templates/preview/html", given)
    assert frame.text == "<b>A&lt;b&gt;</b><script>1</script>"
    policy = frame.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script-src" not in policy
    for more, words in (
        ({"variables": "[1]"}, "no JSON object"),
        ({"variables": "{}"}, "name"),
        (
            {"html": "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}"},
            "Html",
        ),
        ({"html": "{{ x }}" * 9_000}, "Html"),
        ({"html": "", "subject": "x"}, "is required"),
    ):
        answer = await page.act(f"{ROOT}/templates/preview", given | more)
        assert answer.status_code == 200
        assert "tone-red" in answer.text, more
        assert words in answer.text, more
    no_frame = await page.act(f"{ROOT}/templates/preview/html", given | {"variables": "{}"})
    assert "No preview" in no_frame.text


async def test_a_heavy_preview_does_not_freeze_the_api(page, monkeypatch):
    """While one is made in its thread, other requests are answered."""
    given = {
        "html": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "variables": "{}",
    }
    assert preview.SECONDS <= 0.25
    slow = asyncio.create_task(page.act(f"{ROOT}/templates/preview", given))
    assert (await page.get("/health/live")).status_code == 200
    assert "tone-red" in (await slow).text


async def test_suppressions_are_added_found_removed_and_brought_by_file(page, db):
    given = {"address": "Ada@Example.org", "reason": "complained", "seconds": "604800"}
    assert "ada@example.org gets no mail" in toast(await page.act(f"{ROOT}/suppressions/add", given))
    found = await page.get(f"{ROOT}/suppressions?q=ADA@example.org")
    assert "complained</span>" in found.text
    assert "whole address" in (await page.get(f"{ROOT}/suppressions?q=ada")).text
    file = "email,reason\nb@example.org,hard bounce\nnobody,x\nc@example.org,\n"
    answer = await page.post(
        f"{ROOT}/suppressions/import",
        files={"file": ("list.csv", file.encode(), "text/csv")},
        data={"reason": "manual", "stream": ""},
        headers={"HX-Request": "true", "X-CSRF-Token": page.csrf, "Origin": HOST},
    )
    assert answer.status_code == 200, answer.text
    assert "list.csv is read" in answer.text
    assert "nobody" in answer.text
    exported = await page.get(f"{ROOT}/suppressions/export")
    assert exported.headers["content-disposition"].startswith("attachment")
    assert [line.split(",")[0] for line in exported.text.splitlines()] == [
        "address",
        "ada@example.org",
        "b@example.org",
        "c@example.org",
    ]
    assert "may have mail again" in toast(
        await page.act(
            f"{ROOT}/suppressions/remove", {"address": "ada@example.org", "stream": "", "why": "asked"}
        )
    )
    assert "asked" in str(acts(db)[0])
    assert (await page.act(f"{ROOT}/suppressions/add", {"address": "nobody"})).status_code == 422


async def test_of_a_stream_only_what_was_changed_is_saved(page, db, stock):
    form = {
        "name": "receipts",
        "priority": "high",
        "max_attempts": "7",
        "max_queued": "50000",
        "relay": "default=3, spare=1",
    }
    assert "receipts saved" in toast(await page.act(f"{ROOT}/streams/edit", form))
    action = acts(db)[0]
    assert action[1:3] == ("stream.save", "receipts")
    assert json.loads(action[3]).keys() == {"max_attempts", "relay"}
    assert "Nothing was changed" in toast(await page.act(f"{ROOT}/streams/edit", form))
    for field, text in (
        ("max_attempts", "0"),
        ("retry_jitter", "2"),
        ("relay", "moon"),
        ("max_age_seconds", "soon"),
    ):
        wrong = await page.act(f"{ROOT}/streams/edit", form | {field: text})
        assert wrong.status_code == 422, field
        assert 'class="my-field wrong"' in wrong.text, field
    made = await page.act(f"{ROOT}/streams/edit", {"new": "yes", "name": "alerts", "priority": "low"})
    assert "alerts saved" in toast(made)
    taken = await page.act(f"{ROOT}/streams/edit", {"new": "yes", "name": "alerts"})
    assert "there is a stream alerts already" in taken.text
    assert 'value="default=3, spare=1"' in (await page.get(f"{ROOT}/streams/edit?name=receipts")).text


def test_every_setting_of_a_stream_can_be_changed_here(db):
    with db.connect() as owner:
        columns = {
            row[0]
            for row in kit.rows(
                owner,
                "select attname from pg_attribute where attrelid = 'pgmail.stream'::regclass and attnum > 0",
            )
        }
    assert {setting.name for setting in streams.SETTINGS} == columns - {
        "tenant_id",
        "name",
        "created_at",
        "relays",
        "relay_weights",
    }


async def test_a_key_is_shown_once_rotated_and_revoked(page, db):
    made = await page.act(
        f"{ROOT}/keys/create", {"name": "shop", "scopes": "send", "streams": "transactional", "test": "no"}
    )
    assert "pgm_live_" in made.text
    listed = await page.get(f"{ROOT}/keys")
    assert "shop" in listed.text
    secret = made.text.split('id="new-key">')[1].split("<")[0]
    assert secret not in listed.text
    with db.connect() as owner:
        id_ = str(kit.one(owner, "select id from pgmail.api_key where name = 'shop'"))
    rotated = await page.act(
        f"{ROOT}/keys/rotate", {"id": id_, "name": "shop", "overlap": "3600", "why": "as every month"}
    )
    assert "pgm_live_" in rotated.text
    assert "Key shop is revoked" in toast(
        await page.act(f"{ROOT}/keys/revoke", {"id": id_, "name": "shop", "why": "leaked"})
    )
    assert "leaked" in str(acts(db)[0])
    for wrong in (
        {"name": "x"},
        {"name": "", "scopes": "send"},
        {"name": "x", "scopes": "send", "networks": "everywhere"},
    ):
        assert (await page.act(f"{ROOT}/keys/create", wrong)).status_code == 422


async def test_who_manages_makes_no_keys(db):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read", "manage"])) as page:
        assert (await page.act(f"{ROOT}/keys/create", {"name": "x", "scopes": "send"})).status_code == 403


async def test_a_domain_is_added_looked_for_and_removed(db, key, monkeypatch):
    from pgmail.transport import txt

    async def look(domain, servers):
        return txt.Look(txt.record_of(domain), "no_record", (), "there is no TXT record")

    monkeypatch.setattr(txt, "look", look)
    async with browser(db.dsn_for("api"), key) as page:
        assert "example.net is here" in toast(await page.act(f"{ROOT}/domains/add", {"name": "Example.net"}))
        shown = await page.get(f"{ROOT}/domains")
        assert "pgmail-verify=" in shown.text
        assert "_pgmail.example.net" in shown.text
        toast(await page.act(f"{ROOT}/domains/verify", {"name": "example.net"}))
        assert "there is no TXT record" in (await page.get(f"{ROOT}/domains")).text
        assert (await page.act(f"{ROOT}/domains/add", {"name": "not a domain"})).status_code == 422
        assert "removed" in toast(
            await page.act(f"{ROOT}/domains/remove", {"name": "example.net", "why": "sold"})
        )
        assert "sold" in str(acts(db)[0])


async def test_the_audit_is_filtered_and_shows_who_and_why(page, db, stock):
    await page.act(f"{ROOT}/queue/pause", {"scope": "site", "name": "example.org", "why": "because"})
    every = (await page.get(f"{ROOT}/audit")).text
    assert "because" in every
    assert "template.save" in every
    some = (await page.get(f"{ROOT}/audit?actor=key+dash&span=1h")).text
    assert "because" in some
    assert "template.save" not in some.split("<tbody>")[1]
    assert "No act matches" in (await page.get(f"{ROOT}/audit?action=nothing.*")).text
    assert (await page.get(f"{ROOT}/audit?before=x")).status_code == 422


async def test_a_test_key_reaches_test_email_only(db, stock):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read", "manage"], test=True)) as page:
        assert "gmail.com" not in (await page.get(f"{ROOT}/queue/live")).text.split("lanes-title")[0]
        assert "dead0@" not in (await page.get(f"{ROOT}/dead-letters")).text
        assert (await page.get(f"{ROOT}/suppressions")).status_code == 403
        given = {"scope": "site", "name": "gmail.com", "why": "r"}
        assert (await page.act(f"{ROOT}/queue/pause", given)).status_code == 403
        answer = await page.act(
            f"{ROOT}/dead-letters/retry", {"id": str(stock["dead_people"][0]), "why": "r"}
        )
        assert answer.status_code >= 400


async def test_without_scripts_a_question_is_a_page_and_its_answer_a_redirect(page, db, stock):
    question = await page.get(f"{ROOT}/queue/pause?scope=site&name=gmail.com")
    assert "<!doctype html>" in question.text
    assert 'name="csrf"' in question.text
    given = {"csrf": page.csrf, "scope": "site", "name": "gmail.com", "why": "by hand", "seconds": ""}
    answer = await page.post(f"{ROOT}/queue/pause", data=given, headers={"Origin": HOST})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/queue")
