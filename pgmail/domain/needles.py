"""What must stand in a text for a pattern to be found in it: a few plain words, looked for before the pattern is run.

Rules for replies hold some thousand alternatives, and a search for each of them at each place of a text takes
milliseconds; looking for a word takes nanoseconds. The reader here knows only what patterns of rules may hold
(`sql/rules/replies.toml`), so it also keeps out what Python and PostgreSQL read differently: ValueError says what.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SIGNS = ".?*+|()[]{}^$\\/-_#:&'@!<>=;,% "  # what may follow a backslash
_REPEAT = re.compile(r"\{([0-9]+)(,[0-9]*)?\}")
LEAST = 2  # characters: a shorter needle is in every text


class _Piece(NamedTuple):
    """Part of a sequence: a letter (`literal`), or something with needles of its own (None: none are known)."""

    literal: str
    needles: frozenset[str] | None


def needles(pattern: str) -> frozenset[str] | None:
    r"""Words of which one is in every text in which `pattern` is found; None where there are none to be named.

    ValueError for what rules may not hold: look-around, back-references, classes such as \b or \d.
    """
    found, end = _choice(pattern, 0)
    if end != len(pattern):
        raise ValueError(f"unbalanced ) in {pattern[:60]!r}")
    return found


def _choice(pattern: str, at: int) -> tuple[frozenset[str] | None, int]:
    """Read alternatives up to the end or a closing bracket."""
    every: frozenset[str] | None = frozenset()
    while True:
        best, at = _sequence(pattern, at)
        every = None if every is None or best is None else every | best
        if at >= len(pattern) or pattern[at] == ")":
            return every, at
        at += 1  # the |


def _sequence(pattern: str, at: int) -> tuple[frozenset[str] | None, int]:
    pieces: list[_Piece] = []
    while at < len(pattern) and pattern[at] not in "|)":
        piece, at = _piece(pattern, at)
        least, at = _quantifier(pattern, at)
        pieces.append(piece if least else _Piece("", None))
        if least and piece.literal and pattern[at - 1] in "+}":
            pieces.append(_Piece("", None))  # how often is open: the run ends here
    return _best(pieces), at


def _piece(pattern: str, at: int) -> tuple[_Piece, int]:
    sign = pattern[at]
    if sign == "(":
        if pattern.startswith("(?", at):
            raise ValueError(f"a group of the kind (?...) in {pattern[:60]!r}")
        found, end = _choice(pattern, at + 1)
        if end >= len(pattern):
            raise ValueError(f"unbalanced ( in {pattern[:60]!r}")
        return _Piece("", found), end + 1
    if sign == "[":
        end = pattern.index("]", at + 2 + (pattern[at + 1] == "^"))
        if "\\" in pattern[at:end] or "[" in pattern[at + 1 : end]:
            raise ValueError(f"a backslash or [ in a class in {pattern[:60]!r}")
        return _Piece("", None), end + 1
    if sign == "\\":
        if pattern[at + 1 : at + 2] not in SIGNS:
            raise ValueError(f"{pattern[at : at + 2]} in {pattern[:60]!r}")
        return _Piece(pattern[at + 1], None), at + 2
    if sign in "?*+{":
        raise ValueError(f"nothing to repeat in {pattern[:60]!r}")
    return _Piece("" if sign in ".^$" else sign, None), at + 1


def _quantifier(pattern: str, at: int) -> tuple[int, int]:
    """The least number of times that what was read comes, and where to go on."""
    if at >= len(pattern) or pattern[at] not in "?*+{":
        return 1, at
    if pattern[at] == "{":
        match = _REPEAT.match(pattern, at)
        if match is None:
            raise ValueError(f"a {{ that repeats nothing in {pattern[:60]!r}")
        least, at = int(match[1]), match.end()
    else:
        least, at = (1 if pattern[at] == "+" else 0), at + 1
    if at < len(pattern) and pattern[at] in "?*+":
        raise ValueError(f"a quantifier of a quantifier in {pattern[:60]!r}")
    return least, at


def _best(pieces: list[_Piece]) -> frozenset[str] | None:
    """Of runs of letters and of groups, the one whose shortest word is longest."""
    known: list[frozenset[str]] = []
    run = ""
    for literal, found in [*pieces, _Piece("", None)]:
        if literal:
            run += literal
            continue
        if len(run) >= LEAST:
            known.append(frozenset({run}))
        run = ""
        if found is not None:
            known.append(found)
    return max(known, key=lambda words: (min(map(len, words)), -len(words))) if known else None
