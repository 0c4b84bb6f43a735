"""A cable between a program and PostgreSQL that a test may cut and mend."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Cable:
    """Forwards connections to a server while it is whole."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.whole = True
        self.refused = 0  # connections that came while it was cut
        self.port = 0

    async def lay(self) -> None:
        self._server = await asyncio.start_server(self._come, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def dsn(self, dsn: str) -> str:
        """The same database by way of this cable."""
        parts = urlsplit(dsn)
        return dsn.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{self.port}")

    def cut(self) -> None:
        """Break every connection, and all that come until it is mended."""
        self.whole = False
        for writer in list(self._writers):
            writer.transport.abort()

    def silence(self) -> None:
        """From now on nothing passes on the connections that there are, and none of them breaks; new ones work."""
        self._silent |= self._writers

    def mend(self) -> None:
        self.whole = True

    async def remove(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # they end with their connections

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        self._tasks.add(me)
        try:
            if not self.whole:
                self.refused += 1
                return
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._writers |= {writer, far_writer}
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer)),
                asyncio.create_task(self._pump(far_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                self._writers -= {writer, far_writer}
                far_writer.transport.abort()
        finally:
            writer.transport.abort()
            self._tasks.discard(me)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(65_536):
                if writer not in self._silent:
                    writer.write(octets)
                    await writer.drain()


@asynccontextmanager
async def cable_to(dsn: str) -> AsyncIterator[Cable]:
    """A cable to the server that a URL names."""
    parts = urlsplit(dsn)
    cable = Cable(parts.hostname, parts.port)
    await cable.lay()
    try:
        yield cable
    finally:
        await cable.remove()
