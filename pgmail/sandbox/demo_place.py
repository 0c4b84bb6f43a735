"""Where a demo happens: a folder that is locked for it, a server, and a database of its own on that server.

    <data folder>/demo-<user id>[-n]/     lock
        postgres/                         the embedded PostgreSQL; stays for the next run
        run/                              this run's: settings, logs, the sink's report, captured mail

Demos at the same time have a folder each. On a server of somebody else's the database is dropped at the end;
in the embedded one it stays until the next run, so that a person can look at it with any tool.

What can go wrong: no folder can be written, the embedded PostgreSQL does not start (`SandboxError`), or the
given server is not fit for a demo (`Refused`, see `store.scratch`). A run that was killed leaves its folder
unlocked and its database behind; the next one takes the one and drops the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pgmail.errors import SandboxError
from pgmail.sandbox import datafolder
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import migrate, scratch
from pgmail.store.scratch import Scratch

MOST_AT_ONCE = 20


class Place(NamedTuple):
    """A place that is ready: `run` is an empty folder, `scratch` a migrated database whose roles can log in."""

    run: Path
    scratch: Scratch
    server: str  # in words
    psql: Path | None  # a psql that is there even where none is installed


@contextmanager
def place(data_folder: Path, dsn: str | None) -> Iterator[Place]:
    """Make a place, and take it down. `dsn`: a database on a server to use instead of an embedded one."""
    with ExitStack() as stack:
        folder = stack.enter_context(locked_folder(data_folder))
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(mode=0o700)
        psql: Path | None = None
        if dsn is None:
            embedded = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
            address, psql = embedded.address, embedded.binaries / "psql"
            server, words = embedded.dsn(), f"embedded PostgreSQL on {address.host}:{address.port}"
        else:
            scratch.check_server(dsn)
            server, words = dsn, "PostgreSQL, as your settings name it"
        scratch.sweep(server)
        made = scratch.make(server)
        if dsn is not None:
            stack.callback(scratch.drop, server, made.name)
        migrate.upgrade(made.owner, prefix=made.prefix)
        yield Place(run, scratch.give_passwords(made), words, psql)


@contextmanager
def locked_folder(data_folder: Path) -> Iterator[Path]:
    """Lend a folder that no other demo uses, below `data_folder` or, where that is not ours, the temporary one.

    Raises SandboxError.
    """
    parent = data_folder.absolute()
    with suppress(OSError):  # then it is not writable either
        parent.mkdir(parents=True, exist_ok=True)
    if not os.access(parent, os.W_OK | os.X_OK):
        parent = Path(tempfile.gettempdir())
    lock: int | None = None
    for number in range(1, MOST_AT_ONCE + 1):
        folder = parent / (f"demo-{os.getuid()}" + (f"-{number}" if number > 1 else ""))
        try:
            folder.mkdir(exist_ok=True)
            datafolder.check_owner(folder, None)
            # The server's account walks through to its own folder and sees nothing else here.
            folder.chmod(0o711)
            lock = datafolder.lock(folder / "lock")
        except datafolder.FolderInUse:
            continue
        except OSError as error:
            raise SandboxError(
                f"{folder} cannot be used: {error.strerror}; PGMAIL_DATA_FOLDER names another place"
            ) from error
        break
    if lock is None:
        raise SandboxError(f"{MOST_AT_ONCE} demos run already in {parent}")
    try:
        yield folder
    finally:
        os.close(lock)
