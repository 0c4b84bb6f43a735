"""How much of a bundle of templates is read, before any of it is compiled.

What can go wrong: a template that is made to be long to compile, which no limit on rendering sees.
"""

from __future__ import annotations

from pgmail.render.bounds import Stop

MAX_TOKENS = 15_000
"""Tokens of all pages of a bundle together, some thousand tags: compiling them takes up to a second."""

MAX_SOURCES = 2_000_000
"""Characters of all pages of a bundle together."""


class Meter:
    """What a bundle may still cost to compile, counted as its pages are read and before any is compiled.

    Measured over fifty shapes of templates, a token costs 20 to 65 us of parsing and compiling, whatever it is, so
    this bounds the time; nothing can stop Python's compiler once it runs.
    """

    __slots__ = ("chars", "left", "most")

    def __init__(self, most: int = MAX_TOKENS, chars: int = MAX_SOURCES) -> None:
        self.most = self.left = most
        self.chars = chars

    @property
    def spent(self) -> bool:
        """Whether more was read than may be."""
        return self.left < 0 or self.chars < 0

    def source(self, size: int) -> None:
        """A page more, of so many characters. Raises `Stop`."""
        self.chars -= size
        if self.chars < 0:
            raise Stop("too_big", "a template of too many characters, with what it reaches")

    def token(self) -> None:
        """One more. Raises `Stop`."""
        self.left -= 1
        if self.left < 0:
            raise Stop("too_big", f"a template of more than {self.most} tokens, with what it reaches")
