"""When a certificate ends: of a PEM file, or as a server shows it over TLS or STARTTLS.

Python's `ssl` tells the dates of certificates that it verified; here those that nobody would verify count as well.
So the two dates are read from the octets (X.509: RFC 5280, section 4.1), which takes no library.

What can go wrong: what is no certificate is a ValueError, a server that is away an OSError.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiosmtplib

from pgmail.transport.relay_config import RelayConfig

SECONDS = 15.0
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def ends_at(der: bytes) -> datetime:
    """Return the moment after which a certificate (DER) counts no more. ValueError for what is none."""
    try:
        whole, _ = _take(der, 0, _SEQUENCE)
        signed, _ = _take(whole, 0, _SEQUENCE)
        at = 0
        if signed[0] == _VERSION:
            _, at = _take(signed, at)
        for _ in range(3):  # serial number, signature, issuer
            _, at = _take(signed, at)
        validity, _ = _take(signed, at, _SEQUENCE)
        _, at = _take(validity, 0)
        tag = validity[at]
        text = _take(validity, at)[0].decode("ascii")
    except (IndexError, UnicodeDecodeError):
        raise ValueError("is no certificate") from None
    if tag == _UTC_TIME:  # section 4.1.2.5.1: two digits of the year, from 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("is no certificate")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def file_ends_at(path: str) -> datetime:
    """Return the same of the first certificate in a PEM file. Raises OSError and ValueError."""
    text = Path(path).read_text(encoding="ascii", errors="replace")
    start, end = text.find(_BEGIN), text.find(_END)
    if start < 0 or end < start:
        raise ValueError("holds no certificate")
    return ends_at(ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)]))


async def web_ends_at(host: str, port: int) -> datetime:
    """Return the same of what an HTTPS server shows. Raises OSError and ValueError."""
    async with asyncio.timeout(SECONDS):
        _, writer = await asyncio.open_connection(host, port, ssl=_any(), server_hostname=host)
    try:
        return _shown(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()


async def relay_ends_at(config: RelayConfig) -> datetime | None:
    """Return the same of a relay; None where it speaks no TLS. Says no password. Raises OSError and ValueError."""
    if config.tls == "none":
        return None
    smtp = aiosmtplib.SMTP(
        hostname=config.host,
        port=config.port,
        use_tls=config.tls == "implicit",
        start_tls=False,
        tls_context=_any(),
        local_hostname=config.helo or "[127.0.0.1]",
        timeout=SECONDS,
    )
    try:
        async with asyncio.timeout(SECONDS):
            await smtp.connect()
            if config.tls != "implicit":
                await smtp.ehlo()
                if not smtp.supports_extension("starttls"):
                    return None
                await smtp.starttls()
            return _shown(smtp.get_transport_info("ssl_object"))
    except aiosmtplib.SMTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        smtp.close()


def _any() -> ssl.SSLContext:
    """A context that takes any certificate: it is looked at, and nothing is said over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shown(connection: Any) -> datetime:
    der = None if connection is None else connection.getpeercert(binary_form=True)
    if not der:
        raise ValueError("showed no certificate")
    return ends_at(der)


def _take(octets: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """Return the content of the DER value at a place, and where the next one is (X.690, section 8.1)."""
    if tag is not None and octets[at] != tag:
        raise ValueError("is no certificate")
    length, at = octets[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(octets[at : at + count], "big"), at + count
    if at + length > len(octets):
        raise ValueError("is cut short")
    return octets[at : at + length], at + length
