"""Small real files for sample mail: a PNG picture, a one-page PDF, a calendar entry. Made here, from nothing.

Each is valid in its format, so that a mail program shows it, and small, so that a thousand of them are no
load. What can go wrong: text for the PDF is limited to Latin-1, its standard fonts know no more; other
characters become question marks.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

Colour = tuple[int, int, int]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LINES_PER_PAGE = 46


def picture(width: int, height: int, left: Colour, right: Colour) -> bytes:
    """A PNG (ISO/IEC 15948) of `width` times `height` pixels: a fade of two colours with waves over it."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # filter type 0: the octets as they are
        for x in range(width):
            part = x / max(width - 1, 1)
            wave = height * (0.62 + 0.16 * math.sin(x / width * 7.0))
            light = 1.0 if y < wave else 0.82
            rows += bytes(round((a + (b - a) * part) * light) for a, b in zip(left, right, strict=True))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB, not interlaced
    return b"".join(
        (
            _PNG_SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows, 9)),
            _chunk(b"IEND", b""),
        )
    )


def document(title: str, lines: Sequence[str]) -> bytes:
    """A PDF 1.4 of one A4 page: a title and at most 46 lines of text."""
    text = [f"BT /F1 20 Tf 56 780 Td ({_pdf_text(title)}) Tj ET", "BT /F1 11 Tf 15 TL 56 744 Td"]
    text += [f"({_pdf_text(line)}) Tj T*" for line in lines[:_LINES_PER_PAGE]]
    stream = "\n".join([*text, "ET"]).encode("latin-1", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
            b"/Resources << /Font << /F1 5 0 R >> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(file)


def appointment(uid: str, summary: str, begins: datetime) -> bytes:
    """An iCalendar file (RFC 5545) with one event of an hour; `begins` is aware."""
    lines = [
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//pgmail//demo//EN",
        "BEGIN:VEVENT",
        f"UID:{uid}",
        f"DTSTAMP:{_stamp(begins)}",
        f"DTSTART:{_stamp(begins)}",
        f"DTEND:{_stamp(begins + timedelta(hours=1))}",
        f"SUMMARY:{summary}",
        "END:VEVENT",
        "END:VCALENDAR",
        "",
    ]
    return "\r\n".join(lines).encode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _pdf_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
