"""A transport from a URL: the one place that knows all kinds.

| URL | what |
|---|---|
| `smtp://user:pass@host:587?tls=starttls` `smtps://host` | a relay; options in `relay_config` |
| `file:/var/mail/out` `file:out?sync=false` | each mail a file in a folder; relative to the current one |
| `console:` | envelope and headers on standard output |
| `capture:` `capture:?count=1000` | the newest mails in memory |
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pgmail.transport.base import Transport
from pgmail.transport.capture import CaptureTransport
from pgmail.transport.console import ConsoleTransport
from pgmail.transport.file import FileTransport
from pgmail.transport.relay import SmtpRelay


def make_transport(url: str) -> Transport:
    """Make the transport that `url` names. Connects nowhere. Raises ValueError that names the wrong part."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ValueError("scheme: is missing; one of smtp, smtps, file, console, capture")
    if scheme in ("smtp", "smtps"):
        return SmtpRelay.from_url(url)
    if scheme == "file":
        return _file(url)
    if scheme == "console":
        _options(rest.lstrip("/"), ())
        return ConsoleTransport()
    if scheme == "capture":
        options = _options(rest.lstrip("/"), ("count",))
        count = options.get("count", "1000")
        if not (count.isascii() and count.isdecimal() and int(count[:9]) > 0):
            raise ValueError(f"count: must be a whole number from 1, not {count!r}")
        return CaptureTransport(count=int(count[:9]))
    raise ValueError(f"scheme: must be one of smtp, smtps, file, console, capture, not {scheme!r}")


def _file(url: str) -> FileTransport:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError("host: a file URL has none; write file:/folder or file:folder")
    if not parts.path:
        raise ValueError("path: is missing; write file:/folder or file:folder")
    options = _options(f"?{parts.query}" if parts.query else "", ("sync",))
    sync = options.get("sync", "true")
    if sync not in ("true", "false"):
        raise ValueError(f"sync: must be true or false, not {sync!r}")
    return FileTransport(Path(unquote(parts.path)), sync=sync == "true")


def _options(rest: str, known: tuple[str, ...]) -> dict[str, str]:
    if rest and not rest.startswith("?"):
        raise ValueError(f"path: not expected: {rest!r}")
    options: dict[str, str] = {}
    for name, value in parse_qsl(rest[1:], keep_blank_values=True):
        if name not in known:
            raise ValueError(f"{name}: unknown option")
        options[name] = value
    return options
