"""The dashboard's pages for operators in a real browser: what they do, on a phone too, and that all can use them.

Screenshots of each page, light, dark and on a phone, are kept (see `browser`).
"""

import asyncio
import threading

import pytest
import uvicorn

from pgmail.api.app import create_app
from pgmail.config import Settings
from pgmail.dashboard.mount import mount
from pgmail.store.database import Database
from tests.acceptance.browser import PHONE, WIDE, Eyes, chromium, needs_chromium
from tests.dashboard.conftest import new_key
from tests.dashboard.stock import fill
from tests.sql import kit
from tests.sql.kit import Hand

pytestmark = [pytest.mark.one_server, needs_chromium]

PAGES = {
    "alerts": "/alerts",
    "resolved": "/alerts?state=resolved",
    "webhooks": "/webhooks",
    "queue": "/queue",
    "dead": "/dead-letters",
    "in-doubt": "/in-doubt",
    "templates": "/templates",
    "template": "/templates/edit?name=welcome",
    "compare": "/templates/compare?name=welcome&old=1&new=2",
    "suppressions": "/suppressions",
    "streams": "/streams",
    "stream": "/streams/edit?name=receipts",
    "domains": "/domains",
    "keys": "/keys",
    "workers": "/workers",
    "audit": "/audit",
}


class Server:
    """The API with its dashboard on a port of its own, in a thread."""

    def __init__(self, dsn):
        self.url = ""
        self._dsn, self._ready = dsn, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self):
        database = Database(self._dsn, name="dash-browser", low=0, high=4)
        await database.open()
        app = create_app(Settings(), database, mounts=[mount])
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_config=None, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/dashboard"
        self._ready.set()
        await serving
        await database.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture
def stock(db):
    return fill(db, many=5)


@pytest.fixture
def url(db, stock):
    with Server(db.dsn_for("api")) as server:
        yield server.url


@pytest.fixture
def eyes(db, url, tmp_path):
    with chromium() as browser:
        made = Eyes(browser, url.removesuffix("/dashboard"), tmp_path / "shots")
        made.sign_in(new_key(db, name="ada", scopes=["admin"]))
        yield made
        # A refusal is told on the page, and by the browser in its console.
        assert [line for line in made.complaints if "422" not in line] == []


@pytest.fixture
def page(eyes):
    return eyes.tab


def confirm(page, reason="because of a test", **fields):
    """Answer the question in the dialog."""
    dialog = page.locator("dialog#ask[open]")
    dialog.wait_for()
    for name, value in fields.items():
        field = dialog.locator(f'[name="{name}"]')
        if field.evaluate("at => at.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    if dialog.locator('[name="why"]').count():
        dialog.locator('[name="why"]').fill(reason)
    dialog.locator("button.go").click()


def told(page, text):
    page.locator(".toast", has_text=text).wait_for()


def test_a_dead_letter_is_retried_and_then_all_others(page, url, db, stock):
    page.goto(url + "/dead-letters")
    assert page.locator("tbody tr").count() == 5
    page.get_by_role("button", name="Retry dead4@gmail.com").click()
    confirm(page, "the mailbox has room again")
    told(page, "1 dead letter put back into the queue")
    page.locator("tbody tr").nth(4).wait_for(state="detached")
    assert page.locator("tbody tr").count() == 4
    for box in page.locator('tbody input[type="checkbox"]').all()[:2]:
        box.check()
    page.locator("[data-chosen-bar]").get_by_role("button", name="Discard").click()
    page.locator("dialog#ask[open]", has_text="Discard 2 dead letters?").wait_for()
    confirm(page, "too late for these")
    told(page, "2 dead letters discarded")
    page.get_by_role("button", name="Retry all").click()
    page.locator("dialog#ask[open]", has_text="Retry 2 dead letters?").wait_for()
    confirm(page, "all is well again")
    page.get_by_text("No dead letters", exact=True).wait_for()
    with db.connect() as owner:
        acts = kit.rows(
            owner, "select actor, action, reason from pgmail.audit where action ~ 'retry|discard' order by id"
        )
        assert {reason for *_, reason in acts} >= {"the mailbox has room again", "too late for these"}
        assert {actor for actor, *_ in acts} == {"key ada"}
        assert sorted(kit.state(owner, mail) for mail in stock["dead"]) == ["cancelled"] * 2 + ["queued"] * 3


def test_a_lane_is_paused_and_resumed(page, url, db):
    page.goto(url + "/queue")
    page.get_by_role("button", name="Pause lane transactional/normal/gmail.com").click()
    confirm(page, "they throttle us", seconds="3600")
    told(page, "Paused lane transactional/normal/gmail.com")
    resume = page.get_by_role("button", name="Resume transactional/normal/gmail.com", exact=True)
    resume.wait_for()
    with db.connect() as owner:
        assert kit.one(owner, "select reason from pgmail.pause where scope = 'lane'") == "they throttle us"
    resume.click()
    confirm(page, "they answered")
    told(page, "Resumed lane transactional/normal/gmail.com")
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.pause where scope = 'lane'") == 0


def test_a_template_is_edited_previewed_and_published(eyes, page, url, db):
    page.goto(url + "/templates/edit?name=welcome")
    page.fill("#e-html", "<h1>Hello {{ name }}</h1>\n<p>{% if shop %}{{ shop }}{% endif</p>")
    page.get_by_role("button", name="Preview").click()
    page.locator("#preview .notice", has_text="line 2").wait_for()
    page.fill("#e-html", "<h1>Hello {{ name }}</h1><script>parent.document.title = 'broken out'</script>")
    page.fill("#e-variables", '{"name": "<b>Ada</b>"}')
    page.get_by_role("button", name="Preview").click()
    frame = page.frame_locator("iframe[data-frame]")
    frame.get_by_text("Hello <b>Ada</b>").wait_for()
    assert "broken out" not in page.title()
    page.goto(url + "/templates/edit?name=welcome")
    page.locator("iframe[data-frame]").wait_for()
    eyes.complaints.clear()  # of the script in the frame, which was stopped
    page.fill("#e-html", "<h1>Hello {{ nobody.here }</h1>")
    page.get_by_role("button", name="Save and publish").click()
    page.locator(".my-refused").wait_for()
    assert page.input_value("#e-html") == "<h1>Hello {{ nobody.here }</h1>"
    page.fill("#e-html", "<h1>Hello {{ name }}, at last</h1>")
    page.get_by_role("button", name="Save and publish").click()
    told(page, "Version 3 of welcome is published")
    page.get_by_role("link", name="What version 3 changed").click()
    page.locator(".added", has_text="at last").wait_for()
    with db.connect() as owner:
        found = kit.one(
            owner, "select max(version) from pgmail.template where name = 'welcome' and state = 'published'"
        )
        assert found == 3


def test_a_key_is_made_shown_once_and_revoked(page, url, db):
    page.goto(url + "/keys")
    page.get_by_role("button", name="Make a key").click()
    confirm(page, name="web shop")
    secret = page.locator("#new-key").inner_text()
    assert secret.startswith("pgm_live_")
    page.get_by_role("link", name="I have it").click()
    page.get_by_role("button", name="Revoke web shop").wait_for()
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke web shop").click()
    page.locator("dialog#ask[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog#ask").wait_for(state="hidden")
    page.get_by_role("button", name="Revoke web shop").click()
    confirm(page, "it was in a log")
    told(page, "Key web shop is revoked")
    page.get_by_text("1 key that ended").wait_for()


def test_all_of_it_is_done_by_keyboard_and_a_wrong_answer_is_told_at_its_field(page, url):
    page.goto(url + "/suppressions")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.get_by_role("button", name="Suppress an address").focus()
    page.keyboard.press("Space")
    page.locator("dialog#ask[open]").wait_for()
    assert page.evaluate("document.activeElement.name") == "address"
    page.keyboard.type("nobody@@example.org")
    page.locator("dialog#ask form").evaluate("form => form.noValidate = true")
    page.keyboard.press("Enter")
    page.locator("dialog#ask .my-refused").wait_for()
    assert page.input_value('dialog#ask [name="address"]') == "nobody@@example.org"
    page.fill('dialog#ask [name="address"]', "Eve@example.org")
    page.keyboard.press("Enter")
    told(page, "eve@example.org gets no mail")


def by_keyboard(page, name):
    """Go by Tab to what has this name, and press it."""
    for _ in range(120):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "() => { const at = document.activeElement; return (at.ariaLabel || at.textContent).trim(); }"
        )
        if here == name:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"nothing that the keyboard reaches is named {name!r}")


def test_mail_is_found_retried_paused_and_resumed_without_a_mouse(db, url, stock, tmp_path):
    with chromium() as browser:
        eyes = Eyes(browser, url.removesuffix("/dashboard"), tmp_path / "shots")
        page, keys = eyes.tab, eyes.tab.keyboard
        eyes.go("/dashboard/dead-letters")
        keys.type(new_key(db, scopes=["read", "manage"]))
        keys.press("Enter")
        page.wait_for_url("**/dead-letters")
        by_keyboard(page, "Retry dead0@gmail.com")
        page.locator("dialog#ask[open]").wait_for()
        keys.type("there is room again")
        keys.press("Enter")
        told(page, "1 dead letter put back")
        by_keyboard(page, "Emails")
        page.wait_for_url("**/emails")
        keys.press("/")
        keys.type("dead0@gmail.com")
        keys.press("Enter")
        page.wait_for_url("**q=dead0*")
        by_keyboard(page, "Hi")
        page.locator("#standing").get_by_text("Queued").wait_for()
        by_keyboard(page, "Queue")
        page.wait_for_url("**/queue")
        lane = "transactional/normal/gmail.com"
        by_keyboard(page, f"Pause lane {lane}")
        page.locator("dialog#ask[open]", has_text="4 emails in the queue there now").wait_for()
        page.locator('dialog#ask [name="seconds"]:focus').wait_for()
        keys.press("Tab")
        keys.type("they throttle us")
        keys.press("Enter")
        told(page, f"Paused lane {lane}")
        page.get_by_role("button", name=f"Resume {lane}", exact=True).wait_for()
        by_keyboard(page, f"Resume {lane}")
        page.locator('dialog#ask [name="why"]:focus').wait_for()
        keys.type("they answered")
        keys.press("Enter")
        told(page, f"Resumed lane {lane}")


def test_what_was_typed_outlives_its_session(eyes, page, url, db):
    page.goto(url + "/templates/edit?name=welcome")
    preview = page.frame_locator("iframe[data-frame]")
    preview.get_by_text("Your shop is open").wait_for()
    page.fill("#e-html", "<h1>Written for an hour</h1>")
    page.context.clear_cookies()
    page.get_by_role("button", name="Save as a draft").click()
    again = page.get_by_role("dialog", name="Your session has ended")
    again.get_by_label("API key").fill("pgm_live_nonsense")
    again.get_by_role("button", name="Sign in").click()
    again.get_by_role("alert").get_by_text("unknown").wait_for()
    again.get_by_label("API key").fill(new_key(db, name="eve", scopes=["admin"]))
    again.get_by_role("button", name="Sign in").click()
    told(page, "Nothing was lost")
    page.get_by_role("button", name="Save as a draft").click()
    told(page, "Version 3 of welcome is saved")
    assert page.input_value("#e-html") == "<h1>Written for an hour</h1>"
    # Where nothing was typed there is nothing to keep.
    page.get_by_role("button", name="Publish version 3").wait_for()
    preview.get_by_text("Written for an hour").wait_for()
    page.context.clear_cookies()
    page.get_by_role("button", name="Publish version 3").click()
    page.wait_for_url("**/sign-in?next=*edit*")
    eyes.complaints[:] = [line for line in eyes.complaints if "401" not in line]


def test_a_live_part_takes_neither_the_focus_nor_what_is_being_typed(page, url):
    page.clock.install()
    page.goto(url + "/queue")

    def asked_again():
        with page.expect_response("**/queue/live*"):
            page.clock.fast_forward(6_000)
        page.clock.fast_forward(200)

    button = page.get_by_role("button", name="Pause stream receipts")
    button.evaluate("at => { at.focus(); at.dataset.old = 'yes'; }")
    asked_again()
    page.locator("[data-old]").wait_for(state="detached")
    assert page.evaluate("document.activeElement.ariaLabel") == "Pause stream receipts"
    page.get_by_role("textbox", name="Site").fill("gmail")
    asked_again()
    assert page.get_by_role("textbox", name="Site").input_value() == "gmail"


def test_workers_and_the_queue_go_on_by_themselves(page, url, db):
    page.goto(url + "/workers")
    before = page.locator("tbody tr", has_text="test #").count()
    with db.connect("worker") as connection:
        Hand(connection)
    page.locator("tbody tr", has_text="test #").nth(before).wait_for()


def test_an_alert_on_the_overview_leads_to_its_page_and_is_silenced(page, url):
    page.goto(url)
    page.get_by_role("link", name="See alerts").click()
    page.get_by_role("button", name="Silence dead_letters receipts").click()
    confirm(page, "known since noon", seconds="3600")
    told(page, "dead_letters of receipts is silenced")
    end = page.get_by_role("button", name="End the silence of dead_letters", exact=True)
    end.click()
    confirm(page, "it is over")
    told(page, "dead_letters of receipts is told again")
    end.wait_for(state="detached")
    page.get_by_role("link", name="See where dead_letters comes from").click()
    page.get_by_role("heading", name="Dead letters").wait_for()


def test_a_webhook_is_found_disabled_and_its_log_told_once_more(page, url, db):
    page.goto(url + "/webhooks")
    page.get_by_role("link", name="mailbox is full").click()
    page.get_by_role("button", name="Disable", exact=True).click()
    confirm(page, "taken down")
    told(page, "It is disabled")
    page.get_by_role("button", name="Enable", exact=True).click()
    confirm(page, "up again")
    told(page, "It is enabled")
    page.get_by_role("button", name="Replay", exact=True).first.click()
    confirm(page, "they lost it")
    page.locator("dialog#ask[open] h2", has_text="3 events once more?").wait_for()
    page.locator("dialog#ask[open] button.go").click()
    told(page, "3 events told once more")
    with db.connect() as owner:
        assert kit.one(owner, "select count(*) from pgmail.hook_queue") == 3


@pytest.mark.parametrize(
    "schemes", [("light",), pytest.param(("light", "dark"), marks=pytest.mark.long)], ids=["light", "both"]
)
def test_every_page_is_fit_for_all_in_light_and_dark_and_on_a_phone(eyes, page, url, db, schemes):
    """axe-core finds nothing serious, nothing is wider than a phone, and its pictures are kept."""
    faults = []
    with db.connect() as owner:
        webhook = kit.one(owner, "select id from pgmail.hook")
    for name, path in (PAGES | {"webhook": f"/webhooks/endpoint?id={webhook}", "overview": ""}).items():
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(WIDE)
        page.goto(url + path)
        if name == "template":
            page.locator("iframe[data-frame]").wait_for()
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            eyes.shot(f"{name}-{scheme}")
            faults += [(name, scheme, found) for found in eyes.findings()]
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        eyes.shot(f"{name}-phone")
        faults += [(name, "wider than a phone")] if eyes.overflows() else []
    assert faults == []


def test_every_question_is_fit_for_all(eyes, page, url):
    faults = []
    for name, path, button in (
        ("ask-pause", "/queue", "Pause mail"),
        ("ask-key", "/keys", "Make a key"),
        ("ask-webhook", "/webhooks", "Add a webhook"),
        ("ask-discard", "/dead-letters", "Discard all"),
        ("ask-import", "/suppressions", "Import"),
    ):
        page.set_viewport_size(WIDE)
        page.goto(url + path)
        page.get_by_role("button", name=button, exact=True).click()
        page.locator("dialog#ask[open]").wait_for()
        eyes.shot(name)
        faults += [(name, found) for found in eyes.findings()]
        page.set_viewport_size(PHONE)
        eyes.shot(f"{name}-phone")
        faults += [(name, "wider than a phone")] if eyes.overflows() else []
    assert faults == []
