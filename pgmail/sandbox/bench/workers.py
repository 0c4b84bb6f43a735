"""The worker processes of a bench: when they are up, what memory they took, whether they sleep, their end.

A worker that ends by itself is a fault of the bench: it would go on with fewer and call that a figure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pgmail.errors import SandboxError
from pgmail.sandbox.guard import Guarded
from pgmail.store import bench as store

START_SECONDS = 60.0


class Workers:
    """Running workers. Calling it stops them, as `stop` does and the end of a `with`; twice is fine."""

    def __init__(self, owner: str, processes: Sequence[Guarded], count: int, log: Path) -> None:
        self._owner, self._processes, self._count, self._log = owner, processes, count, log
        self._pids: list[int] = []

    def ready(self, *, asleep: bool = False) -> None:
        """Wait until all have said that they are alive, or `asleep`: that they wait to be woken."""
        end = time.monotonic() + START_SECONDS
        with store.session(self._owner) as asking:
            while True:
                found = asking.workers()
                if len(found) == self._count and (not asleep or all(worker.asleep for worker in found)):
                    self._pids = [worker.pid for worker in found]
                    return
                self.check()
                if time.monotonic() > end:
                    raise SandboxError(f"{len(found)} of {self._count} workers came up, asleep: {asleep}")
                time.sleep(0.02)

    def check(self) -> None:
        """Raise SandboxError when a process has ended."""
        for process in self._processes:
            if (code := process.poll()) is not None:
                raise SandboxError(f"a worker ended with code {code}: {last_line(self._log)}")

    def peak_rss_mb(self) -> list[int]:
        """The most memory that each worker process held so far, in MB; empty where the system does not tell."""
        peaks = [peak_rss_mb(pid) for pid in self._pids]
        return [peak for peak in peaks if peak is not None]

    def stop(self) -> None:
        """Drain and end all of them."""
        for process in self._processes:
            process.stop()

    def __call__(self) -> None:
        """Stop them."""
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def last_line(log: Path) -> str:
    """The last thing that a process said."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return said[-1][-400:] if said else "it said nothing"


def peak_rss_mb(pid: int) -> int | None:
    """The most memory that a living process held (VmHWM), in MB; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024)
    return None
