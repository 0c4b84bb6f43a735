"""What this host saw committed, in small files outside the database; `history` compares them with it.

    <state folder>/<root>/3.json   the memory of one process; `root` is the database, its copies included
    <state folder>/<root>/3.lock   held by that process for its life, let go by the kernel

A process takes the first place that is free, and with it the memory of the last process that had it. So a host has as
many files as it ever ran processes at once, and each is compared when a process starts.

What can go wrong: the folder cannot be written (a read-only container). Then the memory is that of the process alone,
which is told once. A file that a crash of the host cut off, or that another program wrote, is passed over: it knows
nothing, which never stops mail. Files are renamed into place and not synced: losing a second of memory is no harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec


class Memory(msgspec.Struct, kw_only=True):
    """How many marks of a witness were committed, in which history of which database, and when the last one was.

    `place` is system identifier, timeline and position in the log at that moment, as far as the server tells.
    """

    root: UUID
    history: UUID
    generation: int
    witness: UUID
    marks: int
    seen_at: datetime
    place: dict[str, Any] = {}


def default_folder() -> Path:
    """`$XDG_STATE_HOME/pgmail`, or `~/.local/state/pgmail`. RuntimeError for an account without a home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "pgmail"


class Place:
    """This process's file for one database, locked until `close`. `witness` is its name in the database."""

    def __init__(self, folder: Path, root: UUID) -> None:
        """Raises OSError where the folder cannot be used."""
        self._folder = folder / str(root)
        self._root = root
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = 0
        while (lock := _lock(self._folder / f"{number}.lock")) is None:
            number += 1
        self._lock: int | None = lock
        self._file = self._folder / f"{number}.json"
        self.memory = self._read(self._file)
        self.witness = self.memory.witness if self.memory else uuid4()

    def others(self) -> list[Memory]:
        """What the other processes of this host remember, those that are gone and those that live."""
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")) if path != self._file)
        return [memory for memory in found if memory is not None]

    def write(self, memory: Memory) -> None:
        """Keep a memory. Raises OSError."""
        self.memory = memory
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(memory))
        new.replace(self._file)

    def close(self) -> None:
        """Let the place go; twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self, path: Path) -> Memory | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            memory = msgspec.json.decode(path.read_bytes(), type=Memory)
            if memory.root == self._root:
                return memory
        return None


def _lock(path: Path) -> int | None:
    """The descriptor of a lock for this process's life; None if another process holds it."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    except BaseException:
        os.close(number)
        raise
    return number
