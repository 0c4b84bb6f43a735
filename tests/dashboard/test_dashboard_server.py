"""The dashboard behind the real server: its live streams end with the server, not the server with its patience."""

import time

import httpx

from pgmail import app
from pgmail.api import server
from pgmail.config import Settings
from pgmail.dashboard.mount import mount
from tests.dashboard.conftest import ROOT
from tests.served import serving


def test_an_open_stream_is_told_and_ends_when_the_server_stops(db, key):
    with serving(db.dsn_for("api"), mounts=[mount], drain_seconds=60) as made:
        with httpx.Client(base_url=made.url, timeout=30) as browser:
            assert browser.post(f"{ROOT}/sign-in", data={"key": key}).status_code == 303
            with browser.stream("GET", f"{ROOT}/live/overview?span=1h") as answer:
                assert answer.headers["x-accel-buffering"] == "no"
                lines = answer.iter_lines()
                while not next(lines).startswith("event: parts"):
                    pass
                began = time.monotonic()
                made.stop()
                assert 'data: "stopping"' in list(lines)
        made.join()
        assert time.monotonic() - began < 30  # not the minute that a drain may take


def test_the_api_of_the_command_line_serves_the_dashboard(monkeypatch):
    given = {}
    monkeypatch.setattr(server, "serve", lambda settings, **options: given.update(options))
    app.run_api(Settings())
    assert given == {"mounts": [mount]}
