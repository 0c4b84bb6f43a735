"""Row 10 of the law of an email: attachments, inline or by the name of a stored asset.

What can go wrong: content is the bulk of a body. It is decoded once, to know that it can be and how long it
is; the octets are not kept. Whether an asset exists is known to SQL alone.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NoReturn

from pgmail.domain.address import BIDI
from pgmail.domain.check_body import control_in, kind, refuse

MAX_ATTACHMENTS = 100
MAX_NAME = 255  # octets of a filename, content type, content id or asset's name

_KEYS = frozenset({"filename", "content", "content_type", "content_id", "asset", "path"})
_WORD = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # restricted-name, RFC 6838 section 4.2
_CONTENT_TYPE = re.compile(rf'({_WORD})/{_WORD}(?: *; *[A-Za-z0-9_-]+=(?:"[^"\\]*"|[^ ;"\\]+))*')
_CONTENT_ID = re.compile("[!-;=?-~]+")
_SPACE = re.compile(r"[ \t\r\n]+")


def check_attachments(body: dict[str, Any]) -> int:
    """Check row 10 and return the octets of all inline content, decoded."""
    attachments = body.get("attachments")
    if attachments is None:
        return 0
    if not isinstance(attachments, list):
        refuse("invalid_attachment", "attachments", because=f"an array, not {kind(attachments)}")
    if len(attachments) > MAX_ATTACHMENTS:
        because = f"{len(attachments)} attachments; at most {MAX_ATTACHMENTS}"
        refuse("invalid_attachment", "attachments", because=because)
    return sum(_check(attachment, position) for position, attachment in enumerate(attachments))


def decode(content: object) -> bytes:
    """Return the octets of a `content`: base64 (line breaks allowed), an array of octets, or bytes.

    Base64 is RFC 4648 section 4 with its padding. Raises ValueError with a reason.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if isinstance(content, list):
        try:
            return bytes(content)
        except (TypeError, ValueError):
            raise ValueError("an array of octets holds whole numbers from 0 to 255") from None
    if not isinstance(content, str):
        raise ValueError(f"base64 in a string, not {kind(content)}")  # noqa: TRY004 - callers catch one type
    try:
        return base64.b64decode(content.encode("ascii"), validate=True)
    except UnicodeEncodeError:
        raise ValueError("not base64 (there is a character outside ASCII)") from None
    except binascii.Error:
        pass
    try:  # wrapped at 76 characters, as MIME tools write it; rare, so tried second
        return base64.b64decode(_SPACE.sub("", content), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 with its padding ({error})") from None


def check_content_type(text: str) -> str | None:
    """Return why `text` is no content type of an attachment, or None if it is one."""
    match = _CONTENT_TYPE.fullmatch(text)
    if match is None:
        return "type/subtype as in application/pdf, with optional ; name=value"
    if match[1].lower() in {"multipart", "message"}:
        return f"{match[1].lower()}/* would be taken for a part of this email's own structure"
    return None


def _check(attachment: object, position: int) -> int:
    """Check one attachment and return the octets of its inline content."""
    if not isinstance(attachment, dict):
        _refuse(position, because=f"an object, not {kind(attachment)}")
    if unknown := attachment.keys() - _KEYS:
        _refuse(position, because=f"an attachment has no {min(unknown)!r}")
    item: dict[str, Any] = {key: value for key, value in attachment.items() if value is not None}
    if "path" in item:
        _refuse(
            position, "path", because="pgmail fetches nothing for a sender; give content, or store an asset"
        )
    for key in ("filename", "content_type", "content_id", "asset"):
        if key in item:
            _check_name(item[key], position, key)
    if "filename" in item and BIDI.search(item["filename"]):
        _refuse(position, "filename", because="there is a mark that turns the direction of the text")
    if "content_id" in item and not _CONTENT_ID.fullmatch(item["content_id"]):
        _refuse(position, "content_id", because="printable ASCII without space, < and >")
    if "content_type" in item and (fault := check_content_type(item["content_type"])):
        _refuse(position, "content_type", because=fault)
    if "asset" in item:
        if "content" in item:
            _refuse(position, because="either content or the name of an asset")
        return 0
    if "filename" not in item:
        _refuse(position, "filename", because="a file needs a name")
    try:
        return len(decode(item.get("content")))
    except ValueError as error:
        _refuse(position, "content", because=str(error))


def _check_name(value: object, position: int, key: str) -> None:
    if not isinstance(value, str):
        _refuse(position, key, because=f"a string, not {kind(value)}")
    if not value.strip(" ") or len(value.encode()) > MAX_NAME:
        _refuse(position, key, because=f"1 to {MAX_NAME} octets, not only spaces")
    if control := control_in(value):
        _refuse(position, key, because=f"there is a control character or line break ({control})")


def _refuse(position: int, *rest: str, because: str) -> NoReturn:
    refuse("invalid_attachment", "attachments", position, *rest, because=because)
