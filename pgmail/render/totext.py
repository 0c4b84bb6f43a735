"""Plain text from HTML, for mails that come with HTML only: `text_from_html`.

Readers of a text part want the words, in order, with the links. Blocks become lines, lists get their marks, a
table's row becomes a line, a link becomes "text <url>", an image its alternative text.

The scanner is our own. Python's `html.parser`, in many versions in use, takes quadratic time for unclosed
comments, tags and quotes, and a mail's HTML may be a stranger's; here each character is looked at a bounded
number of times.

What can go wrong: broken HTML comes out as some text, never as an exception. Style sheets are not read: what
they hide is shown.
"""

from __future__ import annotations

import re
from html import unescape

from pgmail.render.words import words

_TAG_START = re.compile(r"</?[a-zA-Z]")
_STOPS = re.compile("[>\"']")
# Nearly every tag, in one step. Possessive, and ending at the next "<" or ">" at the latest: no way back to explore.
_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/<>"']*+)((?:[^<>"']++|"[^"<>]*+"|'[^'<>]*+')*+)>""")
_ODD_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*+)()")
# A quoted value need not be closed: that way a match never has to go back over what it has read.
_ATTRIBUTE = re.compile(r"""([^\s"'>/=]+)\s*(?:=\s*(?:"([^"]*)"?|'([^']*)'?|([^\s>"']+)))?""")
_SPACES = re.compile(r"[ \t\r\n\f\v]+")

_DROPPED = frozenset(
    {"script", "style", "title", "template", "noscript", "svg", "object", "iframe", "select"}
)
_END_OF_DROPPED = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in _DROPPED}
_END_OF_HEAD = re.compile(r"</head\b|<body\b", re.IGNORECASE)
_PARAGRAPHS = words("p h1 h2 h3 h4 h5 h6 ul ol dl table pre blockquote figure fieldset form address")
_LINES = words(
    """div tr li dt dd section article header footer main nav aside center caption figcaption thead tbody
    tfoot hr option legend body html"""
)
_WITH_ATTRIBUTES = frozenset({"a", "img", "ol"})
_MAX_DEPTH = 10  # of lists and quotes: deeper ones are drawn at this depth
_MAX_ATTRIBUTES = 16_384  # characters of one tag that are read for attributes


def text_from_html(html: str) -> str:
    """Return the readable text of `html`, lines separated by LF, without a line end at its end.

    Takes any string, never raises, in time proportional to its length.
    """
    page = _Page()
    _scan(html, page)
    return page.text()


def _scan(html: str, page: _Page) -> None:
    at, end = 0, len(html)
    last_close = html.rfind(">")
    careful = True  # whether ">" inside quotes is still told from the end of a tag
    while at < end:
        start = html.find("<", at)
        if start < 0 or start > last_close:
            page.words(html[at:])
            return
        if start > at:
            page.words(html[at:start])
        tag = _TAG.match(html, start)
        if tag is not None:
            at = _tag(html, tag, page)
        elif html.startswith("<!--", start):
            close = html.find("-->", start + 4)
            at = end if close < 0 else close + 3
        elif html.startswith(("<!", "<?"), start):
            at = html.find(">", start) + 1
        elif not _TAG_START.match(html, start):
            page.words("<")
            at = start + 1
        else:
            close = _tag_end(html, start) if careful else -1
            if close < 0:
                # Quotes do not pair up from here on. Looking for pairs again at each tag would be quadratic.
                careful = False
                close = html.find(">", start)
            found = _ODD_TAG.match(html, start, close)
            at = close + 1 if found is None else _tag(html, found, page, close)


def _tag_end(html: str, start: int) -> int:
    """Return where the tag that starts at `start` has its ">", outside of quoted values; -1 if nowhere."""
    at = start
    while (stop := _STOPS.search(html, at)) is not None:
        at = stop.end()
        mark = stop.group()
        if mark == ">":
            return stop.start()
        if html[max(start, stop.start() - 8) : stop.start()].rstrip().endswith("="):
            at = html.find(mark, at) + 1
            if not at:
                return -1
    return -1


def _tag(html: str, tag: re.Match[str], page: _Page, close: int = -1) -> int:
    """Act on one tag and return where to go on. `close` is its ">", if the match does not end there."""
    slash, name, rest = tag.groups()
    name = name.lower()
    after = tag.end()
    if close >= 0:
        rest, after = html[after:close], close + 1
    if slash:
        page.close(name)
        return after
    ends = _END_OF_DROPPED.get(name)
    if ends is not None and not rest.endswith("/"):
        over = ends.search(html, after)
        return len(html) if over is None else over.start()
    if name == "head" and not page.headless:
        over = _END_OF_HEAD.search(html, after)
        page.headless = over is None  # nothing ends a head from here on; looking again would be quadratic
        return after if over is None else over.start()
    page.open(name, _attributes(rest) if name in _WITH_ATTRIBUTES else {})
    return after


def _attributes(text: str) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text[:_MAX_ATTRIBUTES]):
        made.setdefault(name.lower(), _unescape(double or single or bare))
    return made


def _unescape(text: str) -> str:
    if "&" not in text:
        return text
    try:
        return unescape(text)
    except ValueError:  # a reference with thousands of digits
        return text


class _Page:
    """The text so far: finished lines, the line being written, and what it stands in."""

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
        self._end_link()
        self._flush()
        return "\n".join(self._done).strip("\n")

    def words(self, raw: str) -> None:
        """Text between tags."""
        text = _unescape(raw)
        if self._pre:
            first, *rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            self._write(first)
            for line in rest:
                self._flush(keep_blank=True)
                self._write(line)
            return
        if text[:1].isspace() and text[:1] != "\xa0":
            self._space = True
        ends_in_space = text[-1:].isspace() and text[-1:] != "\xa0"
        text = _SPACES.sub(" ", text).strip(" ")
        if text:
            self._write(text)
            self._space = ends_in_space

    def _write(self, text: str) -> None:
        if not text:
            return
        if not self._line:
            if self._blank and self._done:
                self._done += [""] * (self._blank - 1)
            self._blank = 0
            self._line.append("> " * min(self._quotes, _MAX_DEPTH) + self._indent())
        elif self._space and not self._pre:
            self._line.append(" ")
            if self._link is not None and self._link_text:
                self._link_text.append(" ")
        self._space = False
        self._line.append(text)
        if self._link is not None:
            self._link_text.append(text)

    def _indent(self) -> str:
        depth = min(len(self._lists), _MAX_DEPTH)
        mark, self._mark = self._mark, ""
        if mark:
            return "  " * (depth - 1) + mark
        return "  " * depth

    def _flush(self, *, keep_blank: bool = False) -> None:
        if self._line:
            self._done.append("".join(self._line).rstrip(" \t"))
            self._line = []
        elif keep_blank and self._done:
            self._done.append("")
        self._space = False

    def _break(self, line_ends: int) -> None:
        self._flush()
        self._blank = max(self._blank, line_ends)

    def open(self, name: str, attributes: dict[str, str]) -> None:
        """A start tag."""
        if name == "br":
            if self._line:
                self._flush()
            elif self._done:
                self._blank = 2
        elif name == "a":
            self._end_link()
            href = _SPACES.sub("", attributes.get("href", ""))
            if href and not href.startswith("#") and not href.lower().startswith(("javascript:", "data:")):
                self._link, self._link_text = href, []
        elif name == "img":
            alt = _SPACES.sub(" ", attributes.get("alt", "")).strip()
            if alt:
                self._write(alt)
        elif name in ("td", "th"):
            if self._line and self._cells:
                self._line.append("  ")
                self._space = False
            self._cells += 1
        elif name == "hr":
            self._break(1)
            self._write("-" * 20)
            self._break(1)
        elif name in _PARAGRAPHS or name in _LINES:
            nested = name in ("ul", "ol") and self._lists
            self._break(2 if name in _PARAGRAPHS and not nested else 1)
            self._enter(name, attributes)

    def _enter(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tr":
            self._cells = 0
        elif name == "pre":
            self._pre += 1
        elif name == "blockquote":
            self._quotes += 1
        elif name == "ul":
            self._lists.append(None)
        elif name == "ol":
            start = attributes.get("start", "1")
            self._lists.append(int(start) if start.isascii() and start.isdigit() and len(start) < 6 else 1)
        elif name == "li":
            number = self._lists[-1] if self._lists else None
            self._mark = "- " if number is None else f"{number}. "
            if number is not None:
                self._lists[-1] = number + 1

    def close(self, name: str) -> None:
        """An end tag. One that nothing opened does no harm."""
        if name == "a":
            self._end_link()
        elif name in _PARAGRAPHS or name in _LINES:
            if name in ("ul", "ol"):
                if self._lists:
                    self._lists.pop()
                self._mark = ""
            self._break(2 if name in _PARAGRAPHS and not (name in ("ul", "ol") and self._lists) else 1)
            if name == "pre":
                self._pre = max(self._pre - 1, 0)
            elif name == "blockquote":
                self._quotes = max(self._quotes - 1, 0)

    def _end_link(self) -> None:
        link, text = self._link, "".join(self._link_text).strip()
        self._link = None
        if link is None:
            return
        shown = text.rstrip("/").lower()
        bare = link.rstrip("/").lower()
        for prefix in ("mailto:", "tel:", "https://", "http://"):
            if shown == bare.removeprefix(prefix) or shown == bare:
                return
        space = self._space
        if self._line and text:
            self._space = True
        self._write(f"<{link}>")
        self._space = space
