"""Mails as `.eml` files in a folder: for development, and for a hand-over to another program.

A file appears complete or not at all: it is written under a hidden name beside its place, made durable, and
renamed. A program that reads the folder should ignore names that begin with a dot. What can go wrong: the
disk is full or the folder is not writable (a `Result` without a reply); a crash leaves hidden files behind.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.base import OnDot, closed_error


class FileTransport:
    """A `Transport` that writes each mail to `folder` as `<UTC time>-<random>.eml`."""

    def __init__(self, folder: Path, *, sync: bool = True) -> None:
        """`folder` is made when first needed. `sync=False` leaves it to the system when the disk has it."""
        self.name = f"file:{folder}"
        self.folder = folder
        self._sync = sync
        self._closed = False

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Write one mail; the reply's text is its file name. See `Transport`."""
        if self._closed:
            raise closed_error(self.name)
        started = time.monotonic()
        hidden = self.folder / f".{uuid.uuid4().hex}"
        phase, error = await asyncio.to_thread(self._write, hidden, envelope)
        reply: Reply | None = None
        if error is None:
            try:
                if on_dot is not None:
                    await on_dot()
            except BaseException:
                _forget(hidden)
                raise
            phase, error, name = await asyncio.to_thread(self._show, hidden)
            if error is None:
                reply = Reply(250, name, "2.0.0")
        ms = round((time.monotonic() - started) * 1000)
        return Result(phase=phase, reply=reply, error=error, ms=ms)

    async def probe(self) -> Result:
        """Tell whether the folder is there and can be written to."""
        if self._closed:
            raise closed_error(self.name)
        empty = Envelope(sender="", recipient="", body=b"")
        hidden = self.folder / f".{uuid.uuid4().hex}"
        _, error = await asyncio.to_thread(self._write, hidden, empty)
        await asyncio.to_thread(_forget, hidden)
        reply = Reply(250, "ready", "2.0.0") if error is None else None
        return Result(phase=Phase.CONNECT, reply=reply, error=error)

    async def close(self) -> None:
        """Accept no more mail."""
        self._closed = True

    def _write(self, path: Path, envelope: Envelope) -> tuple[Phase, str | None]:
        """Write the hidden file. Returns how far it got and what went wrong."""
        phase = Phase.CONNECT
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "xb", opener=_private) as file:
                phase = Phase.BODY
                file.write(envelope_headers(envelope.sender, envelope.recipient))
                file.write(envelope.body)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as fault:
            _forget(path)
            return phase, f"cannot write to {self.folder}: {fault.strerror or fault}"
        return phase, None

    def _show(self, hidden: Path) -> tuple[Phase, str | None, str]:
        """Rename the hidden file to its name, which is returned last."""
        # The time first, so that `ls` lists in the order of arrival; a random end, since two processes
        # may write in the same nanosecond.
        at = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at // 1_000_000_000))
        name = f"{stamp}.{at % 1_000_000_000:09d}-{uuid.uuid4().hex[:8]}.eml"
        phase = Phase.BODY
        try:
            hidden.rename(self.folder / name)
            phase = Phase.DOT  # it can be seen; whether a crash of the machine would undo it is in doubt
            if self._sync:
                descriptor = os.open(self.folder, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as fault:
            _forget(hidden)
            return phase, f"cannot write to {self.folder}: {fault.strerror or fault}", name
        return phase, None, name


def envelope_headers(sender: str, recipient: str) -> bytes:
    """Write the envelope down as the last hop does: Return-Path (RFC 5321, section 4.4) and Delivered-To."""
    lines = f"Return-Path: <{_one_line(sender)}>\r\nDelivered-To: {_one_line(recipient)}\r\n"
    return lines.encode()


def _one_line(address: str) -> str:
    return "".join(char for char in address if char >= " " and char != "\x7f")


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _private(path: str, flags: int) -> int:
    """Open a file that nobody else may read: it is somebody's mail."""
    return os.open(path, flags, 0o600)
