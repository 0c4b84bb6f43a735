"""The dashboard behind the real server: its live streams end with the server, not the server with its patience."""

import asyncio
import threading
import time

import httpx

from pgmail import app
from pgmail.api import server
from pgmail.config import Settings
from pgmail.dashboard.mount import mount
from tests.dashboard.conftest import ROOT


def test_an_open_stream_is_told_and_ends_when_the_server_stops(db, key):
    found, started = {}, threading.Event()

    async def main():
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        found["stop"] = lambda: loop.call_soon_threadsafe(stop.set)

        def ready(host, port):
            found["url"] = f"http://{host}:{port}"
            started.set()

        settings = Settings(api_database_url=db.dsn_for("api"), api_port=0, drain_seconds=60)
        await server.run(settings, ready=ready, stop=stop, mounts=[mount])

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    try:
        assert started.wait(60)
        with httpx.Client(base_url=found["url"], timeout=30) as browser:
            assert browser.post(f"{ROOT}/sign-in", data={"key": key}).status_code == 303
            with browser.stream("GET", f"{ROOT}/live/overview?span=1h") as answer:
                assert answer.headers["x-accel-buffering"] == "no"
                lines = answer.iter_lines()
                while not next(lines).startswith("event: parts"):
                    pass
                began = time.monotonic()
                found["stop"]()
                assert 'data: "stopping"' in list(lines)
        thread.join(60)
        assert not thread.is_alive()
        assert time.monotonic() - began < 30  # not the minute that a drain may take
    finally:
        if thread.is_alive():
            found["stop"]()
        thread.join(60)


def test_the_api_of_the_command_line_serves_the_dashboard(monkeypatch):
    given = {}
    monkeypatch.setattr(server, "serve", lambda settings, **options: given.update(options))
    app.run_api(Settings())
    assert given == {"mounts": [mount]}
