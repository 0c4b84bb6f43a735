"""The real server of the API, on a port of its own, in a thread of this process."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pgmail.api import server
from pgmail.config import Settings


@dataclass
class Served:
    """A server that runs. `stop` tells it to; `join` waits until it did."""

    thread: threading.Thread
    url: str = ""
    stop: Any = None
    started: threading.Event = field(default_factory=threading.Event)

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(dsn: str, *, mounts: Any = (), **settings: Any) -> Iterator[Served]:
    """Serve until the block ends; `settings` are the API's."""

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        made.stop = lambda: loop.call_soon_threadsafe(stop.set)

        def ready(host: str, port: int) -> None:
            made.url = f"http://{host}:{port}"
            made.started.set()

        given = Settings(api_database_url=dsn, api_port=0, **settings)
        await server.run(given, ready=ready, stop=stop, mounts=mounts)

    made = Served(threading.Thread(target=lambda: asyncio.run(main())))
    made.thread.start()
    try:
        assert made.started.wait(60)
        yield made
    finally:
        if made.thread.is_alive():
            made.stop()
        made.join()
