"""A page served beside the work of a process: uvicorn in a thread, on loopback.

What can go wrong: the usual port is taken; then any free one is used, and the URL says which.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Generator, Iterator

import uvicorn

from pgmail.dashboard.inbox import Mails, create_inbox
from pgmail.errors import SandboxError

HOST = "127.0.0.1"
INBOX_PORT = 8026
START_SECONDS = 20.0


@contextlib.contextmanager
def serve_inbox(mails: Mails, port: int = INBOX_PORT) -> Iterator[str]:
    """Serve the inbox page while this lasts; yields its URL. Raises SandboxError."""
    with _listen(port) as listener:
        config = uvicorn.Config(
            create_inbox(mails),
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="inbox", daemon=True
        )
        thread.start()
        until = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise SandboxError("the inbox page could not be started")
            time.sleep(0.01)
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the process it is a guest of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.bind((HOST, 0))
    listener.listen(64)
    listener.setblocking(False)
    return listener
