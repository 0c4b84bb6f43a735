"""Header fields as bytes: encoding and folding (RFC 5322, 2047, 2231, 6532).

Every function returns a whole field, folded, with its final CRLF. Text that a header cannot carry as it is
becomes encoded words of at most 75 octets that never split a character. Lines keep to 78 octets (76 where an
encoded word stands, RFC 2047 section 2); a word that may not be cut, such as a URL in `List-Unsubscribe`, may
go to 998.

What can go wrong: a control character in a value would start a new header. Values are checked on the way in;
here each run of them becomes one space all the same, so that no caller can smuggle a line. A name that would be
more than a name is refused (ValueError): there is no other name that it could have meant.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import lru_cache
from math import floor
from urllib.parse import quote

import idna

from pgmail.domain.mail import Mailbox

LINE = 78
"""Octets that a line should not exceed, CRLF excluded (RFC 5322, section 2.1.1)."""
HARD_LINE = 998
"""Octets that a line must not exceed, CRLF excluded."""

_ENCODED_LINE = 76  # RFC 2047, section 2: lines that hold encoded words
_WORD_FRAME = len("=?utf-8?q??=")
_WORD = 75 - _WORD_FRAME  # room for encoded text in one encoded word

_FOLD = "\r\n "
_LONE_SPACE = re.compile("(?<! ) (?! )")  # where a fold loses nothing and leaves no blank line
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NAME = re.compile("[!-9;-~]+")  # RFC 5322, section 3.6.8
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_PLAIN_PARAMETER = re.compile(r"[A-Za-z0-9!#$&'()*+,./:;<>?@\[\]^_`{|}~ -]*")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:\s*;[ -~]*)?")

# RFC 2047, section 5 (3): what may stand bare inside a Q word in a phrase. It is safe in a subject, too.
_Q_BARE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/ "
_Q = tuple("_" if o == 32 else chr(o) if o in _Q_BARE else f"={o:02X}" for o in range(256))


def clean(text: str) -> str:
    """Return `text` with each run of control characters replaced by one space, lone surrogates by "?"."""
    if text.isprintable():  # the common case, and fast; surrogates are not printable
        return text
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode()


def encoded_words(text: str, first: int = _WORD + _WORD_FRAME) -> list[str]:
    """Encode `text` as RFC 2047 words, B or Q, whichever is shorter in all.

    `first` is the room for the first word, in octets; the others take up to 75. Joined by folding white space
    they read back as exactly `text`.
    """
    raw = text.encode()
    odd = len(raw.translate(None, _Q_BARE))
    room = max(first - _WORD_FRAME, 12)  # 12: one character of four octets fits in either encoding
    words: list[str] = []
    if len(raw) + 2 * odd <= (len(raw) + 2) // 3 * 4:
        held: list[str] = []
        size = 0
        for character in text:
            piece = _Q[ord(character)] if character < "\x80" else "".join([_Q[o] for o in character.encode()])
            if size + len(piece) > room:
                words.append(f"=?utf-8?q?{''.join(held)}?=")
                held, size, room = [], 0, _WORD
            held.append(piece)
            size += len(piece)
        words.append(f"=?utf-8?q?{''.join(held)}?=")
        return words
    at = 0
    while at < len(raw):
        end = min(at + room // 4 * 3, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # back to the start of a character
            end -= 1
        words.append(f"=?utf-8?b?{b2a_base64(raw[at:end], newline=False).decode()}?=")
        at, room = end, _WORD
    return words


def _needs_words(text: str) -> bool:
    """Tell whether `text` would not read back as itself if it stood in a header as it is."""
    return (
        not text.isascii()
        or "=?" in text  # would be taken for an encoded word
        or text[:1] in " \t"  # readers drop white space at both ends
        or text[-1:] in " \t"
    )


@lru_cache(maxsize=512)
def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def unstructured(name: str, value: str, *, cut: bool = False) -> bytes:
    """A field of free text: `Subject`, or a sender's own header.

    `cut` lets long ASCII words be cut up into encoded words to keep lines short; without it that is done only
    where a line would pass 998 octets, since other headers may hold URLs and ids that software reads.
    Raises ValueError for a name that is none.
    """
    if not _is_name(name):
        raise ValueError("no name of a header")
    # Short plain text, as most of it is: quicker made than looked up, and often of one mail only.
    if (
        value.isascii()
        and value.isprintable()
        and 0 < len(value) <= LINE - 2 - len(name)
        and "=?" not in value
        and value[0] != " "
        and value[-1] != " "
    ):
        return f"{name}: {value}\r\n".encode()
    return _unstructured(name, value, cut=cut)


@lru_cache(maxsize=2048)
def _unstructured(name: str, value: str, *, cut: bool) -> bytes:
    value = clean(value)
    head = f"{name}: "
    if not value:
        return f"{head}\r\n".encode()
    if not _needs_words(value):
        if len(head) + len(value) <= LINE:
            return f"{head}{value}\r\n".encode()
        words = _LONE_SPACE.split(value)
        if max(map(len, words)) <= (LINE if cut else HARD_LINE) - len(head):
            return fold(name, words)
    if len(name) > 40:  # a long name leaves too little room beside it
        return f"{name}:\r\n {_FOLD.join(encoded_words(value))}\r\n".encode()
    return f"{head}{_FOLD.join(encoded_words(value, _ENCODED_LINE - len(head)))}\r\n".encode()


def fold(name: str, tokens: Iterable[str]) -> bytes:
    """A field made of `tokens` with one space or one fold between them; a token is never cut."""
    out = [name, ":"]
    used = len(name) + 1
    fresh = True  # nothing but the name on this line: folding here would gain nothing
    limit = LINE
    for token in tokens:
        size = len(token) if token.isascii() else len(token.encode())
        if token.startswith("=?"):
            limit = _ENCODED_LINE
        if used + 1 + size > limit and not fresh:
            out.append("\r\n")
            used = 0
            limit = _ENCODED_LINE if token.startswith("=?") else LINE
        out.append(" ")
        out.append(token)
        used += 1 + size
        fresh = False
    out.append("\r\n")
    return "".join(out).encode()


def header_address(address: str) -> str:
    """Return `address` as it stands in a header: domain in A-labels (RFC 5890), local part as given."""
    address = clean(address)
    if address.isascii():
        return address
    local, _, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            return address
    return f"{local}@{domain}"


def phrase(name: str, first: int = _WORD) -> list[str]:
    """A display name as tokens: atoms, one quoted string, or encoded words (RFC 5322, section 3.2.5)."""
    if len(name) <= 60 and not _needs_words(name) and "  " not in name:
        if _ATOMS.fullmatch(name):
            return name.split(" ")
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return [f'"{escaped}"']
    return encoded_words(name, first)


def mailbox_tokens(mailbox: Mailbox, first: int = _WORD) -> list[str]:
    """One mailbox as tokens to fold: `Name <addr>` or `addr`."""
    address = header_address(mailbox.address)
    name = clean(mailbox.name) if mailbox.name else ""
    if not name:
        return [address]
    return [*phrase(name, first), f"<{address}>"]


def mailboxes(name: str, boxes: Sequence[Mailbox]) -> bytes:
    """An address field (RFC 5322, section 3.6.3), folded between and inside mailboxes."""
    if len(boxes) == 1 and not boxes[0].name:  # as most mails have it
        address = boxes[0].address
        if address.isascii() and address.isprintable():
            return f"{name}: {address}\r\n".encode()
    tokens: list[str] = []
    for box in boxes:
        if tokens:
            tokens[-1] += ","
        tokens += mailbox_tokens(box, _ENCODED_LINE - len(name) - 2)
    return fold(name, tokens)


@lru_cache(maxsize=512)
def origin(name: str, boxes: tuple[Mailbox, ...]) -> bytes:
    """`From` and `Reply-To`: as `mailboxes`, kept, because a stream's mails repeat them."""
    return mailboxes(name, boxes)


def date(moment: datetime) -> bytes:
    """The `Date` field (RFC 5322, section 3.3). `moment` is aware; fractions of a second are dropped."""
    # By its second, a number: to cut and to hash a moment of an own zone costs more than all that is left to do.
    return _date(floor(moment.timestamp()), moment.utcoffset() or _NO_OFFSET)


_NO_OFFSET = timedelta(0)


@lru_cache(maxsize=64)
def _date(second: int, offset: timedelta) -> bytes:
    return f"Date: {format_datetime(datetime.fromtimestamp(second, timezone(offset)))}\r\n".encode()


def parameter(name: str, value: str) -> list[str]:
    """A MIME parameter as tokens to fold: `name="value"`, or as in RFC 2231 (`name*`, `name*0*`)."""
    value = clean(value)
    if len(name) + len(value) <= 70 and _PLAIN_PARAMETER.fullmatch(value) and not _needs_words(value):
        return [f'{name}="{value}"']
    pieces: list[str] = []
    room = LINE - len(name) - len(" *00*=utf-8'';")
    held: list[str] = []
    size = 0
    for character in value:
        piece = quote(character, safe="!#$&+-.^_`|~")  # attribute-char, RFC 2231, section 7
        if size + len(piece) > room:
            pieces.append("".join(held))
            held, size = [], 0
        held.append(piece)
        size += len(piece)
    pieces.append("".join(held))
    if len(pieces) == 1:
        return [f"{name}*=utf-8''{pieces[0]}"]
    pieces[0] = f"utf-8''{pieces[0]}"
    tokens = [f"{name}*{i}*={piece};" for i, piece in enumerate(pieces)]
    tokens[-1] = tokens[-1].removesuffix(";")
    return tokens


def content_type(value: str) -> str:
    """Return a sender's content type if it can stand in a header, else `application/octet-stream`."""
    value = value.strip()
    if len(value) <= 500 and _CONTENT_TYPE.fullmatch(value):
        return value.rstrip("; ")
    return "application/octet-stream"


def content_id(value: str) -> str:
    """Return the `Content-ID` token for what the HTML calls `cid:value` (RFC 2392, section 2)."""
    bare = value.removeprefix("<").removesuffix(">")
    return f"<{quote(bare, safe='!#$%&*+-/=?^_`{|}~.@')}>"
