"""One page: the source of one part of one template, parsed, checked, and what other pages it reaches.

What can go wrong: a source made to be slow to compile. Its length, its tokens and the depth of its tree are
bounded; a template that reaches itself, however far around, is refused here and not at the recursion limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isinf
from typing import NamedTuple

from jinja2 import TemplateSyntaxError, nodes

from pgmail.errors import TemplateFault
from pgmail.render.bounds import MAX_BITS, Stop
from pgmail.render.codegen import KNOWN_NODES
from pgmail.render.sandbox import Sandbox

MAX_SOURCE = 1_000_000
"""Characters of one page."""
MAX_NESTING = 80
"""Depth of a page's tree: Python's own compiler gives up not far beyond."""

_SETTINGS = ("EvalContextModifier", "Scope", "ScopedEvalContextModifier")


class Reference(NamedTuple):
    """A page that another one reaches. `optional`: `ignore missing`, or one of several."""

    name: str
    line: int
    optional: bool


class Page(NamedTuple):
    """A parsed and checked page."""

    name: str | None  # None is the main one
    tree: nodes.Template
    references: tuple[Reference, ...]


def is_literal(source: str) -> bool:
    """Tell whether a source has no template syntax in it, so that it renders to itself."""
    return "{" not in source or not ("{{" in source or "{%" in source or "{#" in source)


def fault(kind: str, part: str, name: str | None, message: str, line: int | None = None) -> TemplateFault:
    """A fault that says which template it was found in, if not in the main one."""
    return TemplateFault(kind, part, message if name is None else f"{message} (template {name!r})", line)


def parse(sandbox: Sandbox, part: str, name: str | None, source: str) -> Page:
    """Parse and check a page. Raises TemplateFault: `syntax`, `too_big`, `unsafe`."""
    if len(source) > MAX_SOURCE:
        raise fault("too_big", part, name, f"a template of more than {MAX_SOURCE} characters")
    try:
        sandbox.meter.source(len(source))
        tree = sandbox.parse(source)
    except TemplateSyntaxError as error:
        raise fault("syntax", part, name, error.message or "bad syntax", error.lineno) from error
    except Stop as error:
        raise fault(error.kind, part, name, str(error)) from error
    except RecursionError as error:
        raise fault("too_big", part, name, "nested too deep") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise fault("syntax", part, name, str(error)) from error
    return Page(name, tree, tuple(_check(sandbox, part, name, tree)))


def measure(sandbox: Sandbox, part: str, source: str) -> None:
    """Read a page's tokens and build nothing of them. Raises TemplateFault as `parse`, but for its grammar."""
    if len(source) > MAX_SOURCE:
        raise fault("too_big", part, None, f"a template of more than {MAX_SOURCE} characters")
    try:
        sandbox.meter.source(len(source))
        for _ in sandbox.tokens(source):
            pass
    except TemplateSyntaxError as error:
        raise fault("syntax", part, None, error.message or "bad syntax", error.lineno) from error
    except Stop as error:
        raise fault(error.kind, part, None, str(error)) from error
    except ValueError as error:
        raise fault("syntax", part, None, str(error)) from error


def _check(sandbox: Sandbox, part: str, name: str | None, tree: nodes.Template) -> Iterator[Reference]:
    level: list[nodes.Node] = [tree]
    depth = 0
    while level:
        if depth > MAX_NESTING:
            raise fault("too_big", part, name, f"nested deeper than {MAX_NESTING}", level[0].lineno)
        for node in level:
            kind = type(node).__name__
            if kind in _SETTINGS:
                line = next((child.lineno for child in node.iter_child_nodes()), node.lineno)
                raise fault("syntax", part, name, "autoescape cannot be changed", line)
            if kind not in KNOWN_NODES:
                raise fault("syntax", part, name, f"{kind} is not supported", node.lineno)
            if isinstance(node, (nodes.Filter, nodes.Test)):
                known = sandbox.filters if isinstance(node, nodes.Filter) else sandbox.tests
                if node.name not in known:
                    raise fault(
                        "syntax", part, name, f"there is no {kind.lower()} {node.name!r}", node.lineno
                    )
            elif isinstance(node, nodes.Const):
                if isinstance(node.value, int) and node.value.bit_length() > MAX_BITS:
                    raise fault("too_big", part, name, f"an integer of over {MAX_BITS} bits", node.lineno)
                if isinstance(node.value, float) and isinf(node.value):
                    raise fault("syntax", part, name, "a number too large to calculate with", node.lineno)
            elif isinstance(node, (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
                yield from _references(part, name, node)
        level = [child for node in level for child in node.iter_child_nodes()]
        depth += 1


def _references(
    part: str, name: str | None, node: nodes.Extends | nodes.Include | nodes.Import | nodes.FromImport
) -> Iterator[Reference]:
    target = node.template
    several = isinstance(target, (nodes.Tuple, nodes.List)) and isinstance(node, nodes.Include)
    optional = several or (isinstance(node, nodes.Include) and node.ignore_missing)
    for item in target.items if isinstance(target, (nodes.Tuple, nodes.List)) and several else [target]:
        if not isinstance(item, nodes.Const) or not isinstance(item.value, str):
            verb = type(node).__name__.lower().removeprefix("from")
            raise fault("syntax", part, name, f"{verb} needs the name of a template in quotes", node.lineno)
        yield Reference(item.value, node.lineno, optional)


def reach(
    sandbox: Sandbox, part: str, source: str, others: Mapping[str, str | None]
) -> dict[str | None, Page]:
    """Parse the main page and every page it reaches. Raises TemplateFault, `unknown_template` among them."""
    pages: dict[str | None, Page] = {None: parse(sandbox, part, None, source)}
    # Depth first, with the way that led to each page, so that a circle is found where it closes.
    stack: list[tuple[str | None, Iterator[Reference]]] = [(None, iter(pages[None].references))]
    while stack:
        here, references = stack[-1]
        step = next(references, None)
        if step is None:
            stack.pop()
            continue
        if any(step.name == name for name, _ in stack):
            raise fault("unsafe", part, here, f"template {step.name!r} reaches itself", step.line)
        text = others.get(step.name)
        if text is None:
            if step.optional:
                continue
            known = f"has no {part}" if step.name in others else "does not exist"
            raise fault("unknown_template", part, here, f"template {step.name!r} {known}", step.line)
        if step.name not in pages:  # else all that it reaches has been seen to end
            pages[step.name] = parse(sandbox, part, step.name, text)
            stack.append((step.name, iter(pages[step.name].references)))
    return pages
