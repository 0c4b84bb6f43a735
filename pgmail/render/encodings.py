"""Bodies as bytes: line ends and the choice of a transfer encoding (RFC 2045, section 6).

A text body has CRLF line ends throughout, ends in CRLF, and has no bare CR, no bare LF and no line over 998
octets in what goes on the wire. An attachment's octets are never touched: base64.

What can go wrong: quoted-printable for text in a script outside Latin is three times its size, and base64
hides plain ASCII from people; so the shorter one is taken, computed from the octets without encoding twice.
"""

from __future__ import annotations

from binascii import b2a_base64, b2a_qp
from collections import OrderedDict
from threading import Lock
from typing import Final

from pgmail.render.headers import HARD_LINE

SEVEN_BIT: Final = "7bit"
EIGHT_BIT: Final = "8bit"
QUOTED_PRINTABLE: Final = "quoted-printable"
BASE64: Final = "base64"

_QP_BARE = bytes([*b"\t\n\r", *range(32, 61), *range(62, 127)])
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
    odd = len(lf.translate(None, _QP_BARE))
    if (len(lf) + 2 * odd) * 79 // 76 <= len(lf) * 4 * 78 // (3 * 76):
        # b2a_qp also guards blanks at line ends and a dot alone on its line.
        return QUOTED_PRINTABLE, b2a_qp(lf.replace(b"\n", b"\r\n"), istext=True)
    return BASE64, base64_lines(lf.replace(b"\n", b"\r\n"))


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
