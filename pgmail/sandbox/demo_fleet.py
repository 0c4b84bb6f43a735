"""The processes of a demo: the sink that takes the mail, the HTTP API, the workers.

API and workers are the real commands, started from the demo's settings file, under their real roles. A tree
keeps them running: a worker that is killed in mid-demo is started again. The sink is not started again, for
it is the witness. All of them end with this process, however it ends: the sink watches its standard input,
the others the lifeline of `processes`.

What can go wrong: a process that does not come up. It is a `SandboxError` with the last line of its log.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from pgmail import sqlfiles
from pgmail.errors import SandboxError
from pgmail.processes import ProcessTree, Spec
from pgmail.sandbox import demo_settings
from pgmail.sandbox.ports import HOST, answers, free_port
from pgmail.store import scratch
from pgmail.store.scratch import Connection, Scratch

PGMAIL = (sys.executable, "-m", "pgmail")
USUAL_PORT = 8025
START_SECONDS = 60.0
SINK_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.05
_STARTS = 3

# The log's name is the first argument; everything after it is the command.
_LOGGED = ("/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh")


class Sinking(NamedTuple):
    """The running sink: its port, and the report of what it accepted."""

    port: int
    report: Path


@contextlib.contextmanager
def sink(run: Path, mails: Path | None) -> Iterator[Sinking]:
    """Run the sink as a process of its own. `mails`: the folder where each mail is written."""
    report = run / "sink.jsonl"
    report.touch()
    argv = [sys.executable, "-m", "pgmail.sandbox.sink", "--report", str(report)]
    argv += ["--folder", str(mails)] if mails else []
    with (run / "sink.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,  # its end is the sink's
            stdout=subprocess.PIPE,
            stderr=log,
            env=demo_settings.environment(),
            start_new_session=True,
        )
    try:
        yield Sinking(_sink_port(process, run / "sink.log"), report)
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(SINK_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Fleet:
    """The API and the workers. `tend` is to be called often: it starts again what has crashed."""

    def __init__(self, run: Path, made: Scratch, sink_port: int, processes: int) -> None:
        self._run = run
        self._scratch = made
        self._sink_port = sink_port
        self._processes = processes
        self._starts = 0
        self._tree: ProcessTree | None = None
        self.config = run / "pgmail.toml"
        self.port = 0

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start all of them. OSError if Python cannot be run."""
        self.port = free_port() if self._starts else free_port(USUAL_PORT)
        self._starts += 1
        self.config = demo_settings.write_settings(
            self._run, self._scratch, sink_port=self._sink_port, api_port=self.port
        )
        env = demo_settings.changes(self.config)
        worker = ["worker", "--processes", "1", "--concurrency", str(demo_settings.CONCURRENCY)]
        self._tree = ProcessTree(
            [
                Spec("api", self._logged("api", ["api"]), env=env),
                Spec("worker", self._logged("worker", worker), count=self._processes, env=env),
            ],
            drain_seconds=demo_settings.DRAIN_SECONDS + 2,
        )
        self._tree.start()

    def wait_ready(self, connection: Connection) -> None:
        """Wait until the API answers and every worker has said that it is there. Raises SandboxError."""
        until = time.monotonic() + START_SECONDS
        query = sqlfiles.queries("demo")["running_workers"]
        while True:
            self.tend()
            found = scratch.run(connection, query).fetchone()
            if found.workers >= self._processes and self._answers():
                return
            if time.monotonic() > until:
                raise SandboxError(
                    f"{START_SECONDS:.0f} s after the start {found.workers} of {self._processes} workers are up "
                    f"and the API {'answers' if self._answers() else 'is silent'}; see the logs in {self._run}"
                )
            time.sleep(_POLL_SECONDS)

    def tend(self) -> None:
        """Start again what has crashed. SandboxError when one could not start at all."""
        if self._tree is None:
            return
        self._tree.tend()
        if self._tree.failed:
            said = self._complaints()
            self.stop()
            # Somebody took the port between our look and the API's.
            if "cannot listen" in said and self._starts < _STARTS:
                self.start()
            else:
                raise SandboxError(f"a process could not start: {said or f'see the logs in {self._run}'}")

    def stop(self) -> None:
        """Drain and end all of them. Twice is fine."""
        if self._tree is not None:
            self._tree.stop()
            self._tree = None

    def _logged(self, name: str, words: list[str]) -> list[str]:
        return [*_LOGGED, str(self._run / f"{name}.log"), *PGMAIL, *words]

    def _answers(self) -> bool:
        return answers(f"http://{HOST}:{self.port}/health/ready")

    def _complaints(self) -> str:
        """The last line that a command wrote for a person."""
        for log in (self._run / "api.log", self._run / "worker.log"):
            with contextlib.suppress(OSError):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                if told := [line for line in lines if line.startswith("pgmail: ")]:
                    return told[-1].removeprefix("pgmail: ")
        return ""


def _sink_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Read the line with which the sink says that it is ready."""
    assert process.stdout is not None  # noqa: S101 - asked for above
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if ready else b""
    try:
        return int(msgspec.json.decode(line)["port"])
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise SandboxError(f"the sink did not start; see {log}") from error
