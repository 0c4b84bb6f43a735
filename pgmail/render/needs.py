"""Which variables a template certainly needs: those without which every render fails.

A published template stores them, and an email that lacks one is refused when it is handed over, not when it
is rendered. So a name is only given if it is used where nothing can pass it by: printed, iterated, calculated
with, tested, at the top of a page that is rendered for certain. What stands in a branch, a loop, a macro,
under `default` or `is defined` does not count, nor does any name that the template sets anywhere. Too few is
safe; too many would refuse a good email.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jinja2 import nodes

from pgmail.render.pages import Page
from pgmail.render.words import words

_GLOBAL = words(
    "range dict namespace cycler joiner loop self super caller varargs kwargs true false none True False None"
)
_STRICT_FILTERS = words(
    """abs capitalize center count e escape first float forceescape int join last length list lower replace
    reverse round safe sort string striptags sum title trim truncate upper urlencode wordcount
    wordwrap"""
)
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow)


def needs(pages: Mapping[str | None, Page]) -> set[str]:
    """Return the names that a render of the main page, with what it reaches, certainly needs."""
    names = _Names(pages)
    names.main(pages[None])
    stored = {name for page in pages.values() for name in _stored(page.tree)}
    return names.found - stored - _GLOBAL


def _stored(tree: nodes.Template) -> Iterable[str]:
    for node in tree.find_all((nodes.Name, nodes.NSRef, nodes.Macro, nodes.Import, nodes.FromImport)):
        if isinstance(node, nodes.Name):
            if node.ctx != "load":
                yield node.name
        elif isinstance(node, (nodes.NSRef, nodes.Macro)):
            yield node.name
        elif isinstance(node, nodes.Import):
            yield node.target
        elif isinstance(node, nodes.FromImport):
            for name in node.names:
                yield name if isinstance(name, str) else name[1]


class _Names:
    """Walks what certainly runs and collects names."""

    def __init__(self, pages: Mapping[str | None, Page]) -> None:
        self.pages = pages
        self.found: set[str] = set()
        self.seen: set[str] = set()

    def main(self, page: Page) -> None:
        """A page rendered for certain, with the layouts that it extends."""
        blocks: dict[str, list[nodes.Node]] = {}
        while True:
            extends = list(page.tree.find_all(nodes.Extends))
            for block in page.tree.find_all(nodes.Block):
                blocks.setdefault(block.name, block.body)
            if not extends:
                self.statements(page.tree.body, blocks)
                return
            if len(extends) > 1 or extends[0] not in page.tree.body:
                return  # which layout it has is not certain
            target = extends[0].template
            if not isinstance(target, nodes.Const):
                return
            page = self.pages[target.value]

    def statements(self, body: Iterable[nodes.Node], blocks: Mapping[str, list[nodes.Node]]) -> None:
        """Statements that run for certain, once or more."""
        for node in body:
            if isinstance(node, nodes.Output):
                for child in node.nodes:
                    self.used(child)
            elif isinstance(node, nodes.If):
                self.used(node.test)
            elif isinstance(node, nodes.For):
                self.used(node.iter)
            elif isinstance(node, nodes.Assign):
                self.evaluated(node.node)
            elif isinstance(node, (nodes.AssignBlock, nodes.FilterBlock)):
                self.statements(node.body, blocks)
            elif isinstance(node, nodes.With):
                for value in node.values:
                    self.evaluated(value)
                self.statements(node.body, blocks)
            elif isinstance(node, nodes.CallBlock):
                self.evaluated(node.call)
            elif isinstance(node, nodes.Block):
                # Nested blocks shrink the map, so that a block that names itself in an override ends.
                rest = {name: block for name, block in blocks.items() if name != node.name}
                self.statements(blocks.get(node.name, []), rest)
            elif isinstance(node, nodes.Include) and node.with_context and not node.ignore_missing:
                included = node.template.value if isinstance(node.template, nodes.Const) else None
                if included in self.pages and included is not None:
                    self.included(included)

    def included(self, name: str) -> None:
        """A page that is included for certain; once is enough, however many times it is."""
        if name not in self.seen:
            self.seen.add(name)
            self.main(self.pages[name])

    def used(self, node: nodes.Node) -> None:
        """An expression whose value is printed, tested or calculated with: undefined fails."""
        if isinstance(node, nodes.Name):
            self.found.add(node.name)
        elif isinstance(node, nodes.Filter):
            if node.name in _STRICT_FILTERS and node.node is not None:
                self.used(node.node)
            else:
                self.evaluated(node)
        else:
            self.evaluated(node)

    def evaluated(self, node: nodes.Node) -> None:
        """An expression that is evaluated, whatever happens to its value."""
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            self.used(node.node)  # looking into what is undefined fails
            return
        if isinstance(node, nodes.Filter):
            if node.name in _STRICT_FILTERS:
                self.used(node)
            return  # `default` and the like: nothing below it is certain
        if isinstance(node, nodes.Concat):
            for child in node.nodes:
                self.used(child)
        elif isinstance(node, _ARITHMETIC):
            self.used(node.left)
            self.used(node.right)
        elif isinstance(node, (nodes.Neg, nodes.Pos, nodes.Not)):
            self.used(node.node)
        elif isinstance(node, (nodes.And, nodes.Or)):
            self.used(node.left)  # the right side may never be looked at
        elif isinstance(node, nodes.CondExpr):
            self.used(node.test)
        elif isinstance(node, nodes.Compare):
            # `x in []` never looks at x; what is searched is always looked at.
            self.used(node.ops[0].expr if node.ops[0].op in ("in", "notin") else node.expr)
        elif isinstance(node, nodes.Call):
            self.used(node.node)
            for child in (*node.args, *(pair.value for pair in node.kwargs)):
                self.evaluated(child)
        elif isinstance(node, (nodes.List, nodes.Tuple)):
            for child in node.items:
                self.evaluated(child)
