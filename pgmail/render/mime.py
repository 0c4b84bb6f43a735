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

from pgmail.domain.mail import Mail, Part
from pgmail.render import headers
from pgmail.render.encodings import BASE64, EIGHT_BIT, SEVEN_BIT, Encoded, encode_text, is_seven_bit

_shared_attachments = Encoded()
_AS_IS = frozenset({SEVEN_BIT, EIGHT_BIT})
_MULTIPART = {
    "alternative": b"alternative",
    "mixed": b"mixed",
    "related": b'related; type="text/html"',  # RFC 2387 asks for the type of its root
}
_UNDISCLOSED = b"To: undisclosed-recipients:;\r\n"  # RFC 5322, appendix A.1.3


class Wire(msgspec.Struct, frozen=True, gc=False):
    """A message ready for a transport. `body` has CRLF line ends and ends in CRLF; it is not dot-stuffed."""

    body: bytes
    smtputf8: bool  # a header holds an address with a non-ASCII local part (RFC 6531)
    eightbit: bool  # a body part has octets over 127 (8BITMIME, RFC 6152)


class _Entity(msgspec.Struct, frozen=True, gc=False):
    """A MIME entity: its own header fields, and its body in pieces, joined once when all are there."""

    head: bytes
    body: tuple[bytes, ...]
    eightbit: bool = False
    bare: bool = False  # it travels as it is: a boundary must not occur in it


def assemble(mail: Mail, *, eightbit: bool = False) -> Wire:
    """Assemble `mail`. With `eightbit` text may travel as 8bit, for a next hop that offered 8BITMIME.

    Pure and deterministic. Raises nothing for a `Mail` that obeys the law of an email; neither `text` nor
    `html` gives an empty text.
    """
    if mail.html is None:
        root = _text("plain", mail.text or "", eightbit=eightbit)
        if mail.parts:
            files = [_file(part) for part in mail.parts]
            root = _multipart("mixed", _stem(mail.message_id, [root, *files]) + b"M", [root, *files])
    else:
        root = _text("html", mail.html, eightbit=eightbit)
        if mail.text is not None or mail.parts:
            root = _with_html(mail, root, eightbit=eightbit)

    fields = [headers.date(mail.date), headers.origin("From", (mail.sender,))]
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
    for name, value in mail.headers:
        fields.append(headers.unstructured(name, value))
    fields.append(b"\r\n")
    fields += root.body
    return Wire(b"".join(fields), _non_ascii_local(mail), root.eightbit)


def _with_html(mail: Mail, html: _Entity, *, eightbit: bool) -> _Entity:
    """What holds the HTML together with the text, the inline parts and the attachments that there are."""
    text = None if mail.text is None else _text("plain", mail.text, eightbit=eightbit)
    inline = [_file(part) for part in mail.parts if part.content_id is not None]
    attached = [_file(part) for part in mail.parts if part.content_id is None]
    leaves = [html, *inline, *attached]
    stem = _stem(mail.message_id, leaves if text is None else [text, *leaves])
    root = _multipart("related", stem + b"R", [html, *inline]) if inline else html
    if text is not None:
        root = _multipart("alternative", stem + b"A", [text, root])
    return _multipart("mixed", stem + b"M", [root, *attached]) if attached else root


def _non_ascii_local(mail: Mail) -> bool:
    for box in (mail.sender, *mail.to, *mail.cc, *mail.reply_to):
        if not box.address.isascii() and not headers.header_address(box.address).isascii():
            return True
    return False


def _stem(message_id: str, leaves: list[_Entity]) -> bytes:
    """A boundary's constant part, from the Message-ID, that occurs in no leaf that travels as it is."""
    bare = [octets for leaf in leaves if leaf.bare for octets in leaf.body]
    turn = 0
    while True:
        seed = f"{message_id} {turn}".encode("utf-8", "replace")
        stem = b"=_" + blake2s(seed, digest_size=12).hexdigest().encode()
        for octets in bare:
            if stem in octets:
                break
        else:
            return stem
        turn += 1


def _multipart(subtype: str, boundary: bytes, entities: list[_Entity]) -> _Entity:
    pieces: list[bytes] = []
    line = b"--%b\r\n" % boundary
    eightbit = False
    for entity in entities:
        pieces += (line, entity.head, b"\r\n", *entity.body)
        # The CRLF before a boundary belongs to the boundary (RFC 2046, section 5.1.1).
        line = b"\r\n--%b\r\n" % boundary
        eightbit = eightbit or entity.eightbit
    pieces.append(b"\r\n--%b--\r\n" % boundary)
    head = b'Content-Type: multipart/%b;\r\n boundary="%b"\r\n' % (_MULTIPART[subtype], boundary)
    return _Entity(head, tuple(pieces), eightbit)


def _text(subtype: str, text: str, *, eightbit: bool) -> _Entity:
    encoding, body = encode_text(text, eightbit=eightbit)
    as_is = encoding in _AS_IS
    return _Entity(_text_head(subtype, encoding), (body,), encoding == EIGHT_BIT, as_is)


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
        return _Entity(_file_head(kind, SEVEN_BIT, part.filename, part.content_id), (part.body,), bare=True)
    if family in ("message", "multipart"):
        kind = "application/octet-stream"
    head = _file_head(kind, BASE64, part.filename, part.content_id)
    return _Entity(head, (_shared_attachments.get(part.body),))


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
