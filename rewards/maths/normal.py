"""Answer trees in one form before they are compared: plus-minus as two answers, nested lists as one, a degree sign as a
unit, matrix arithmetic done, named points as their coordinates."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from llmrl.rewards.maths.nodes import Call, Group, Many, Matrix, Name, Node, Num, Quantity, Relation
from llmrl.rewards.maths.values import holds_op, rebuilt

_NOTHING = Num(Fraction(0))  # before the sign of \\pm 4


def _with_sign(node: Node, plus: bool) -> Node:
    """The tree with every plus-minus read one way (minus-plus the other)."""
    node = rebuilt(node, lambda part: _with_sign(part, plus))
    if not isinstance(node, Call) or node.op not in ("pm", "mp"):
        return node
    first, second = node.args
    second = second if plus == (node.op == "pm") else Call("neg", (second,))
    return second if first == _NOTHING else Call("+", (first, second))


def _signs(node: Node) -> tuple[Node, ...]:
    return (_with_sign(node, True), _with_sign(node, False)) if holds_op(node, "pm", "mp") else (node,)


def _point(node: Node) -> Node:
    """P(1, 2) as (1, 2)."""
    match node:
        case Call("*", (Name(name), Group("()", (_, _, *_)) as group)) if len(name) == 1 and name.isupper():
            return group
    return node


def _computed(node: Node) -> Node:
    """-M, c M, M / c and M + N as one matrix; other trees stay as they are."""
    if not isinstance(node, Call) or node.op not in ("neg", "*", "/", "+"):
        return node
    match node.op, [_computed(arg) for arg in node.args]:
        case "*" | "/", [Matrix(), Matrix()]:
            return node
        case "neg", [Matrix() as matrix]:
            return _each(matrix, lambda cell: Call("neg", (cell,)))
        case ("/" | "*", [Matrix() as matrix, scale]) | ("*", [scale, Matrix() as matrix]) if not isinstance(
            scale, (Group, Relation)
        ):
            return _each(matrix, lambda cell: Call(node.op, (cell, scale)))
        case "+", [Matrix() as left, Matrix() as right] if [*map(len, left.rows)] == [*map(len, right.rows)]:
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
    match node:
        case Call("deg", (value,)):
            return Quantity(value, "deg")
        case Call("neg", (Call("deg", args),)):
            return Quantity(Call("neg", args), "deg")
        case Call("/" | "*" | "+" as op, args):  # 360 degrees / 5, 90 degrees - 30 degrees
            sides = [_degrees(arg) for arg in args]
            angles = [isinstance(side, Quantity) and side.unit == "deg" for side in sides]
            if all(angles) if op == "+" else angles.count(True) == 1 and (angles[0] or op == "*"):
                return Quantity(
                    Call(op, tuple(side.value if isinstance(side, Quantity) else side for side in sides)), "deg"
                )
    return node
