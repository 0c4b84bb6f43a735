"""The folder of an embedded PostgreSQL: who owns it, who uses it now, and what an earlier run left in it.

Root lends the server an unprivileged account, and the folder belongs to that account. Whatever root writes
there is opened without following links, since the account could have planted one.

What can go wrong: the folder belongs to someone else, or another living process holds its lock; both raise
`SandboxError`. No mode is changed and no owner set but on the folder itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

from pgmail.errors import SandboxError
from pgmail.sandbox import programs


class FolderInUse(SandboxError):  # noqa: N818 - it is a state of affairs
    """A living process holds the folder's lock."""


def place(wanted: Path, runner: programs.Account | None) -> Path:
    """`wanted`, or one of ours under the temporary directory where `runner` cannot reach it."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if runner is None or programs.reachable(wanted.parent, runner):
        return wanted
    key = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    return programs.shelter(runner) / f"data-{key}"


def make_own(folder: Path, runner: programs.Account | None) -> None:
    """Make the folder, for the server's account and nobody else. An empty one of root's is handed over."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if runner and stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not any(folder.iterdir()):
        os.chown(folder, runner.uid, runner.gid, follow_symlinks=False)
    check_owner(folder, runner)
    folder.chmod(0o700)


def check_owner(folder: Path, runner: programs.Account | None) -> None:
    """SandboxError unless the folder is one, and belongs to the account that the server runs as."""
    found = folder.lstat()
    owner = runner.uid if runner else os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise SandboxError(
            f"{folder} is not a folder that belongs to user {owner}; remove it or name another"
        )


def open_file(path: Path, flags: int, runner: programs.Account | None) -> int:
    """Open a file for writing, made if need be with mode 0600 for the server's account; its descriptor."""
    number = os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if runner:
        os.fchown(number, runner.uid, runner.gid)
    return number


def read_file(path: Path) -> str:
    """The text of a file that must not be a link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
        return file.read()


def lock(path: Path) -> int:
    """Lock the folder for this process's life; the lock's descriptor, which no started program inherits."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have deleted the file that we opened.
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(number)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise FolderInUse(f"{path.parent} is in use by another process of pgmail") from error
            raise
        os.close(number)


def pid_file(folder: Path) -> list[str]:
    """The lines of the server's own `postmaster.pid`, none where there is none."""
    try:
        return read_file(folder / "pgdata" / "postmaster.pid").splitlines()
    except OSError:
        return []


def serves(pid: int, pgdata: Path) -> bool:
    """Whether process `pid` is a PostgreSQL at work in this data folder."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == pgdata.resolve() and not _zombie(pid)
        except OSError:
            return False
    shown = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(pgdata) in shown.stdout


def alive(pid: int) -> bool:
    """Whether some process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
