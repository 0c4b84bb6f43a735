"""The text part of a template that has none, without converting each mail's HTML: `TextPlans`.

The pieces that a template prints come in a few shapes: the same literal pieces in the same order, with other
values between them. For a shape seen before, a plan says how its text is put together from the values; it is
made by converting the shape's HTML once, with a mark in the place of each value.

A plan gives exactly what converting the HTML would, or None. It holds for *plain* values only: not empty, no
white space but single blanks inside, nothing in them that was left unescaped. Such a value can neither end a
word, a tag nor a quoted value of an attribute; it is a word, or part of one, like the mark. And it is made only
for shapes in which each value stands in text, in what text leaves out (`<style>`), or in a quoted attribute.
What a reader is shown of a link depends on the link and its text; where one of them holds a value, that
decision is compared for each mail.

What can go wrong: too careful, never wrong. A template whose shape is new for each mail, or that prints HTML
marked as safe, is converted mail by mail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import escape

from pgmail.render.textpage import Page, says_the_same, unescaped
from pgmail.render.totext import Scan, quoted_values

Shape = tuple[str | None, ...]
"""What one `put` prints, None for each value: a constant in the code of a template, its own at each place."""
Printed = tuple[Shape, Sequence[str]] | str
"""What a page printed: a shape with its pieces, or a literal text."""

_OPEN, _CLOSE = "\ue000", "\ue001"  # for private use: they mean nothing to anyone
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_PLAIN = re.compile(r"[^\s&<>\"']+(?: [^\s&<>\"']+)*")
_PLAIN_ESCAPED = re.compile(r"\S+(?: \S+)*")
# Where a value would go on with a character reference or a tag, and references so long that `html` gives up.
_MELTS = re.compile(f"(?:&#?[0-9A-Za-z]*|</?){_OPEN}|&#[0-9]{{500}}")
_MAX_VALUE = 1_000  # characters
_MAX_TAG, _MAX_TAG_VALUES = 4_000, 10  # with their values they stay below what is read of a tag's attributes
_MAX_SHAPES = 64  # of one template


class TextPlans:
    """The plans of one template, for shapes of `limit_chars` in all. Threads may share it."""

    __slots__ = ("_chars", "_known", "_limit_chars")

    def __init__(self, limit_chars: int = 0) -> None:
        self._limit_chars = limit_chars
        self._chars = 0
        self._known: dict[tuple[int | str, ...], _Known] = {}

    def text(self, printed: Sequence[Printed]) -> str | None:
        """Return the text of what was printed, if there is a plan for it and the values are plain."""
        key = tuple([part if isinstance(part, str) else id(part[0]) for part in printed])
        known = self._known.get(key)
        if known is None:
            self._remember(key, printed)
            return None
        plan = known.plan
        if plan is None:  # seen once before, which might have been the only time
            plan = _plan(printed) or False
            self._known[key] = _Known(known.shapes, plan)
        return plan.text(printed) if isinstance(plan, _Plan) else None

    def _remember(self, key: tuple[int | str, ...], printed: Sequence[Printed]) -> None:
        shapes = [(part,) if isinstance(part, str) else part[0] for part in printed]
        size = sum(len(piece) for shape in shapes for piece in shape if piece is not None)
        if size > self._limit_chars:
            return
        if len(self._known) >= _MAX_SHAPES or self._chars + size > self._limit_chars:
            self._known.clear()
            self._chars = 0
        self._chars += size
        self._known[key] = _Known(shapes, None)


class _Known(NamedTuple):
    shapes: list[Shape]  # kept, so that their ids in the key stay theirs
    plan: _Plan | bool | None  # None: not tried yet; False: there is none


class _Plan(NamedTuple):
    """How a text is put together. Values are known by number; the i-th is `printed[part][1][piece]`."""

    places: list[tuple[int, int]]  # part and piece
    pattern: list[str | int]
    tight: frozenset[int]  # values in a link: without blanks
    urls: frozenset[int]  # values that a link starts with
    links: list[tuple[list[str | int], list[str | int], bool]]  # text, link, whether they say the same

    def text(self, printed: Sequence[Printed]) -> str | None:
        """Return the text, or None if a value is not plain or a link would be shown in another way."""
        known: dict[str, str] = {}
        values: list[str] = []
        for part, piece in self.places:
            value = printed[part][1][piece]
            text = known.get(value)
            if text is None:
                text = _plain(value)
                if text is None:
                    return None
                known[value] = text
            values.append(text)
        for at in self.tight:
            if " " in values[at]:
                return None
        for at in self.urls:
            if not values[at].lower().startswith(("http://", "https://")):
                return None
        for shown, link, same in self.links:
            if says_the_same(_filled(shown, values), _filled(link, values)) != same:
                return None
        return _filled(self.pattern, values)


def _filled(pattern: list[str | int], values: list[str]) -> str:
    return "".join([piece if isinstance(piece, str) else values[piece] for piece in pattern])


def _pattern(marked: str) -> list[str | int]:
    pieces = _MARK.split(marked)
    return [int(piece) if at % 2 else piece for at, piece in enumerate(pieces) if at % 2 or piece]


def _plain(printed: str) -> str | None:
    """Return a value as text if it is plain, else None. `printed` is how it stands in the HTML."""
    if len(printed) > _MAX_VALUE:
        return None
    if "&" not in printed:
        return printed if _PLAIN.fullmatch(printed) else None
    text = unescaped(printed)
    return text if escape(text) == printed and _PLAIN_ESCAPED.fullmatch(text) else None


class _Refused(Exception):  # noqa: N818 - no error: there is no plan for a shape
    pass


def _plan(printed: Sequence[Printed]) -> _Plan | None:
    places: list[tuple[int, int]] = []
    pieces: list[str] = []
    for part, found in enumerate(printed):
        for piece, literal in enumerate((found,) if isinstance(found, str) else found[0]):
            if literal is None:
                pieces.append(f"{_OPEN}{len(places)}{_CLOSE}")
                places.append((part, piece))
            elif _OPEN in literal or _CLOSE in literal:
                return None
            else:
                pieces.append(literal)
    html = "".join(pieces)
    if _MELTS.search(html):
        return None
    page = _MarkedPage()
    try:
        _read(html, page)
        text = page.text()
    except _Refused:
        return None
    links = [(_pattern(shown), _pattern(link), says_the_same(shown, link)) for shown, link in page.links]
    return _Plan(places, _pattern(text), frozenset(page.tight), frozenset(page.urls), links)


def _read(html: str, page: Page) -> None:
    """Read marked HTML, step by step, and refuse where a mark stands in what is neither text nor a quoted value."""
    scan = Scan(html, page)
    while scan.at < len(html):
        found = scan.step()
        if found is None:  # words to the end, or a lone "<"; what follows that was looked at before
            continue
        start, tag = found
        if tag is None:  # a comment or a declaration, or a tag that is not closed in the usual way
            if not html.startswith(("<!", "<?"), start) or _OPEN in html[start : scan.at]:
                raise _Refused
        elif _OPEN in tag.group():
            _check_tag(tag)


def _check_tag(tag: re.Match[str]) -> None:
    marks = [mark.span() for mark in _MARK.finditer(tag.string, tag.start(), tag.end())]
    if tag[2].lower() == "ol" or len(tag[0]) > _MAX_TAG or len(marks) > _MAX_TAG_VALUES:
        raise _Refused
    quoted = [(tag.start(3) + start, tag.start(3) + end) for start, end in quoted_values(tag[3])]
    for start, end in marks:
        if not any(first <= start and end <= last for first, last in quoted):
            raise _Refused


class _MarkedPage(Page):
    """A page that notes what depends on the values in its links."""

    __slots__ = ("links", "tight", "urls")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.tight: set[int] = set()
        self.urls: set[int] = set()

    def link(self, href: str | None) -> None:
        """Whether a link is shown must not depend on a value, but for one that the whole link starts with."""
        super().link(href)
        if href is None or _OPEN not in href:
            return
        marks = [int(mark) for mark in _MARK.findall(href)]
        self.tight.update(marks)
        before = href[: href.index(_OPEN)].lower()
        if not before:
            self.urls.add(marks[0])
        elif "javascript:".startswith(before) or "data:".startswith(before):
            raise _Refused

    def end_link(self) -> None:
        """Note a link whose being shown depends on values. One with a blank in its text is always shown."""
        shown, link = self.link_text(), self._link
        if link is not None and " " not in shown and (_OPEN in shown or _OPEN in link):
            self.links.append((shown, link))
        super().end_link()
