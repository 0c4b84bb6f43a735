"""Whose turn it is among the priorities: the most urgent first, strictly, but for one turn in sixteen.

That one begins with the lowest class, so that it keeps moving under any load above it.
"""

from __future__ import annotations

PRIORITIES = (1, 2, 3)
LOWEST_FIRST = 16  # every so many turns

_UPWARDS = PRIORITIES[::-1]


class Turns:
    """Counts turns."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def next(self) -> tuple[int, ...]:
        """The priorities in the order of the next turn."""
        self._turn += 1
        return PRIORITIES if self._turn % LOWEST_FIRST else _UPWARDS
