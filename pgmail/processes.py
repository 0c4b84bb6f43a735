"""A tree of processes: one parent that starts its children, keeps them running and takes them down with it.

The parent does no other work, so that nothing it does can hurt it. A child that crashes is started again
after a wait that doubles from `BACKOFF_SECONDS`; one that cannot even start (it leaves with code 1 or 2 and
never ran for `SETTLED_SECONDS`) ends the tree, since the line it wrote is for the person who started it.
SIGTERM, SIGINT and SIGHUP drain: each child gets SIGTERM and `drain_seconds`; a second signal, or the end of
that time, kills what is left. Children have sessions of their own, so Ctrl-C reaches the parent only.

    code = ProcessTree([Spec("api", argv), Spec("worker", argv, count=4)], drain_seconds=30).run()

What can go wrong: the parent is killed with `kill -9` and can tell nobody. So each child calls
`die_with_parent()` first thing: it watches a pipe that only the parent holds open, and on Linux asks the
kernel as well (PR_SET_PDEATHSIG). The kernel means the thread that started the child: start a tree from a
thread that lives as long as the tree. A child that never calls it, or that stops in a debugger, stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Self

LIFELINE = "_PGMAIL_LIFELINE"
"""Names, for a child, the file descriptor to watch and the parent's id. Not a setting."""

BACKOFF_SECONDS = (0.2, 30.0)  # before the first restart, and at most
SETTLED_SECONDS = 10.0  # a child that ran for so long did start; its next crash is its first
ORPHAN_SECONDS = 10.0  # what an orphan has for draining
CANNOT_START = frozenset({1, 2})  # exit codes of a command that said why on standard error

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_SLICE_SECONDS = 0.1  # between looks at whether a second signal came

Note = Callable[[str, Mapping[str, object]], None]
"""Told what happens to children: a word (`started`, `restarting`, `failed`, `killed`, and `ended`
where one that was told to go left with another code than 0) and its facts."""


@dataclass(frozen=True)
class Spec:
    """What to run: `count` processes of `argv`, with `env` on top of the parent's."""

    name: str
    argv: Sequence[str]
    count: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()  # a listening socket, for one


class Child:
    """One place in the tree, and the process that fills it now."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec = spec
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.settled = False
        self._crashes = 0  # in a row
        self._since = 0.0
        self._due = 0.0

    @property
    def name(self) -> str:
        """`worker 2`, or just `api` when there is one."""
        return f"{self.spec.name} {self.index + 1}" if self.spec.count > 1 else self.spec.name

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None between two lives."""
        return self.process.pid if self.process is not None else None

    def start(self, lifeline: int) -> None:
        """Start the process. OSError if the program cannot be run."""
        self._since = time.monotonic()
        env = os.environ | dict(self.spec.env) | {LIFELINE: f"{lifeline}:{os.getpid()}"}
        self.process = subprocess.Popen(
            list(self.spec.argv),
            env=env,
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline, *self.spec.pass_fds),
            start_new_session=True,
        )

    def crashed(self, now: float) -> float:
        """Take note of a crash; the seconds to wait before the next start."""
        self.settled = self.settled or now - self._since >= SETTLED_SECONDS
        self._crashes = 0 if now - self._since >= SETTLED_SECONDS else self._crashes + 1
        low, high = BACKOFF_SECONDS
        wait: float = min(low * 2 ** min(max(self._crashes - 1, 0), 20), high)
        self.process = None
        self.restarts += 1
        self._due = now + wait
        return wait

    def wait_left(self, now: float) -> float:
        """Seconds until it is to be started again."""
        return max(self._due - now, 0.0)


class ProcessTree:
    """Children under one parent. `run` does it all; `start`, `tend` and `stop` are its steps."""

    def __init__(
        self, specs: Sequence[Spec], *, drain_seconds: float = 30.0, note: Note | None = None
    ) -> None:
        self.children = [Child(spec, index) for spec in specs for index in range(spec.count)]
        self.drain_seconds = drain_seconds
        self.failed = False
        self._note: Note = note or (lambda *_: None)
        self._pipe: tuple[int, int] | None = None
        self._signals = 0  # how many came

    def start(self) -> None:
        """Start every child. OSError if a program cannot be run; what had started is stopped then."""
        if self._pipe is not None:
            raise RuntimeError("this tree was started before")
        self._pipe = os.pipe()  # neither end is inherited unless named
        try:
            for child in self.children:
                self._begin(child)
        except BaseException:
            self.stop()
            raise

    def tend(self) -> float | None:
        """Start again what has crashed and waited; the seconds until the next start is due (None: none is).

        Sets `failed` when a child could not start at all. That the system has no room for a process just now (EAGAIN,
        ENOMEM) is no reason to take the others down: it is one more crash, after which the wait is longer.
        """
        now, next_due = time.monotonic(), None
        for child in self.children:
            if child.process is not None and (code := child.process.poll()) is not None:
                wait = child.crashed(now)
                facts = {"process": child.name, "code": code, "wait_seconds": wait}
                if code in CANNOT_START and not child.settled:
                    self._note("failed", facts)
                    self.failed = True
                    continue
                self._note("restarting", facts)
            if child.process is None and not self.failed:
                if (left := child.wait_left(now)) > 0:
                    next_due = left if next_due is None else min(left, next_due)
                    continue
                try:
                    self._begin(child)
                except OSError as error:
                    wait = child.crashed(now)
                    self._note(
                        "restarting", {"process": child.name, "error": str(error), "wait_seconds": wait}
                    )
                    next_due = wait if next_due is None else min(wait, next_due)
        return next_due

    def stop(self) -> int:
        """Drain every child, then kill what is left; 0 if all went by themselves. Twice is fine."""
        if self._pipe is None:
            return 0
        first = min(self._signals, 1)  # of two that came before this, the second counts as well
        for child in self.children:
            if child.process is not None:
                child.process.terminate()
        until = time.monotonic() + self.drain_seconds
        code = 0
        for child in self.children:
            process = child.process
            if process is None:
                continue
            while process.poll() is None and time.monotonic() < until and self._signals == first:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SLICE_SECONDS)
            if process.poll() is None:
                self._note("killed", {"process": child.name, "pid": process.pid})
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = 1
            elif process.returncode not in {0, -signal.SIGTERM}:
                self._note("ended", {"process": child.name, "code": process.returncode})
                code = 1
            child.process = None
        for end in self._pipe:
            os.close(end)
        self._pipe = None
        return code

    def run(self) -> int:
        """Run the tree until a signal tells it to stop, or it fails; its exit code.

        In the main thread only: it takes the handlers of SIGTERM, SIGINT, SIGHUP and SIGCHLD meanwhile.
        """
        with self._signals_to_pipe() as wake:
            self.start()
            while not self._signals:
                wait = self.tend()
                if self.failed:
                    self.stop()
                    return 1
                if select.select([wake], [], [], wait)[0]:
                    os.read(wake, 4096)
            return self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _begin(self, child: Child) -> None:
        assert self._pipe is not None  # noqa: S101 - start() made it
        child.start(self._pipe[0])
        self._note("started", {"process": child.name, "pid": child.pid})

    @contextlib.contextmanager
    def _signals_to_pipe(self) -> Iterator[int]:
        """Catch the signals; yields a descriptor that is readable once one has come."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

        def told(_: int, __: FrameType | None) -> None:
            self._signals += 1

        # SIGCHLD needs a handler for the wake-up to happen; what it does is for tend().
        handlers = {number: signal.signal(number, told) for number in _STOP_SIGNALS}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield read
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(read)
            os.close(write)


def die_with_parent(*, seconds: float = ORPHAN_SECONDS, by: int = signal.SIGTERM) -> bool:
    """In a child of a `ProcessTree`: get the signal `by` when the parent is gone, and end in `seconds` at most.

    False, and nothing happens, in a process that no tree started. Call it from the main thread.
    """
    line = os.environ.pop(LIFELINE, "")
    if not line:
        return False
    fd, parent = (int(word) for word in line.split(":"))
    try:
        os.set_inheritable(fd, False)
    except OSError:  # the variable came along with the environment, the pipe did not: not our parent's
        return False
    if sys.platform == "linux" and os.getppid() == parent:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)
    threading.Thread(target=_watch, args=(fd, seconds, by), name="lifeline", daemon=True).start()
    return True


def _watch(fd: int, seconds: float, by: int) -> None:
    """Wait for the pipe's end, which is the parent's."""
    with contextlib.suppress(OSError):
        while os.read(fd, 1):
            pass
    os.kill(os.getpid(), by)
    time.sleep(seconds)  # in a thread of its own: whoever drains in time takes this thread along
    os._exit(1)
