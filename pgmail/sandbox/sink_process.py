"""The sink as a process of its own.

    python -m pgmail.sandbox.sink --port 0 --folder DIR --report FILE

prints `{"host": ..., "port": ..., "pid": ...}` on one line when it is ready, and ends, with exit code 0, on
SIGTERM, SIGINT or when its standard input, if that is a pipe, is closed: so that it dies with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import ssl
import stat
import sys
from pathlib import Path

import msgspec
import uvloop

from pgmail.errors import SandboxError
from pgmail.sandbox.sink import Sink


def main(arguments: list[str] | None = None) -> int:
    """Run the sink until told to end. Returns the exit code: 0, or 1 if it could not start."""
    options = _parser().parse_args(arguments)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options))
    except (SandboxError, OSError, ssl.SSLError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pgmail.sandbox.sink", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; defaults to 127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; defaults to 0")
    parser.add_argument("--folder", type=Path, help="write each mail to a file in this folder")
    parser.add_argument("--report", type=Path, help="append one JSON line for each mail to this file")
    parser.add_argument("--user", help="require AUTH with this user")
    parser.add_argument("--password", help="and this password")
    parser.add_argument("--certificate", type=Path, help="PEM file with chain and key; offers STARTTLS")
    parser.add_argument("--implicit-tls", action="store_true", help="TLS from the first octet")
    parser.add_argument("--tarpit", type=float, default=5.0, help="seconds for slow.*; defaults to 5")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    tls: ssl.SSLContext | None = None
    if options.certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate)
    sink = Sink(
        host=options.host,
        port=options.port,
        user=options.user,
        password=options.password,
        tls=tls,
        implicit_tls=options.implicit_tls,
        keep_mails=0,
        folder=options.folder,
        report=options.report,
        tarpit_seconds=options.tarpit,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    pipe = _watch_stdin(ended)
    async with sink:
        ready = {"host": sink.host, "port": sink.port, "pid": os.getpid()}
        sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
        sys.stdout.flush()
        await ended.wait()
    if pipe is not None:
        loop.remove_reader(pipe)


def _watch_stdin(ended: asyncio.Event) -> int | None:
    """Set `ended` when standard input ends. A terminal or /dev/null says nothing about the parent."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None

    def read() -> None:
        if not os.read(descriptor, 4096):
            ended.set()

    asyncio.get_running_loop().add_reader(descriptor, read)
    return descriptor
