"""Jinja's compiler, writing guarded code: what a template does goes through the environment that counts it.

Jinja's sandbox guards attributes, calls and arithmetic. Here iteration, concatenation, comparison, slices,
list and mapping literals and output are guarded as well, and nothing is evaluated at compile time.

Method names are those of Jinja's visitor.

What can go wrong: a node type that a new Jinja adds would be compiled unguarded. `KNOWN_NODES` lists what has
been looked at; a template that uses anything else is refused.
"""

from __future__ import annotations

from typing import Any

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


def _constant(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const)


class GuardedCode(CodeGenerator):
    """Writes calls of the environment (`turns`, `seen`, `made`, `printed_html` ...) around expressions."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, _node: nodes.Expr, frame: Frame, _finalize: Any) -> None:
        self.write(f"environment.printed_{'html' if frame.eval_ctx.autoescape else 'text'}(")

    def _output_child_post(self, _node: nodes.Expr, _frame: Frame, _finalize: Any) -> None:
        self.write(")")

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
