"""Signing in, and what stands before every page."""

from tests.dashboard.conftest import ROOT, browser, new_key


async def test_smoke(db, key):
    async with browser(db.dsn_for("api"), None) as page:
        answer = await page.get(ROOT)
        assert answer.status_code == 303, answer.text
        answer = await page.get(answer.headers["location"])
        assert answer.status_code == 200, answer.text
        answer = await page.sign_in(key)
        assert answer.status_code == 303, answer.text
        answer = await page.get(f"{ROOT}/nothing")
        assert answer.status_code == 404, answer.text
        assert "Sign out" in answer.text
        assert new_key
