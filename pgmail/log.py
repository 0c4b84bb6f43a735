"""Logging: one line an event, JSON in production and colours on a terminal, to standard error.

`configure` sets up structlog and routes the standard library's loggers (uvicorn, psycopg, asyncio) into the
same lines. A module takes `log = structlog.get_logger()` and calls `log.info("sent", recipient=...)`.

What can go wrong: people's addresses and passwords in logs that live longer than the mail. At info and above
every address is masked (`a***@example.org`), at all levels passwords in URLs are, and keys that hold bodies
or secrets are dropped with their values; tracebacks show no variables, one of which may be a cookie. Masking finds
addresses by their form; a name or phone number it does not know. A line that cannot be written is lost rather than
stopping a worker.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
Format = Literal["auto", "json", "console"]

# Their values are bodies or secrets wherever they occur.
DROPPED = frozenset(
    {
        *("text", "html", "body", "content", "raw", "source", "attachments", "variables", "metadata"),
        *("password", "secret", "token", "api_key", "authorization", "cookie", "private_key"),
    }
)

# Bounds keep a long line without spaces from costing its square; 64 is RFC 5321, section 4.5.3.1.1.
_PASSWORD = re.compile(r"(://[^:/@?\s]{0,256}):\S{0,256}@")
_ADDRESS = re.compile(r"""([^\s@<>"',;:()\[\]/=*])[^\s@<>"',;:()\[\]/=]{0,63}@(?=[^\s@*])""")
_QUOTED_ADDRESS = re.compile(r'"[^"\n]{1,64}"@')
_ANY_ADDRESS = re.compile(
    r"""(?:"[^"\n]{1,64}"|[^\s@<>"',;:()\[\]]{1,64})(?:@|%40|&#0*64;)[^\s@<>"',;()\[\]]{1,255}""",
    re.IGNORECASE,
)
_PLAIN = (int, float, type(None))  # once: a union built for each value would cost more than the look
_MAX_DEPTH = 6


def configure(
    level: str = "info", fmt: Format = "auto", *, stream: TextIO | None = None, keep: bool = True
) -> None:
    """Set up logging for this process; may be called again.

    `level` is one of `LEVELS`. `stream` defaults to standard error; `fmt` auto is console if that is a
    terminal. Loggers cache their set-up on first use, so call this before the first line; with `keep` False they
    ask each time, for a program that logs little and may be one of several in its process.
    """
    out = sys.stderr if stream is None else stream
    console = fmt == "console" or (fmt == "auto" and out.isatty())
    renderer: Callable[[WrappedLogger, str, EventDict], str | bytes] = (
        structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else _render_json
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            mask,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Lines(out),
        cache_logger_on_first_use=keep,
    )
    bridge = _Bridge()
    root = logging.getLogger()
    root.handlers[:] = [bridge]
    root.setLevel(LEVELS[level])
    # uvicorn brings handlers of its own, which would write each line twice.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
        # Its news of a start and a stop are ours already ("listening"), and name neither host nor process.
        logger.setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


def mask(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Drop bodies and secrets, mask passwords and, at info and above, addresses (a structlog processor)."""
    addresses = method != "debug"
    for key in DROPPED & event.keys():
        del event[key]
    for key, value in event.items():
        if isinstance(value, str):
            if "@" in value:
                event[key] = mask_text(value, addresses=addresses)
        elif not isinstance(value, _PLAIN):
            event[key] = _mask_value(value, addresses=addresses, depth=0)
    return event


def mask_text(text: str, *, addresses: bool = True) -> str:
    """Return `text` with passwords in URLs as `***` and, if asked, addresses as `a***@example.org`."""
    if "@" not in text:
        return text
    if "://" in text:  # looking first is cheaper than a substitution that finds nothing
        text = _PASSWORD.sub(r"\1:***@", text)
    if not addresses:
        return text
    if '"@' in text:
        text = _QUOTED_ADDRESS.sub('"***"@', text)
    return _ADDRESS.sub(r"\1***@", text)


def _mask_value(value: object, *, addresses: bool, depth: int) -> object:
    """Mask what lies inside a list, a dict or another object."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, str):
        return mask_text(value, addresses=addresses)
    if depth < _MAX_DEPTH:
        deeper = depth + 1
        if isinstance(value, dict):
            return {
                mask_text(str(key), addresses=addresses): _mask_value(item, addresses=addresses, depth=deeper)
                for key, item in value.items()
                if key not in DROPPED
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_mask_value(item, addresses=addresses, depth=deeper) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} octets>"  # likely a body
    return mask_text(str(value), addresses=addresses)


_encode = msgspec.json.Encoder(enc_hook=str).encode


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> bytes:
    """Render a line as JSON; text that is not Unicode is written with replacement characters."""
    try:
        return _encode(event) + b"\n"
    except (UnicodeEncodeError, ValueError, TypeError, RecursionError):
        return _encode({str(key): _plain(value) for key, value in event.items()}) + b"\n"


def _plain(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


class _Lines:
    """The last step: writes one rendered line in one call, so that lines of several processes do not mix."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._octets = getattr(out, "buffer", None)

    def msg(self, line: str | bytes) -> None:
        """Write a line; a closed or broken stream loses it."""
        try:
            if isinstance(line, str):
                line = (line + "\n").encode("utf-8", "replace")
            if self._octets is None:
                self._out.write(line.decode())
                self._out.flush()
            else:
                self._octets.write(line)
                self._octets.flush()
        except (OSError, ValueError):
            pass  # there is no other place to complain

    debug = info = warning = error = critical = exception = fatal = log = msg


class _Bridge(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record at the nearest level below its own."""
        level = max((known for known in LEVELS.values() if known <= record.levelno), default=logging.DEBUG)
        extra: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit the format: keep the line
            text = f"{record.msg} {record.args!r}"
        structlog.get_logger().log(level, text, logger=record.name, **extra)


def without_addresses(text: str) -> str:
    """A remote's words without anybody's address: for lines and rows that outlive the mail."""
    return _ANY_ADDRESS.sub("@", text)
