"""Filters and tests of the sandbox: Jinja's, each bounded; those that no mail needs are left out.

Left out: `attr`, `pprint`, `random` (a render must be repeatable), `urlize`, `xmlattr`, and the test
`callable`. Filters that yield lazily in Jinja give lists here, so that their size is known.

What can go wrong: a filter called at compile time, for a constant, would run uncounted. Each asks for the
current account first, and there is none then; Jinja leaves the expression for the render.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from html import unescape
from typing import Any

from jinja2 import Environment, Undefined, pass_environment
from jinja2.filters import FILTERS as JINJA
from jinja2.filters import make_attrgetter
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from pgmail.render import methods
from pgmail.render.bounds import (
    MAX_WORK_TEXT,
    Stop,
    account,
    charge,
    listed,
    small,
    text_of,
    weigh,
    width,
)
from pgmail.render.methods import kept
from pgmail.render.words import words

_WORD = re.compile(r"\w+")
_PATH_PARTS = 8  # "a.b,c.d": what sort, map and their like may follow


def _work_text(value: Any, at_most: int = MAX_WORK_TEXT) -> str:
    text = text_of(value)
    charge(len(text))
    if len(text) > at_most:
        raise Stop("too_big", f"a text of more than {at_most} characters for this filter")
    return text


def _on_text(name: str) -> Callable[..., Any]:
    """Jinja's filter `name`, for a text of bounded length and small arguments."""
    jinja = JINJA[name]
    passes = getattr(jinja, "jinja_pass_arg", None)

    def run(*args: Any, **kwargs: Any) -> Any:
        at = 0 if passes is None else 1
        _arguments(args[at + 1 :], kwargs)
        return kept(jinja(*args[:at], _work_text(args[at]), *args[at + 1 :], **kwargs))

    if passes is not None:
        run.jinja_pass_arg = passes  # type: ignore[attr-defined]  # as Jinja marks them
    return run


def _on_members(name: str) -> Callable[..., Any]:
    """Jinja's filter `name`, for the members of a list of bounded size; what it yields becomes a list."""
    jinja = JINJA[name]
    passes = getattr(jinja, "jinja_pass_arg", None)

    def run(*args: Any, **kwargs: Any) -> Any:
        at = 0 if passes is None else 1
        _arguments(args[at + 1 :], kwargs)
        value = args[at]
        members = value if isinstance(value, Mapping) and name == "dictsort" else listed(value)
        weigh(members)
        made = jinja(*args[:at], members, *args[at + 1 :], **kwargs)
        return listed(made) if isinstance(made, Iterable) and not isinstance(made, (str, Mapping)) else made

    if passes is not None:
        run.jinja_pass_arg = passes  # type: ignore[attr-defined]  # as Jinja marks them
    return run


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that multiply work: long texts, long attribute paths, large counts."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, str):
            if len(value) > 1_000 or value.count(".") + value.count(",") >= _PATH_PARTS * 100:
                raise Stop("too_big", "an argument of a filter is too long")
        elif isinstance(value, int):
            width(value, 10_000)
        else:
            weigh(value)
    path = kwargs.get("attribute", args[0] if args else None)
    if isinstance(path, str) and path.count(".") + path.count(",") >= _PATH_PARTS and " " not in path:
        raise Stop("too_big", f"an attribute path of more than {_PATH_PARTS} parts")


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    if isinstance(old, Markup) or isinstance(new, Markup) or isinstance(value, Markup):
        value = escape(text_of(value))  # as in Jinja: what is put into safe HTML gets escaped
    return methods.replace(text_of(value), old, new, count)


def _center(value: Any, columns: int = 80) -> Any:
    return kept(text_of(value).center(width(columns)))


def _indent(value: Any, columns: Any = 4, first: Any = False, blank: Any = False) -> Any:
    text = text_of(value)
    if len(text) > MAX_WORK_TEXT:
        raise Stop("too_big", "a text too long to indent")
    room = len(columns) if isinstance(columns, str) else width(columns)
    account.get().room(len(text) + (text.count("\n") + text.count("\r") + 1) * room)
    return kept(JINJA["indent"](text, columns, first, blank))


def _picked(environment: Environment, value: Any, attribute: Any) -> list[Any]:
    """The members of `value`, or of each of them what `attribute` leads to."""
    items = listed(value)
    if attribute is None:
        return items
    _arguments((attribute,), {})
    return listed(map(make_attrgetter(environment, attribute), items))


@pass_environment
def _join(environment: Environment, value: Any, glue: Any = "", attribute: Any = None) -> Any:
    charge(0)
    glue = text_of(glue)
    items = _picked(environment, value, attribute)
    if any(isinstance(item, Markup) for item in items):
        # As in Jinja under autoescape: one safe piece makes the whole safe, and the others are escaped.
        glue = escape(glue)
    return methods.join(glue, items)


def _string(value: Any) -> str:
    return text_of(value)


def _title(value: Any) -> Any:
    return kept(JINJA["title"](_work_text(value)))


def _wordcount(value: Any) -> int:
    return sum(1 for _ in _WORD.finditer(_work_text(value)))


def _wordwrap(value: Any, columns: int = 79, break_long_words: Any = True) -> str:
    """Wrap each line at spaces; a word longer than a line is cut, unless told otherwise."""
    columns = max(width(columns), 1)
    lines: list[str] = []
    for line in _work_text(value).splitlines():
        held = ""
        for word in line.split(" "):
            rest = word
            if held and len(held) + 1 + len(rest) > columns:
                lines.append(held)
                held = ""
            if break_long_words and len(rest) > columns:
                cuts = [rest[at : at + columns] for at in range(0, len(rest), columns)]
                lines += cuts[:-1]
                rest = cuts[-1]
            held = f"{held} {rest}" if held else rest
        lines.append(held)
    return str(kept("\n".join(lines)))


def _striptags(value: Any) -> str:
    """Take tags and comments out, collapse white space. One pass, whatever the input."""
    text = _work_text(value)
    pieces: list[str] = []
    at = 0
    while (start := text.find("<", at)) >= 0:
        pieces.append(text[at:start])
        comment = text.startswith("<!--", start)
        end = text.find("-->" if comment else ">", start)
        if end < 0:
            at = len(text) if comment else start
            break
        at = end + (3 if comment else 1)
    pieces.append(text[at:])
    return str(kept(unescape(" ".join("".join(pieces).split()))))


def _int(value: Any, default: Any = 0, base: int = 10) -> Any:
    if isinstance(value, str) and len(value) > 300:
        return default
    charge(0)
    return small(JINJA["int"](value, default, base))


def _float(value: Any, default: Any = 0.0) -> Any:
    if isinstance(value, str) and len(value) > 300:
        return default
    charge(0)
    return JINJA["float"](value, default)


def _number(value: Any) -> Any:
    if isinstance(value, Undefined):
        str(value)  # names what is missing
    return small(value)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    charge(0)
    return JINJA["round"](_number(value), width(precision, 30), method)


@pass_environment
def _sum(environment: Environment, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for item in _picked(environment, value, attribute):
        if isinstance(item, Undefined):
            str(item)  # names what is missing
        if not isinstance(item, (int, float, Decimal)):
            raise TypeError(f"sum adds numbers, not {type(item).__name__}")
        total = total + small(item)
    return total


@pass_environment
def _unique(
    environment: Environment, value: Any, case_sensitive: Any = False, attribute: Any = None
) -> list[Any]:
    items = listed(value)
    keys = items if attribute is None else _picked(environment, items, attribute)
    seen: set[Any] = set()
    made: list[Any] = []
    for item, picked in zip(items, keys, strict=True):
        key: Any = picked
        if isinstance(picked, str):
            key = picked if case_sensitive else picked.lower()
        elif picked is not None and not isinstance(picked, float) and not _safe_to_hash(picked):
            key = ("", text_of(picked))
        if key not in seen:
            seen.add(key)
            made.append(item)
    return made


def _safe_to_hash(value: Any) -> bool:
    # Only the hashes of texts are secret: large integers and tuples could be chosen to collide.
    return type(value) in (int, bool) and abs(value) < 1 << 60


def _tojson(value: Any, indent: int | None = None) -> Any:
    weigh(value)
    return kept(
        htmlsafe_json_dumps(value, indent=None if indent is None else width(indent, 8), sort_keys=True)
    )


def _urlencode(value: Any) -> Any:
    limit = MAX_WORK_TEXT // 10  # it works octet by octet in Python
    if isinstance(value, (str, int, float)):
        return kept(JINJA["urlencode"](_work_text(value, limit)))
    if weigh(value) > limit:
        raise Stop("too_big", "too much to encode for a URL")
    return kept(JINJA["urlencode"](value))


def _reverse(value: Any) -> Any:
    if isinstance(value, str):
        return kept(value[::-1])
    return listed(value)[::-1]


def _length(value: Any) -> int:
    charge(0)
    return len(value)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, Mapping):
        raise TypeError("items needs a mapping")
    return listed(value.items())


def _escape(value: Any) -> Any:
    return value if isinstance(value, Markup) else kept(escape(_printed(value)))


def _forceescape(value: Any) -> Any:
    return kept(escape(str(_printed(value))))


def _safe(value: Any) -> Any:
    return value if isinstance(value, Markup) else kept(Markup(_printed(value)))  # noqa: S704 - the author of the template says so


def _printed(value: Any) -> Any:
    return value if hasattr(value, "__html__") else text_of(value)


def _format(value: Any, *args: Any, **kwargs: Any) -> Any:
    if args and kwargs:
        raise TypeError("format takes values either by position or by name")
    return methods.percent(text_of(value), kwargs or args)


def _trim(value: Any, chars: str | None = None) -> Any:
    text = text_of(value)
    charge(len(text))
    if chars is not None and len(chars) > 100:
        raise Stop("too_big", "more than 100 characters to trim")
    return kept(text.strip(chars))


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _on_text(name) for name in ("capitalize", "lower", "upper", "truncate")},
    **{
        name: _on_members(name)
        for name in sorted(
            words("""batch dictsort groupby list map max min reject rejectattr select
        selectattr slice sort""")
        )
    },
    "abs": lambda value: abs(_number(value)),
    "center": _center,
    "count": _length,
    "d": JINJA["default"],
    "default": JINJA["default"],
    "e": _escape,
    "escape": _escape,
    "filesizeformat": lambda value, binary=False: kept(JINJA["filesizeformat"](value, binary)),
    "first": JINJA["first"],
    "float": _float,
    "forceescape": _forceescape,
    "format": _format,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": JINJA["last"],
    "length": _length,
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "safe": _safe,
    "string": _string,
    "striptags": _striptags,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": _trim,
    "unique": _unique,
    "urlencode": _urlencode,
    "wordcount": _wordcount,
    "wordwrap": _wordwrap,
}
"""Every filter that a template may use."""


def _weighed(jinja: Callable[..., Any]) -> Callable[..., Any]:

    def run(*args: Any) -> Any:
        for arg in args:
            weigh(arg)
        charge(0)
        return jinja(*args)

    return run


# These look at nothing but the type or the identity of their operand.
_CHEAP = words("""boolean defined undefined none false true integer float mapping number sameas sequence
string iterable escaped""")
_WEIGHED = words("""== != < <= > >= eq equalto ne lt lessthan le gt greaterthan ge in lower upper odd even
divisibleby""")

_jinja_tests: dict[str, Any] = dict(JINJA_TESTS)

TESTS: dict[str, Callable[..., Any]] = {
    **{name: _jinja_tests[name] for name in _CHEAP},
    **{name: _weighed(_jinja_tests[name]) for name in _WEIGHED},
}
"""Every test (`is ...`) that a template may use."""
