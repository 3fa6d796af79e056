"""Sets of real numbers for the maths checker: intervals, unions, inequalities and conditions in one normal form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

from llmrl.rewards.maths.nodes import Call, Group, Many, Name, Node, Num, Relation
from llmrl.rewards.maths.scalars import NeedsWorker, infinity_sign
from llmrl.rewards.maths.values import CONSTANTS, Numeric, Undefined, children, names, rational, substitute

_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_INF = float("inf")
Interval = tuple[Any, bool, Any, bool]  # low, low is open, high, high is open


@dataclass(frozen=True, slots=True)
class RealSet:
    """Disjoint intervals in order; `name` is the variable of the inequality, "" if none was written."""

    intervals: tuple[Interval, ...]
    name: str = ""


def speaks_of_a_set(node: Node) -> bool:
    """Whether the tree can only be meant as a set of reals."""
    if isinstance(node, Relation):
        return any(op in ("<", "<=", ">", ">=", "!=", "in") for op in node.ops)
    if isinstance(node, Call):
        return node.op in ("cup", "cap", "minus") or _taken_away(node) is not None
    if isinstance(node, Group):
        ends = [infinity_sign(item) for item in node.items]
        return node.kind in ("(]", "[)") or (node.kind == "()" and len(ends) == 2 and any(ends))
    if isinstance(node, Many):
        return any(speaks_of_a_set(item) for item in node.items)
    return isinstance(node, Name) and node.text == "bbR"


def closed_at_infinity(node: Node) -> bool:
    """Whether an end at infinity is written as if it belonged to the set: [3, oo]."""
    if isinstance(node, Group) and len(node.items) == 2:
        return any(node.kind[i] == "[]"[i] and infinity_sign(node.items[i]) != 0 for i in (0, 1))
    return any(closed_at_infinity(child) for child in children(node))


def _taken_away(node: Call) -> Call | None:
    """R - {1} as a difference of sets, None if the tree is anything else."""
    if node.op != "+" or not isinstance(node.args[0], Name) or node.args[0].text != "bbR":
        return None
    right = node.args[1]
    taken = right.args[0] if isinstance(right, Call) and right.op == "neg" else None
    return Call("minus", (node.args[0], taken)) if isinstance(taken, Group) and taken.kind == "{}" else None


def _end(node: Node, heavy: bool) -> Any:
    sign = infinity_sign(node)
    if sign:
        return sign * _INF
    exact = rational(node)
    if exact is not None:
        return exact
    if not heavy:
        raise NeedsWorker
    numeric = Numeric(240)
    value = numeric.value(node)
    if abs(numeric.mp.im(value)) > 0:
        raise Undefined("an end that is not real")
    if abs(value) < numeric.mp.mpf(10) ** -220:
        return Fraction(0)
    # A Fraction of 200 digits, so that ends compare exactly with each other and with rational ones.
    return Fraction(numeric.mp.nstr(numeric.mp.re(value), 200))


def _interval(low: Any, low_open: bool, high: Any, high_open: bool) -> tuple[Interval, ...]:
    if low > high or (low == high and (low_open or high_open)):
        return ()
    return ((low, low_open or low == -_INF, high, high_open or high == _INF),)


def _union(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    out: list[Interval] = []
    for low, low_open, high, high_open in sorted(intervals, key=lambda i: (i[0], i[1])):
        if out:
            a, a_open, b, b_open = out[-1]
            if low < b or (low == b and not (low_open and b_open)):
                if high > b or (high == b and not high_open):
                    out[-1] = (a, a_open, high, high_open)
                continue
        out.append((low, low_open, high, high_open))
    return tuple(out)


def _complement(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    out: list[Interval] = []
    low, low_open = -_INF, True
    for a, a_open, b, b_open in intervals:
        out.extend(_interval(low, low_open, a, not a_open))
        low, low_open = b, not b_open
    if low != _INF:
        out.extend(_interval(low, low_open, _INF, True))
    return tuple(out)


def _intersection(a: Sequence[Interval], b: Sequence[Interval]) -> tuple[Interval, ...]:
    return _complement(_union((*_complement(_union(a)), *_complement(_union(b)))))


def _variable(node: Node) -> str:
    """The name of x or f(x), "" for anything else."""
    if isinstance(node, Call) and node.op == "*" and isinstance(node.args[0], Name):
        name, argument = _variable(node.args[0]), _variable(node.args[1])
        return f"{name}({argument})" if len(name) == 1 and argument else ""
    return node.text if isinstance(node, Name) and node.text not in CONSTANTS else ""


def _from_relation(node: Relation, heavy: bool) -> RealSet | None:
    """x < 3, 3 > x, 1 < x <= 2, x != 2, x in S. None if it is not solved for one variable."""
    if node.ops == ("in",):
        name, inner = _variable(node.sides[0]), real_set(node.sides[1], heavy=heavy)
        return RealSet(inner.intervals, name) if name and inner is not None and not inner.name else None
    ways = {op[0] for op in node.ops}
    if not set(node.ops) <= set(_FLIP) or len(node.ops) > 2 or (len(node.ops) == 2 and ways not in ({"<"}, {">"})):
        return None
    found = []
    for left, op, right in zip(node.sides, node.ops, node.sides[1:]):
        ray = None if names(right) else _ray(left, op, right, heavy)
        found.append(ray or (None if names(left) else _ray(right, _FLIP[op], left, heavy)))
    known = [ray for ray in found if ray is not None]
    if len(known) < len(found) or len({ray.name for ray in known}) != 1:
        return None
    return RealSet(reduce(_intersection, (ray.intervals for ray in known)), known[0].name)


def _absolute(inner: Node, op: str, bound: Fraction | None) -> RealSet | None:
    """|a x + b| < c and its relatives, for rational a, b and c; None for any other inside."""
    symbols = names(inner)
    if len(symbols) != 1 or bound is None or bound < 0:
        return None
    (name,) = symbols
    at = [rational(substitute(inner, name, Num(Fraction(x)))) for x in (0, 1, 2, 7)]
    b, one = at[0], at[1]
    if b is None or one is None or one == b or at[2:] != [2 * one - b, 7 * one - 6 * b]:
        return None
    low, high = sorted(((-bound - b) / (one - b), (bound - b) / (one - b)))
    strict = op in ("<", ">=")
    inside = _interval(low, strict, high, strict)
    if op in ("=", "!="):
        ends = _union([(low, False, low, False), (high, False, high, False)])
        return RealSet(ends if op == "=" else _complement(ends), name)
    return RealSet(inside if op in ("<", "<=") else _complement(inside), name)


def _ray(side: Node, op: str, bound: Node, heavy: bool) -> RealSet | None:
    """x < 3, -x < 3 and |2 x + 1| < 3 as sets; None for another left side."""
    match side:
        case Call("abs", (inner,)):
            return _absolute(inner, op, rational(bound))
        case Call("neg", (inner,)) if _variable(inner):
            return _ray(inner, _FLIP[op], Call("neg", (bound,)), heavy)
    if not (name := _variable(side)):
        return None
    end = _end(bound, heavy)
    if op in ("=", "!="):
        point = _interval(end, False, end, False)
        return RealSet(point if op == "=" else _complement(point), name)
    below = op[0] == "<"
    return RealSet(_interval(-_INF if below else end, op == ">", end if below else _INF, op == "<"), name)


def real_set(node: Node, *, heavy: bool) -> RealSet | None:
    """The set of reals a tree means, None if it means none (a variable in an end, a condition that is not solved).

    Raises NeedsWorker if `heavy` is False and an end is irrational.
    """
    if isinstance(node, Relation):
        return _from_relation(node, heavy)
    if isinstance(node, Name):
        return RealSet(((-_INF, True, _INF, True),)) if node.text == "bbR" else None
    if isinstance(node, Group):
        if names(node):
            return None
        if node.kind == "{}":
            ends = [_end(item, heavy) for item in node.items]
            return RealSet(_union([(e, False, e, False) for e in ends]))
        if len(node.items) != 2 or node.kind == "<>":
            return None
        low, high = (_end(item, heavy) for item in node.items)
        return RealSet(_interval(low, node.kind[0] == "(", high, node.kind[1] == ")"))
    if isinstance(node, Call) and (difference := _taken_away(node)):
        return real_set(difference, heavy=heavy)
    if isinstance(node, Call) and node.op in ("cup", "cap", "minus"):
        parts = [Group("{}", (arg,)) if isinstance(arg, Num) else arg for arg in node.args]  # {3} lost its braces
        left, right = (real_set(arg, heavy=heavy) for arg in parts)
        if left is None or right is None or left.name != right.name:
            return None
        return RealSet(_combine(node.op, left.intervals, right.intervals), left.name)
    return _from_many(node, heavy) if isinstance(node, Many) else None


def _combine(op: str, a: tuple[Interval, ...], b: tuple[Interval, ...]) -> tuple[Interval, ...]:
    if op == "cup":
        return _union((*a, *b))
    return _intersection(a, b if op == "cap" else _complement(_union(b)))


def _from_many(node: Many, heavy: bool) -> RealSet | None:
    """x < 1 or x > 3 is a union; with "and" or a comma an intersection, a union if that would be empty."""
    parts = [real_set(item, heavy=heavy) for item in node.items]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({part.name for part in known}) != 1:
        return None
    union = _union([interval for part in known for interval in part.intervals])
    if node.joint == "or" or not known[0].name:
        return RealSet(union, known[0].name)
    return RealSet(reduce(_intersection, (part.intervals for part in known)) or union, known[0].name)
