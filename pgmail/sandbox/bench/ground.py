"""Where a bench runs: a server with a migrated database, sinks, and the processes that are measured.

What can go wrong: a process that does not come up, or stops. It is a `SandboxError` that says which.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pgmail import __version__
from pgmail.domain.keys import make_key
from pgmail.errors import SandboxError
from pgmail.sandbox.bench.workers import Workers
from pgmail.sandbox.guard import Guarded, guarded_popen
from pgmail.sandbox.ports import free_port
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
START_SECONDS = 60.0


class Api(NamedTuple):
    """A running API process: where it listens, and a key that it takes."""

    process: Guarded
    port: int
    key: str


class Place:
    """Where a bench runs: a server with a migrated database, and ways to start what is measured."""

    def __init__(self, server: EmbeddedPostgres, stack: ExitStack) -> None:
        self.server, self._stack = server, stack
        self.owner = server.dsn("bench")
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgmail-bench-")))
        self.log = self.folder / "log"
        """What the processes say that are measured; at their level, warnings, that is little."""

    def dsn_for(self, role: str) -> str:
        """The database as one of pgmail's roles."""
        return self.server.address.dsn("bench", user=f"pgmail_{role}", password="bench")  # noqa: S106 - its own

    def fresh(self) -> None:
        """Take away what an earlier measurement left. No worker may run."""
        store.empty(self.owner)

    def sink(self) -> tuple[int, str]:
        """Start an SMTP sink; its port, and which program it is."""
        program = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            return self.own_sink(), "pgmail's own"
        port = free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        wait_for_port(self._start([program, *user, f"127.0.0.1:{port}", "1000"]), port)
        return port, "smtp-sink"

    def own_sink(self, report: Path | None = None) -> int:
        """Start pgmail's own sink; its port. `report` gets a line for each mail, with the time of its 250."""
        argv = [sys.executable, "-m", "pgmail.sandbox.sink", "--port", "0"]
        if report is not None:
            report.touch()
            argv += ["--report", str(report)]
        process = self._start(argv, stdout=subprocess.PIPE)
        line = process.stdout.readline() if process.stdout else b""
        try:
            return int(msgspec.json.decode(line)["port"])
        except (msgspec.DecodeError, KeyError) as error:
            raise SandboxError("the sink did not start") from error

    def workers(self, processes: int, concurrency: int, relay: str) -> Workers:
        """Start worker processes as their own role, for a relay. What is answered stops them when called."""
        argv = [sys.executable, "-m", "pgmail", "worker", "--processes", str(processes)]
        argv += ["--concurrency", str(concurrency)]
        return self._workers([argv], processes, {"PGMAIL_RELAY_URL": relay})

    def noop_workers(self, processes: int, concurrency: int) -> Workers:
        """Start worker processes that do all but talk to a relay: each mail is thrown away and called sent."""
        argv = [sys.executable, "-m", "pgmail.sandbox.bench_noop"]
        return self._workers([argv] * processes, processes, {"PGMAIL_WORKER_CONCURRENCY": str(concurrency)})

    def api(self, **settings: str) -> Api:
        """Start one API process, with settings beside those of every process."""
        key, hint, hashed = make_key()
        store.create_key(self.owner, hint, hashed)
        port = free_port()
        argv = [sys.executable, "-m", "pgmail", "api", "--port", str(port), "--processes", "1"]
        with self.log.open("ab") as log:
            process = self._start(argv, env=self.environ("api") | settings, stdout=log, stderr=log)
        wait_for_port(process, port)
        return Api(process, port, key)

    def pgbench(self, script: str, clients: int, seconds: int) -> float:
        """Run a one-statement script with prepared statements; transactions a second.

        The time runs from before pgbench connects, so on a busy machine it may be over before the first
        transaction; then it is given twice the time.
        """
        file = self.folder / "script.sql"
        file.write_text(script)
        for allowed in (seconds, seconds * 2, seconds * 4):
            out = subprocess.run(
                [
                    self.server.binaries / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={clients}",
                    f"--jobs={min(clients, 2)}", f"--time={allowed}", f"--file={file}", self.dsn_for("producer"),
                ],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            if out.returncode != 0:
                raise SandboxError(f"pgbench failed: {out.stderr.strip()[-400:]}")
            for line in out.stdout.splitlines():
                if line.startswith("tps = "):
                    return float(line.split()[2])
        raise SandboxError(f"pgbench ended no transaction in {allowed} s: {out.stdout.strip()[-400:]}")

    def environ(self, role: str) -> dict[str, str]:
        """The environment of a process of pgmail's: none of the settings around, and no line a mail."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PGMAIL_")}
        return kept | {
            "PGMAIL_DATABASE_URL": self.dsn_for(role),
            "PGMAIL_LOG_LEVEL": "warning",
            "PGMAIL_HELO_NAME": "bench.example.com",
            "PGMAIL_STATE_DIR": str(self.folder / "state"),
        }

    def _workers(self, argvs: Sequence[Sequence[str]], count: int, settings: dict[str, str]) -> Workers:
        env = self.environ("worker") | settings
        with self.log.open("ab") as log:
            started = [self._start(argv, env=env, stdout=log, stderr=log) for argv in argvs]
        return Workers(self.owner, started, count, self.log)

    def _start(self, argv: Sequence[str], **options: Any) -> Guarded:
        # The working directory of its own: a pgmail.toml around must not steer what is measured.
        return self._stack.enter_context(guarded_popen(argv, cwd=self.folder, **options))


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
        "pgmail": __version__,
        "cores": os.cpu_count(),
        "processor": processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": store.server_version(here.owner),
        "synchronous_commit": "on",
        "fsync": "on",
        "load_before": round(os.getloadavg()[0], 2),
        **more,
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def wait_for_port(process: Guarded, port: int, seconds: float = START_SECONDS) -> None:
    """Wait until the port answers. SandboxError when the process ends or the time does."""
    until(lambda: _answers(port), seconds, f"nothing answers on port {port}", alive=process)


def until(true: Callable[[], bool], seconds: float, otherwise: str, *, alive: Guarded | None = None) -> None:
    """Wait until something is true. SandboxError with `otherwise` when it does not become so in time."""
    end = time.monotonic() + seconds
    while not true():
        if alive is not None and (code := alive.poll()) is not None:
            raise SandboxError(f"{alive.args[0]} ended with code {code}; {otherwise}")
        if time.monotonic() > end:
            raise SandboxError(otherwise)
        time.sleep(0.02)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
