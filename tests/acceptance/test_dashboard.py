"""The dashboard in a real browser: signed in, looking at a mail on its way, searching, stopping, on a phone too.

Nothing is loaded anew by the tests where they wait: what changes has come by itself.
"""

import json
import re
import urllib.request

import pytest

from tests.acceptance.browser import PHONE, Eyes, chromium, needs_chromium

pytestmark = [pytest.mark.one_server, pytest.mark.timeout(600), needs_chromium]

HTML = """<table width="100%" style="font-family:sans-serif"><tr><td style="padding:24px">
<h1 style="color:#2f5bd8">Thank you, Ada</h1><p>Your order <b>4711</b> is on its way.</p>
<p><a href="https://example.com/" style="background:#2f5bd8;color:#fff;padding:10px 16px">Follow it</a></p>
<script>document.title = 'owned'</script><img src="https://example.com/pixel.gif" alt="">
</td></tr></table>"""

TAGS = [{"name": "order", "value": "4711"}]


def send(api, **email):
    body = {"from": "Shop <shop@example.com>", "subject": "Hello", "text": "Hello", **email}
    request = urllib.request.Request(
        f"http://127.0.0.1:{api.port}/emails",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["id"]


@pytest.fixture
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def place(new_server, fleet):
    """A server and an API process on it."""
    server = new_server()
    return server, fleet.api(server.dsn("api"))


def eyes_on(browser, api, tmp_path, **options):
    return Eyes(browser, f"http://127.0.0.1:{api.port}", tmp_path / "shots", **options)


def clean(eyes):
    """Nothing that a screen reader stumbles over, nothing that the browser refused, nothing too wide."""
    assert eyes.findings() == []
    assert eyes.complaints == []
    assert not eyes.overflows()


def test_a_mail_is_watched_on_its_way_without_loading_anything_anew(place, fleet, browser, tmp_path):
    server, api = place
    eyes = eyes_on(browser, api, tmp_path)
    eyes.go("/dashboard")
    assert "/sign-in" in eyes.tab.url
    clean(eyes)
    eyes.shot("sign-in")
    eyes.sign_in(api.key)
    eyes.tab.get_by_text("No worker is alive").wait_for()
    clean(eyes)
    eyes.shot("overview-empty")
    eyes.tab.get_by_role("link", name="Emails", exact=True).click()
    eyes.tab.get_by_text("No emails yet").wait_for()
    clean(eyes)
    eyes.shot("emails-empty")

    email = sees_it_sent(eyes, api, lambda: fleet.worker(server.dsn("worker")))
    later = stops_one_that_was_deferred(eyes, api)
    assert server.ask("select state from pgmail.status(%s)", [later]) == "cancelled"
    finds_it_by_tag_and_by_id(eyes, email)
    reads_it_without_letting_it_do_anything(eyes)

    eyes.go("/dashboard")
    eyes.tab.wait_for_function("!document.querySelector('#notice').innerText.includes('No worker')")
    clean(eyes)
    eyes.shot("overview")
    eyes.tab.get_by_role("button", name="Sign out").click()
    eyes.tab.wait_for_url("**/sign-in")


def sees_it_sent(eyes, api, start_worker):
    """A new mail is announced, then queued, then sent, while one looks. Returns its id."""
    tab = eyes.tab
    email = send(api, to="ada@example.org", html=HTML, subject="Your order is on its way", tags=TAGS)
    tab.get_by_text("1 new email").click()
    tab.get_by_role("link", name="Your order is on its way").wait_for()
    assert tab.locator(f"#states-{email}").inner_text().strip() == "Queued"
    tab.evaluate("window.unmoved = true")
    start_worker()
    tab.wait_for_function(
        "id => document.getElementById(id).innerText.includes('Sent')", arg=f"states-{email}", timeout=60_000
    )
    assert tab.evaluate("window.unmoved")
    return email


def stops_one_that_was_deferred(eyes, api):
    """Opened while it waits: its reply comes to the page; cancelled there, with a reason. Returns its id."""
    tab = eyes.tab
    later = send(api, to="defer.bob@example.org", subject="Second")
    tab.get_by_text("1 new email").click()
    tab.get_by_role("link", name="Second").click()
    tab.wait_for_url(f"**/emails/{later}")
    tab.evaluate("window.unmoved = true")
    tab.locator("#standing").get_by_text("Deferred").first.wait_for()
    assert "451" in tab.locator("#journey .reply").first.inner_text()
    assert tab.get_by_role("button", name="Retry now").first.is_visible()
    tab.get_by_role("button", name="Cancel", exact=True).click()
    eyes.shot("email-cancel")
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("not needed")
    dialog.get_by_role("button", name="Cancel email").click()
    tab.locator("#standing").get_by_text("Cancelled").first.wait_for()
    tab.locator("#toasts").get_by_text("Cancelled.").wait_for()
    assert tab.get_by_role("button", name="Retry now").count() == 0
    assert tab.evaluate("window.unmoved")
    clean(eyes)
    return later


def finds_it_by_tag_and_by_id(eyes, email):
    tab = eyes.tab
    tab.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name="Emails").click()
    tab.get_by_role("link", name="Second").wait_for()
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.keyboard.type("order=4711")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**order*4711*")
    tab.get_by_role("link", name="Your order is on its way").wait_for()
    assert tab.get_by_role("link", name="Second").count() == 0
    clean(eyes)
    eyes.shot("emails-found")
    tab.get_by_role("searchbox").fill(email)
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/emails/{email}")


def reads_it_without_letting_it_do_anything(eyes):
    tab = eyes.tab
    tab.frame_locator("iframe.mailframe").get_by_text("Thank you, Ada").wait_for()
    assert tab.title().startswith("Your order")
    eyes.shot("email-sent")
    # The browser says what it kept the mail from; it has nothing else to say.
    blocked = [line for line in eyes.complaints if re.search("sandboxed|Content Security Policy", line)]
    assert blocked
    assert eyes.complaints == blocked
    eyes.complaints.clear()
    tab.get_by_role("link", name="Headers", exact=True).click()
    tab.locator(".mailtext").get_by_text("Message-ID").wait_for()
    clean(eyes)


def test_it_is_readable_on_a_phone_and_in_the_dark(place, fleet, browser, tmp_path):
    server, api = place
    fleet.worker(server.dsn("worker"))
    send(
        api,
        to="ada@example.org",
        html=HTML,
        subject="Your order is on its way",
        tags=TAGS,
    )
    email = send(
        api,
        to=["defer.bob@example.org", "bounce.eve@example.org", "cy@example.org"],
        subject="A longer subject that takes more than one line on a phone, as many do",
    )
    for name, options in (
        ("phone", {"viewport": PHONE, "has_touch": True, "is_mobile": True}),
        ("dark", {"color_scheme": "dark"}),
        ("phone-dark", {"viewport": PHONE, "color_scheme": "dark"}),
    ):
        eyes = eyes_on(browser, api, tmp_path, reduced_motion="reduce", **options)
        eyes.sign_in(api.key)
        for page, path in (
            ("overview", ""),
            ("emails", "/emails"),
            ("email", f"/emails/{email}?view=Headers"),
        ):
            eyes.go(f"/dashboard{path}")
            clean(eyes)
            eyes.shot(f"{page}-{name}")
        if "phone" in name:
            menu = eyes.tab.get_by_role("navigation", name="Pages", exact=True)
            assert menu.count() == 0  # folded away, for who hears the page too
            eyes.tab.get_by_role("button", name="Menu").click()
            eyes.shot(f"menu-{name}")
            clean(eyes)
            menu.get_by_role("link", name="Overview").click()
            eyes.tab.wait_for_url("**/dashboard")
        eyes.context.close()


def test_the_theme_is_kept_and_the_keyboard_leads_past_the_menu(place, browser, tmp_path):
    _, api = place
    eyes = eyes_on(browser, api, tmp_path, color_scheme="light")
    eyes.sign_in(api.key)
    eyes.tab.keyboard.press("Tab")
    assert eyes.tab.evaluate("document.activeElement.textContent") == "Skip to content"
    eyes.tab.get_by_role("button", name="Switch between light and dark").click()
    assert eyes.tab.evaluate("document.documentElement.dataset.theme") == "dark"
    eyes.go("/dashboard/emails")
    assert eyes.tab.evaluate("document.documentElement.dataset.theme") == "dark"
    clean(eyes)
