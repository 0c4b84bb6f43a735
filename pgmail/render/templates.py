"""Templates: compiled once, rendered within bounds for each mail.

A `Bundle` is a template with all that it reaches by `extends`, `include` and `import`. Each part (subject,
text, html) is a world of its own: in the html part "layout" means `others["layout"].html`. HTML is
autoescaped, text and subject are not; the values of variables are never taken for templates.

What can go wrong, and the `kind` of the TemplateFault that says so: `syntax`, `unknown_template`,
`missing_variable`, `unsafe` (something forbidden; a line end in a subject), `too_slow`, `too_big`, and
`error` for all other mistakes of a template, such as adding a number to a text. No other exception comes out
of here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Final

import msgspec
from jinja2 import Template, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError

from pgmail.errors import TemplateFault
from pgmail.render.bounds import MAX_NODES, Account, Stop, account, joined
from pgmail.render.meter import MAX_SOURCES, MAX_TOKENS, Meter
from pgmail.render.needs import needs
from pgmail.render.output import traced
from pgmail.render.pages import Page, fault, is_literal, measure, parse, reach
from pgmail.render.sandbox import GLOBALS, Sandbox
from pgmail.render.textplan import Printed, TextPlans
from pgmail.render.totext import text_from_html

PARTS: Final = ("subject", "text", "html")
SECONDS: Final = 0.25
"""How long one render of all parts may compute, unless told otherwise; waiting for a processor is free."""
MAX_CHARS: Final = 5_000_000
"""How many characters one part may come to, unless told otherwise."""

QUICK_TOKENS: Final = 1_500
QUICK_SOURCE: Final = 150_000
"""Tokens and characters of a template that are compiled while others wait: a tenth of a second at worst."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Source(msgspec.Struct, frozen=True):
    """The sources of one template. A part that is None does not exist."""

    subject: str | None = None
    text: str | None = None
    html: str | None = None


class Bundle(msgspec.Struct, frozen=True):
    """A template and, by name, those it may reach. Names it does not reach cost nothing."""

    main: Source
    others: dict[str, Source] = {}


class Rendered(msgspec.Struct, frozen=True):
    """What a render made: the parts that the template has."""

    subject: str | None
    text: str | None
    html: str | None


class Compiled:
    """A bundle ready to render; threads may share it. `cost_bytes` estimates its memory."""

    __slots__ = ("_html", "_plans", "_subject", "_text", "cost_bytes")

    def __init__(
        self,
        subject: str | Template | None,
        text: str | Template | None,
        html: str | Template | None,
        cost: int,
        plans_chars: int = 0,
    ) -> None:
        self._subject = subject
        self._text = text
        self._html = html
        self._plans = TextPlans(plans_chars)
        self.cost_bytes = cost

    def render(
        self,
        variables: Mapping[str, object],
        *,
        seconds: float = SECONDS,
        max_chars: int = MAX_CHARS,
        max_nodes: int = MAX_NODES,
        with_text: bool = False,
    ) -> Rendered:
        """Render all parts with `variables` (plain data, as JSON has it), within one budget for all of them.

        `with_text`: as `complete` does, but in a fraction of its time where the text can be put together from
        what the HTML was. Raises TemplateFault.
        """
        names = {**GLOBALS, **variables}
        token = account.set(Account(seconds, max_chars, max_nodes))
        try:
            subject = _render("subject", self._subject, names)
            if subject is not None and not subject.isprintable() and _CONTROL.search(subject):
                raise TemplateFault(
                    "unsafe", "subject", "a subject must not hold line ends or control characters"
                )
            text = _render("text", self._text, names)
            if not with_text or text is not None or not isinstance(self._html, Template):
                rendered = Rendered(subject, text, _render("html", self._html, names))
                return complete(rendered) if with_text else rendered
            html, printed = _traced("html", self._html, names)
        finally:
            account.reset(token)
        text = self._plans.text(printed)
        return Rendered(subject, text_from_html(html) if text is None else text, html)


def _render(part: str, page: str | Template | None, names: dict[str, object]) -> str | None:
    if page is None or isinstance(page, str):
        return page
    try:
        # `shared`: nothing writes to `names`, so all parts read the same mapping.
        return joined(page.root_render_func(page.new_context(names, shared=True)))
    except Exception as error:
        raise _runtime_fault(part, error) from error


def _traced(part: str, page: Template, names: dict[str, object]) -> tuple[str, list[Printed]]:
    try:
        return traced(page.root_render_func(page.new_context(names, shared=True)))
    except Exception as error:
        raise _runtime_fault(part, error) from error


def _runtime_fault(part: str, error: Exception) -> TemplateFault:
    name, line = _place(error.__traceback__)
    if isinstance(error, Stop):
        return fault(error.kind, part, name, str(error), line)
    if isinstance(error, UndefinedError):
        return fault("missing_variable", part, name, error.message or "a variable is missing", line)
    if isinstance(error, SecurityError):
        return fault("unsafe", part, name, error.message or "not allowed", line)
    if isinstance(error, TemplateNotFound):
        return fault("unknown_template", part, name, f"template {error.message!r} does not exist", line)
    if isinstance(error, RecursionError):
        return fault("too_big", part, name, "calls within calls, too deep", line)
    if isinstance(error, MemoryError):
        return fault("too_big", part, name, "not enough memory", line)
    return fault("error", part, name, f"{error} ({type(error).__name__})", line)


def _place(trace: TracebackType | None) -> tuple[str | None, int | None]:
    """Return the template and the line in it that an exception passed last."""
    name: str | None = None
    line: int | None = None
    while trace is not None:
        page = trace.tb_frame.f_globals.get("__jinja_template__")
        if page is not None:
            name, line = page.name, page.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return name, line


def compile_bundle(
    bundle: Bundle, *, most_tokens: int = MAX_TOKENS, most_source: int = MAX_SOURCES
) -> Compiled:
    """Compile the main template and what it reaches, if that is no more than so many tokens and characters.

    Raises TemplateFault.
    """
    meter = Meter(most_tokens, most_source)
    subject, text, html = (_compile_part(part, bundle.main, bundle.others, meter) for part in PARTS)
    # Room for how a missing text part is made from the HTML: several times what the template prints once.
    plans = 2 * html[2] if text[0] is None and isinstance(html[0], Template) else 0
    return Compiled(subject[0], text[0], html[0], 2_000 + subject[2] + text[2] + html[2] + plans, plans)


def _compile_part(
    part: str, main: Source, others: Mapping[str, Source], meter: Meter
) -> tuple[str | Template | None, dict[str | None, Page], int]:
    source: str | None = getattr(main, part)
    if source is None or is_literal(source):
        return source, {}, len(source or "")
    sandbox = Sandbox(html=part == "html", keep_trailing_newline=part != "subject", meter=meter)
    sources: dict[str, str | None] = {name: getattr(other, part) for name, other in others.items()}
    pages = reach(sandbox, part, source, sources)
    for name, page in pages.items():
        if name is not None:
            sandbox.pages[name] = _compile(sandbox, part, page)
    # Measured: code, constants and line tables take about ten times the source, an environment 20 kB.
    size = 20_000 + 10 * sum(len(source if name is None else sources[name] or "") for name in pages)
    return _compile(sandbox, part, pages[None]), pages, size


def _compile(sandbox: Sandbox, part: str, page: Page) -> Template:
    try:
        code = sandbox.compile(page.tree, page.name, "<template>")
    except TemplateSyntaxError as error:
        raise fault("syntax", part, page.name, error.message or "bad syntax", error.lineno) from error
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        # Python's own limits: blocks nested over 20 deep, and the like.
        raise fault("too_big", part, page.name, f"too complex to compile: {error}") from error
    except ValueError as error:
        raise fault("syntax", part, page.name, str(error)) from error
    return sandbox.template_class.from_code(sandbox, code, GLOBALS)


def check_source(
    source: Source, others: Mapping[str, Source], *, meter: Meter | None = None
) -> frozenset[str]:
    """Compile all of it and return the variables without which a render certainly fails.

    Raises TemplateFault for whatever compiling would. The names are those of all parts together, since all of
    them are rendered; see `needs` for what counts.
    """
    found: set[str] = set()
    meter = meter or Meter()
    for part in PARTS:
        _, pages, _ = _compile_part(part, source, others, meter)
        if pages:
            found |= needs(pages)
    return frozenset(found)


def check_between(source: Source) -> frozenset[str]:
    """As `check_source`, between other requests, which wait meanwhile: what is large is counted and not compiled.

    Of those nothing is known but that they are not too large for a worker, and none of their names is returned.
    """
    meter = Meter(QUICK_TOKENS, QUICK_SOURCE)
    try:
        return check_source(source, {}, meter=meter)
    except TemplateFault:
        if not meter.spent:
            raise
    meter = Meter()
    for part in PARTS:
        text: str | None = getattr(source, part)
        if text is not None and not is_literal(text):
            measure(Sandbox(html=part == "html", keep_trailing_newline=True, meter=meter), part, text)
    return frozenset()


def referenced(source: Source) -> frozenset[str]:
    """Return the names of the templates that this one itself extends, includes or imports, in any part.

    Raises TemplateFault for bad syntax, and where a name is not a constant.
    """
    names: set[str] = set()
    for part in PARTS:
        text: str | None = getattr(source, part)
        if text is not None and not is_literal(text):
            sandbox = Sandbox(html=part == "html", keep_trailing_newline=part != "subject")
            names.update(reference.name for reference in parse(sandbox, part, None, text).references)
    return frozenset(names)


def complete(rendered: Rendered) -> Rendered:
    """Add a text part made from the HTML where there is none."""
    html = rendered.html
    if rendered.text is not None or html is None:
        return rendered
    text = _repeated_text(html) if len(html) <= _MAX_REPEATED else text_from_html(html)
    return Rendered(rendered.subject, text, html)


_MAX_REPEATED = 65_536  # characters of an HTML whose text is kept
_repeated_text = lru_cache(maxsize=32)(
    text_from_html
)  # a mailing without variables has one HTML for everyone
