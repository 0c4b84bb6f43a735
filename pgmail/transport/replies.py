"""From bytes to SMTP replies (RFC 5321, section 4.2) and enhanced status codes (RFC 3463). No I/O.

Servers say the strangest things: bare LF line ends, a code without text, replies of several thousand lines,
half a line before they vanish. What can be understood is; anything else is a `fault`, after which the
connection cannot be trusted, because a reply may belong to an earlier command.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from pgmail.domain.reply import Reply

MAX_REPLY_BYTES = 100_000
"""One reply may be this long, continuation lines included. RFC 5321 (4.5.3.1.5) asks for lines of 512."""

MAX_TEXT_CHARS = 2_000
"""A reply's text is kept up to here: it is stored with every event and read by people."""

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:[ \t]+|$)", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class RawReply(NamedTuple):
    """A complete reply as it came: `code` 200 to 599, `text` its lines without codes, joined by LF."""

    code: int
    text: bytes

    def parsed(self) -> Reply:
        """Split off the enhanced code and make the text printable."""
        return make_reply(self.code, self.text.decode("utf-8", "replace"))


def make_reply(code: int, text: str) -> Reply:
    """Make a `Reply` from a code (200 to 599) and its text, lines joined by LF.

    The enhanced code (RFC 2034) stands at the front of the first line and mostly of each other one; it is
    taken off where it is the same. Lines are joined by a space, control characters (NUL cannot be stored in
    a text column) become a space, and text past `MAX_TEXT_CHARS` is cut.
    """
    found = _ENHANCED.match(text)
    enhanced = found.group(1) if found else None
    if found is None or "\n" not in text:
        joined = text[found.end() :] if found else text.replace("\n", " ")
    else:
        joined = " ".join(_without(line, found.group(1)) for line in text.split("\n"))
    if not joined.isprintable():
        joined = _CONTROL.sub(" ", joined)
    joined = joined.strip()
    if len(joined) > MAX_TEXT_CHARS:
        joined = joined[: MAX_TEXT_CHARS - 1] + "…"
    return Reply(code=code, text=joined, enhanced=enhanced)


def _without(line: str, enhanced: str) -> str:
    found = _ENHANCED.match(line)
    return (line[found.end() :] if found and found.group(1) == enhanced else line).strip()


def shown(octets: bytes, limit: int = 80) -> str:
    """Show octets of a remote in an error message: printable, on one line, at most `limit` characters."""
    text = _CONTROL.sub(" ", octets[: limit * 4].decode("utf-8", "replace")).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def lost(exc: Exception) -> str:
    """Say how a connection ended, by the error that asyncio names."""
    if isinstance(exc, (ConnectionResetError, BrokenPipeError)) or (
        isinstance(exc, OSError) and exc.errno == errno.ECONNABORTED
    ):
        return "the remote reset the connection"
    return f"the connection was lost: {exc}"


_ONE_LINE = re.compile(rb"([2-5][0-9]{2}) ([^\r\n]*)")
_MOST_KNOWN = 256
_known: dict[bytes, RawReply] = {}  # to be read and filled by all connections: remotes repeat themselves


def _one_line(line: bytes) -> RawReply | None:
    """Read a reply of one line, as most are; None if it is anything else."""
    found = _ONE_LINE.fullmatch(line)
    if found is None or len(line) > MAX_REPLY_BYTES:
        return None
    reply = RawReply(int(found[1]), found[2])
    if len(line) <= 100:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()  # full of queue ids, each of which comes once
        _known[line] = reply
    return reply


class ReplyParser:
    """Cuts a stream of octets into replies."""

    __slots__ = ("_code", "_lines", "_rest", "_size", "fault")

    def __init__(self) -> None:
        self.fault: str | None = None
        """Why the remote is not understood, nor anything it may say after that."""
        self._rest = b""  # an unfinished line
        self._lines: list[bytes] = []  # continuation lines of an unfinished reply
        self._code = b""
        self._size = 0

    @property
    def partial(self) -> bytes:
        """What was read of a reply that is not complete; empty between replies."""
        return b"\n".join([*self._lines, self._rest]) if self._lines else self._rest

    def feed(self, octets: bytes) -> list[RawReply]:
        """Return the replies that `octets` complete, in order, up to a `fault`."""
        replies: list[RawReply] = []
        if self.fault is not None:
            return replies
        if octets[-2:] == b"\r\n" and not self._rest and not self._lines:
            for line in octets[:-2].split(b"\r\n"):
                reply = _known.get(line) or _one_line(line)
                if reply is None:
                    break
                replies.append(reply)
            else:
                return replies
            replies = []
        octets = self._rest + octets if self._rest else octets
        start = 0
        while (end := octets.find(b"\n", start)) >= 0:
            line = octets[start:end].rstrip(b"\r")
            start = end + 1
            code = line[:3]
            mark = line[3:4]
            if len(code) != 3 or not code.isdigit() or not b"200" <= code < b"600" or mark not in b" -":
                self.fault = f"not an SMTP reply: {shown(line)!r}"
                return replies
            if self._lines and code != self._code:
                self.fault = f"reply changes its code from {self._code.decode()} to {code.decode()}"
                return replies
            text = line[4:]
            self._size += len(text) + 1
            if self._size > MAX_REPLY_BYTES:
                break
            if mark == b"-":
                self._code = code
                self._lines.append(text)
                continue
            if self._lines:
                text = b"\n".join([*self._lines, text])
                self._lines = []
            self._size = 0
            replies.append(RawReply(int(code), text))
        self._rest = octets[start:]
        if self._size + len(self._rest) > MAX_REPLY_BYTES:
            self.fault = f"reply is longer than {MAX_REPLY_BYTES} octets"
        return replies
