"""The methods of texts, mappings and lists that a template may call, each with its bound.

What is not in a table here cannot be called. Left out on purpose: methods that search from the right
(quadratic in CPython for some inputs), `translate`, `encode`, `expandtabs`, everything that changes its
object.

What can go wrong: a method whose result is larger than its input. Those compute the size first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from jinja2 import Environment
from jinja2.sandbox import SandboxedFormatter
from markupsafe import EscapeFormatter, Markup

from pgmail.render.bounds import (
    MAX_FORMAT,
    MAX_WIDTH,
    Stop,
    account,
    charge,
    listed,
    text_of,
    weigh,
    width,
)
from pgmail.render.words import words

_SAME_SIZE = words(
    """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier
    islower isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix startswith
    swapcase title upper"""
)
_STRIP = frozenset({"strip", "lstrip", "rstrip"})
_PAD = frozenset({"center", "ljust", "rjust", "zfill"})
_OF_DICT = frozenset({"get", "items", "keys", "values"})
_OF_LIST = frozenset({"count", "index"})
_NUMBERS = re.compile(r"\d+")
_NAMED = re.compile(r"%\([^()%]*\)")
_DIRECTIVE = re.compile(r"%[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


class Allowed:
    """A function that a template may call: a bounded method, or a global of the sandbox."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self._run(*args, **kwargs)

    def __repr__(self) -> str:
        return "<function>"


def method(environment: Environment, owner: Any, name: str) -> Allowed | None:
    """Return the bounded method `name` of `owner`, or None if a template has no business with it."""
    run: Callable[..., Any] | None = None
    if isinstance(owner, str):
        run = _text_method(environment, owner, name)
    elif isinstance(owner, Mapping):
        if name == "get":
            run = owner.get
        elif name in _OF_DICT:

            def run() -> list[Any]:
                return listed(getattr(owner, name)())

    elif isinstance(owner, (list, tuple)) and name in _OF_LIST:

        def run(value: Any) -> int:
            weigh(owner)
            weigh(value)
            return int(getattr(owner, name)(value))

    return None if run is None else Allowed(run)


def _text_method(environment: Environment, text: str, name: str) -> Callable[..., Any] | None:
    if name in _SAME_SIZE or name in _STRIP:

        def plain(*args: Any) -> Any:
            charge(len(text) + sum(map(weigh, args)))
            if name in _STRIP and args and isinstance(args[0], str) and len(args[0]) > 100:
                raise Stop("too_big", "more than 100 characters to strip")
            return kept(getattr(text, name)(*args))

        return plain
    if name in _PAD:

        def pad(columns: int, *fill: str) -> Any:
            return kept(getattr(text, name)(width(columns), *fill))

        return pad
    if name in _WHOLE:
        return partial(_WHOLE[name], text)
    if name == "format":
        return lambda *args, **kwargs: _format(environment, text, args, kwargs)
    if name == "format_map":
        return lambda mapping: _format(environment, text, (), mapping)
    return None


def kept(made: Any) -> Any:
    """Charge a text or container just made and return it."""
    if isinstance(made, str):
        current = account.get()
        current.charge(len(made))
        current.room(len(made))
    else:
        weigh(made)
    return made


def replace(text: str, old: Any, new: Any, count: int | None = None) -> Any:
    """`str.replace`, refused beforehand if the result would be too long."""
    old, new = text_of(old), text_of(new)
    current = account.get()
    current.charge(len(text))
    hits = text.count(old)
    if count is not None and 0 <= count < hits:
        hits = count
    current.room(len(text) + hits * max(len(new) - len(old), 0))
    return kept(text.replace(old, new, -1 if count is None else count))


def split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    """`str.split` into at most `MAX_NODES` pieces."""
    charge(len(text))
    nodes = account.get().max_nodes
    most = nodes if maxsplit < 0 else min(maxsplit, nodes)
    pieces = text.split(sep, most)
    if most == nodes and len(pieces) > nodes:
        raise Stop("too_big", f"a text split into more than {nodes} pieces")
    return listed(pieces)


def splitlines(text: str, keepends: bool = False) -> list[str]:
    """`str.splitlines` of a text that cannot have more than a list may hold."""
    charge(len(text))
    if len(text) > 10 * account.get().max_nodes:
        raise Stop("too_big", "a text too long to split into lines")
    return listed(text.splitlines(keepends))


def join(glue: str, items: Iterable[Any]) -> Any:
    """`str.join`, of anything that can be printed."""
    pieces = [item if isinstance(item, Markup) else text_of(item) for item in listed(items)]
    current = account.get()
    current.room(sum(map(len, pieces)) + len(glue) * len(pieces))
    return kept(glue.join(pieces))


def percent(text: str, values: Any) -> Any:
    """`text % values` with bounded widths and size. `*` as a width is refused."""
    _short(text)
    bare = _NAMED.sub("%", text)
    if "%(" in bare:
        raise Stop("unsafe", "a name in a % format that cannot be read")
    for found in _DIRECTIVE.finditer(bare):
        for digits in found.groups():
            _bounded_digits(digits or "")
    many = (
        values if isinstance(values, tuple) else values.values() if isinstance(values, Mapping) else (values,)
    )
    longest = max(map(weigh, many), default=0)
    account.get().room(len(text) + bare.count("%") * longest)
    return kept(text % values)


def _short(text: str) -> None:
    charge(len(text))
    if len(text) > MAX_FORMAT:
        raise Stop("too_big", f"a format of more than {MAX_FORMAT} characters")


def _bounded_digits(digits: str) -> None:
    if digits == "*":
        raise Stop("unsafe", "a width taken from a value")
    if len(digits) > 4 or (digits and int(digits) > MAX_WIDTH):
        raise Stop("too_big", f"a width or precision over {MAX_WIDTH}")


_WHOLE: dict[str, Callable[..., Any]] = {
    "join": join,
    "replace": replace,
    "split": split,
    "splitlines": splitlines,
}


class _Bounded(SandboxedFormatter):
    """`str.format` without attributes that the sandbox forbids, without wide fields, of bounded size."""

    def __init__(self, environment: Environment, **kwargs: Any) -> None:
        super().__init__(environment, **kwargs)
        self._size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """`!r` and `!s`."""
        if conversion is not None:
            weigh(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        """One field."""
        for digits in _NUMBERS.findall(format_spec):
            _bounded_digits(digits)
        weigh(value)
        made = super().format_field(value, format_spec)
        self._size += len(made)
        current = account.get()
        current.room(self._size)
        current.charge(len(made))
        return made


class _BoundedEscape(_Bounded, EscapeFormatter):
    """The same for safe HTML: what is put in gets escaped."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment, escape=Markup.escape)


def _format(environment: Environment, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    _short(text)
    formatter = (_BoundedEscape if isinstance(text, Markup) else _Bounded)(environment)
    made = type(text)(formatter.vformat(text, args, kwargs))
    kept(made)
    return made
