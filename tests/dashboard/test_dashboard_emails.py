"""The list of emails and one email's page: what is found, what is shown, what strangers wrote stays text."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from pgmail.dashboard.emails import Asked, understood
from pgmail.domain.states import State
from tests.dashboard.conftest import ROOT, browser, new_key
from tests.waiting import eventually

EMAIL = {"from": "Shop <shop@example.com>", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = (datetime.now(UTC) + timedelta(days=2)).isoformat()
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def send(db, **more):
    with db.connect("producer") as connection:
        return connection.execute("select pgmail.send(%s::jsonb)", [json.dumps(EMAIL | more)]).fetchone()[0]


def test_what_is_typed_decides_what_it_is():
    email_id = uuid4()
    assert understood(Asked(str(email_id)), NOW).id == email_id
    assert understood(Asked("Ada@Example.ORG"), NOW).filter.recipient == "ada@example.org"
    assert understood(Asked("order=a=b"), NOW).filter.tag == ("order", "a=b")
    assert understood(Asked(state="dead", stream="x"), NOW).filter.state is State.DEAD
    assert understood(Asked(since="24h"), NOW).filter.above is not None
    assert understood(Asked(since="2026-05-01T00:00:00Z"), NOW).filter.above is not None
    for bad in (Asked("hello"), Asked("a@"), Asked("x\0"), Asked(since="soon")):
        assert understood(bad, NOW).fault


async def test_an_email_is_found_by_id_address_tag_state_and_stream(db, page):
    email_id = send(db, tags=[{"name": "order", "value": "7"}])
    other = send(db, to="bob@example.org", scheduled_at=LATER)
    for query in ("q=ada@example.org", "q=order%3D7", "state=queued", "q=ADA@example.org&state=queued"):
        text = (await page.get(f"{ROOT}/emails?{query}")).text
        assert f"/emails/{email_id}" in text
        assert f"/emails/{other}" not in text
    text = (await page.get(f"{ROOT}/emails")).text
    assert f"/emails/{email_id}" in text
    assert f"/emails/{other}" in text
    answer = await page.get(f"{ROOT}/emails?q={email_id}")
    assert answer.headers["location"] == f"{ROOT}/emails/{email_id}"
    assert "Nothing matches" in (await page.get(f"{ROOT}/emails?q=nobody@example.org")).text
    assert "Search for the id" in (await page.get(f"{ROOT}/emails?q=hello")).text


async def test_an_empty_list_says_what_to_do_next(page):
    text = (await page.get(f"{ROOT}/emails")).text
    assert "No emails yet" in text
    assert "pgmail send" in text


async def test_pages_go_on_and_back(db, page, monkeypatch):
    monkeypatch.setattr("pgmail.dashboard.emails.PER_PAGE", 2)
    sent = [str(send(db)) for _ in range(5)]

    def shown(text):
        return [email_id for email_id in reversed(sent) if f'href="{ROOT}/emails/{email_id}"' in text]

    def link(text, rel):
        import html
        import re

        found = re.search(rf'rel="{rel}" href="([^"]+)"', text)
        return html.unescape(found[1]) if found else None

    text = (await page.get(f"{ROOT}/emails")).text
    pages = [shown(text)]
    assert link(text, "prev") is None
    while to := link(text, "next"):
        text = (await page.get(to)).text
        pages.append(shown(text))
    assert [one for part in pages for one in part] == list(reversed(sent))
    assert [len(one) for one in pages] == [2, 2, 1]
    text = (await page.get(link(text, "prev"))).text
    assert shown(text) == pages[1]
    text = (await page.get(link(text, "prev"))).text
    assert shown(text) == pages[0]
    assert link(text, "prev") is None


async def test_the_page_of_an_email_shows_its_way_its_people_and_its_texts(db, page):
    email_id = send(
        db, html="<p>Dear <b>{{ name }}</b></p>", text="Dear {{ name }}", variables={"name": "Ada & Co"}
    )
    answer = await page.get(f"{ROOT}/emails/{email_id}")
    assert answer.status_code == 200, answer.text
    for word in ("Hi", "ada@example.org", "Queued", "Cancel", "Hold", f"/emails/{email_id}/html/"):
        assert word in answer.text
    text = (await page.get(f"{ROOT}/emails/{email_id}?view=Text")).text
    assert "Dear Ada &amp; Co" in text
    head = (await page.get(f"{ROOT}/emails/{email_id}?view=Headers")).text
    for field in ("From: Shop", "To: ada@example.org", "Subject: Hi", "Message-ID: &lt;"):
        assert field in head


async def test_each_recipient_has_its_own_look(db, page):
    people = [
        {"address": "ada@example.org", "variables": {"name": "Ada"}},
        {"address": "bob@example.org", "variables": {"name": "Bob"}},
    ]
    email_id = send(
        db, to=people, mode="personal", text="Dear {{ name }}", subject="For {{ name }}", variables={}
    )
    with db.connect() as connection:
        rows = connection.execute(
            "select id, address from pgmail.recipient where message_id = %s order by position", [email_id]
        ).fetchall()
    for person, address in rows:
        name = address[:3].title()
        text = (await page.get(f"{ROOT}/emails/{email_id}?view=Text&person={person}")).text
        assert f"Dear {name}" in text
        assert (
            f"To: {address}"
            in (await page.get(f"{ROOT}/emails/{email_id}?view=Headers&person={person}")).text
        )
        assert f"Dear {name}" in (await page.get(f"{ROOT}/emails/{person}?view=Text")).text


async def test_the_html_is_served_without_any_right(db, page):
    email_id = send(db, html=f"<p>Hello</p>{HOSTILE}<form action='https://evil.test'></form>", text="x")
    with db.connect() as connection:
        person = connection.execute(
            "select id from pgmail.recipient where message_id = %s", [email_id]
        ).fetchone()[0]
    answer = await page.get(f"{ROOT}/emails/{email_id}/html/{person}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script-src" not in policy
    assert "img-src data:;" in policy
    assert "form-action 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert 'sandbox=""' in (await page.get(f"{ROOT}/emails/{email_id}")).text
    assert (await page.get(f"{ROOT}/emails/{email_id}/html/{uuid4()}")).status_code == 404
    assert (await page.get(f"{ROOT}/emails/{uuid4()}/html/{person}")).status_code == 404


async def test_what_strangers_wrote_stays_text(db, page):
    email_id = send(
        db,
        to={"address": "ada@example.org", "name": "<script>x</script>"},
        subject=HOSTILE,
        text=f"Look: {HOSTILE}",
        tags=[{"name": "a", "value": "b"}],
        metadata={"k": HOSTILE},
    )
    with db.connect() as connection:
        tenant, person = connection.execute(
            "select tenant_id, id from pgmail.recipient where message_id = %s", [email_id]
        ).fetchone()
        connection.execute(
            "insert into pgmail.event"
            " (id, tenant_id, message_id, recipient_id, type, at, attempt, code, reply, detail, remote_host)"
            " values (uuidv7(), %s, %s, %s, 'email.deferred', now(), 1, 451, %s, %s, %s)",
            [tenant, email_id, person, f"451 {HOSTILE}", HOSTILE, HOSTILE],
        )
    for path in ("/emails", f"/emails/{email_id}", f"/emails/{email_id}?view=Text", f"/emails/{email_id}?view=Headers",
                 f"/emails?q={HOSTILE}", f"/emails?since={HOSTILE}&state={HOSTILE}&stream={HOSTILE}"):  # fmt: skip
        text = (await page.get(f"{ROOT}{path}")).text
        assert "<script>" not in text, path
        assert "<img" not in text, path
    assert "&lt;img src=x" in text


async def test_content_that_is_kept_no_longer_is_said(db, page):
    email_id = send(db)
    with db.connect() as connection:
        connection.execute(
            "update pgmail.message set content = pgmail.emptied(content, key_id) where id = %s",
            [email_id],
        )
    text = (await page.get(f"{ROOT}/emails/{email_id}")).text
    assert "Its content was deleted" in text


async def test_actions_change_what_they_say_and_are_audited(db, page):
    email_id = send(db, scheduled_at=LATER)

    def state():
        with db.connect() as connection:
            return connection.execute("select state from pgmail.status(%s)", [email_id]).fetchone()[0]

    answer = await page.act(f"{ROOT}/emails/{email_id}/hold", {"reason": "wait for it"})
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.headers["hx-location"])["path"] == f"{ROOT}/emails/{email_id}"
    assert state() == "held"
    assert "wait for it" in (await page.get(f"{ROOT}/emails/{email_id}")).text
    assert (await page.act(f"{ROOT}/emails/{email_id}/release")).status_code == 200
    assert state() == "scheduled"
    answer = await page.act(f"{ROOT}/emails/{email_id}/cancel", {"reason": "no more"})
    assert json.loads(answer.headers["hx-trigger"]) == {"toast": {"text": "Cancelled."}}
    assert state() == "cancelled"
    answer = await page.act(f"{ROOT}/emails/{email_id}/hold")
    assert answer.status_code == 409
    assert answer.headers["hx-retarget"] == "#toasts"
    with db.connect() as connection:
        acts = connection.execute(
            "select actor, reason from pgmail.audit where action like '%hold%'"
        ).fetchall()
    assert ("key dash", "wait for it") in acts


async def test_without_scripts_an_action_leads_back_to_the_page(db, page):
    email_id = send(db, scheduled_at=LATER)
    answer = await page.post(
        f"{ROOT}/emails/{email_id}/cancel",
        data={"csrf": page.csrf, "reason": ""},
        headers={"Origin": "http://pgmail.test"},
    )
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/emails/{email_id}")


@pytest.mark.parametrize("act", ["cancel", "hold", "release", "retry"])
async def test_a_key_that_may_only_read_sees_no_buttons_and_changes_nothing(db, act):
    email_id = send(db, scheduled_at=LATER)
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read"])) as page:
        text = (await page.get(f"{ROOT}/emails/{email_id}")).text
        assert f"ask-{act}" not in text
        assert (await page.act(f"{ROOT}/emails/{email_id}/{act}")).status_code == 403


async def test_another_tenants_email_is_unknown(db):
    email_id = send(db)
    with db.connect() as connection:
        person = connection.execute(
            "select id from pgmail.recipient where message_id = %s", [email_id]
        ).fetchone()[0]
        tenant = connection.execute("select pgmail.create_tenant('other')").fetchone()[0]
        connection.execute("select set_config('pgmail.tenant', '1', false)")
    key = tenant_key(db, tenant)
    async with browser(db.dsn_for("api"), key) as page:
        for path in (
            f"/emails/{email_id}",
            f"/emails/{person}",
            f"/emails/{email_id}/html/{person}",
            f"/live/emails/{email_id}",
        ):
            assert (await page.get(ROOT + path)).status_code == 404, path
        for act in ("cancel", "hold", "release", "retry"):
            assert (await page.act(f"{ROOT}/emails/{email_id}/{act}")).status_code == 404
        assert str(email_id) not in (await page.get(f"{ROOT}/emails")).text
        assert str(email_id) not in (await page.get(f"{ROOT}/emails?q=ada@example.org")).text


def tenant_key(db, tenant):
    from pgmail.domain.keys import make_key

    key, hint, hash_ = make_key()
    with db.connect() as connection:
        connection.execute(
            "insert into pgmail.api_key (tenant_id, name, hint, hash, created_by, scopes)"
            " values (%s, 'theirs', %s, %s, 'test', '{send,read,manage}')",
            [tenant, hint, hash_],
        )
    return key


async def test_a_key_of_one_stream_sees_that_stream_only(db):
    email_id = send(db)
    with db.connect() as connection:
        connection.execute("select pgmail.save_stream('news', '{}')")
    mine = send(db, stream="news")
    async with browser(db.dsn_for("api"), new_key(db, streams=["news"])) as page:
        text = (await page.get(f"{ROOT}/emails")).text
        assert str(mine) in text
        assert str(email_id) not in text
        assert (await page.get(f"{ROOT}/emails/{email_id}")).status_code == 404
        assert (await page.get(f"{ROOT}/emails?stream=transactional")).status_code == 200


async def events(page, path):
    """The events of a stream, until it ends."""
    found = []
    async with page.stream("GET", path) as answer:
        assert answer.status_code == 200
        name = None
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


async def test_a_limited_key_is_not_told_live_of_emails_out_of_its_reach(db):
    others = send(db)
    with db.connect() as connection:
        connection.execute("select pgmail.save_stream('news', '{}')")
    mine = send(db, stream="news")
    path = f"{ROOT}/live/emails?ids={others}+{mine}"
    for limits, told in ({"streams": ["news"]}, {str(mine)}), ({"test": True, "scopes": ["read"]}, set()):
        async with browser(db.dsn_for("api"), new_key(db, **limits)) as page:
            asyncio.get_running_loop().call_later(1, page.app.state.live.stopping.set)
            (_, parts), _ = await events(page, path)
            assert {name.removeprefix("states-") for name in parts if name != "news"} == told


async def test_a_final_email_tells_its_parts_and_ends(db, page):
    email_id = send(db)
    with db.connect("producer") as connection:
        connection.execute("select pgmail.cancel(%s)", [email_id])
    (name, parts), end = await events(page, f"{ROOT}/live/emails/{email_id}")
    assert name == "parts"
    assert set(parts) == {"standing", "journey", "people"}
    assert "Cancelled" in parts["standing"]
    assert end == ("end", "final")
    await eventually(lambda: len(page.app.state.live) == 0)


async def test_a_key_looks_at_so_many_things_at_once_and_no_more(db, monkeypatch):
    monkeypatch.setattr("pgmail.dashboard.live.MOST_OF_KEY", 2)
    emails = [send(db) for _ in range(3)]

    def path(email):
        return f"{ROOT}/live/emails/{email}"

    async with browser(db.dsn_for("api"), new_key(db)) as page, browser(db.dsn_for("api"), None) as other:
        live = page.app.state.live
        open_ = [asyncio.create_task(events(page, path(email))) for email in emails[:2]]
        await eventually(lambda: len(live) == 2)
        assert (await page.get(path(emails[2]))).status_code == 503
        open_.append(asyncio.create_task(events(page, path(emails[0]))))  # which is looked at already
        other.app = page.app
        other._transport = page._transport
        await other.sign_in(new_key(db, "another"))
        open_.append(asyncio.create_task(events(other, path(emails[2]))))
        await eventually(lambda: len(live) == 3, what="another key's is none of its business")
        live.stopping.set()
        for told in await asyncio.gather(*open_):
            assert told[-1] == ("end", "stopping")


async def test_live_parts_hold_nothing_of_a_session(db, page):
    email_id = send(db)
    with db.connect("producer") as connection:
        connection.execute("select pgmail.cancel(%s)", [email_id])
    found = await events(page, f"{ROOT}/live/emails/{email_id}")
    assert page.csrf not in json.dumps(found)


async def test_an_id_that_is_none_is_a_page_that_says_so(page):
    for path in ("/emails/x", f"/emails/{UUID(int=0)}", "/emails/%00"):
        answer = await page.get(ROOT + path)
        assert answer.status_code == 404, path
