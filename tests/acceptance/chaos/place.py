"""Where a chaos run happens: a PostgreSQL of its own, the far side, an API and workers as real processes.

The API and the workers are children of a tree, which starts again what was killed; `wait` tends it, so all waiting
goes through there. PostgreSQL keeps its port, as a database server does. Every process ends with this one.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from pgmail.processes import Child, ProcessTree, Spec
from pgmail.sandbox import demo_settings
from pgmail.sandbox.demo_stock import stock
from pgmail.sandbox.ports import answers, free_port
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import migrate, scratch
from pgmail.store.scratch import Scratch
from tests.sql.kit import stream

POLL_SECONDS = 0.01
RESEND, HOLD = "chaos-resend", "chaos-hold"
_LOGGED = ("/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh")
_DRAIN_SECONDS = 5.0


class Worker:
    """A worker's place in the tree. Its name is what it says in EHLO."""

    def __init__(self, child: Child, log: Path) -> None:
        self.child, self.log = child, log

    @property
    def name(self) -> str:
        return self.child.name

    @property
    def pid(self) -> int:
        assert self.child.pid is not None, f"{self.name} does not run"
        return self.child.pid


class Place:
    """Everything that runs. `sql` asks the database as its superuser."""

    def __init__(self, folder: Path, server: EmbeddedPostgres, made: Scratch, key: str, report: Path) -> None:
        self.folder, self.server, self.made, self.key, self.report = folder, server, made, key, report
        self.port = free_port()
        self.workers: list[Worker] = []
        self._tree: ProcessTree | None = None
        self._connection: psycopg.Connection[Any] | None = None

    def start(self, workers: int, far_port: int, settings: dict[str, str]) -> None:
        """Start the API and the workers. `settings` are added to all of them, as environment variables."""
        config = demo_settings.write_settings(self.folder, self.made, sink_port=far_port, api_port=self.port)
        env = demo_settings.changes(config) | settings
        specs = [Spec("api", self._logged("api", "api"), env=env)]
        for n in range(workers):
            name = f"worker-{n + 1}.example.com"
            argv = self._logged(name, "worker", "--processes", "1", "--concurrency", "8")
            specs.append(Spec(name, argv, env=env | {"PGMAIL_HELO_NAME": name}))
        self._tree = ProcessTree(specs, drain_seconds=demo_settings.DRAIN_SECONDS + _DRAIN_SECONDS)
        self._tree.start()
        self.api = self._tree.children[0]
        self.workers = [Worker(child, self.folder / f"{child.name}.log") for child in self._tree.children[1:]]
        self.whole()

    def stop(self) -> None:
        """Drain and end the API and the workers; twice is fine."""
        if self._tree is not None:
            for child in self._tree.children:
                if child.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGCONT)
            self._tree.stop()
        if self._connection is not None:
            self._connection.close()

    def tend(self) -> None:
        """Start again what has ended. AssertionError when something could not start at all."""
        assert self._tree is not None
        self._tree.tend()
        assert not self._tree.failed, f"a process could not start; the logs are in {self.folder}"

    def wait(self, condition: Callable[[], Any], seconds: float = 60.0, *, what: str) -> Any:
        """Tend the processes until a condition holds. A database that is away meanwhile is waited for as well."""
        end = time.monotonic() + seconds
        while True:
            self.tend()
            answer = None
            with suppress(psycopg.OperationalError):
                answer = condition()
            if answer:
                return answer
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {seconds:g} s")
            time.sleep(POLL_SECONDS)

    def pause(self, seconds: float) -> None:
        """Let it all run for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left, POLL_SECONDS * 2))

    def sql(self, text: str, *params: object) -> list[Any]:
        """The rows of a query, by attribute."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self.made.owner, autocommit=True, row_factory=namedtuple_row, connect_timeout=5
            )
        return self._connection.execute(text, params).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all questions meanwhile see one moment."""
        self.sql("select 1")
        assert self._connection is not None
        with self._connection.transaction():
            self._connection.execute("set transaction isolation level repeatable read, read only")
            yield

    def epochs(self) -> dict[int, int]:
        """The epoch of each living worker, by process id."""
        found = self.sql(
            "select pid, epoch from pgmail.worker where program = 'worker' and state = 'running'"
        )
        return {row.pid: row.epoch for row in found}

    def leases(self, *epochs: int) -> int:
        """How many rows these workers hold; all of them when none is named."""
        text = "select count(*)::int as n from pgmail.queue where leased_by = any (%s)"
        every = "select count(*)::int as n from pgmail.queue where leased_by is not null"
        return self.sql(text, list(epochs))[0].n if epochs else self.sql(every)[0].n

    def whole(self) -> dict[int, int]:
        """Wait until the API answers and exactly these workers are there; their epochs."""

        def up() -> bool:
            pids = [worker.child.pid for worker in self.workers]
            return None not in pids and set(self.epochs()) == set(pids)

        self.wait(up, what="the workers came up")
        self.wait(lambda: answers(f"http://127.0.0.1:{self.port}/health/ready"), what="the API came up")
        return self.epochs()

    def said(self, word: str) -> int:
        """How many lines of the workers' logs are of this event."""
        mark = f'"event": "{word}"', f'"event":"{word}"'
        logs = [worker.log.read_text(errors="replace") for worker in self.workers if worker.log.exists()]
        return sum(log.count(each) for log in logs for each in mark)

    def kill_server(self) -> None:
        """`kill -9` PostgreSQL's first process."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        if self._connection is not None:
            self._connection.close()

    def server_pids(self) -> list[int]:
        """PostgreSQL's first process and all its children."""
        told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        pairs = [line.split() for line in told.stdout.splitlines()]
        first = self.server.pid
        assert first is not None
        return [first, *(int(pid) for pid, parent in pairs if int(parent) == first)]

    @contextmanager
    def frozen(self, pids: list[int]) -> Iterator[None]:
        """Let these processes stand still (SIGSTOP) meanwhile; those that are gone since are no matter."""
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def start_server(self) -> None:
        """Start it again, which is a crash recovery."""
        self.server.stop()
        self.server.start()

    def post(
        self, connection: http.client.HTTPConnection, email: dict[str, Any], key: str
    ) -> tuple[int, Any]:
        """Send an email over HTTP; the status, and what was answered. OSError, HTTPException."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
        }
        connection.request("POST", "/emails", json.dumps(email), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")

    def _logged(self, name: str, *words: str) -> list[str]:
        return [*_LOGGED, str(self.folder / f"{name}.log"), sys.executable, "-m", "pgmail", *words]


@contextmanager
def place(folder: Path, *, seed: int, workers: int, drop: float, settings: dict[str, str]) -> Iterator[Place]:
    """Make it all in an empty folder, and take it down."""
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        server = EmbeddedPostgres(folder / "postgres", port=free_port())
        stack.callback(server.remove)
        server.start()
        made = scratch.make(server.dsn())
        migrate.upgrade(made.owner, prefix=made.prefix)
        made = scratch.give_passwords(made)
        key = stock(made)
        retries = {"retry_base_seconds": 0.5, "retry_factor": 2.0, "retry_cap_seconds": 5}
        with psycopg.connect(made.dsn("admin"), autocommit=True) as admin:
            stream(admin, RESEND, on_doubt="resend", **retries)
            stream(admin, HOLD, on_doubt="hold", **retries)
        report = folder / "far.jsonl"
        report.touch()
        far = stack.enter_context(_far(seed, report, drop))
        here = Place(folder, server, made, key, report)
        stack.callback(here.stop)
        here.start(workers, far, settings)
        yield here


@contextmanager
def _far(seed: int, report: Path, drop: float) -> Iterator[int]:
    """Run the far side as a process of its own; its port."""
    argv = [sys.executable, "-m", "tests.acceptance.chaos.far", "--seed", str(seed), "--report", str(report)]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [*argv, "--drop", str(drop)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=demo_settings.environment(), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
