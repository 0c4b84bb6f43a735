"""What one render may cost: time, characters made, depth. The account that every guarded operation charges.

Templates are written by strangers. No thread or signal can stop one, so the work itself is counted: each
operation of a template that could be large says beforehand, or right after, how much it makes, and each turn
of a loop and each call looks at the clock. Two rules keep any single operation small:

- a text has at most `max_chars` characters, and all texts made in one render at most `ALLOWANCE` times that;
- a container built in a template weighs at most `max_nodes` (its members, theirs, and so on, each as often as
it is
  reached), so that printing, comparing or sorting it cannot explode, however it was nested.

The current account is found through a context variable, which also makes guarded functions refuse to run at
compile time, where nobody counts.

What can go wrong: between two looks at the clock a single operation in C runs to its end. At the sizes
allowed that is some tens of milliseconds at worst; the deadline is overrun by as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from time import monotonic, thread_time
from typing import Any

MAX_NODES = 100_000
"""Members, counted all the way down, of a container that a template makes, unless told otherwise."""
MAX_BITS = 1024
"""Bits of an integer that a template calculates with."""
MAX_WIDTH = 1_000
"""A field's width or precision, an indent, a batch: small counts in formatting."""
MAX_DEPTH = 50
"""Calls within calls (macros, blocks, recursive loops), and containers within containers."""
ALLOWANCE = 6
"""How many times `max_chars` all texts of one render may come to: escapes and macros copy."""
MAX_WORK_TEXT = 500_000
"""Characters of a text given to a filter that works on it in Python."""
MAX_FORMAT = 50_000
"""Characters of a format (`%`, `str.format`): Python reads it piece by piece."""

STEP = 8  # what an operation costs that makes nothing, in characters
_LOOK = 20_000  # characters between two looks at the clock, when nothing else looks


class Stop(Exception):  # noqa: N818 - it stops a render and is turned into a TemplateFault
    """A bound was reached, or something forbidden was tried. `kind` is a TemplateFault's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Account:
    """The cost of one render so far. Not shared between threads."""

    __slots__ = (
        "deadline",
        "depth",
        "last",
        "limit",
        "long",
        "look_at",
        "made",
        "max_chars",
        "max_nodes",
        "seconds",
        "started",
    )

    def __init__(self, seconds: float, max_chars: int, max_nodes: int = MAX_NODES) -> None:
        self.max_nodes = max_nodes
        self.seconds = seconds
        self.started = thread_time()
        self.deadline = monotonic() + seconds
        self.max_chars = max_chars
        self.limit = max_chars * ALLOWANCE
        self.made = 0
        self.look_at = _LOOK
        self.depth = 0
        self.last: tuple[str, Any, Any] | None = None  # what was put together last (see `output.traced`)
        self.long = False  # a long text was printed (see `output`)

    def charge(self, size: int) -> None:
        """Add an operation that makes or reads `size` characters or members."""
        self.made += size + STEP
        if self.made > self.look_at:
            self.look()

    def look(self) -> None:
        """Look at the clock and the sum. Raises `Stop`."""
        if self.made > self.limit:
            raise Stop("too_big", f"the template makes more than {self.limit} characters in all")
        self.look_at = self.made + _LOOK
        if monotonic() > self.deadline:
            self.overdue()

    def overdue(self) -> None:
        """Past the deadline: raise `Stop` if this thread computed for that long, else put the deadline off.

        On a busy machine a thread may wait for a processor longer than a render takes; that is no fault of
        the template. The time of the thread itself costs a system call, so it is asked only here.
        """
        left = self.seconds - (thread_time() - self.started)
        if left <= 0:
            raise Stop("too_slow", f"rendering takes longer than {self.seconds:g} s")
        self.deadline = monotonic() + left

    def room(self, size: int) -> None:
        """Refuse a text of `size` characters before it is made, if it is too long."""
        if size > self.max_chars:
            raise Stop("too_big", f"a text of {size} characters; at most {self.max_chars} are allowed")


account: ContextVar[Account] = ContextVar("account")
"""The render in progress. Reading it outside of one raises LookupError."""


def charge(size: int) -> None:
    """Charge the current account."""
    account.get().charge(size)


class Turns:
    """Iterates what a template iterates and looks at the clock on each turn; as long as what it wraps."""

    __slots__ = ("_of",)

    def __init__(self, of: Any) -> None:
        self._of = of

    def __iter__(self) -> Iterator[Any]:
        now = monotonic
        current = account.get()
        for item in self._of:
            current.made += STEP
            if now() > current.deadline:
                current.overdue()
            yield item

    def __len__(self) -> int:
        return len(self._of)


_SMALL = frozenset({bool, int, float, type(None)})


def weigh(value: Any) -> int:
    """Return the size of `value`: its characters and members all the way down; charge for finding out.

    Raises `Stop` where a container is over the `max_nodes` of the account, nested over `MAX_DEPTH`, or its
    texts are too long in sum.
    """
    if type(value) in _SMALL:
        return 1
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (list, tuple, dict, Mapping, set, frozenset)):
        return 1
    current = account.get()
    nodes = chars = 0
    stack: list[Iterator[Any]] = [_members(value)]
    while stack:
        for member in stack[-1]:
            nodes += 1
            kind = type(member)
            if kind in _SMALL:
                continue
            if kind is str or isinstance(member, str):
                chars += len(member)
            elif isinstance(member, (list, tuple, dict, Mapping, set, frozenset)):
                stack.append(_members(member))
                break
        else:
            stack.pop()
        if nodes > current.max_nodes or len(stack) > MAX_DEPTH or chars > current.max_chars:
            raise Stop("too_big", "a list or mapping is too large, or nested too deep")
    current.charge(nodes + chars)
    return nodes + chars


def _members(container: Iterable[Any]) -> Iterator[Any]:
    if isinstance(container, Mapping):
        return (x for pair in container.items() for x in pair)
    return iter(container)


def text_of(value: Any) -> str:
    """Return `str(value)`, refused beforehand if it would be too long. A str subclass stays what it is."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        small(value)
    else:
        weigh(value)
    return str(value)


def small(value: Any) -> Any:
    """Return a number, refused if it is an integer of more than `MAX_BITS` bits."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise Stop("too_big", f"an integer of more than {MAX_BITS} bits")
    return value


def width(value: Any, at_most: int = MAX_WIDTH) -> int:
    """Return `value` as a small count: 0 to `at_most`."""
    if not isinstance(value, int):
        raise TypeError(f"a whole number is needed, not {type(value).__name__}")
    if not -at_most <= value <= at_most:
        raise Stop("too_big", f"a width or count of {value if abs(value) < 10**18 else 'very many'}")
    return value


def listed(items: Iterable[Any]) -> list[Any]:
    """Return the members as a list, looking at the clock on each, refused if too many or too heavy."""
    most = account.get().max_nodes
    if isinstance(items, Sized) and len(items) > most:
        raise Stop("too_big", f"a list of {len(items)} members")
    if isinstance(items, (list, tuple, range, str)):  # nothing runs while these are read
        made = list(items)
    else:
        made = []
        for item in Turns(items):
            made.append(item)
            if len(made) > most:
                raise Stop("too_big", f"a list of more than {most} members")
    weigh(made)
    return made


def joined(pieces: Iterable[str]) -> str:
    """Return the pieces as one text, refused while it is being collected if it grows too long."""
    current = account.get()
    if type(pieces) is list:  # what a macro or a block has written
        size = sum(map(len, pieces))
        current.room(size)
        current.charge(size)
        return "".join(pieces)
    size = 0
    kept: list[str] = []
    for piece in pieces:
        size += len(piece)
        if size > current.max_chars:
            current.room(size)
        kept.append(piece)
    current.charge(size)
    return "".join(kept)
