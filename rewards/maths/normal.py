"""Answer trees in one form before they are compared: plus-minus as two answers, nested lists as one, a degree sign as a
unit, matrix arithmetic done, named points as their coordinates."""

from __future__ import annotations

from collections.abc import Callable

from llmrl.rewards.maths.nodes import Call, Group, Many, Matrix, Name, Node, Num, Quantity, Relation
from llmrl.rewards.maths.values import children


def _has_pm(node: Node) -> bool:
    return (isinstance(node, Call) and node.op in ("pm", "mp")) or any(_has_pm(child) for child in children(node))


def _with_sign(node: Node, plus: bool) -> Node:
    """The tree with every plus-minus read one way (minus-plus the other)."""
    if isinstance(node, Call):
        args = tuple(_with_sign(arg, plus) for arg in node.args)
        if node.op in ("pm", "mp"):
            positive = plus == (node.op == "pm")
            first = args[0] if not isinstance(args[0], Num) or args[0].value else None
            second = args[1] if positive else Call("neg", (args[1],))
            return second if first is None else Call("+", (first, second))
        return Call(node.op, args)
    if isinstance(node, Relation):
        return Relation(tuple(_with_sign(side, plus) for side in node.sides), node.ops)
    if isinstance(node, Group):
        return Group(node.kind, tuple(_with_sign(item, plus) for item in node.items))
    if isinstance(node, Quantity):
        return Quantity(_with_sign(node.value, plus), node.unit)
    return node


def _signs(node: Node) -> tuple[Node, ...]:
    return (_with_sign(node, True), _with_sign(node, False)) if _has_pm(node) else (node,)


def _point(node: Node) -> Node:
    """P(1, 2) as (1, 2)."""
    if isinstance(node, Call) and node.op == "*":
        name, group = node.args
        named = isinstance(name, Name) and len(name.text) == 1 and name.text.isupper()
        if named and isinstance(group, Group) and group.kind == "()" and len(group.items) > 1:
            return group
    return node


def _computed(node: Node) -> Node:
    """-M, c M, M / c and M + N as one matrix; other trees stay as they are."""
    if not isinstance(node, Call) or node.op not in ("neg", "*", "/", "+"):
        return node
    args = [_computed(arg) for arg in node.args]
    matrices = [arg for arg in args if isinstance(arg, Matrix)]
    if node.op == "neg" and matrices:
        return _each(matrices[0], lambda cell: Call("neg", (cell,)))
    if node.op == "/" and isinstance(args[0], Matrix) and len(matrices) == 1:
        return _each(args[0], lambda cell: Call("/", (cell, args[1])))
    if node.op == "*" and len(matrices) == 1:
        scale = args[1] if isinstance(args[0], Matrix) else args[0]
        return (
            node if isinstance(scale, (Group, Relation)) else _each(matrices[0], lambda cell: Call("*", (scale, cell)))
        )
    if node.op == "+" and len(matrices) == 2:
        left, right = matrices
        if len(left.rows) == len(right.rows) and len(left.rows[0]) == len(right.rows[0]):
            rows = zip(left.rows, right.rows)
            return Matrix(tuple(tuple(Call("+", pair) for pair in zip(x, y)) for x, y in rows))
    return node


def _each(matrix: Matrix, change: Callable[[Node], Node]) -> Matrix:
    return Matrix(tuple(tuple(change(cell) for cell in row) for row in matrix.rows))


def spread(node: Node) -> Node:
    """The form described above."""
    node = _computed(_point(node))
    items = tuple(_computed(_point(item)) for item in node.items) if isinstance(node, Many) else (node,)
    flat: list[Node] = []
    for item in items:
        for one in _signs(item):
            flat.extend(one.items if isinstance(one, Many) else (one,))
    if len(flat) == 1:
        return _degrees(flat[0])
    if isinstance(node, Group) and node.kind == "{}":
        return Group("{}", tuple(item for one in node.items for item in _signs(one)))
    return Many(tuple(_degrees(item) for item in flat), node.joint if isinstance(node, Many) else "or")


def _degrees(node: Node) -> Node:
    if isinstance(node, Call) and node.op == "deg":
        return Quantity(node.args[0], "deg")
    if isinstance(node, Call) and node.op == "neg" and isinstance(node.args[0], Call) and node.args[0].op == "deg":
        return Quantity(Call("neg", node.args[0].args), "deg")
    return node
