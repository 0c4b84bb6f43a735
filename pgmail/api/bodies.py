"""Bodies of requests: octets to JSON, strictly, and JSON to a checked struct.

msgspec reads the body. What it cannot tell (a key given twice, which text is malformed and which only not
Unicode) the standard library's slower parser decides, and only when there is reason to ask it.

What can go wrong: two parsers that read one body differently. So what was read here is what goes on to the
database, encoded anew, never the client's octets.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec
from litestar import Request

from pgmail.domain.check_body import check_values, pointer
from pgmail.errors import Refused

BODY_SECONDS = 60.0
"""For so long a body may be on its way. A client that drips octets would hold a connection for nothing."""
LARGE = 65_536  # octets; what takes longer than this to read is not done on the event loop

_PATH = re.compile(r" - at `(?:key in )?\$(.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.+?)`")
_SPACED_COLONS = (b" :", b"\n:", b"\r:", b"\t:")
T = TypeVar("T")
R = TypeVar("R")


class Body(NamedTuple):
    """A body that was read; `size` is in octets, as received.

    `plain` tells that it was written without escapes of Unicode: no string in it can hold U+0000 or half of a
    surrogate pair, which raw UTF-8 in JSON cannot say.
    """

    value: Any
    size: int
    plain: bool = False


async def read_json(request: Request[Any, Any, Any], *, empty: Any = ...) -> Body:
    """Read the body of a request; `empty` stands for one that is not there, if that is allowed.

    Raises Refused: `unsupported_media_type` (415), `invalid_body` (400 when it is not JSON, else 422),
    `body_too_slow` (408), and what the framework raises for one that is too large (413).
    """
    check_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", "identity"))
    raw = await in_time(request.body())
    if not raw and empty is not ...:
        return Body(empty, 0)
    return await aside(len(raw), read, raw)


async def in_time(body: Awaitable[bytes]) -> bytes:
    """Wait for the octets of a body. Raises Refused `body_too_slow` (408)."""
    # As asyncio.timeout does it, at a quarter of its price: nearly always the body is there already.
    task: Any = asyncio.current_task()
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(BODY_SECONDS, give_up)
    try:
        return await body
    except asyncio.CancelledError:
        if not late or task.uncancel():  # somebody else wants this request to end
            raise
        because = f"the body was not there after {BODY_SECONDS:g} s"
        raise Refused("body_too_slow", "", because, 408) from None
    finally:
        timer.cancel()


def read(raw: bytes) -> Body:
    """Read the octets of a body. Raises Refused `invalid_body`."""
    return Body(decode(raw), len(raw), plain=b"\\u" not in raw)


async def aside(size: int, work: Callable[..., R], *args: Any) -> R:
    """Do work on a body of this size: at once, or in a thread when others would have to wait for it."""
    return work(*args) if size <= LARGE else await asyncio.to_thread(work, *args)


def decode(raw: bytes) -> Any:
    """Return the value of a JSON text (RFC 8259). Raises Refused `invalid_body`."""
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise Refused("invalid_body", "", "the body is nested too deeply") from None
    except ValueError:
        return _decode_slowly(raw)
    # A key given twice is one that the octets have and the value has not. A string may look like a key, and a
    # key may be written so that it is not found; then the slower parser counts.
    if raw.count(b'":') != _keys_in(value) or any(colon in raw for colon in _SPACED_COLONS):
        return _decode_slowly(raw)
    return value


def read_struct(value: object, kind: type[T]) -> T:
    """Return a body as a struct of this type.

    Raises Refused at the pointer of the first fault: `missing_field`, `unknown_key`, or `invalid_body`.
    """
    if isinstance(value, dict):
        check_values(value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        _refuse(str(error))


def check_type(kind: str, encoding: str) -> None:
    """Refuse (415) what its headers say is not JSON, by whatever name or none at all, or is compressed."""
    kind = kind.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise Refused("unsupported_media_type", "", f"send application/json, not {kind[:80]}", 415)
    if encoding != "identity":
        raise Refused("unsupported_media_type", "", "compressed bodies are not read", 415)


def _keys_in(value: object) -> int:
    """Count the keys of all objects in a value."""
    keys, stack = 0, [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            keys += len(item)
            stack.extend(item.values())
        elif type(item) is list and not _is_octets(item):
            stack.extend(item)
    return keys


def _is_octets(items: list[Any]) -> bool:
    """Tell whether a list is a file in the way that Resend's SDK sends one, which is not worth a walk."""
    if len(items) < 256 or type(items[0]) is not int:
        return False
    try:
        bytes(items)
    except (TypeError, ValueError):
        return False
    return True


def _decode_slowly(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise Refused("invalid_body", "", "the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refused("invalid_body", "", "the body is not UTF-8", 400) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused("invalid_body", "", f"the body is not JSON: {error.msg} ({where})", 400) from None
    except ValueError:  # a number with more digits than Python reads
        raise Refused("invalid_body", "", "a number in the body is too long", 400) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # as meant
        raise Refused("invalid_body", "", f"the key {twice[:80]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Refused("invalid_body", "", f"the body is not JSON: {name} is no number", 400)


def _refuse(text: str) -> NoReturn:
    """Raise what msgspec found wrong as pgmail says it."""
    path: list[str | int] = []
    if match := _PATH.search(text):
        text = text[: match.start()]
        path = [name or int(position) for name, position in _STEP.findall(match[1])]
    if match := _FIELD.fullmatch(text):
        if match[1] == "missing required":
            raise Refused("missing_field", pointer(*path, match[2]), "is required")
        raise Refused("unknown_key", pointer(*path, match[2]), "there is no such key")
    raise Refused("invalid_body", pointer(*path), text[:1].lower() + text[1:])
