"""Tables of names as a person reads them: words in a text, not sixty quoted strings on sixty lines."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of `text`, which white space separates."""
    return frozenset(text.split())
