"""Signing in and out, and what stands before every page: session, scope, that a change was meant, the policy."""

import re

import pytest

from pgmail.access import guesses
from pgmail.clock import ManualClock
from pgmail.config import Settings
from pgmail.dashboard.mount import OPEN, PAGES
from pgmail.dashboard.session import COOKIE, SECONDS, Sessions
from pgmail.dashboard.signin import _inside
from pgmail.domain.keys import hash_key
from pgmail.store import keys
from pgmail.store.database import Database
from tests.dashboard.conftest import HOST, ROOT, browser, new_key


def revoke(db, key):
    with db.connect() as connection:
        connection.execute("update pgmail.api_key set revoked_at = now() where hash = %s", [hash_key(key)])


async def test_who_is_not_signed_in_is_shown_the_form_and_then_the_page_that_was_asked_for(db, key):
    async with browser(db.dsn_for("api"), None) as page:
        answer = await page.get(f"{ROOT}/emails?state=sent")
        assert answer.status_code == 303
        form = await page.get(answer.headers["location"])
        assert form.status_code == 200
        asked = re.search(r'name="next" value="([^"]*)"', form.text)[1]
        assert asked == f"{ROOT}/emails?state=sent"
        answer = await page.sign_in(key, asked)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/emails?state=sent")
        assert (await page.get(f"{ROOT}/emails")).status_code == 200


async def test_the_cookie_is_for_this_host_alone_and_holds_no_key(db, key):
    async with browser(db.dsn_for("api"), None) as page:
        cookie = (await page.sign_in(key)).headers["set-cookie"]
        assert key not in cookie
        assert hash_key(key).hex() not in cookie
        for word in ("HttpOnly", "SameSite=lax", f"Path={ROOT}", f"Max-Age={SECONDS}"):
            assert word in cookie
        assert "Secure" not in cookie
        page.cookies.clear()
        answer = await page.post(
            f"https://pgmail.test{ROOT}/sign-in", data={"key": key}, headers={"Origin": "https://pgmail.test"}
        )
        assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(("proxies", "secure"), [("127.0.0.0/8", True), ("10.0.0.0/8", False), ("", False)])
async def test_the_cookie_is_secure_behind_a_proxy_that_is_trusted_and_says_https(db, key, proxies, secure):
    settings = Settings(trusted_proxies=proxies)
    async with browser(db.dsn_for("api"), None, settings=settings) as page:
        headers = {"Origin": HOST, "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
        answer = await page.post(f"{ROOT}/sign-in", data={"key": key}, headers=headers)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) is secure


async def test_signing_out_forgets_the_session(page):
    answer = await page.post(f"{ROOT}/sign-out", data={"csrf": page.csrf}, headers={"Origin": HOST})
    assert answer.headers["location"] == f"{ROOT}/sign-in"
    assert (await page.get(f"{ROOT}/emails")).status_code == 303


async def test_a_revoked_key_signs_out_within_a_second(db, key):
    clock = ManualClock()
    async with browser(db.dsn_for("api"), key, clock=clock) as page:
        revoke(db, key)
        await clock.advance(1.01)
        assert (await page.get(f"{ROOT}/emails")).status_code == 303
        form = await page.get(f"{ROOT}/sign-in")
        assert "revoked or has expired" in form.text


async def test_a_forged_a_cut_and_an_old_session_are_none(db, key):
    database = Database(db.dsn_for("api"), name="t", low=0, high=1)
    await database.open()
    try:
        clock = ManualClock()
        sessions = Sessions(database, clock)
        caller = (await keys.check(database, hash_key(key))).caller
        token = await sessions.begin(caller)
        found = await sessions.read(token)
        assert (found.tenant_id, found.key_id) == (caller.tenant_id, caller.key_id)
        body, _, signature = token.partition(".")
        other = ("B" if body[0] == "A" else "A") + body[1:]
        for bad in (
            "",
            ".",
            token[:-1],
            f"{other}.{signature}",
            f"{body}.{'A' * 43}",
            f"{body}.é",
            "x" * 5000,
        ):
            assert await sessions.read(bad) is None
        await clock.advance(SECONDS + 1)
        assert await sessions.read(token) is None
    finally:
        await database.close()


async def test_ending_all_sessions_ends_them(db, key):
    clock = ManualClock()
    async with browser(db.dsn_for("api"), key, clock=clock) as page:
        with db.connect("admin") as connection:
            connection.execute("select pgmail.end_sessions('a laptop was stolen')")
            found = connection.execute(
                "select reason from pgmail.audit where action = 'session.end_all'"
            ).fetchall()
        assert found == [("a laptop was stolen",)]
        page.app.state.sessions._until = 0.0
        assert (await page.get(f"{ROOT}/emails")).status_code == 303


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://pgmail.test.evil.test"])
async def test_a_change_that_another_site_asks_for_is_refused(page, origin):
    answer = await page.post(f"{ROOT}/sign-out", data={"csrf": page.csrf}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert (await page.get(f"{ROOT}/emails")).status_code == 200
    answer = await page.post(f"{ROOT}/sign-in", data={"key": "x"}, headers={"Origin": origin})
    assert answer.status_code == 403


@pytest.mark.parametrize("token", ["", "x", "é"])
async def test_a_change_without_the_sessions_token_is_refused(page, token):
    answer = await page.post(f"{ROOT}/sign-out", data={"csrf": token}, headers={"Origin": HOST})
    assert answer.status_code == 403
    assert (await page.get(f"{ROOT}/emails")).status_code == 200


async def test_the_token_of_another_session_is_none(db, key):
    async with browser(db.dsn_for("api"), key) as one, browser(db.dsn_for("api"), key) as other:
        assert one.csrf != other.csrf
        answer = await one.post(f"{ROOT}/sign-out", data={"csrf": other.csrf}, headers={"Origin": HOST})
        assert answer.status_code == 403


async def test_wrong_keys_are_slowed_as_those_of_the_api_are(db, key, monkeypatch):
    async def no_pause(_):
        """The clock of this test stands still."""

    monkeypatch.setattr(guesses.Lane, "pause", no_pause)
    async with browser(db.dsn_for("api"), None, clock=ManualClock()) as page:
        answers = [await page.sign_in("pgm_live_" + "a" * 43) for _ in range(21)]
        assert [answer.status_code for answer in answers] == [401] * 20 + [429]
        assert "unknown, was revoked or has expired" in answers[0].text
        assert (await page.sign_in(key)).status_code == 303  # a valid one always works


async def test_a_key_that_may_only_send_is_not_let_in_and_told_why(db):
    async with browser(db.dsn_for("api"), None) as page:
        answer = await page.sign_in(new_key(db, scopes=["send"]))
        assert answer.status_code == 403
        assert "neither read nor manage" in answer.text
        assert COOKIE not in page.cookies


async def test_a_key_bound_to_other_networks_is_not_let_in(db):
    async with browser(db.dsn_for("api"), None) as page:
        answer = await page.sign_in(new_key(db, networks=["192.0.2.0/24"]))
        assert answer.status_code == 403


async def test_every_answer_carries_the_policy(page):
    for path in ("/emails", "/nothing", "/sign-in", "/emails/x"):
        answer = await page.get(ROOT + path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"


async def test_pages_have_no_inline_scripts_or_styles(page):
    for path in ("/emails", "/sign-in", "/nothing"):
        text = (await page.get(ROOT + path)).text
        assert "<style" not in text
        assert " style=" not in text
        assert not re.search(r"<script(?![^>]*\ssrc=)", text)
        assert not re.search(r"\son[a-z]+=", text)


async def test_assets_need_no_session_and_are_kept_by_version(db):
    async with browser(db.dsn_for("api"), None) as page:
        form = (await page.get(f"{ROOT}/sign-in")).text
        found = re.findall(r'(?:href|src)="(/dashboard/assets/[^"]+)"', form)
        assert len(found) == 4
        for path in found:
            answer = await page.get(path)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert "immutable" not in (await page.get(path.partition("?")[0])).headers["cache-control"]
        assert (await page.get(f"{ROOT}/assets/..%2Fframe.py")).status_code in {303, 404}


def test_every_page_says_which_scope_it_takes():
    for handler in PAGES:
        assert handler.opt.get("scope"), handler
    assert {handler.handler_name for handler in OPEN} == {"show_sign_in", "sign_in", "show_asset"}


@pytest.mark.parametrize(
    "to",
    [
        "",
        "https://evil.test/",
        "//evil.test",
        "/dashboard.evil",
        "/\\evil",
        "/dashboard/\\evil",
        "/dashboard/\nx",
        "/emails",
    ],
)
def test_nobody_is_sent_to_another_site_after_signing_in(to):
    assert _inside(to) == ROOT


async def test_the_database_away_is_a_page_that_says_so(db, key):
    async with browser(db.dsn_for("api"), key) as page:
        await page.app.state.database.close()
        answer = await page.get(f"{ROOT}/emails")
        assert answer.status_code == 503
        assert "cannot be reached" in answer.text
