"""A supervisor for one child process: the child never outlives the process that asked for it.

`guarded_popen` starts this very file as a small process of its own, and that one starts the program. A pipe
runs from the asking process to the guard. Each byte on it is a signal number to pass on; its end (the asker
closed it, exited, or was killed with `kill -9`) begins the shutdown: the signals of a ladder, each with a
bounded wait. Stopping on purpose and dying by accident are thus one path, and each test walks it.

What can go wrong:

- The pipe's end is also held by processes forked from the asker without exec (multiprocessing's `fork`). The
  guard therefore looks at its parent's id as well, each second.
- The guard itself may be killed with `kill -9`. On Linux the kernel then sends the ladder's first signal to
  the child (PR_SET_PDEATHSIG, cleared by programs that change user later). On macOS the child stays.
- The child has a session of its own, so that Ctrl-C in the terminal reaches only the asker. The last rung of
  a ladder kills the child's process group; descendants with sessions of their own are the child's affair.

The module imports the standard library only and is run by path, isolated, without `site`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

Ladder = Sequence[tuple[int, float]]
"""Signals with the seconds to wait after each; SIGKILL follows the last one by itself."""

GENTLE: Ladder = ((signal.SIGTERM, 10.0),)
"""For programs that drain on SIGTERM."""

POSTGRES: Ladder = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0))
"""PostgreSQL's fast shutdown, then its immediate one, which still ends every backend."""

_PR_SET_PDEATHSIG = 1
_PARENT_POLL_SECONDS = 1.0
_CONTROL_FD = 0  # the guard's standard input is the pipe from the asker


class Guarded:
    """A running program under guard. Shaped like `subprocess.Popen` where it has the same names.

    `pid` is the program's own id, not the guard's. `returncode` follows Popen: negative for a signal.
    """

    def __init__(
        self, argv: Sequence[str], guard: subprocess.Popen[bytes], status: IO[bytes], pid: int
    ) -> None:
        self.args = list(argv)
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = guard.stdout
        self.stderr = guard.stderr
        self._guard = guard
        self._status = status

    @property
    def guard_pid(self) -> int:
        """The id of the supervising process."""
        return self._guard.pid

    def poll(self) -> int | None:
        """The program's exit code, or None while it runs."""
        if self.returncode is None and self._guard.poll() is not None:
            self._settle()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program to end by itself. `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            # Not Popen.communicate: standard input must stay open, its end is the order to stop.
            self._guard.wait(timeout)
            self._settle()
        return self.returncode if self.returncode is not None else -signal.SIGKILL

    def send_signal(self, number: int) -> None:
        """Pass a signal on to the program. Nothing happens when it has ended."""
        control = self._guard.stdin
        if self.poll() is None and control is not None and not control.closed:
            with contextlib.suppress(BrokenPipeError):
                control.write(bytes([number]))
                control.flush()

    def stop(self) -> int:
        """Walk the ladder of signals until the program has ended; its exit code. Twice is fine."""
        control = self._guard.stdin
        if control is not None and not control.closed:
            with contextlib.suppress(BrokenPipeError):
                control.close()
        return self.wait()

    def _settle(self) -> None:
        with self._status:
            last = self._status.read().strip()
        # No word from the guard: it was killed, and the kernel told the program to go.
        self.returncode = int(last) if last else -signal.SIGKILL
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def guarded_popen(
    argv: Sequence[str | Path],
    *,
    user: int | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    ladder: Ladder = GENTLE,
) -> Guarded:
    """Start `argv` so that it ends when this process does, however that comes about.

    `user` (a name or an id; only root may) is the account the program runs as, with that account's groups
    only. `ladder` is what `stop` and the guard do to end it. The program's standard input is empty. OSError
    when it cannot be started, with the program's own errno.
    """
    words = [str(word) for word in argv]
    status_read, status_write = os.pipe()
    order = {
        "argv": words,
        "user": _account(user) if user is not None else None,
        "cwd": str(cwd) if cwd is not None else None,
        "ladder": [(int(number), seconds) for number, seconds in ladder],
        "status_fd": status_write,
        "parent": os.getpid(),
    }
    status = os.fdopen(status_read, "rb")
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=dict(env) if env is not None else None,
            pass_fds=[status_write],
            start_new_session=True,
        )
    except BaseException:
        status.close()
        raise
    finally:
        os.close(status_write)
    first = status.readline().split()
    if first[:1] == [b"pid"]:
        return Guarded(words, guard, status, int(first[1]))
    with Guarded(words, guard, status, 0):
        errno = int(first[1]) if first[:1] == [b"errno"] else 0
    raise OSError(errno, os.strerror(errno) if errno else "the guard could not be started", words[0])


def _account(user: int | str) -> tuple[int, int]:
    """The uid and gid of an account; an id without an entry keeps its number as its group."""
    if isinstance(user, str):
        entry = pwd.getpwnam(user)
        return entry.pw_uid, entry.pw_gid
    try:
        return user, pwd.getpwuid(user).pw_gid
    except KeyError:
        return user, user


def _last_wish(number: int) -> Callable[[], None]:
    """What the child does between fork and exec: ask the kernel for a signal when the guard dies."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    guard = os.getpid()

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != guard:  # it died before the kernel knew
            os._exit(1)

    return arm


def _start(order: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    uid, gid = order["user"] or (None, None)
    return subprocess.Popen(
        order["argv"],
        stdin=subprocess.DEVNULL,
        cwd=order["cwd"],
        user=uid,
        group=gid,
        extra_groups=[] if uid is not None else None,
        start_new_session=True,
        # Runs after the change of user, which would clear the wish. The guard has one thread: forking is
        # safe.
        preexec_fn=_last_wish(order["ladder"][0][0]),  # noqa: PLW1509
    )


def _supervise(order: Mapping[str, Any]) -> int:
    """The guard's whole life."""
    status_fd: int = order["status_fd"]
    os.set_inheritable(status_fd, False)
    try:
        child = _start(order)
    except OSError as error:
        os.write(status_fd, b"errno %d\n" % (error.errno or 0))
        return 1
    # Handlers, not SIG_IGN: an ignored signal would have been inherited by the child through exec.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    asked_to_end: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    os.write(status_fd, b"pid %d\n" % child.pid)
    # The asker's pipes must end with the program, not with the guard.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)

    watched = select.poll()
    watched.register(_CONTROL_FD, select.POLLIN)
    watched.register(wake_read, select.POLLIN)
    while child.poll() is None and not asked_to_end and os.getppid() == order["parent"]:
        ready = {fd for fd, _ in watched.poll(_PARENT_POLL_SECONDS * 1000)}
        if wake_read in ready:
            os.read(wake_read, 4096)
        if _CONTROL_FD in ready:
            numbers = os.read(_CONTROL_FD, 64)
            if not numbers:
                break
            for number in numbers:
                child.send_signal(number)
    code = _end(child, order["ladder"], wake_read)
    with contextlib.suppress(BrokenPipeError):
        os.write(status_fd, b"%d\n" % code)
    return 0


def _end(child: subprocess.Popen[bytes], ladder: Ladder, wake_read: int) -> int:
    """Walk the ladder; the exit code. Waits on the wake-up pipe, so that a quick end is noticed at once."""
    for number, seconds in ladder:
        child.send_signal(number)
        until = time.monotonic() + seconds
        while child.poll() is None and (left := until - time.monotonic()) > 0:
            if select.select([wake_read], [], [], left)[0]:
                os.read(wake_read, 4096)
        if child.returncode is not None:
            return child.returncode
    # The child is not reaped yet, so its id cannot belong to anyone else.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


if __name__ == "__main__":
    sys.exit(_supervise(json.loads(sys.argv[1])))
