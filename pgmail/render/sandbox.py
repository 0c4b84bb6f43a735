"""Where templates written by strangers run: Jinja's immutable sandbox, with every operation bounded.

On top of Jinja's own rules a template can read only plain data (texts, numbers, lists, mappings) and Jinja's
helper objects, call only the functions listed here and in `methods`, use only the filters listed in
`filters`, and is counted and timed by an `Account` (see `bounds`). In a mapping the data goes before its
methods: `order.items` is the key `items` if there is one.

What can go wrong: see `bounds` (a single operation runs to its end) and `codegen` (new kinds of nodes).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, ClassVar

from jinja2 import StrictUndefined, Template, TemplateNotFound, Undefined
from jinja2.environment import TemplateModule
from jinja2.exceptions import SecurityError
from jinja2.lexer import Token, TokenStream
from jinja2.nodes import EvalContext
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, missing
from markupsafe import Markup, escape

from pgmail.render import methods
from pgmail.render.bounds import (
    MAX_BITS,
    MAX_DEPTH,
    Stop,
    Turns,
    account,
    charge,
    joined,
    small,
    text_of,
    weigh,
)
from pgmail.render.codegen import GuardedCode
from pgmail.render.context import PageContext
from pgmail.render.filters import FILTERS, TESTS
from pgmail.render.meter import Meter
from pgmail.render.methods import Allowed, kept
from pgmail.render.output import printed_html, printed_text, put
from pgmail.render.words import words

_LOAD = 200  # what starting another template costs, in characters

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
"""What a variable is called where something is missing in it: by the words of JSON, which it came from."""


class Missing(StrictUndefined):
    """A variable that was not given: using it in any way says which."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"the variable {self._undefined_name!r} is missing"
        return f"{self._undefined_name!r} is missing in {_KINDS.get(type(self._undefined_obj), 'what is before it')}"


class _Namespace(Namespace):
    """Jinja's namespace, that does not print what it holds: it may hold itself."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Cycler(Cycler):
    """Jinja's cycler, that does not print where in memory it is."""

    def __repr__(self) -> str:
        return "<cycler>"


class _Joiner(Joiner):
    """The same of its joiner."""

    def __repr__(self) -> str:
        return "<joiner>"


class _Template(Template):
    """A template whose import gives a fresh module each time: no mail sees another's."""

    def make_module(
        self,
        vars: dict[str, Any] | None = None,
        shared: bool = False,
        locals: Mapping[str, Any] | None = None,
    ) -> TemplateModule:
        context = self.new_context(vars, shared, locals)
        return TemplateModule(self, context, [joined(self.root_render_func(context))])

    def _get_default_module(self, ctx: Context | None = None) -> TemplateModule:  # noqa: ARG002 - Jinja's
        return self.make_module()


def _range(*bounds: int) -> range:
    for bound in bounds:
        if isinstance(bound, int) and abs(bound) >= 1 << 60:
            raise Stop("too_big", "a bound of range() is too large")
    made = range(*bounds)
    most = account.get().max_nodes
    if len(made) > most:
        raise Stop("too_big", f"range() of {len(made)} numbers; at most {most} are allowed")
    return made


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for arg in args:
        if not isinstance(arg, Mapping):
            raise TypeError("dict() takes mappings and named values")
        made.update(arg)
    made.update(kwargs)
    weigh(made)
    return made


GLOBALS: dict[str, Any] = {
    "range": Allowed(_range),
    "dict": Allowed(_dict),
    "namespace": Allowed(_Namespace),
    "cycler": Allowed(_Cycler),
    "joiner": Allowed(lambda sep=", ": _Joiner(sep)),
}

_ATTRIBUTES: dict[type, frozenset[str]] = {
    LoopContext: words("depth depth0 first index index0 last length nextitem previtem revindex revindex0"),
    BlockReference: frozenset({"name", "super"}),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
    _Cycler: frozenset({"current"}),
}
_METHODS: dict[type, frozenset[str]] = {
    LoopContext: frozenset({"changed", "cycle"}),
    _Cycler: frozenset({"next", "reset"}),
}
_CALLABLE = (Allowed, Macro, BlockReference, LoopContext, Joiner)
_NUMBERS = (int, float)
_SCALARS = frozenset({bool, int, float, type(None)})
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for the templates of one part (subject, text or html) of one bundle.

    `pages` holds the templates by name; what is not there does not exist.
    """

    code_generator_class = GuardedCode
    template_class = _Template
    context_class = PageContext
    intercepted_binops: ClassVar[frozenset[str]] = frozenset(_OPERATORS)  # type: ignore[misc]  # a fixed one
    concat = staticmethod(joined)

    def __init__(self, *, html: bool, keep_trailing_newline: bool, meter: Meter | None = None) -> None:
        self.meter = meter or Meter()
        super().__init__(
            autoescape=html,
            undefined=Missing,
            optimized=False,
            keep_trailing_newline=keep_trailing_newline,
            cache_size=0,
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = GLOBALS
        self.names_of_globals = set(GLOBALS)
        self.settings = EvalContext(self)
        self.printed = printed_html if html else printed_text
        self.pages: dict[str, Template] = {}

    # -- compiling

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> TokenStream:
        tokens = super()._tokenize(source, name, filename, state)

        def counted() -> Iterator[Token]:
            for token in tokens:
                self.meter.token()
                yield token

        return TokenStream(counted(), name, filename)

    def tokens(self, source: str) -> Iterator[Token]:
        """The tokens of a page, counted."""
        return iter(self._tokenize(source, None))

    # -- other templates

    def get_template(self, name: Any, parent: str | None = None, globals: Any = None) -> Template:  # noqa: ARG002 - Jinja's
        """Return another template of the bundle."""
        current = account.get()
        current.charge(_LOAD)
        if monotonic() > current.deadline:
            current.overdue()
        page = self.pages.get(name)
        if page is None:
            raise TemplateNotFound(str(name))
        return page

    def select_template(self, names: Any, parent: str | None = None, globals: Any = None) -> Template:
        """Return the first of the templates that exists."""
        for name in names:
            if name in self.pages:
                return self.get_template(name, parent, globals)
        raise TemplateNotFound(", ".join(map(str, names)))

    # -- reading data

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`."""
        if isinstance(obj, Mapping):
            try:
                return obj[attribute]
            except (KeyError, TypeError):
                pass
        if isinstance(obj, Undefined):
            return obj()  # raises, whatever is done with it: names what is missing
        if attribute[:1] == "_":
            return self.unsafe_undefined(obj, attribute)
        found = methods.method(self, obj, attribute)
        if found is not None:
            return found
        kind = type(obj)
        if attribute in _ATTRIBUTES.get(kind, ()):
            return getattr(obj, attribute)
        if attribute in _METHODS.get(kind, ()):
            return Allowed(_charged(getattr(obj, attribute)))
        if isinstance(obj, (Namespace, TemplateModule)):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        elif isinstance(obj, TemplateReference):
            try:
                return obj[attribute]
            except KeyError:
                pass
        elif hasattr(kind, attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        if isinstance(obj, (Mapping, list, tuple, str, range)):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def sliced(self, obj: Any, start: Any, stop: Any, step: Any) -> Any:
        """`obj[start:stop:step]`."""
        return kept(obj[start:stop:step])

    # -- making things

    @staticmethod
    def turns(iterable: Any) -> Turns:
        """What a `for` iterates."""
        return Turns(iterable)

    @staticmethod
    def made(container: Any) -> Any:
        """A list or tuple literal."""
        weigh(container)
        return container

    @staticmethod
    def keyed(pairs: tuple[tuple[Any, Any], ...]) -> dict[Any, Any]:
        """A mapping literal. Keys are texts or small numbers: others could be chosen to collide."""
        for key, _ in pairs:
            if isinstance(key, str) or key is None or (type(key) in _SCALARS and abs(key) < 1 << 60):
                continue
            raise Stop("unsafe", "a key of a mapping must be a text or a number")
        made = dict(pairs)
        weigh(made)
        return made

    @staticmethod
    def seen(value: Any) -> Any:
        """A side of a comparison."""
        if type(value) in _SCALARS:
            charge(0)
        else:
            charge(weigh(value))
        return value

    def concatenated_text(self, pieces: tuple[Any, ...]) -> Any:
        """`a ~ b` in subject and text."""
        return joined([text_of(piece) for piece in pieces])

    def concatenated_html(self, pieces: tuple[Any, ...]) -> Any:
        """`a ~ b` in html: with one safe piece the whole is safe and the rest escaped, as Jinja has it."""
        texts = [piece if hasattr(piece, "__html__") else text_of(piece) for piece in pieces]
        if any(hasattr(piece, "__html__") for piece in texts):
            return Markup(joined([escape(piece) for piece in texts]))  # noqa: S704 - each piece was escaped
        return joined(texts)

    put = staticmethod(put)

    # -- calculating and calling

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - Jinja's
        """Arithmetic, and `+`, `*` and `%` on texts and lists."""
        if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
            charge(0)
            small(left)
            small(right)
            power = operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0
            if power and int(left).bit_length() * right > MAX_BITS * 2:
                raise Stop("too_big", f"an integer of more than {MAX_BITS} bits")
            return small(_OPERATORS[operator](left, right))
        if operator == "%" and isinstance(left, str):
            return methods.percent(left, right)
        current = account.get()
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if isinstance(some, (str, list, tuple)) and isinstance(times, int) and times > 0:
                    current.room(weigh(some) * times)
                    if not isinstance(some, str) and len(some) * times > current.max_nodes:
                        raise Stop("too_big", f"a list of {len(some) * times} members")
        elif operator == "+":
            current.room(weigh(left) + weigh(right))
        return kept(_OPERATORS[operator](left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a block, a recursive loop, or a function on the list."""
        if not isinstance(obj, _CALLABLE):
            if isinstance(obj, Undefined):
                return obj()  # raises, whatever is done with it: names what is missing
            raise SecurityError(f"a {type(obj).__name__} cannot be called")
        current = account.get()
        current.charge(len(args) + len(kwargs))
        if monotonic() > current.deadline:
            current.overdue()
        if current.depth >= MAX_DEPTH:
            raise Stop("too_big", f"more than {MAX_DEPTH} calls within calls")
        if type(obj) is LoopContext:
            args = (Turns(args[0]), *args[1:]) if args else args
        current.depth += 1
        try:
            return context.call(obj, *args, **kwargs)
        finally:
            current.depth -= 1


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        charge(sum(map(weigh, args)))
        return function(*args)

    return run
