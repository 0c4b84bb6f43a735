"""The mail that the sink captured, as a person reads it: from its folder of `.eml` files to lists and pages.

The sink writes `<nanoseconds>-<number>.eml`, one for each recipient, with `Return-Path` and `Delivered-To` put
in front. The name without its ending is a mail's id. Nothing is written here, and nothing is fetched: a
picture in HTML is shown if the mail brings it, and as a `data:` URL.

What can go wrong: mail is anything that anybody wrote. A file that is no mail at all still has a page; HTML is
handed out as it came and is for whoever shows it to lock up (`dashboard.inbox` does).
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import msgspec

_ID = re.compile(r"[0-9]{1,20}-[0-9]{8,}")
_CID = re.compile(r"""(?i)\bcid:([^"'\s)>]+)""")
_BLANK = re.compile(rb"\r?\n\r?\n")
_HEAD_BYTES = 65_536
_WRITING_SECONDS = 1.0
_SHOWN_INLINE = ("image/png", "image/jpeg", "image/gif", "image/webp")


class Listed(msgspec.Struct, frozen=True):
    """A mail in a list."""

    id: str
    at: datetime
    recipient: str
    sender: str
    subject: str
    bytes: int


class Attached(msgspec.Struct, frozen=True):
    """A file that a mail brings. `inline`: its HTML refers to it."""

    number: int
    filename: str
    content_type: str
    bytes: int
    inline: bool


class Opened(msgspec.Struct, frozen=True):
    """A mail as it is read. `text` and `html` are None where there is no such part."""

    listed: Listed
    headers: tuple[tuple[str, str], ...]
    text: str | None
    html: str | None
    source: str
    attachments: tuple[Attached, ...]


class File(msgspec.Struct, frozen=True):
    """An attachment's octets."""

    filename: str
    content_type: str
    body: bytes


class Inbox:
    """A folder of captured mail. Safe for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Listed] = {}
        self._lock = threading.Lock()

    def search(self, query: str = "", *, start: int = 0, count: int = 50) -> tuple[list[Listed], int]:
        """Mails, newest first, that hold all words of `query` in recipient, sender or subject; and how many.

        `start` and `count` cut a page out of them.
        """
        words = query.lower().split()
        found = [
            listed
            for listed in self._all()
            if all(word in f"{listed.recipient} {listed.sender} {listed.subject}".lower() for word in words)
        ]
        return found[start : start + count], len(found)

    def open(self, id_: str) -> Opened | None:
        """One mail, or None if there is none of this id."""
        octets = self._octets(id_)
        if octets is None:
            return None
        message = _parse(octets)
        text, html = _body(message, "plain"), _body(message, "html")
        return Opened(
            listed=self._listed(id_, octets[:_HEAD_BYTES], len(octets)),
            headers=tuple((name, _unfolded(value)) for name, value in message.items()),
            text=text,
            html=None if html is None else _with_pictures(html, message),
            source=octets.decode("utf-8", "replace"),
            attachments=tuple(_attached(message, html or "")),
        )

    def file(self, id_: str, number: int) -> File | None:
        """An attachment of a mail, or None."""
        octets = self._octets(id_)
        parts = [] if octets is None else _files(_parse(octets))
        if not 0 <= number < len(parts):
            return None
        part = parts[number]
        return File(_filename(part, number), part.get_content_type(), _decoded(part))

    def _all(self) -> list[Listed]:
        """All mails, newest first. Each file is looked into once, when the sink has surely written it."""
        found = []
        settled = time.time() - _WRITING_SECONDS
        with self._lock:
            for path in self._folder.glob("*.eml"):
                name = path.stem
                listed = self._known.get(name)
                if listed is None and _ID.fullmatch(name):
                    with path.open("rb") as file:
                        state = os.fstat(file.fileno())
                        listed = self._listed(name, file.read(_HEAD_BYTES), state.st_size)
                    if state.st_mtime < settled:
                        self._known[name] = listed
                if listed is not None:
                    found.append(listed)
        return sorted(found, key=lambda one: _order(one.id), reverse=True)

    def _octets(self, id_: str) -> bytes | None:
        if not _ID.fullmatch(id_):
            return None
        try:
            return (self._folder / f"{id_}.eml").read_bytes()
        except OSError:
            return None

    def _listed(self, id_: str, octets: bytes, size: int) -> Listed:
        blank = _BLANK.search(octets)
        head = BytesHeaderParser(policy=policy.default).parsebytes(octets[: blank.end() if blank else None])
        return Listed(
            id=id_,
            at=datetime.fromtimestamp(int(id_.partition("-")[0]) / 1e9, UTC),
            recipient=_header(head, "Delivered-To") or _header(head, "To"),
            sender=_header(head, "From"),
            subject=_header(head, "Subject"),
            bytes=size,
        )


def _order(id_: str) -> tuple[int, int]:
    at, _, number = id_.partition("-")
    return int(at), int(number)


def _parse(octets: bytes) -> EmailMessage:
    return message_from_bytes(octets, policy=policy.default)


def _header(message: Message[Any, Any], name: str) -> str:
    try:
        return _unfolded(message.get(name, ""))
    except (ValueError, IndexError, AttributeError):  # what the standard library raises for broken ones
        return ""


def _unfolded(value: object) -> str:
    return " ".join(str(value).split())


def _body(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body((kind,))
    return None if part is None else _text(part)


def _text(part: Message[Any, Any]) -> str:
    charset = part.get_content_charset("utf-8")
    try:
        return _decoded(part).decode(charset, "replace")
    except LookupError:
        return _decoded(part).decode("utf-8", "replace")


def _decoded(part: Message[Any, Any]) -> bytes:
    octets = part.get_payload(decode=True)
    return octets if isinstance(octets, bytes) else b""


def _files(message: EmailMessage) -> list[EmailMessage]:
    """Parts that are neither containers nor the texts that are read."""
    read = [message.get_body((kind,)) for kind in ("plain", "html")]
    leaves = (part for part in message.walk() if not part.is_multipart())
    return [part for part in leaves if not any(part is body for body in read)]


def _attached(message: EmailMessage, html: str) -> list[Attached]:
    return [
        Attached(
            number=number,
            filename=_filename(part, number),
            content_type=part.get_content_type(),
            bytes=len(_decoded(part)),
            inline=bool(_content_id(part)) and f"cid:{_content_id(part)}" in html,
        )
        for number, part in enumerate(_files(message))
    ]


def _filename(part: EmailMessage, number: int) -> str:
    name = part.get_filename() or f"part-{number + 1}"
    return name.replace("/", "_").replace("\\", "_")


def _content_id(part: EmailMessage) -> str:
    return _header(part, "Content-ID").strip("<> ")


def _with_pictures(html: str, message: EmailMessage) -> str:
    """Put the mail's own pictures where its HTML refers to them (RFC 2392)."""
    pictures = {
        _content_id(part): part
        for part in _files(message)
        if _content_id(part) and part.get_content_type() in _SHOWN_INLINE
    }

    def replace(found: re.Match[str]) -> str:
        part = pictures.get(found[1])
        if part is None:
            return found[0]
        return f"data:{part.get_content_type()};base64,{base64.b64encode(_decoded(part)).decode('ascii')}"

    return _CID.sub(replace, html)
