"""Jinja's compiler, writing guarded code: what a template does goes through the environment that counts it.

Jinja's sandbox guards attributes, calls and arithmetic. Here iteration, concatenation, comparison, slices,
list and mapping literals and output are guarded as well, and nothing is evaluated at compile time.

Method names are those of Jinja's visitor.

What can go wrong: a node type that a new Jinja adds would be compiled unguarded. `KNOWN_NODES` lists what has
been looked at; a template that uses anything else is refused.
"""

from __future__ import annotations

from collections import Counter

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from pgmail.render.words import words

KNOWN_NODES = words(
    """Add And Assign AssignBlock Block Call CallBlock Compare Concat CondExpr Const Dict Div ExprStmt Extends
    Filter FilterBlock FloorDiv For FromImport Getattr Getitem If Import Include Keyword List Macro Mod Mul
    NSRef Name Neg Not Operand Or Output Pair Pos Pow Slice Sub Template TemplateData Test Tuple
    With"""
)
"""Types of nodes that a template may contain."""

_TURNS = "turns"


_MOST_PIECES = 200
"""Pieces that are put together at once: what they come to is charged after that many at the latest."""


def _constant(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const)


def _pieces(node: nodes.Output) -> list[str | nodes.Expr]:
    """Return what an output is made of: literal texts, joined where they touch, and expressions."""
    pieces: list[str | nodes.Expr] = []
    for child in node.nodes:
        if not isinstance(child, nodes.TemplateData):
            pieces.append(child)
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += child.data
        else:
            pieces.append(child.data)
    return pieces


class GuardedCode(CodeGenerator):
    """Writes calls of the environment (`turns`, `seen`, `made`, `put` ...) around expressions."""

    def write_commons(self) -> None:
        """Give each function of a page short names for what prints."""
        super().write_commons()
        self.writeline("put = environment.put")
        self.writeline("printed = environment.printed")

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802
        """Write what stands between two statements as few calls of `put`, each with a tuple of pieces.

        Measured, with a page of 45 outputs of one name: Jinja's way, a `yield` for each piece and a charge
        for each value, took 50 us; this takes 4. Each piece has a line of its own, so that a fault knows its
        own.
        """
        if frame.require_output_check:  # what stands outside of blocks is not shown if there is a layout
            if self.has_known_extends:
                return
            self.writeline("if parent_template is None:")
            self.indent()
        pieces = _pieces(node)
        for at in range(0, len(pieces), _MOST_PIECES):
            self._put(pieces[at : at + _MOST_PIECES], frame)
        if frame.require_output_check:
            self.outdent()

    def _put(self, pieces: list[str | nodes.Expr], frame: Frame) -> None:
        call = "yield " if frame.buffer is None else f"{frame.buffer}.append("
        end = "" if frame.buffer is None else ")"
        if len(pieces) == 1 and isinstance(pieces[0], str):
            self.writeline(f"{call}{pieces[0]!r}{end}")
            return
        self.writeline(f"{call}put((")
        self.indent()
        uses = Counter(piece.name for piece in pieces if isinstance(piece, nodes.Name))
        held: dict[str, str] = {}  # no expression can give a name another value: print it once
        for piece in pieces:
            if isinstance(piece, str):
                self.writeline(f"{piece!r},")
                continue
            self.newline(piece)
            name = piece.name if isinstance(piece, nodes.Name) else None
            if name in held:
                self.write(f"{held[name]},")
                continue
            if name is not None and uses[name] > 1:
                held[name] = self.temporary_identifier()
                self.write(f"({held[name]} := printed(")
                self.visit(piece, frame)
                self.write(")),")
            else:
                self.write("printed(")
                self.visit(piece, frame)
                self.write("),")
        self.outdent()
        shape = tuple([piece if isinstance(piece, str) else None for piece in pieces])
        self.writeline(f"), {shape!r}){end}")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        """Look at the clock on each turn."""
        iterated = node.iter
        wrapped = nodes.Call(
            nodes.EnvironmentAttribute(_TURNS), [node.iter], [], None, None, lineno=node.lineno
        )
        node.iter = wrapped.set_environment(self.environment)
        super().visit_For(node, frame)
        node.iter = iterated  # others read the tree after us

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        """Write the wrapper of a loop directly: it is ours, not the template's to call."""
        if isinstance(node.node, nodes.EnvironmentAttribute):
            self.write(f"environment.{node.node.name}(")
            self.visit(node.args[0], frame)
            self.write(")")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Check the size of `a ~ b`."""
        kind = "html" if frame.eval_ctx.autoescape else "text"
        self.write(f"environment.concatenated_{kind}((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        """Charge for what is compared."""
        self.write("(")
        self._seen(node.expr, frame)
        for op in node.ops:
            self.visit(op, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802
        """Charge for what is compared with."""
        words = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in"}
        self.write(f" {words.get(node.op, 'not in')} ")
        self._seen(node.expr, frame)

    def _seen(self, node: nodes.Expr, frame: Frame) -> None:
        if _constant(node):
            self.visit(node, frame)
        else:
            self.write("environment.seen(")
            self.visit(node, frame)
            self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """Weigh a list literal."""
        guarded = not all(map(_constant, node.items))
        self.write("environment.made(" if guarded else "")
        super().visit_List(node, frame)
        self.write(")" if guarded else "")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """Weigh a tuple literal; a tuple of targets is none."""
        guarded = node.ctx == "load" and not all(map(_constant, node.items))
        self.write("environment.made(" if guarded else "")
        super().visit_Tuple(node, frame)
        self.write(")" if guarded else "")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Build a mapping literal from pairs, so that its keys are looked at before they are hashed."""
        self.write("environment.keyed((")
        for item in node.items:
            self.write("(")
            self.visit(item.key, frame)
            self.write(", ")
            self.visit(item.value, frame)
            self.write("), ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        """Check the size of a slice."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if bound is None:
                self.write("None")
            else:
                self.visit(bound, frame)
        self.write(")")
