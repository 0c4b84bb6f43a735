"""A real browser for tests of the dashboard: Debian's Chromium, driven by Playwright; axe-core for who cannot see it.

Screenshots are kept in a folder named by PGMAIL_SHOTS, else beside the test's other files.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Eyes:
    """A tab that is watched: what the browser complains of, what axe finds, what it looks like."""

    def __init__(self, browser: Any, url: str, folder: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": WIDE} | options))
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(45_000)
        self.url = url
        self.complaints: list[str] = []
        self.tab.on(
            "console", lambda line: self.complaints.append(line.text) if line.type == "error" else None
        )
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self._folder = Path(os.environ.get("PGMAIL_SHOTS") or folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def go(self, path: str) -> None:
        self.tab.goto(f"{self.url}{path}")

    def sign_in(self, key: str) -> None:
        self.go("/dashboard/sign-in")
        self.tab.get_by_label("API key").fill(key)
        self.tab.get_by_role("button", name="Sign in").click()
        self.tab.wait_for_url("**/dashboard")

    def shot(self, name: str) -> None:
        """Keep what the page looks like, in whole."""
        self.tab.screenshot(path=self._folder / f"{name}.png", full_page=True)

    def findings(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        from axe_core_python.sync_playwright import Axe

        found = Axe().run(self.tab)["violations"]
        return [
            f"{one['id']}: {node['html'][:160]} ({node['failureSummary'][:200]})"
            for one in found
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]

    def overflows(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(self.tab.evaluate("document.documentElement.scrollWidth > innerWidth"))
