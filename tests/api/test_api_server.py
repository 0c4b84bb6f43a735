"""The API as a process: a real socket, an end in good order, one line when it cannot listen."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

import httpx
import pytest

from pgmail.api import server
from pgmail.config import Settings
from pgmail.errors import SettingsError
from tests import served
from tests.api.conftest import EMAIL, waits_for_a_lock


@contextlib.contextmanager
def serving(dsn, **settings):
    """The real server on a port of its own, in a thread; yields its URL."""
    with served.serving(dsn, **settings) as made:
        yield made.url


def test_it_serves_on_a_free_port_until_told_to_stop(db, key):
    with serving(db.dsn_for("api")) as url:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}/emails", json=EMAIL, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        assert "server" not in answer.headers
        assert httpx.get(f"{url}/health/ready", timeout=30).json() == {"status": "ok"}
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=30)


def test_it_starts_without_a_database_and_says_so():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with serving(f"postgresql://x@127.0.0.1:{port}/x") as url:
        assert httpx.get(f"{url}/health/live", timeout=30).status_code == 200
        assert httpx.get(f"{url}/health/ready", timeout=30).status_code == 503


def test_a_port_that_is_taken_is_a_fault_of_settings():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen on 127.0.0.1:{port}"):
            asyncio.run(server.run(Settings(api_database_url="postgresql:///x", api_port=port)))


def test_processes_of_one_host_share_a_port():
    first = server.listen(Settings(api_port=0, api_processes=2))
    with first, server.listen(Settings(api_port=first.getsockname()[1], api_processes=2)) as second:
        assert first.getsockname() == second.getsockname()


PROGRAM = """
import sys
from pgmail import log
from pgmail.api.server import serve
from pgmail.config import Settings
log.configure("error")
serve(Settings(api_database_url=sys.argv[1], api_port=0), ready=lambda host, port: print(port, flush=True))
print("ended", flush=True)
"""


async def test_sigterm_finishes_the_request_under_way_and_exits_zero(db, key):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, db.dsn_for("api"), stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as api:
            assert (await api.get("/queue")).status_code == 200
            with db.connect(autocommit=False) as other, db.connect() as watcher:
                other.execute("lock table pgmail.message in access exclusive mode")
                asked = asyncio.create_task(api.post("/emails", json=EMAIL))
                await waits_for_a_lock(watcher)
                process.send_signal(signal.SIGTERM)
                other.rollback()
            assert (await asked).status_code == 200
        assert await asyncio.wait_for(process.stdout.read(), 60) == b"ended\n"
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
