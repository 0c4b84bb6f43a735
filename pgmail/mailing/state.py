"""The file beside a list that says which of its chunks were handed over: how a mailing is resumed.

Lines of JSON, only ever appended. Before a chunk is sent, `begun` is on the disk; what became of it follows
the commit. A chunk that is begun and not settled is in doubt: within 24 hours its idempotency key makes
sending it again safe, later nobody can tell from here, and somebody has to decide.

The file belongs to one mailing: list, name, template, sender, stream and database. It knows digests of the
chunks, so a list that was changed below the rows that were sent is noticed and refused: its chunks have other
keys, and people would have the email twice.

What can go wrong: a crash in the middle of a line (the rest of it is cut off when the file is next opened),
two runs at once (the second is refused), and a disk that lies about fsync. If the file is lost, the keys hold
for what is left of 24 hours.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Self
from uuid import UUID

import msgspec

from pgmail.errors import Refused

FORMAT = 1
CLOCKS = timedelta(hours=1)  # that the clocks of hosts may be apart, or that one may be set back
KEY_HOLDS = timedelta(hours=24) - CLOCKS  # of what SQL gives a key


class Begin(msgspec.Struct, omit_defaults=True, tag="mailing", tag_field="line"):
    """The first line. `options` are digests by name, so that what differs can be named."""

    format: int
    identity: dict[str, str | None]
    options: dict[str, str]
    chunk: int
    at: datetime
    scheduled_at: str | None = None


class Begun(msgspec.Struct, tag="begun", tag_field="line"):
    """A chunk is about to be sent."""

    chunk: int
    digest: str
    at: datetime


class Settled(msgspec.Struct, omit_defaults=True, tag="settled", tag_field="line"):
    """What became of a chunk: its email (none when no row was left) and the rows that SQL refused.

    `conflict`: its key was used with another body, so that it was handed over by an earlier run whose state
    is not this one. `refused` is (line, column, code, message).
    """

    chunk: int
    digest: str
    id: UUID | None = None
    recipients: int = 0
    refused: list[tuple[int, str, str, str]] = []
    conflict: bool = False
    skipped: bool = False

    @property
    def reached_nobody(self) -> bool:
        """Tell whether it is certain that none of these rows was handed over."""
        return self.id is None and not self.conflict and not self.skipped


_FIRST = b'{"line":"mailing"'
_LINE = msgspec.json.Decoder(Begin | Begun | Settled)


class State:
    """An open state file. `begun` and `settled` are by chunk number, from 0."""

    def __init__(self, path: Path, file: IO[bytes], begin: Begin) -> None:
        """For `open`."""
        self.path, self.begin = path, begin
        self._file = file
        self.begun: dict[int, Begun] = {}
        self.settled: dict[int, Settled] = {}

    @classmethod
    def open(cls, path: Path, begin: Begin) -> Self:
        """Open the state of a mailing, or begin one. The lock on it is given back with `close`.

        Raises OSError, and Refused: `mailing_busy` (another run has it), `other_mailing` (it belongs to
        another mailing), `other_options` (to this one, begun with other options).
        """
        file = path.open("a+b")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                because = f"another run of this mailing is under way ({path})"
                raise Refused("mailing_busy", "", because, 409) from None
            made = cls(path, file, begin)
            made._read()
        except BaseException:
            file.close()
            raise
        return made

    def __enter__(self) -> Self:
        """Nothing more to do: it is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which gives its lock back."""
        self._file.close()

    def check(self, digests: list[bytes], rows: int) -> None:
        """Hold the chunks that were begun against those of the list now, of `rows` rows.

        Raises Refused (`list_changed`).
        """
        chunks: dict[int, Begun | Settled] = {**self.begun, **self.settled}
        for number, then in sorted(chunks.items()):
            if number >= len(digests) or digests[number].hex() != then.digest:
                if isinstance(then, Settled) and then.reached_nobody:
                    del self.settled[number]  # all of its rows were refused, and may be mended
                    continue
                first = number * self.begin.chunk + 1
                last = min(first + self.begin.chunk - 1, rows)  # the last chunk is hardly ever full
                which = f"rows {first:,} to {last:,}" if last > first else f"row {first:,}"
                because = (
                    f"the list was changed in {which} after that part of it was handed over, and would reach "
                    "people twice; send what is new from a file of its own"
                )
                raise Refused("list_changed", "", because, 409)

    def begin_chunk(self, number: int, digest: bytes, now: datetime) -> datetime:
        """Put on the disk that a chunk is about to be sent; since when it is in doubt."""
        if (earlier := self.begun.get(number)) is None:
            earlier = self.begun[number] = Begun(number, digest.hex(), now)
            self._write(earlier)
        return earlier.at

    def settle(self, settled: Settled) -> None:
        """Note what became of a chunk. Losing this line is harmless while the key holds, so no fsync."""
        self.settled[settled.chunk] = settled
        self.begun.pop(settled.chunk, None)
        self._write(settled, sync=False)

    def forget(self, number: int) -> None:
        """Take a chunk for one that was never begun, because a person says so."""
        self.begun.pop(number, None)

    def sync(self) -> None:
        """Have everything on the disk."""
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Take in what an earlier run wrote; where none got as far as a chunk, begin."""
        self._file.seek(0)
        whole = self._file.read()
        if whole and not whole.startswith(_FIRST):
            raise Refused("other_mailing", "", f"{self.path} is no state of a mailing; nothing was done", 409)
        end = whole.rfind(b"\n") + 1  # a crash may have left a part of a line behind it
        try:
            lines = [_LINE.decode(line) for line in whole[:end].splitlines()]
        except msgspec.DecodeError as error:
            because = f"{self.path} cannot be read as the state of a mailing: {error}"
            raise Refused("other_mailing", "", because, 409) from None
        if len(lines) < 2 or not isinstance(first := lines[0], Begin):
            self._file.truncate(0)
            self._write(self.begin)
            _sync_folder(self.path.parent)
            return
        if first.format != FORMAT:
            because = f"{self.path} was written by another version of pgmail"
            raise Refused("other_mailing", "", because, 409)
        self._file.truncate(end)
        _same(self.path, "other_mailing", first.identity, self.begin.identity)
        _same(self.path, "other_options", first.options, self.begin.options)
        self.begin = first
        for line in lines[1:]:
            if isinstance(line, Begun):
                self.begun[line.chunk] = line
            elif isinstance(line, Settled):
                self.settled[line.chunk] = line
                self.begun.pop(line.chunk, None)

    def _write(self, line: Begin | Begun | Settled, *, sync: bool = True) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())


def in_doubt(since: datetime, now: datetime) -> bool:
    """Tell whether a chunk begun then may have outlived its key."""
    return not -CLOCKS < now - since < KEY_HOLDS


def _same(path: Path, code: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differ := sorted(key for key in {**then, **now} if then.get(key) != now.get(key)):
        what = ", ".join(key.replace("_", " ") for key in differ)
        because = (
            f"{path} says that this mailing was begun with another {what}; give the same as then, or --mailing "
            "NAME to make this a mailing of its own, which reaches everybody again"
        )
        raise Refused(code, "", because, 409)


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file on the disk as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def utc_now() -> datetime:
    """This host's time."""
    return datetime.now(UTC)
