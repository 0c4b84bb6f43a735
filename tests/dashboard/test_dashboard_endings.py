"""Sessions that end and answers that come twice: nothing that was typed is lost, and nothing is done twice."""

import io
import json
import logging
import re

import pytest
import structlog

from pgmail import log, publish
from pgmail.clock import ManualClock
from pgmail.dashboard import overview, preview
from pgmail.dashboard.manage import preview as editor_preview
from pgmail.dashboard.session import SECONDS
from pgmail.domain.keys import hash_key
from pgmail.errors import TemplateFault
from tests.dashboard.conftest import HOST, ROOT, browser, new_key
from tests.dashboard.stock import fill
from tests.sql import kit

OPEN = """select count(*) from pg_stat_activity
    where datname = %s and application_name = 'dash-test' and xact_start is not null"""


@pytest.fixture
def stock(db):
    return fill(db)


def hidden(text):
    """What a question takes along, by name."""
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', text))


async def question(page, path):
    answer = await page.get(ROOT + path, headers={"HX-Request": "true"})
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in hidden(answer.text).items() if name != "csrf"}


def said(answer):
    assert "HX-Trigger" in answer.headers, answer.text
    return json.loads(answer.headers["HX-Trigger"])["toast"]["text"]


async def test_a_bulk_answer_that_is_sent_twice_is_done_once(db, page, stock):
    given = await question(page, "/dead-letters/retry?stream=receipts") | {"why": "the relay is back"}
    assert said(await page.act(f"{ROOT}/dead-letters/retry", given)).startswith("3 dead letters put back")
    with db.connect() as owner:  # they die again, and another one with them
        kit.send(owner, "dead9@gmail.com", stream="receipts")
    die(db)
    again = await page.act(f"{ROOT}/dead-letters/retry", given)
    assert again.status_code == 422
    assert "dealt with already" in again.text
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.dead_letter") == 4


def die(db):
    """All that waits of the stream receipts becomes dead letters."""
    with db.connect() as owner, db.connect("worker") as connection:
        mails = {row[0] for row in kit.rows(owner, "select id from pgmail.message where stream = 'receipts'")}
        hand = kit.Hand(connection)
        hand.fold()
        leases = [lease for lease in hand.claim() if lease.message_id in mails]
        hand.settle(
            leases, "dead", reason="attempts_exhausted", code=452, stream="receipts", site="gmail.com"
        )


async def test_what_died_after_the_question_is_left_for_the_next(db, page, stock):
    given = await question(page, "/dead-letters/discard") | {"why": "over", "count": "900"}
    with db.connect() as owner:
        kit.send(owner, "dead9@gmail.com", stream="receipts")
    die(db)
    assert said(await page.act(f"{ROOT}/dead-letters/discard", given)).startswith("3 dead letters discarded")
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.dead_letter") == 1


async def test_mail_that_came_into_doubt_after_the_question_is_not_sent_again(db, page, stock):
    given = await question(page, "/in-doubt/resolve?how=resend") | {"why": "not in the log"}
    with db.connect() as owner:
        owner.execute(
            "update pgmail.event set at = now() + interval '1 minute' where type = 'email.in_doubt'"
            " and message_id = %s",
            [stock["doubts"][0]],
        )
    assert said(await page.act(f"{ROOT}/in-doubt/resolve", given)).startswith("1 email put back")
    twice = await page.act(f"{ROOT}/in-doubt/resolve", given)
    assert twice.status_code == 422
    assert "dealt with already" in twice.text
    with db.connect() as owner:
        assert [kit.state(owner, mail) for mail in stock["doubts"]] == ["held", "queued"]


async def test_a_test_key_is_not_told_whether_other_mail_is_dead_or_waits(db, stock):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read", "manage"], test=True)) as page:
        for path in ("retry", "discard"):
            ids = "&".join(f"id={id_}" for id_ in stock["dead_people"])
            theirs = await page.get(f"{ROOT}/dead-letters/{path}?{ids}", headers={"HX-Request": "true"})
            none = await page.get(
                f"{ROOT}/dead-letters/{path}?id=0190a000-0000-7000-8000-000000000000",
                headers={"HX-Request": "true"},
            )
            assert (theirs.status_code, none.status_code) == (404, 404)
            assert theirs.text == none.text
        waits = await page.get(
            f"{ROOT}/queue/pause?scope=site&name=gmail.com", headers={"HX-Request": "true"}
        )
        assert "0 emails in the queue there" in waits.text


async def test_a_test_key_is_not_shown_the_figures_of_live_mail(db, stock):
    async with browser(db.dsn_for("api"), new_key(db, scopes=["read"], test=True)) as page:
        answer = await page.get(ROOT)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/emails")
        assert (await page.get(f"{ROOT}/live/overview")).status_code == 403
        assert ">Overview<" not in re.sub(r"<svg.*?</svg>", "", (await page.get(f"{ROOT}/emails")).text)
    async with browser(db.dsn_for("api"), new_key(db, scopes=["manage"], test=True)) as page:
        assert (await page.get(ROOT)).headers["location"] == f"{ROOT}/queue"


async def test_a_question_about_a_pause_tells_how_much_it_concerns_and_the_answer_how_much_it_was(
    db, page, stock
):
    lane = {"scope": "lane", "name": "transactional/normal/gmail.com"}
    asked = await page.get(f"{ROOT}/queue/pause", params=lane, headers={"HX-Request": "true"})
    assert "4 emails in the queue there now" in asked.text
    done = await page.act(f"{ROOT}/queue/pause", lane | {"why": "r", "seconds": ""})
    assert "4 emails there now" in said(done)


async def test_a_page_whose_session_ended_is_told_so_and_stays_as_it_is(db, key):
    clock = ManualClock()
    async with browser(db.dsn_for("api"), key, clock=clock) as page:
        with db.connect() as connection:
            connection.execute(
                "update pgmail.api_key set revoked_at = now() where hash = %s", [hash_key(key)]
            )
        await clock.advance(1.01)
        answer = await page.act(f"{ROOT}/queue/pause", {"scope": "site", "name": "gmail.com", "why": "r"})
        assert (answer.status_code, answer.headers["hx-trigger"]) == (401, "signed-out")
        assert "hx-redirect" not in answer.headers
        stream = await page.get(f"{ROOT}/live/overview", headers={"Accept": "text/event-stream"})
        assert stream.text == 'event: end\ndata: "signed_out"\n\n'
        # Beside the form one signs in, and the page goes on with the new session's token.
        bad = await page.post(
            f"{ROOT}/sign-in", data={"key": key}, headers={"Origin": HOST, "Accept": "application/json"}
        )
        assert bad.status_code == 401
        assert "revoked" in bad.json()["because"]
        good = await page.post(
            f"{ROOT}/sign-in",
            data={"key": new_key(db)},
            headers={"Origin": HOST, "Accept": "application/json"},
        )
        assert good.json()["tenant"] == "1"
        page.csrf = good.json()["csrf"]
        done = await page.act(f"{ROOT}/queue/pause", {"scope": "site", "name": "gmail.com", "why": "r"})
        assert said(done).startswith("Paused")


async def test_a_page_of_an_earlier_session_learns_the_token_of_the_present_one(db, page, key):
    before = page.csrf
    await page.sign_in(key)
    page.csrf, after = before, page.csrf
    assert before != after
    answer = await page.act(f"{ROOT}/queue/pause", {"scope": "site", "name": "gmail.com", "why": "r"})
    assert (answer.status_code, answer.headers["hx-trigger"]) == (403, "stale")
    told = await page.get(f"{ROOT}/sign-in", headers={"Accept": "application/json"})
    assert told.json() == {"csrf": after, "tenant": "1"}
    assert "access-control-allow-origin" not in told.headers
    refused = await page.act(f"{ROOT}/queue/pause", {}, Origin="https://evil.example")
    assert "another site" in refused.text


@pytest.mark.parametrize(
    ("method", "path", "referer", "to"),
    [
        ("GET", "/queue/live", None, ""),
        ("GET", "/live/emails?ids=", None, ""),
        ("GET", "/dead-letters?stream=x", None, "/dead-letters?stream=x"),
        ("POST", "/queue/pause", f"{HOST}{ROOT}/queue?stream=x", "/queue?stream=x"),
        ("POST", "/queue/pause", f"https://evil.example{ROOT}/queue", ""),
        ("POST", "/queue/pause", f"{HOST}/elsewhere", ""),
    ],
)
async def test_after_signing_in_one_is_back_on_the_page(db, method, path, referer, to):
    async with browser(db.dsn_for("api"), None) as page:
        headers = {"Origin": HOST} | ({"Referer": referer} if referer else {})
        answer = await page.request(method, ROOT + path, headers=headers)
        assert answer.status_code == 303
        form = await page.get(answer.headers["location"])
        assert hidden(form.text)["next"].replace("&amp;", "&") == (ROOT + to if to else "")


async def test_no_transaction_is_open_while_a_template_is_read_or_rendered(
    db, page, stock, monkeypatch, server_admin
):
    """A template may take its time: neither a connection nor what it has seen is held meanwhile."""
    looks = []

    def looking(real):
        def made(*args, **kwargs):
            looks.append((real.__name__, kit.one(server_admin, OPEN, [db.name])))
            return real(*args, **kwargs)

        return made

    monkeypatch.setattr(preview, "render", looking(preview.render))
    monkeypatch.setattr(editor_preview, "_render", looking(editor_preview._render))
    monkeypatch.setattr(publish, "referenced", looking(publish.referenced))
    with db.connect() as owner:
        mail = kit.send(owner, "ada@example.org", html="<b>{{ name }}</b>", variables={"name": "Ada"})
        person = kit.recipients(owner, mail)[0]
    assert (await page.get(f"{ROOT}/emails/{mail}")).status_code == 200
    assert "<b>Ada</b>" in (await page.get(f"{ROOT}/emails/{mail}/html/{person}")).text
    given = {"name": "x", "html": "{% include 'welcome' %}", "variables": '{"name": "Ada"}'}
    assert "Your shop is open" in (await page.act(f"{ROOT}/templates/preview/html", given)).text
    assert {name for name, _ in looks} == {"render", "_render", "referenced"}
    assert {count for _, count in looks} == {0}


async def test_a_template_that_fails_is_told_on_the_page_of_its_email(db, page, monkeypatch):
    def fails(*_):
        raise TemplateFault("too_slow", "html", "it took too long")

    monkeypatch.setattr(preview, "render", fails)
    with db.connect() as owner:
        mail = kit.send(owner, "ada@example.org", html="<b>{{ name }}</b>", variables={"name": "Ada"})
    assert "it took too long" in (await page.get(f"{ROOT}/emails/{mail}")).text


@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_fault_of_ours_is_a_page_with_an_id_and_tells_its_log_no_secret(
    db, page, key, monkeypatch, form
):
    async def breaks(database, caller, span):
        secret = (key, page.cookies["pgmail_session"], page.csrf)
        raise RuntimeError(f"something broke of {len(secret)}")

    monkeypatch.setattr(overview, "_ask", breaks)
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.configure("debug", form, stream=out)
        monkeypatch.setattr("pgmail.dashboard.frame.log", structlog.get_logger())
        answer = await page.get(f"{ROOT}?span=1h")
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
    assert answer.status_code == 500
    id_ = re.search("under the id ([0-9a-f]{16})", answer.text)[1]
    assert 'aria-label="Pages"' in answer.text  # in the frame, so that one gets away from it
    assert "Traceback" not in answer.text
    text = out.getvalue()
    assert id_ in text
    assert "something broke" in text
    for secret in (key, hash_key(key).hex(), page.cookies["pgmail_session"], page.csrf):
        assert secret not in text


async def test_a_session_ends_after_its_time(db, key):
    clock = ManualClock()
    async with browser(db.dsn_for("api"), key) as page:
        page.app.state.sessions._clock = clock
        await page.sign_in(key)
        await clock.advance(SECONDS + 1)
        assert (await page.get(f"{ROOT}/emails")).status_code == 303
