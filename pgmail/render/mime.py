"""From a `Mail` to the bytes of a message (RFC 5322, 2045-2049, 2387, 6532): `assemble`.

    mixed(                      attachments, if any
      alternative(              text and html, if both
        text,
        related(html, inline))  inline parts, those with a content id, if there is html
      attachments...)

The message is written directly, without a tree of objects: this is the hot path of a worker. The same `Mail`
gives the same bytes, always, so that every attempt of an email is the same email. `Bcc` has no way in: a
`Mail` has none.

What can go wrong: a body that holds our boundary would end its part early. "=_" occurs in neither base64 nor
quoted-printable (RFC 2045, section 6.7, rule 1), so only parts that travel as they are get searched for it.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2s

import msgspec

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.render import headers
from pgmail.render.encodings import BASE64, EIGHT_BIT, SEVEN_BIT, Encoded, encode_text, is_seven_bit

_shared_attachments = Encoded()
_UNDISCLOSED = b"To: undisclosed-recipients:;\r\n"  # RFC 5322, appendix A.1.3


class Wire(msgspec.Struct, frozen=True, gc=False):
    """A message ready for a transport. `body` has CRLF line ends and ends in CRLF; it is not dot-stuffed."""

    body: bytes
    smtputf8: bool  # a header holds an address with a non-ASCII local part (RFC 6531)
    eightbit: bool  # a body part has octets over 127 (8BITMIME, RFC 6152)


class _Entity(msgspec.Struct, frozen=True, gc=False):
    """A MIME entity: its own header fields, its body, and the octets that a boundary must not occur in."""

    head: bytes
    body: bytes
    raw: tuple[bytes, ...] = ()
    eightbit: bool = False


def assemble(mail: Mail, *, eightbit: bool = False) -> Wire:
    """Assemble `mail`. With `eightbit` text may travel as 8bit, for a next hop that offered 8BITMIME.

    Pure and deterministic. Raises nothing for a `Mail` that obeys the law of an email; neither `text` nor
    `html` gives an empty text.
    """
    inline = [part for part in mail.parts if part.content_id is not None and mail.html is not None]
    attached = [part for part in mail.parts if part.content_id is None or mail.html is None]
    leaves: list[_Entity] = []
    if mail.text is not None or mail.html is None:
        leaves.append(_text("plain", mail.text or "", eightbit=eightbit))
    html = None if mail.html is None else _text("html", mail.html, eightbit=eightbit)
    files = [_file(part) for part in inline], [_file(part) for part in attached]

    stem = ""
    if len(leaves) + (html is not None) + len(mail.parts) > 1:
        raw = [octets for entity in (*leaves, html, *files[0], *files[1]) if entity for octets in entity.raw]
        stem = _stem(mail.message_id, raw)
    if html is not None:
        leaves.append(_multipart("related", stem + "R", [html, *files[0]]) if inline else html)
    root = leaves[0] if len(leaves) == 1 else _multipart("alternative", stem + "A", leaves)
    if attached:
        root = _multipart("mixed", stem + "M", [root, *files[1]])

    fields = [headers.date(mail.date.replace(microsecond=0)), headers.origin("From", (mail.sender,))]
    if mail.to:
        fields.append(headers.mailboxes("To", mail.to))
    elif not mail.cc:
        fields.append(_UNDISCLOSED)
    if mail.cc:
        fields.append(headers.mailboxes("Cc", mail.cc))
    if mail.reply_to:
        fields.append(headers.origin("Reply-To", mail.reply_to))
    fields.append(headers.unstructured("Subject", mail.subject, cut=True))
    fields.append(f"Message-ID: <{headers.clean(mail.message_id)}>\r\nMIME-Version: 1.0\r\n".encode())
    fields.append(root.head)
    fields += [headers.unstructured(name, value) for name, value in mail.headers]
    fields += (b"\r\n", root.body)
    return Wire(
        body=b"".join(fields),
        smtputf8=_non_ascii_local((mail.sender, *mail.to, *mail.cc, *mail.reply_to)),
        eightbit=root.eightbit,
    )


def _non_ascii_local(boxes: tuple[Mailbox, ...]) -> bool:
    return any(
        not box.address.isascii() and not headers.header_address(box.address).isascii() for box in boxes
    )


def _stem(message_id: str, raw: list[bytes]) -> str:
    """A boundary's constant part, from the Message-ID, that occurs in none of `raw`."""
    turn = 0
    while True:
        digest = blake2s(f"{message_id} {turn}".encode("utf-8", "replace"), digest_size=12).hexdigest()
        stem = f"=_{digest}"
        needle = stem.encode()
        if not any(needle in octets for octets in raw):
            return stem
        turn += 1


def _multipart(subtype: str, boundary: str, entities: list[_Entity]) -> _Entity:
    # RFC 2387 asks for the root's type; stating it costs nothing.
    kind = '; type="text/html"' if subtype == "related" else ""
    head = f'Content-Type: multipart/{subtype}{kind};\r\n boundary="{boundary}"\r\n'.encode()
    line = f"--{boundary}\r\n".encode()
    pieces: list[bytes] = []
    for entity in entities:
        # The CRLF before a boundary belongs to the boundary (RFC 2046, section 5.1.1).
        pieces += (line, entity.head, b"\r\n", entity.body, b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return _Entity(head, b"".join(pieces), eightbit=any(entity.eightbit for entity in entities))


def _text(subtype: str, text: str, *, eightbit: bool) -> _Entity:
    encoding, body = encode_text(text, eightbit=eightbit)
    raw = (body,) if encoding in (SEVEN_BIT, EIGHT_BIT) else ()
    return _Entity(_text_head(subtype, encoding), body, raw, encoding == EIGHT_BIT)


@lru_cache(maxsize=16)
def _text_head(subtype: str, encoding: str) -> bytes:
    return (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n'.encode()
    )


def _file(part: Part) -> _Entity:
    kind = headers.content_type(part.content_type)
    family = kind.partition("/")[0].lower()
    if family == "message" and is_seven_bit(part.body):
        # RFC 2046, section 5.2.1: a message part may not be encoded.
        return _Entity(_file_head(kind, SEVEN_BIT, part.filename, part.content_id), part.body, (part.body,))
    if family in ("message", "multipart"):
        kind = "application/octet-stream"
    head = _file_head(kind, BASE64, part.filename, part.content_id)
    return _Entity(head, _shared_attachments.get(part.body))


@lru_cache(maxsize=512)
def _file_head(kind: str, encoding: str, filename: str, content_id: str | None) -> bytes:
    # A ";" inside a quoted string is no place to fold.
    kinds = [kind] if '"' in kind else [piece.strip() for piece in kind.split(";")]
    fields = headers.fold("Content-Type", [*(piece + ";" for piece in kinds[:-1]), kinds[-1]])
    fields += f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    disposition = "attachment" if content_id is None else "inline"
    if filename:
        fields += headers.fold(
            "Content-Disposition", [disposition + ";", *headers.parameter("filename", filename)]
        )
    else:
        fields += f"Content-Disposition: {disposition}\r\n".encode()
    if content_id is not None:
        fields += f"Content-ID: {headers.content_id(content_id)}\r\n".encode()
    return fields
