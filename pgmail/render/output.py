"""What a page prints: each value as a text (`printed_text`, `printed_html`), and many pieces as one (`put`).

Nearly all of a render passes here, so the common case is short: a text that needs no escape is itself, and what
stands between two statements of a template is put together and charged at once. The number of pieces is bounded
(see `codegen`), most values are short, and so the size may be looked at after they were put together. A long
value is noted; from then on the pieces of this render are added up beforehand.

What can go wrong: a value that grows as it is printed (escapes, `str` of a list). If long, it is charged before
it waits for others, so that a tuple of them cannot fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup, escape

from pgmail.render.bounds import STEP, account, joined, text_of
from pgmail.render.textplan import Printed, Shape

LONG = 10_000
"""Characters of a printed value over which it is looked at by itself, not only with what is around it."""


def put(pieces: tuple[str, ...], shape: Shape) -> str:
    """Return the pieces between two statements of a template as one text, charged.

    `shape` says which of them are values (see `textplan`).
    """
    current = account.get()
    if current.long:
        current.room(sum(map(len, pieces)))
    text = "".join(pieces)
    current.made += len(text) + STEP * len(pieces)
    if current.made > current.look_at:
        current.look()
    current.last = text, shape, pieces
    return text


def traced(texts: Iterable[str]) -> tuple[str, list[Printed]]:
    """Return what a page prints as one text, as `joined` does, and the pieces that it was put together from."""
    current = account.get()
    printed: list[Printed] = []

    def noted() -> Iterator[str]:
        for text in texts:
            last = current.last
            # What is yielded was put together just before, or is a literal of the template.
            printed.append((last[1], last[2]) if last is not None and last[0] is text else text)
            yield text

    return joined(noted()), printed


def printed_text(value: Any) -> str:
    """`{{ value }}` in subject and text."""
    if isinstance(value, str):
        return value if len(value) <= LONG else _long(value)
    text = text_of(value)
    return text if len(text) <= LONG else _long(text, copied=True)


def printed_html(value: Any) -> str:
    """`{{ value }}` in html: escaped, unless it was marked as safe."""
    kind = type(value)
    if kind is int:
        return text_of(value)
    if kind is Markup:
        return value if len(value) <= LONG else _long(value)
    if kind is str:
        # Most values need no escape. Five looks take a quarter of the time of making a Markup.
        if not ("&" in value or "<" in value or ">" in value or '"' in value or "'" in value):
            return value if len(value) <= LONG else _long(value)
    elif not hasattr(value, "__html__"):
        value = text_of(value)
    text = escape(value)
    return text if len(text) <= LONG else _long(text, copied=True)


def _long(text: str, *, copied: bool = False) -> str:
    current = account.get()
    current.long = True
    if copied:
        current.charge(len(text))
    return text
