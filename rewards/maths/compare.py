"""Do two answer trees say the same? Types first (tuple, set, interval, matrix, relation, list), then their scalars.

The gold answer decides what is asked: a single gold wants a single answer, a tuple keeps its order, a list of answers
does not, an exact gold wants an exact answer. See the README for the table of rules and their examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from llmrl.rewards.maths import relations
from llmrl.rewards.maths.nodes import (
    Based,
    Call,
    Group,
    Many,
    Matrix,
    Name,
    Node,
    Num,
    Quantity,
    Ratio,
    Relation,
    Words,
)
from llmrl.rewards.maths.normal import spread
from llmrl.rewards.maths.relations import assignments, chain_values, same_relation, solved, strip_names, tuples_of
from llmrl.rewards.maths.scalars import decimal_of, equal, infinity_sign
from llmrl.rewards.maths.sets import closed_at_infinity, real_set, speaks_of_a_set
from llmrl.rewards.maths.units import UNITS
from llmrl.rewards.maths.values import Undefined, holds, holds_op, rational, rebuilt

MOST_ITEMS = 60


def same(gold: Node, answer: Node, *, heavy: bool) -> bool:
    """Whether `answer` is right for `gold`. Raises NeedsWorker (heavy False), TooLarge. Undefined is unequal."""
    gold, answer = tuples_of(spread(gold)), tuples_of(spread(answer))
    if isinstance(gold, Words) or isinstance(answer, Words):
        return isinstance(gold, Words) and isinstance(answer, Words) and same_words(gold.text, answer.text)
    if not isinstance(gold, Many):
        answer = _one_answer(gold, answer, heavy)
    if speaks_of_a_set(gold) or speaks_of_a_set(answer):
        return _same_sets(gold, answer, heavy)
    if isinstance(gold, Many) or isinstance(answer, Many):
        return _same_lists(gold, answer, heavy)
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relations(gold, answer, heavy)
    if isinstance(gold, (Group, Matrix)) or isinstance(answer, (Group, Matrix)):
        return _same_groups(gold, answer, heavy)
    return _same_single(gold, answer, heavy)


def _one_answer(gold: Node, answer: Node, heavy: bool) -> Node:
    """What several parts commit to where one answer is asked for: the solution behind its equation, 5 and 3/8 as 5 3/8."""
    if not isinstance(answer, Many):
        return answer
    if answer.joint == "and" and len(answer.items) == 2 and isinstance(gold, (Num, Call)):
        whole, part = answer.items
        if isinstance(whole, Num) and whole.places is None and isinstance(part, Call) and part.op == "/":
            value = rational(part)
            if value is not None and 0 < value < 1:
                return Call("mixed", (whole, part))
    return solved(answer, _teller(heavy))


_KIND = re.compile(r"(?<=[a-z])\s+(?:function|triangle|number|angle)\s*$")


def same_words(gold: str, answer: str) -> bool:
    """The same words, hyphens and spaces aside; names joined by "and" in any order. An odd function is odd.

    >>> same_words("north-west", "northwest"), same_words("tom and jane", "jane and tom"), same_words("tom", "jane")
    (True, True, False)
    """
    said, shorter = _KIND.sub("", answer), _KIND.sub("", gold)
    return _parts(gold) in (_parts(answer), _parts(said)) or _parts(shorter) == _parts(answer)


def _parts(text: str) -> list[str]:
    return sorted(re.sub(r"[\s-]", "", part) for part in re.split(r"\band\b|,", text))


def matches(golds: Sequence[Node], answers: Sequence[Node], *, heavy: bool) -> bool:
    """Whether the items can be paired off, order ignored."""
    if len(golds) != len(answers) or len(golds) > MOST_ITEMS:
        return False
    left = list(answers)
    for gold in golds:
        for place, answer in enumerate(left):
            if same(gold, answer, heavy=heavy):
                del left[place]
                break
        else:
            return False
    return True


def _distinct(items: Sequence[Node], heavy: bool) -> list[Node]:
    out: list[Node] = []
    for item in items[:MOST_ITEMS]:
        if not any(same(item, other, heavy=heavy) for other in out):
            out.append(item)
    return out


def _same_sets(gold: Node, answer: Node, heavy: bool) -> bool:
    g, a = real_set(gold, heavy=heavy), real_set(answer, heavy=heavy)
    if closed_at_infinity(answer) and not closed_at_infinity(gold):
        return False
    if g is not None and a is not None:
        return g.intervals == a.intervals and (not g.name or not a.name or g.name == a.name)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        solved = g is not None  # then an inequality that is still to solve is no answer
        return not solved and same_relation(gold, answer, equal_to=_teller(heavy), heavy=heavy)
    match gold, answer:
        case Relation((Name(), members), ("in",)), _:
            return same(members, answer, heavy=heavy)
        case _, Relation((Name(), members), ("in",)):
            return same(gold, members, heavy=heavy)
        case Call("cup"), Call("cup"):
            return matches(_pieces(gold), _pieces(answer), heavy=heavy)
        case Group(kind, golds), Group(other, answers) if kind == other:
            return _in_order(golds, answers, heavy)
        case Many(golds), Many(answers):
            return matches(golds, answers, heavy=heavy)
    return False


def _pieces(node: Node) -> list[Node]:
    if isinstance(node, Call) and node.op == "cup":
        return [piece for arg in node.args for piece in _pieces(arg)]
    return [node]


def _in_order(golds: Sequence[Node], answers: Sequence[Node], heavy: bool) -> bool:
    return len(golds) == len(answers) and all(same(g, a, heavy=heavy) for g, a in zip(golds, answers))


def _same_lists(gold: Node, answer: Node, heavy: bool) -> bool:
    """At least one side is several answers."""
    known, said = assignments(gold), assignments(answer)
    if known is not None and said is not None:
        return known.keys() == said.keys() and all(same(known[k], said[k], heavy=heavy) for k in known)
    if said is not None and isinstance(gold, Group) and gold.kind == "()":
        return _in_order(gold.items, [said[k] for k in sorted(said)], heavy)
    if known is not None:
        values = list(known.values())
        if isinstance(answer, Group) and answer.kind == "()":
            return _in_order(values, answer.items, heavy)
        if isinstance(answer, Many) and not any(isinstance(item, Relation) for item in answer.items):
            return _in_order(values, answer.items, heavy)
        return False
    g, a = strip_names(gold), strip_names(answer)
    if isinstance(g, Many) and isinstance(a, Many):
        if matches(g.items, a.items, heavy=heavy):
            return True
        once = _distinct(g.items, heavy)  # a gold that lists an answer twice
        return len(once) < len(g.items) and matches(once, a.items, heavy=heavy)
    if isinstance(g, Many):
        if isinstance(a, Relation):
            return any(
                same(g, value, heavy=heavy) for value in chain_values(a, _teller(heavy)) if not isinstance(value, Many)
            )
        return isinstance(a, Group) and a.kind in ("{}", "[]") and _as_set(g.items, a, heavy)
    assert isinstance(a, Many)
    if isinstance(g, Group) and g.kind in ("()", "<>"):
        return a.joint == "," and _in_order(g.items, a.items, heavy)
    if isinstance(g, Group):
        return _as_set(a.items, g, heavy)
    if isinstance(g, Relation) and g.ops == ("=",) and isinstance(g.sides[1], Group):
        return same(g.sides[1], a, heavy=heavy)
    return all(same(g, item, heavy=heavy) for item in a.items)


def _as_set(items: Sequence[Node], group: Group, heavy: bool) -> bool:
    if group.kind == "{}":
        return matches(_distinct(items, heavy), _distinct(group.items, heavy), heavy=heavy)
    return matches(items, group.items, heavy=heavy)


def _teller(heavy: bool):
    return lambda x, y: same(x, y, heavy=heavy)


def _same_relations(gold: Node, answer: Node, heavy: bool) -> bool:
    """At least one side is an equation or a chain of equalities."""
    tell = _teller(heavy)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_relation(gold, answer, equal_to=tell, heavy=heavy)
    if isinstance(answer, Relation):
        named = assignments(answer)
        if _an_equation(answer, zero_only=True):
            return False
        if named is not None and len(named) > 1:
            names = sorted(named)
            neighbours = all(len(name) == 1 for name in names) and ord(names[-1]) - ord(names[0]) < len(names)
            ordered = [
                named[name] for name in (names if neighbours else named)
            ]  # (b, a) is turned round, (m, b) is not
            return isinstance(gold, Group) and gold.kind == "()" and _in_order(gold.items, ordered, heavy)
        return any(same(gold, value, heavy=heavy) for value in _committed(gold, answer, chain_values(answer, tell)))
    assert isinstance(gold, Relation)
    if _an_equation(gold):
        return False
    named = assignments(gold)
    if named is not None and len(named) > 1 and isinstance(answer, Group) and answer.kind == "()":
        return _in_order(list(named.values()), answer.items, heavy)
    return any(same(value, answer, heavy=heavy) for value in chain_values(gold, tell))


def _committed(gold: Node, chain: Relation, values: list[Node]) -> list[Node]:
    """What a chain that ends in "about 12.56" commits to: that, for a gold with no more places; else its exact values,
    of which a root of a sum that is left undone is none."""
    if chain.ops[-1] != "~" or len(values) < 2:
        return values
    wanted, shown = decimal_of(gold), decimal_of(values[-1])
    if wanted and shown:
        return values[-1:] if wanted[1] == shown[1] else values
    return [
        value for value in values if not (isinstance(value, Call) and value.op == "sqrt" and holds_op(value, "+", "-"))
    ]


def _an_equation(node: Relation, *, zero_only: bool = False) -> bool:
    """a^2 + b = 0, x^2 + y^2 = 4: what is asked for is the equation, not its right side."""
    left = node.sides[0]
    if not relations.names(left):  # 0 + 0 = 0
        return False
    powers = not zero_only and isinstance(left, Call) and left.op == "+" and holds_op(left, "^")
    return powers or (isinstance(left, Call) and left.op == "+" and node.sides[-1] == Num(Fraction(0), None, 0))


def _same_groups(gold: Node, answer: Node, heavy: bool) -> bool:
    g, a = _column(gold, answer), _column(answer, gold)
    if isinstance(g, Matrix) and isinstance(a, Matrix):
        shapes = [(len(m.rows), len(m.rows[0])) for m in (g, a)]
        return shapes[0] == shapes[1] and all(_in_order(x, y, heavy) for x, y in zip(g.rows, a.rows))
    if not isinstance(g, Group) or not isinstance(a, Group):
        if isinstance(g, Group) and g.kind == "{}" and len(g.items) == 1:
            return same(g.items[0], a, heavy=heavy)
        if isinstance(a, Group) and a.kind == "{}" and len(a.items) == 1:
            return same(g, a.items[0], heavy=heavy)
        return False
    if g.kind == a.kind == "{}":
        return matches(_distinct(g.items, heavy), _distinct(a.items, heavy), heavy=heavy)
    kinds = {g.kind, a.kind}
    alike = len(kinds) == 1 or kinds == {"()", "<>"} or (kinds <= {"()", "[]", "<>"} and len(g.items) >= 3)
    return alike and _in_order(g.items, a.items, heavy)


def _column(node: Node, other: Node) -> Node:
    """A column matrix beside a tuple is read as a tuple, a list of lists beside a matrix as a matrix."""
    match node, other:
        case Matrix(((*row,),)), Group("()" | "<>"):
            return Group("()", tuple(row))
        case Matrix(rows), Group("()" | "<>") if len(rows[0]) == 1:
            return Group("()", tuple(row[0] for row in rows))
        case Group("[]", items), Matrix():
            lists = [item.items for item in items if isinstance(item, Group) and item.kind == "[]"]
            if len(lists) == len(items) and len(set(map(len, lists))) == 1:
                return Matrix(tuple(lists))
    return node


def _same_single(gold: Node, answer: Node, heavy: bool) -> bool:
    gold, answer = (Num(Fraction(n.value)) if isinstance(n, Based) and n.base == 10 else n for n in (gold, answer))
    if isinstance(gold, Based) or isinstance(answer, Based):
        return gold == answer
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _same_quantities(_letter_unit(gold, answer), _letter_unit(answer, gold), heavy)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _same_ratios(gold, answer, heavy)
    if _equal(gold, answer, heavy):
        return True
    degrees = holds_op(answer, "deg") and not holds_op(gold, "deg") and not _mentions_pi(gold)
    return degrees and _equal(gold, _without_degrees(answer), heavy)


def _letter_unit(node: Node, other: Node) -> Node:
    """1.5 L beside a quantity in litres is one too, though a letter behind a number is a variable elsewhere."""
    match node, other:
        case Call("*", (value, Name(name))), Quantity(_, unit) if UNITS.get(name) == unit:
            return Quantity(value, unit)
    return node


def _without_degrees(node: Node) -> Node:
    """90 degrees - x as 90 - x; angles inside a function keep theirs."""
    if not isinstance(node, Call) or node.op not in ("+", "-", "*", "/", "neg", "deg", "mixed"):
        return node
    return node.args[0] if node.op == "deg" else rebuilt(node, _without_degrees)


def _equal(gold: Node, answer: Node, heavy: bool) -> bool:
    try:
        return equal(gold, answer, heavy=heavy)
    except Undefined:
        return False


def _same_quantities(gold: Node, answer: Node, heavy: bool) -> bool:
    g, g_unit = (gold.value, gold.unit) if isinstance(gold, Quantity) else (gold, "")
    a, a_unit = (answer.value, answer.unit) if isinstance(answer, Quantity) else (answer, "")
    units = {g_unit, a_unit}
    if (len(units) == 1 or "" in units) and same(g, a, heavy=heavy):
        return True
    if len(units) == 1 and g_unit.startswith("mod "):
        due, said = rational(g), rational(a)
        return due is not None and said is not None and (due - said) % int(g_unit[4:]) == 0
    if len(units) == 2 and units <= {"deg", "rad", ""} and not infinity_sign(g) and not infinity_sign(a):
        left, right = (Call("deg", (v,)) if u == "deg" else v for v, u in ((g, g_unit), (a, a_unit)))
        bare = right if g_unit == "deg" else left
        return ("" not in units or _mentions_pi(bare)) and _equal(left, right, heavy)
    if "unit" in (g_unit.partition("^")[0], a_unit.partition("^")[0]) and "" not in units:
        return g_unit.partition("^")[2] == a_unit.partition("^")[2] and same(g, a, heavy=heavy)
    return False


def _mentions_pi(node: Node) -> bool:
    return holds(node, "pi") or holds_op(node, "arcsin", "arccos", "arctan", "arccot")


def _same_ratios(gold: Node, answer: Node, heavy: bool) -> bool:
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if len(gold.items) != len(answer.items):
            return False
        if gold.written == answer.written and _in_order(gold.items, answer.items, heavy):
            return True
        if _clock(gold) and _clock(answer):
            return False
        first = gold.items[0], answer.items[0]
        return all(
            _equal(Call("*", (g, first[1])), Call("*", (a, first[0])), heavy)
            for g, a in zip(gold.items[1:], answer.items[1:])
        )
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    if not isinstance(ratio, Ratio) or len(ratio.items) != 2 or (_clock(ratio) and isinstance(other, Num)):
        return False
    fraction = Call("/", ratio.items)
    return _equal(fraction, other, heavy) if ratio is gold else _equal(other, fraction, heavy)


def _clock(ratio: Ratio) -> bool:
    """Whether it may be a time of day, as 3:30."""
    hours, _, minutes = ratio.written.partition(":")
    return len(minutes) == 2 and minutes.isdigit() and int(minutes) < 60 and hours.isdigit() and int(hours) < 25
