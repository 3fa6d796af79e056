"""Equations, chains and inequalities for the maths checker: which value does `x = 3 + 4 = 7` commit to?"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

from llmrl.rewards.maths.nodes import Based, Call, Group, Many, Name, Node, Num, Quantity, Ratio, Relation
from llmrl.rewards.maths.scalars import NeedsWorker, constant_ratio_sign, decimal_of, rounds_to
from llmrl.rewards.maths.values import CONSTANTS, Numeric, TooLarge, Undefined, holds, names, rational, substitute

Tell = Callable[[Node, Node], bool]
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "abs", "arcsin", "arccos", "arctan", "sqrt")
)


def _is_name(node: Node) -> bool:
    return isinstance(node, Name) and node.text not in CONSTANTS and not node.text.startswith("bb")


def nameable(node: Node) -> bool:
    """Whether a side names the quantity asked for (x, f(x), P(A), AB, m + n, (x, y)) and is not itself a value."""
    if _is_name(node):
        return True
    if isinstance(node, Ratio):  # S_1 : S
        return len(set(node.items)) == len(node.items) and all(_plain(item) for item in node.items)
    if isinstance(node, Group):
        return node.kind == "()" and all(_is_name(item) for item in node.items)
    if not isinstance(node, Call):
        return False
    if node.op == "*":
        left, right = node.args
        if isinstance(left, Call) and left.op == "^" and _is_name(left.args[0]) and rational(left.args[1]) == -1:
            return nameable(right)  # f^{-1}(x)
        if _is_name(left) and isinstance(left, Name) and len(left.text.rstrip("'")) == 1:
            return nameable(right) or isinstance(right, (Num, Relation, Group)) or rational(right) is not None
        return nameable(left) and nameable(right)
    if node.op in _FUNCTIONS:
        return nameable(node.args[0])
    if node.op == "^":  # AB^2
        side, power = node.args
        return isinstance(side, Name) and len(side.text) > 1 and side.text.isupper() and isinstance(power, Num)
    if node.op in ("+", "/", "cup", "cap"):
        return len(names(node)) >= 2 and all(_plain(arg) for arg in node.args)
    return False


def _plain(node: Node) -> bool:
    """Names, their sums, products and powers, without any coefficient."""
    if _is_name(node):
        return True
    if isinstance(node, Call) and node.op in ("+", "*", "neg", "/", "abs", "cup", "cap"):
        return all(_plain(arg) for arg in node.args)
    return isinstance(node, Call) and node.op == "^" and _plain(node.args[0]) and isinstance(node.args[1], Num)


def name_of(node: Relation) -> Node | None:
    """The side that names the quantity: the first, or the second of two."""
    if nameable(node.sides[0]):
        return node.sides[0]
    if nameable(node.sides[-1]) and (len(node.sides) == 2 or not any(names(side) for side in node.sides[:-1])):
        return node.sides[-1]
    return None


def chain_values(node: Relation, tell: Tell) -> list[Node]:
    """What an equality chain says; empty if it says nothing usable: its sides disagree, or it is an equation to solve.

    `x = 7` gives [7]; `3 + 4 = 7` gives both sides; `8 = 7` and `2x = 10` give none. A last decimal may be the
    rounding of the exact side before it, and "about equal" sides must agree within 1 %.
    """
    if any(op not in ("=", "~") for op in node.ops):
        return []
    name = name_of(node)
    if name is None:
        values = list(node.sides)
    elif name is node.sides[0]:
        values = list(node.sides[1:])
    else:
        values = list(node.sides[:-1])
    if name is not None and len(values) > 1 and not names(values[-1]):
        values = [value for value in values if not names(value)]  # A = pi r^2 = 9 pi
    unit, last = "", values[-1]
    if isinstance(last, Quantity) and "~" in node.ops and not any(isinstance(value, Quantity) for value in values[:-1]):
        unit, values[-1] = last.unit, last.value  # sqrt(45) = 3 sqrt(5) about 6.71 cm
    for place, (left, right) in enumerate(pairwise(values)):
        about = node.ops[place + len(node.sides) - len(values)] == "~"
        if not (tell(left, right) or (about and _near(left, right)) or _rounding(left, right)):
            return []
    return [Quantity(value, unit) for value in values] if unit else values


def concluded(node: Relation) -> Node | None:
    """The last side of P(2) = 2 (2 - 1) = 2, if no side without variables contradicts it.

    A chain has three sides or more, or two and dots in the first. The other sides may hold variables, which is why the
    chain does not prove itself; None for anything else.
    """
    *before, last = node.sides
    if isinstance(last, Based) and len(before) == 1 and node.ops == ("=",):  # 13 = 1101_2
        first = before[0]
        return last if (first.value if isinstance(first, Based) else rational(first)) == last.value else None
    dotted = holds(before[0], "...")  # 1 + 3 + ... + (2n - 1) = n^2: nobody here can add that up
    if (len(before) < 2 and not dotted) or set(node.ops) != {"="} or (names(last) and not names(before[0])):
        return None
    try:
        values = {rational(side) for side in node.sides if not names(side)} - {None}
    except (Undefined, TooLarge):
        return None
    return last if len(values) <= 1 else None


def _exact_or_decimal(node: Node) -> Fraction | None:
    return rational(node.value if isinstance(node, Quantity) else node)


def _near(left: Node, right: Node) -> bool:
    """Equal within 1 %."""
    a, b = _exact_or_decimal(left), _exact_or_decimal(right)
    if b is None:
        return False
    try:
        exact = Numeric(30).value(left) if a is None else a
        return bool(abs(exact - (Numeric(30).value(right) if a is None else b)) <= abs(exact) / 100)
    except Undefined:
        return False


def _rounding(left: Node, right: Node) -> bool:
    shown, exact = decimal_of(right), _exact_or_decimal(left)
    return shown is not None and exact is not None and shown[2] >= 3 and rounds_to(exact, shown)


def _named(node: Node) -> tuple[str, Node] | None:
    """("x", 1) of x = 1, None for anything else."""
    match node:
        case Relation((Name(name) as left, value), ("=",)) if _is_name(left):
            return name, value
    return None


def assignments(node: Node) -> dict[str, Node] | None:
    """x = 1, y = 2 or (x, y) = (1, 2) as a mapping; None if it is anything else."""
    match node:
        case Relation((Group("()") as left, Group("()", values)), ("=",)) if nameable(left):
            keys = [item.text for item in left.items if isinstance(item, Name)]
            return dict(zip(keys, values)) if len(set(keys)) == len(values) == len(keys) else None
        case Many() if node.joint != "or":
            pairs = [pair for pair in map(_named, node.items) if pair]
            return dict(pairs) if len(dict(pairs)) == len(node.items) else None
    return None


def tuples_of(node: Node) -> Node:
    """x=2, y=3 or x=3, y=2 as (2,3) or (3,2). Other trees stay as they are."""
    pairs = [pair for pair in map(_named, node.items) if pair] if isinstance(node, Many) else []
    size = len(dict(pairs))
    if (
        not isinstance(node, Many)
        or len(pairs) < len(node.items)
        or size < 2
        or len(pairs) % size
        or len(pairs) == size
    ):
        return node
    groups = [sorted(pairs[start : start + size], key=lambda pair: pair[0]) for start in range(0, len(pairs), size)]
    if any(len(dict(group)) != size for group in groups):
        return node
    return Many(tuple(Group("()", tuple(value for _, value in group)) for group in groups), "or")


def solved(node: Node, tell: Tell) -> Node:
    """The conclusion of several equations: x = 5 of "2x = 10, x = 5", a + b = 7 of "a = 3, b = 4, a + b = 7".

    The others must be fulfilled by it, or it by them; any other tree stays as it is.
    """
    equations = (
        [i for i in node.items if isinstance(i, Relation) and set(i.ops) == {"="}] if isinstance(node, Many) else []
    )
    if (
        not isinstance(node, Many)
        or len(equations) < max(2, len(node.items))
        or not names(node) <= names(equations[-1])
    ):
        return node
    *before, last = equations
    if names(last.sides[-1]) or any(item.sides[0] == last.sides[0] for item in before):
        return node
    found = [
        pair for item in (last, *before) for pair in (assignments(item) or dict(filter(None, [_named(item)]))).items()
    ]
    for item in equations:
        sides = list(item.sides)
        for name, value in found:
            sides = [substitute(side, name, value) for side in sides]
        if any(map(names, sides)) or not all(tell(left, right) for left, right in pairwise(sides)):
            return node
    return last


def strip_names(node: Node) -> Node:
    """x = 1 or x = 2 as 1 or 2; x = 1, 2 as 1, 2. Other trees stay as they are."""
    if not isinstance(node, Many):
        return node
    first = node.items[0]
    if not isinstance(first, Relation) or first.ops != ("=",) or not nameable(first.sides[0]):
        return node
    values: list[Node] = []
    for item in node.items:
        if isinstance(item, Relation):
            if item.ops != ("=",) or item.sides[0] != first.sides[0]:
                return node
            values.append(item.sides[1])
        else:
            values.append(item)
    return Many(tuple(values), node.joint)


def _alike_names(left: Node, right: Node) -> bool:
    """x and x; y and f(x); a letter and a word (`A` and `Area`); not x and y."""
    if left == right:
        return True
    if isinstance(left, Name) and isinstance(right, Name):
        short, long = sorted((left.text, right.text), key=len)
        return len(short) == 1 and len(long) > 3 and long[0].lower() == short.lower() and long.isalpha()
    letters = [node for node in (left, right) if isinstance(node, Name)]
    calls = [node for node in (left, right) if isinstance(node, Call) and node.op == "*"]
    return len(letters) == len(calls) == 1 and letters[0].text == "y"


def same_relation(gold: Relation, answer: Relation, *, equal_to: Tell, heavy: bool) -> bool:
    """Two relations: solved ones by name and value, others up to a nonzero (for inequalities: positive) factor."""
    if gold == answer:
        return True
    if set(gold.ops) <= {"=", "~"} and set(answer.ops) <= {"=", "~"}:
        return _same_equation(gold, answer, equal_to, heavy)
    if len(gold.ops) != 1 or len(answer.ops) != 1 or gold.ops[0] == "in" or answer.ops[0] == "in":
        return gold.ops == answer.ops and all(equal_to(g, a) for g, a in zip(gold.sides, answer.sides))
    (g_op,), (a_op,) = gold.ops, answer.ops
    left, right = _difference(gold), _difference(answer)
    if g_op[0] != a_op[0]:
        a_op, right = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(a_op, a_op), Call("neg", (right,))
    if g_op != a_op:
        return False
    ratio = _ratio(left, right, heavy)
    return ratio is not None and (ratio > 0 or g_op == "!=")


def _argument(node: Relation) -> tuple[str, str]:
    """("f", "x") of an equation f(x) = ..., ("", "") of any other."""
    left = node.sides[0]
    if isinstance(left, Call) and left.op == "*" and _is_name(left.args[0]) and _is_name(left.args[1]):
        return left.args[0].text, left.args[1].text  # type: ignore[union-attr]
    return "", ""


def _same_equation(gold: Relation, answer: Relation, equal_to: Tell, heavy: bool) -> bool:
    (f, x), (g, y) = _argument(gold), _argument(answer)
    if f and f == g and x != y and not any(holds(side, x) for side in answer.sides):  # f(t) = 2t + 1
        renamed = substitute(answer, y, Name(x))
        assert isinstance(renamed, Relation)
        answer = renamed
    g_name, a_name = name_of(gold), name_of(answer)
    golds, answers = chain_values(gold, equal_to), chain_values(answer, equal_to)
    named_alike = g_name is not None and a_name is not None and _alike_names(g_name, a_name)
    if named_alike and any(equal_to(g, a) for g in golds for a in answers):
        return True
    if g_name is not None and not _compound(g_name) and golds and not any(names(value) for value in golds):
        named = assignments(gold), assignments(answer)
        if named[0] is not None and named[1] is not None:
            return named[0].keys() == named[1].keys() and all(equal_to(named[0][k], named[1][k]) for k in named[0])
        return False  # the gold is solved, so the answer must be
    if len(gold.sides) != 2 or len(answer.sides) != 2:
        return False
    return _ratio(_difference(gold), _difference(answer), heavy) is not None


def _compound(name: Node) -> bool:
    return isinstance(name, Call) and name.op in ("+", "/")


def _difference(node: Relation) -> Node:
    return Call("+", (node.sides[0], Call("neg", (node.sides[1],))))


def _ratio(left: Node, right: Node, heavy: bool) -> int | None:
    if not heavy:
        raise NeedsWorker
    return constant_ratio_sign(left, right)
