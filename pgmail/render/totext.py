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

from pgmail.render import textpage
from pgmail.render.textpage import Page, Step, unescaped

_TAG_START = re.compile(r"</?[a-zA-Z]")
_STOPS = re.compile("[>\"']")
# Nearly every tag, in one step. Possessive, and ending at the next "<" or ">" at the latest: no way back to explore.
_NAME = r"""[a-zA-Z][^\s/<>"']*+"""
_INSIDE = r"""(?:[^<>"']++|"[^"<>]*+"|'[^'<>]*+')*+"""
_TAG = re.compile(f"<(/?)({_NAME})({_INSIDE})>")
_TAGS = re.compile(f"(</?{_NAME}{_INSIDE}>)")
_ODD_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*+)()")
# A quoted value need not be closed: that way a match never has to go back over what it has read.
_ATTRIBUTE = re.compile(r"""([^\s"'>/=]+)\s*(?:=\s*(?:"([^"]*)"?|'([^']*)'?|([^\s>"']+)))?""")

_DROPPED = frozenset(
    {"script", "style", "title", "template", "noscript", "svg", "object", "iframe", "select"}
)
_END_OF_DROPPED = {name: re.compile(rf"</{name}\b", re.IGNORECASE) for name in _DROPPED}
_END_OF_HEAD = re.compile(r"</head\b|<body\b", re.IGNORECASE)
# The look ahead at one letter halves the time: most tags are none of these.
_NOT_USUAL = re.compile(rf"<(?=[!?hinost])(?:[!?]|(?:head|{'|'.join(sorted(_DROPPED))})\b)", re.IGNORECASE)
_MAX_ATTRIBUTES = 16_384  # characters of one tag that are read for attributes
_WINDOW = 8_192  # characters that are split at once
_MAX_MISSES = 30  # how often the fast way may bring less than an eighth of that before it is left for good
_MAX_TAG, _MAX_STEPS = 200, 4_096  # characters of a tag whose step is kept, and how many are


def text_from_html(html: str) -> str:
    """Return the readable text of `html`, lines separated by LF, without a line end at its end.

    Takes any string, never raises, in time proportional to its length.
    """
    page = Page()
    scan = Scan(html, page)
    scan.fast()
    scan.rest()
    return page.text()


class Scan:
    """A way through one HTML: how far it has got, and what was found out about the rest of it.

    Two ways give the same text. `fast` splits what it can into tags and words in one call of `re`; `step` is
    the rule, one tag or one odd "<" at a time.
    """

    __slots__ = ("_careful", "_html", "_last_close", "_page", "at")

    def __init__(self, html: str, page: Page) -> None:
        self._html = html
        self._page = page
        self.at = 0
        self._last_close = html.rfind(">")
        self._careful = True  # whether ">" inside quotes is still told from the end of a tag

    def fast(self) -> None:
        """Go on in large steps as long as that pays: measured, a quarter to a third of the time of `step`."""
        html, size = self._html, self._last_close + 1  # what follows the last ">" is read in one piece
        stop = misses = 0
        while self.at < size and misses < _MAX_MISSES:
            before = self.at
            if stop <= before < size:
                found = _NOT_USUAL.search(html, before, size)
                stop = size + 1 if found is None else found.start()
            end = min(stop, size, before + _WINDOW)
            self._usual(end, whole=end == stop)
            if self.at < size:
                self.step()
            misses += self.at - before < _WINDOW // 8

    def _usual(self, end: int, *, whole: bool) -> None:
        """Take tags and words up to `end`, or up to the words before the first "<" that starts no usual tag.

        `whole`: the words before `end` end there. Else they are left, as they must be read in one piece.
        """
        page, html = self._page, self._html[self.at : end]
        pieces = _TAGS.split(html)  # words, tag, words, tag ... words
        if html.count("<") != len(pieces) // 2:  # a tag has one each; more of them stand in words
            odd = next(at for at, words in enumerate(pieces[::2]) if "<" in words)
            del pieces[2 * odd + 1 :]
            whole = False
        words = page.words
        if not whole:
            end = self.at + sum(map(len, pieces)) - len(pieces[-1])
            pieces[-1] = ""
        if pieces[0]:
            words(pieces[0])
        for tag, after in zip(pieces[1::2], pieces[2::2], strict=True):
            (_steps.get(tag) or _learned(tag))(page)
            if after:
                words(after)
        self.at = end

    def rest(self) -> None:
        """Go on to the end, step by step."""
        while self.at < len(self._html):
            self.step()

    def step(self) -> tuple[int, re.Match[str] | None] | None:
        """Take the words up to the next "<", and the tag or whatever starts there.

        Return where that started, with its match if it is a usual tag; None if it is no tag at all.
        """
        html, page, at = self._html, self._page, self.at
        start = html.find("<", at)
        if start < 0 or start > self._last_close:
            page.words(html[at:])
            self.at = len(html)
            return None
        if start > at:
            page.words(html[at:start])
        tag = _TAG.match(html, start)
        if tag is not None:
            self.at = self._tag(tag)
        elif html.startswith("<!--", start):
            close = html.find("-->", start + 4)
            self.at = len(html) if close < 0 else close + 3
        elif html.startswith(("<!", "<?"), start):
            self.at = html.find(">", start) + 1
        elif not _TAG_START.match(html, start):
            page.words("<")
            self.at = start + 1
            return None
        else:
            close = _tag_end(html, start) if self._careful else -1
            if close < 0:
                # Quotes do not pair up from here on. Looking for pairs again at each tag would be quadratic.
                self._careful = False
                close = html.find(">", start)
            found = _ODD_TAG.match(html, start, close)
            self.at = close + 1 if found is None else self._tag(found, close)
        return start, tag

    def _tag(self, tag: re.Match[str], close: int = -1) -> int:
        """Act on one tag and return where to go on. `close` is its ">", if the match does not end there."""
        html, page = self._html, self._page
        slash, name, rest = tag.groups()
        name = name.lower()
        after = tag.end()
        if close >= 0:
            rest, after = html[after:close], close + 1
        if not slash:
            ends = _END_OF_DROPPED.get(name)
            if ends is not None and not rest.endswith("/"):
                over = ends.search(html, after)
                return len(html) if over is None else over.start()
            if name == "head" and not page.headless:
                over = _END_OF_HEAD.search(html, after)
                page.headless = (
                    over is None
                )  # nothing ends a head from here on; looking again would be quadratic
                return after if over is None else over.start()
        _step(slash, name, rest)(page)
        return after


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


_steps: dict[str, Step] = {}  # what tags do: templates repeat theirs in each mail, and in one mail


def _learned(tag: str) -> Step:
    found = _TAG.fullmatch(tag)
    if found is None:  # cannot be: it was split off by the same expression
        return textpage.end("")
    slash, name, rest = found.groups()
    step = _step(slash, name.lower(), rest)
    if len(tag) <= _MAX_TAG and not (name in "aA" and not slash):  # links differ from mail to mail
        if len(_steps) >= _MAX_STEPS:
            _steps.clear()
        _steps[tag] = step
    return step


def _step(slash: str, name: str, rest: str) -> Step:
    if slash:
        return textpage.end(name)
    return textpage.start(name, _attributes(rest) if name in textpage.WITH_ATTRIBUTES else {})


def _attributes(text: str) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text[:_MAX_ATTRIBUTES]):
        made.setdefault(name.lower(), unescaped(double or single or bare))
    return made


def quoted_values(text: str) -> list[tuple[int, int]]:
    """Return where the quoted values in the attributes of a tag start and end."""
    found = _ATTRIBUTE.finditer(text[:_MAX_ATTRIBUTES])
    return [match.span(group) for match in found for group in (2, 3) if match[group] is not None]
