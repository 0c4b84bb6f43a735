"""Bodies as bytes: line ends and the choice of a transfer encoding (RFC 2045, section 6).

A text body has CRLF line ends throughout, ends in CRLF, and has no bare CR, no bare LF and no line over 998
octets in what goes on the wire. An attachment's octets are never touched: base64.

What can go wrong: quoted-printable for text in a script outside Latin is three times its size, and base64
hides plain ASCII from people; so the shorter one is taken, computed from the octets without encoding twice.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections import OrderedDict
from itertools import chain
from struct import Struct
from threading import Lock
from typing import Final

from pgmail.render.headers import HARD_LINE

SEVEN_BIT: Final = "7bit"
EIGHT_BIT: Final = "8bit"
QUOTED_PRINTABLE: Final = "quoted-printable"
BASE64: Final = "base64"

_QP_BARE = bytes([*b"\t\n\r", *range(32, 61), *range(62, 127)])
_QP_LINE = 75  # octets of a line before its soft break: 76 with it (RFC 2045, section 6.7, rule 5)
_QP_CUT = Struct(f"{_QP_LINE}s")
_BLANKS = (b" ", b"\t")
_OCTETS = tuple(bytes([octet]) for octet in range(256))
_ESCAPES = tuple(b"=%02X" % octet for octet in range(256))
_B64_LINE = 76  # RFC 2045, section 6.8


def encode_text(text: str, *, eightbit: bool) -> tuple[str, bytes]:
    """Return the transfer encoding chosen for a text body, and the body encoded.

    `7bit` for ASCII in lines of at most 998 octets without NUL; `8bit` for other text like that if
    `eightbit`; else quoted-printable or base64, whichever is shorter.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n"
    ascii_only = text.isascii()
    lf = text.encode("utf-8", "replace")  # "replace": a lone surrogate becomes "?", it must not stop a mail
    if (ascii_only or eightbit) and b"\0" not in lf and _short_lines(lf):
        return (SEVEN_BIT if ascii_only else EIGHT_BIT), lf.replace(b"\n", b"\r\n")
    odd = lf.translate(None, _QP_BARE)
    if (len(lf) + 2 * len(odd)) * 79 // 76 <= len(lf) * 4 * 78 // (3 * 76):
        return QUOTED_PRINTABLE, _quoted_printable(lf, odd)
    return BASE64, base64_lines(lf.replace(b"\n", b"\r\n"))


def _quoted_printable(lf: bytes, odd: bytes) -> bytes:
    """Quoted-printable (RFC 2045, section 6.7) of text with LF line ends that ends in one, with CRLF.

    `odd` are the octets in it that may not stand bare. The same as `binascii.b2a_qp` gives, in a fifth of its
    time: that one looks at each octet in turn, here whole lines are cut into slices. It differs on purpose
    where a line ends in a blank that falls on the last columns: `b2a_qp` makes a line of 77 there.
    """
    if b"=" in odd:
        lf = lf.replace(b"=", b"=3D")
    for octet in set(odd) - {61}:  # 61 is "="
        lf = lf.replace(_OCTETS[octet], _ESCAPES[octet])
    lines: list[bytes] = []
    for line in lf.split(b"\n"):
        if line.endswith(_BLANKS):  # rule 3: blanks at line ends get lost
            line = line[:-1] + _ESCAPES[line[-1]]  # noqa: PLW2901 - as it goes out
        if len(line) > _QP_LINE:
            lines.append(_cut(line))
        else:
            lines.append(line if line != b"." else b"=2E")  # some servers take it for the end of the mail
    return b"\r\n".join(lines)


def _cut(line: bytes) -> bytes:
    """Break a line up by "=" at line ends: soft line breaks (rule 5)."""
    pieces: list[bytes] = []
    at, size = 0, len(line)
    while size - at > _QP_LINE:
        escape = line.find(b"=", at)
        lines = ((size - 1 if escape < 0 else escape) - at) // _QP_LINE
        if lines:
            # Nothing to look out for in these: a struct cuts them in a third of the time that slices take.
            end = at + lines * _QP_LINE
            pieces += chain.from_iterable(_QP_CUT.iter_unpack(line[at:end]))
        else:
            # An escape is three octets and is not cut: its "=" is none of the last two before the cut.
            end = line.find(b"=", at + _QP_LINE - 2, at + _QP_LINE)
            if end < 0:
                end = at + _QP_LINE
            elif size - at == _QP_LINE + 1 and line.endswith((b"=20", b"=09")):
                break  # an escaped blank at the end of the line needs no soft break: it may take the last column
            pieces.append(line[at:end])
        at = end
    pieces.append(line[at:])
    return b"=\r\n".join(pieces)


def is_seven_bit(octets: bytes) -> bool:
    """Tell whether `octets` may travel as they are: ASCII, CRLF line ends, short lines, no NUL."""
    if not octets.isascii() or b"\0" in octets:
        return False
    bare = octets.replace(b"\r\n", b"")
    return b"\r" not in bare and b"\n" not in bare and _short_lines(octets.replace(b"\r\n", b"\n"))


def _short_lines(lf: bytes) -> bool:
    at = 0
    while len(lf) - at > HARD_LINE:  # look for the last line end in reach: few steps, no list of lines
        end = lf.rfind(b"\n", at, at + HARD_LINE + 1)
        if end < 0:
            return False
        at = end + 1
    return True


def base64_lines(octets: bytes) -> bytes:
    """Base64 in lines of 76, each ended by CRLF; no octets give no lines."""
    flat = b2a_base64(octets, newline=False)
    if not flat:
        return b""
    lines = [flat[at : at + _B64_LINE] for at in range(0, len(flat), _B64_LINE)]
    lines.append(b"")
    return b"\r\n".join(lines)


class Encoded:
    """Attachments already in base64, because the recipients of one message share them.

    Bounded by `limit_bytes` over originals and encodings; attachments over a quarter of that are not kept.
    Threads may share it.
    """

    def __init__(self, limit_bytes: int = 32 * 1024 * 1024) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, octets: bytes) -> bytes:
        """Return `base64_lines(octets)`, from memory if it is there."""
        with self._lock:
            known = self._held.get(octets)
            if known is not None:
                self._held.move_to_end(octets)
                return known
        made = base64_lines(octets)
        cost = len(octets) + len(made)
        if cost <= self._limit // 4:
            with self._lock:
                if octets not in self._held:
                    self._held[octets] = made
                    self._bytes += cost
                while self._bytes > self._limit:
                    old, encoded = self._held.popitem(last=False)
                    self._bytes -= len(old) + len(encoded)
        return made

    @property
    def held_bytes(self) -> int:
        """Memory in use, octets."""
        return self._bytes
