"""`pgmail bench NAME`: figures of this machine, under conditions that are printed with them.

Each bench has a durable embedded PostgreSQL and a database of its own, real roles, real worker processes and a
real SMTP sink (Postfix's `smtp-sink` where it is installed, ours otherwise). A figure says nothing without its
conditions, and nothing about another machine; compare ratios of one run.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pgmail.errors import SandboxError
from pgmail.sandbox.guard import guarded_popen
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import bench as store
from pgmail.store import migrate

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
LINE = "Hello {{ name }}, thank you for your order. "
TEMPLATE = (
    "Order for {{ name }}",
    LINE * 45,
    "<p>" + LINE * 45 + "</p>",
)  # about 4 kB as a mail, the message that the peers are measured with


class Place:
    """Where a bench runs: a server with a migrated database, and ways to start what is measured."""

    def __init__(self, server: EmbeddedPostgres, stack: ExitStack) -> None:
        self.server, self._stack = server, stack
        self.owner = server.dsn("bench")
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgmail-bench-")))

    def dsn_for(self, role: str) -> str:
        """The database as one of pgmail's roles."""
        return self.server.address.dsn("bench", user=f"pgmail_{role}", password="bench")  # noqa: S106 - its own

    def sink(self) -> tuple[int, str]:
        """Start an SMTP sink; its port, and which program it is."""
        program = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is not None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            self._start([program, *user, f"127.0.0.1:{port}", "1000"])
            _answers(port)
            return port, "smtp-sink"
        process = self._start(
            [sys.executable, "-m", "pgmail.sandbox.sink", "--port", "0"], stdout=subprocess.PIPE
        )
        line = process.stdout.readline() if process.stdout else b""
        return int(msgspec.json.decode(line)["port"]), "pgmail's own"

    def workers(self, processes: int, concurrency: int, relay: str) -> Callable[[], None]:
        """Start worker processes as their own role; returns what stops them."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PGMAIL_")}
        env |= {
            "PGMAIL_DATABASE_URL": self.dsn_for("worker"),
            "PGMAIL_RELAY_URL": relay,
            "PGMAIL_LOG_LEVEL": "warning",  # no line a mail, as the peers
            "PGMAIL_HELO_NAME": "bench.example.com",
        }
        argv = [sys.executable, "-m", "pgmail", "worker", "--processes", str(processes)]
        process = self._start([*argv, "--concurrency", str(concurrency)], env=env)
        return lambda: (process.stop(), None)[1]

    def pgbench(self, script: str, clients: int, seconds: int) -> float:
        """Run a one-statement script with prepared statements; transactions a second."""
        file = self._folder / "script.sql"
        file.write_text(script)
        out = subprocess.run(
            [
                self.server.binaries / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={clients}",
                f"--jobs={min(clients, 2)}", f"--time={seconds}", f"--file={file}", self.dsn_for("producer"),
            ],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        for line in out.stdout.splitlines():
            if line.startswith("tps = "):
                return float(line.split()[2])
        raise SandboxError(f"pgbench failed: {out.stderr.strip()[-400:]}")

    def _start(self, argv: list[str], **options: Any) -> Any:
        return self._stack.enter_context(guarded_popen(argv, **options))


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """A fresh migrated database on an embedded server below `folder`; stopped afterwards."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(folder, settings=SETTINGS))
        store.recreate(server.dsn(), "bench")
        migrate.upgrade(server.dsn("bench"), prefix="pgmail_")
        store.passwords(server.dsn("bench"), "pgmail_", "bench")
        yield Place(server, stack)


def conditions(here: Place, **more: object) -> dict[str, object]:
    """What a figure was taken under."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "postgresql": store.server_version(here.owner),
        "synchronous_commit": "on",
        "load_before": round(os.getloadavg()[0], 2),
        **more,
    }


def e2e(here: Place, *, mails: int = 20_000, processes: int = 2, concurrency: int = 20) -> dict[str, object]:
    """Mails from a stored 4 kB text and HTML template, claimed, rendered, sent and settled.

    The rate is taken between the first and the last outcome, so that start-up does not count.
    """
    port, sink = here.sink()
    store.save_template(here.owner, "bench", *TEMPLATE)
    store.fill(here.owner, mails, template="bench", sites=20)
    before = conditions(here, sink=sink, mails=mails, processes=processes, concurrency=concurrency, sites=20)
    stop = here.workers(processes, concurrency, f"smtp://127.0.0.1:{port}?tls=none")
    began = time.monotonic()
    try:
        while (sent := store.sent(here.owner)).mails < mails:
            if time.monotonic() - began > 60 + mails / 100:
                raise SandboxError(f"only {sent.mails} of {mails} mails were sent")
            time.sleep(0.2)
    finally:
        stop()
    return {"mails_per_s": round((sent.mails - 1) / sent.seconds), "conditions": before}


def enqueue(here: Place, *, seconds: int = 5) -> dict[str, object]:
    """SQL `send` from 1 and 16 clients, one a transaction, and `send_many` of 1,000."""
    before = conditions(here, seconds_each=seconds)
    one = store.text("send_one")
    store.warm(here.owner)
    wal, count = store.wal(here.owner), store.messages(here.owner)
    figures: dict[str, object] = {
        "send_1_per_s": round(here.pgbench(one, 1, seconds)),
        "send_16_per_s": round(here.pgbench(one, 16, seconds)),
    }
    written = (store.wal(here.owner) - wal) / max(1, store.messages(here.owner) - count)
    many = here.pgbench(store.text("send_thousand"), 1, seconds)
    return figures | {
        "send_many_per_s": round(many * 1000),
        "wal_bytes": round(written),
        "conditions": before,
    }


BENCHES: Mapping[str, Callable[..., dict[str, object]]] = {"e2e": e2e, "enqueue": enqueue}


def run(name: str, folder: Path, options: Mapping[str, int]) -> dict[str, object]:
    """Run one bench on a server of its own below `folder`."""
    with place(folder) as here:
        return {"bench": name, **BENCHES[name](here, **options)}


def _answers(port: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SandboxError(f"nothing answers on port {port}")
