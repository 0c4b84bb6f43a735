"""What the sink reads and writes, without a connection: paths, sizes, Message-IDs, replies, AUTH."""

from __future__ import annotations

import base64
import binascii
import re

PATH = re.compile(rb"\s*(?:FROM|TO)\s*:\s*<((?:\"[^\"]*\"|[^>\"])*)>\s*(.*)", re.IGNORECASE | re.DOTALL)
"""The argument of MAIL and RCPT: the path without its brackets, and the parameters."""

_MESSAGE_ID = re.compile(rb"^message-id:[ \t\r\n]*<?([^>\r\n]*)", re.IGNORECASE | re.MULTILINE)
_USUAL = b"\r\nMessage-ID: <"


def declared_size(parameters: bytes) -> int:
    """Read SIZE= of MAIL (RFC 1870); 0 without it."""
    for word in parameters.upper().split():
        if word.startswith(b"SIZE=") and word[5:25].isdigit():
            return int(word[5:25])
    return 0


def message_id_of(source: bytes) -> str:
    """Return the Message-ID without angle brackets, or nothing."""
    end = source.find(b"\r\n\r\n") + 2
    end = end if end > 1 else len(source)
    # The usual spelling first: the pattern has to look at each character of the header.
    at = source.find(_USUAL, 0, end)
    if at >= 0:
        at += len(_USUAL)
        found = source[at : source.find(b">", at)]
    else:
        match = _MESSAGE_ID.search(source, 0, end)
        found = match.group(1).strip() if match else b""
    return found.decode("utf-8", "replace")


def unstuffed(source: bytes) -> bytes:
    """Take the dot away that each line with one in front has too many (RFC 5321, section 4.5.2)."""
    if source.startswith(b"."):
        source = source[1:]
    return source.replace(b"\r\n.", b"\r\n") if b"\r\n." in source else source


def lines_of(text: str) -> bytes:
    """Write a reply: its code before each line, a hyphen after it on all but the last (RFC 5321, 4.2.1)."""
    if "\n" not in text:
        return f"{text}\r\n".encode()
    code, _, rest = text.partition(" ")
    lines = rest.split("\n")
    marked = [f"{code}-{line}\r\n" for line in lines[:-1]]
    return "".join([*marked, f"{code} {lines[-1]}\r\n"]).encode()


class Login:
    """The AUTH dialogue (RFC 4954): PLAIN (RFC 4616) and LOGIN, with or without an initial response."""

    def __init__(self, mechanism: bytes, user: str, password: str) -> None:
        self._mechanism = mechanism.upper()
        self._wanted = [user.encode(), password.encode()]
        self._said: list[bytes] = []

    def step(self, said: bytes | None) -> str:
        """Take what the client said, None at the start; return the reply. It goes on while that is a 334."""
        if self._mechanism not in (b"PLAIN", b"LOGIN"):
            return "504 5.5.4 Unrecognized authentication type"
        if said == b"*":
            return "501 5.7.0 Authentication cancelled"
        if said is not None:
            try:
                self._said.append(base64.b64decode(said, validate=True))
            except binascii.Error:
                return "501 5.5.2 Cannot decode the response"
        if self._mechanism == b"PLAIN":
            if not self._said:
                return "334 "
            given = self._said[0].split(b"\0")[-2:]
        else:
            if len(self._said) < 2:
                return ("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6")[len(self._said)]
            given = self._said
        if given == self._wanted:
            return "235 2.7.0 Accepted"
        return "535 5.7.8 Username and Password not accepted."
