"""The text that is being made from HTML: lines, and what the line being written stands in (`Page`).

`totext` reads the HTML and calls `words` for text and, for each tag, a function on a page that `start` or
`end` gives; those depend on the tag alone, so that they can be kept.

What can go wrong: nothing raises. End tags that nothing opened do no harm, depths that are drawn are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from html import unescape

from pgmail.render.words import words as names

_SPACE = " \t\r\n\f\v"
_SPACES = re.compile(f"[{_SPACE}]+")
_PARAGRAPHS = names("p h1 h2 h3 h4 h5 h6 ul ol dl table pre blockquote figure fieldset form address")
_LINES = names(
    """div tr li dt dd section article header footer main nav aside center caption figcaption thead tbody
    tfoot hr option legend body html"""
)
_MAX_DEPTH = 10  # of lists and quotes: deeper ones are drawn at this depth

Step = Callable[["Page"], None]


def unescaped(text: str) -> str:
    """Return `text` with its character references replaced."""
    if "&" not in text:
        return text
    try:
        return unescape(text)
    except ValueError:  # a reference with thousands of digits
        return text


def _collapsed(raw: str) -> tuple[str, bool, bool]:
    """Return text as it is written: white space collapsed, and whether there was some before and after it."""
    text = unescaped(raw)
    bare = text.strip(_SPACE)
    led, trailed = text[:1], text[-1:]
    # Measured: a search for each kind of white space costs less than one pass of the expression.
    if "  " in bare or "\n" in bare or "\t" in bare or "\r" in bare or "\f" in bare or "\v" in bare:
        bare = _SPACES.sub(" ", bare)
    return bare, led.isspace() and led != "\xa0", trailed.isspace() and trailed != "\xa0"


_MAX_KEPT = 200  # characters
_kept = lru_cache(maxsize=2_048)(_collapsed)  # a template's own words and blanks are those of the next mail


class Page:
    """The text so far: finished lines, the line being written, and what it stands in."""

    __slots__ = (
        "_blank", "_cells", "_done", "_line", "_link", "_link_text", "_lists", "_mark", "_pre", "_quotes", "_space",
        "headless",
    )  # fmt: skip

    def __init__(self) -> None:
        self.headless = False
        self._done: list[str] = []
        self._line: list[str] = []
        self._space = False  # white space was seen and not yet written
        self._blank = 0  # line ends owed before the next words: 2 leave a blank line
        self._pre = 0
        self._quotes = 0
        self._lists: list[int | None] = []  # next number, or None for bullets
        self._mark = ""  # a bullet that waits for its words
        self._link: str | None = None
        self._link_text: list[str] = []
        self._cells = 0

    def text(self) -> str:
        """Return everything, with links closed."""
        self.end_link()
        self._flush()
        return "\n".join(self._done).strip("\n")

    def words(self, raw: str) -> None:
        """Text between tags; there is some."""
        if self._pre:
            self._lines(unescaped(raw))
            return
        bare, led, trailed = _kept(raw) if len(raw) <= _MAX_KEPT else _collapsed(raw)
        if led:
            self._space = True
        if bare:
            self._write(bare)
            self._space = trailed

    def _lines(self, text: str) -> None:
        first, *rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._write(first)
        for line in rest:
            if self._line:
                self._flush()
            elif self._done:
                self._done.append("")
            self._space = False
            self._write(line)

    def _write(self, text: str) -> None:
        if not text:
            return
        line = self._line
        if not line:
            if self._blank and self._done:
                self._done += [""] * (self._blank - 1)
            self._blank = 0
            if self._quotes or self._lists or self._mark:
                line.append("> " * min(self._quotes, _MAX_DEPTH) + self._indent())
        elif self._space and not self._pre:
            line.append(" ")
            if self._link is not None and self._link_text:
                self._link_text.append(" ")
        self._space = False
        line.append(text)
        if self._link is not None:
            self._link_text.append(text)

    def _indent(self) -> str:
        depth = min(len(self._lists), _MAX_DEPTH)
        mark, self._mark = self._mark, ""
        if mark:
            return "  " * (depth - 1) + mark
        return "  " * depth

    def _flush(self) -> None:
        if self._line:
            self._done.append("".join(self._line).rstrip(" \t"))
            self._line = []
        self._space = False

    def broken(self, line_ends: int) -> None:
        """End the line; `line_ends` of 2 leave a blank one."""
        if self._line:
            self._done.append("".join(self._line).rstrip(" \t"))
            self._line = []
        self._space = False
        self._blank = max(self._blank, line_ends)

    def br(self) -> None:
        """`<br>`."""
        if self._line:
            self._flush()
        elif self._done:
            self._blank = 2

    def cell(self) -> None:
        """`<td>`, `<th>`."""
        if self._line and self._cells:
            self._line.append("  ")
            self._space = False
        self._cells += 1

    def row(self) -> None:
        """`<tr>`."""
        self.broken(1)
        self._cells = 0

    def rule(self) -> None:
        """`<hr>`."""
        self.broken(1)
        self._write("-" * 20)
        self.broken(1)

    def enclosed(self, quotes: int, pre: int) -> None:
        """`<blockquote>`, `<pre>` and their ends: one more or less."""
        self.broken(2)
        self._quotes = max(self._quotes + quotes, 0)
        self._pre = max(self._pre + pre, 0)

    def open_list(self, start: int | None) -> None:
        """`<ul>`: None; `<ol>`: its first number."""
        self.broken(1 if self._lists else 2)
        self._lists.append(start)

    def end_list(self) -> None:
        """`</ul>`, `</ol>`."""
        if self._lists:
            self._lists.pop()
        self._mark = ""
        self.broken(1 if self._lists else 2)

    def item(self) -> None:
        """`<li>`."""
        self.broken(1)
        number = self._lists[-1] if self._lists else None
        self._mark = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1

    def image(self, alt: str) -> None:
        """`<img alt=...>`."""
        self._write(alt)

    def link(self, href: str | None) -> None:
        """`<a>`, with what it leads to if that says something to a reader."""
        self.end_link()
        if href is not None:
            self._link, self._link_text = href, []

    def link_text(self) -> str:
        """The words of the link so far."""
        return "".join(self._link_text).strip()

    def end_link(self) -> None:
        """`</a>`: write what the link leads to, unless its text says so."""
        link = self._link
        if link is None:
            return
        text = self.link_text()
        self._link = None
        if says_the_same(text, link):
            return
        space = self._space
        if self._line and text:
            self._space = True
        self._write(f"<{link}>")
        self._space = space


def says_the_same(shown: str, link: str) -> bool:
    """Tell whether the text of a link says where it leads to."""
    shown = shown.rstrip("/").lower()
    bare = link.rstrip("/").lower()
    for prefix in ("mailto:", "tel:", "https://", "http://"):
        if shown == bare.removeprefix(prefix) or shown == bare:
            return True
    return False


def _nothing(_page: Page) -> None:
    """A tag that leaves no trace in text."""


def _breaks(line_ends: int) -> Step:
    return lambda page: page.broken(line_ends)


_PARAGRAPH, _LINE = _breaks(2), _breaks(1)
_START: dict[str, Step] = {
    **dict.fromkeys(_LINES, _LINE),
    **dict.fromkeys(_PARAGRAPHS, _PARAGRAPH),
    "br": Page.br,
    "td": Page.cell,
    "th": Page.cell,
    "tr": Page.row,
    "hr": Page.rule,
    "li": Page.item,
    "ul": lambda page: page.open_list(None),
    "pre": lambda page: page.enclosed(0, 1),
    "blockquote": lambda page: page.enclosed(1, 0),
}
_END: dict[str, Step] = {
    **dict.fromkeys(_LINES, _LINE),
    **dict.fromkeys(_PARAGRAPHS, _PARAGRAPH),
    "a": lambda page: page.end_link(),  # a page may be of another kind
    "ul": Page.end_list,
    "ol": Page.end_list,
    "pre": lambda page: page.enclosed(0, -1),
    "blockquote": lambda page: page.enclosed(-1, 0),
}
WITH_ATTRIBUTES = frozenset({"a", "img", "ol"})
"""Tags whose attributes `start` looks at."""


def start(name: str, attributes: Mapping[str, str]) -> Step:
    """Return what the start tag `name` (in lower case) does to a page."""
    if name == "a":
        href = _SPACES.sub("", attributes.get("href", ""))
        silent = not href or href.startswith("#") or href.lower().startswith(("javascript:", "data:"))
        target = None if silent else href
        return lambda page: page.link(target)
    if name == "img":
        alt = _SPACES.sub(" ", attributes.get("alt", "")).strip()
        return partial(Page.image, alt=alt) if alt else _nothing
    if name == "ol":
        number = attributes.get("start", "1")
        plain = number.isascii() and number.isdigit() and len(number) < 6
        return partial(Page.open_list, start=int(number) if plain else 1)
    return _START.get(name, _nothing)


def end(name: str) -> Step:
    """Return what the end tag `name` (in lower case) does to a page."""
    return _END.get(name, _nothing)
