"""What the checks of a body share: JSON pointers, faults, and the search for what is not JSON.

What can go wrong: PostgreSQL's jsonb holds neither U+0000 nor a lone surrogate, and a body built in Python
may hold values that JSON has no word for. All of it is refused here, at the pointer of the value, before any
other rule looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from pgmail.domain.address import CONTROL
from pgmail.errors import Refused

MAX_DEPTH = 500  # far above any real body, far below what exhausts a stack in Python or PostgreSQL

type_names: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "an array",
}


def pointer(*path: str | int) -> str:
    """Return the JSON pointer of a path (RFC 6901, section 3): `("headers", "X/Y")` is `/headers/X~1Y`.

    Of an endless step it is the beginning.
    """
    return "".join(f"/{str(step)[:200].replace('~', '~0').replace('/', '~1')}" for step in path)


def refuse(code: str, *path: str | int, because: str, status: int = 422) -> NoReturn:
    """Raise the fault `code` at `path`."""
    raise Refused(code, pointer(*path), because, status)


def kind(value: object) -> str:
    """Say in JSON's words what a value is."""
    return "null" if value is None else type_names.get(type(value), f"a {type(value).__name__}")


def items(value: object) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Go over one value or an array, each with the rest of its path: `()` for one, `(0,)` in an array."""
    if isinstance(value, list):
        for position, item in enumerate(value):
            yield (position,), item
    else:
        yield (), value


def control_in(text: str) -> str | None:
    """Name the first character that may not stand in a header field (`U+000A`), or return None."""
    match = CONTROL.search(text)
    return f"U+{ord(match[0]):04X}" if match else None


def check_values(body: dict[Any, Any]) -> None:
    """Refuse what jsonb cannot hold, as `invalid_body` at its pointer.

    The content of an attachment may also be bytes or an array of octets; `email.prepare` turns both into
    base64, so the walk leaves them alone.
    """
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), body)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            _check_string(value, path)
        elif isinstance(value, dict):
            _check_depth(path)
            for key, item in value.items():
                if not isinstance(key, str):
                    refuse("invalid_body", *path, because=f"a key is {kind(key)}; keys are strings")
                # The pointer of a key that cannot be written is that of its object.
                _check_string(key, path)
                if not _is_content(path, key, item):
                    stack.append(((*path, key), item))
        elif isinstance(value, list | tuple):
            _check_depth(path)
            stack.extend(((*path, position), item) for position, item in enumerate(value))
        elif isinstance(value, float):
            if not math.isfinite(value):
                refuse("invalid_body", *path, because="not a finite number; JSON has no word for it")
        elif not (value is None or isinstance(value, int)):
            refuse("invalid_body", *path, because=f"{kind(value)} is not JSON")


def _check_depth(path: tuple[str | int, ...]) -> None:
    if len(path) > MAX_DEPTH:
        refuse("invalid_body", path[0], because=f"nested more than {MAX_DEPTH} deep")


def _check_string(text: str, path: tuple[str | int, ...]) -> None:
    if "\0" in text:
        refuse("invalid_body", *path, because="a string holds U+0000, which PostgreSQL cannot store")
    if not text.isascii():  # known without a look, and most text is
        try:
            text.encode()
        except UnicodeEncodeError:
            refuse(
                "invalid_body",
                *path,
                because="a string holds half of a surrogate pair; it is not Unicode text",
            )


def _is_content(path: tuple[str | int, ...], key: str, item: object) -> bool:
    return (
        key == "content"
        and len(path) == 2
        and path[0] == "attachments"
        and isinstance(item, list | bytes | bytearray | memoryview)
    )
