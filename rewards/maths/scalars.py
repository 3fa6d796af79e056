"""When are two scalar expressions equal? Exact rationals first, then agreement to ~200 digits at many points.

Constants are compared at two precisions, so that a zero that is only rounding noise is told from a tiny number. With
variables, both sides must agree at every sampled point where both are real, and at enough of them; at points where one
is not real (outside a domain, another branch) they may differ, unless the imaginary unit is written in them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import reduce
from typing import Any

from llmrl.rewards.maths.nodes import Call, Name, Node, Num, Quantity
from llmrl.rewards.maths.values import Numeric, TooLarge, Undefined, children, holds, holds_op, names, rational, rebuilt

DIGITS = 60
MORE_DIGITS = 240
MOST_DIGITS = 4_000
POINTS = 14
_INTEGER_NAMES = frozenset("nkmN")


class NeedsWorker(Exception):
    """The comparison needs more than exact rational arithmetic, and this process must not do it."""


def infinity_sign(node: Node) -> int:
    """1 for infinity, -1 for minus infinity, else 0."""
    match node:
        case Call("neg", (inner,)):
            return -infinity_sign(inner)
    return int(node == Name("infty"))


def decimal_of(node: Node) -> tuple[Fraction, int, int] | None:
    """(value, places, significant digits) if the tree is a decimal as written: 3.14, -0.5, 12.5%, 1.5 * 10^3."""
    match node:
        case Num(value, places, digits):
            return None if places is None else (value, places, digits)
        case Quantity(inner, _) | Call("neg" | "pct", (inner,)):
            if (found := decimal_of(inner)) is None:
                return None
            value, places, digits = found
            if isinstance(node, Quantity):
                return found
            return (-value, places, digits) if node.op == "neg" else (value / 100, places + 2, digits)
        case Call("*", (inner, Call("^", (Num(value=base), power)))) if base == 10:
            found, exponent = decimal_of(inner), rational(power)
            if found is not None and exponent is not None and abs(exponent) <= 400:
                return found[0] * Fraction(10) ** int(exponent), found[1] - int(exponent), found[2]
    return None


def rounds_to(value: Fraction, gold: tuple[Fraction, int, int]) -> bool:
    """Whether `value` lies within half a unit of the gold's last written decimal."""
    return abs(value - gold[0]) * 2 <= Fraction(1, 10) ** gold[1] if gold[1] >= 0 else value == gold[0]


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _within_precision(value: Fraction, answer: Node, gold: tuple[Fraction, int, int]) -> bool:
    """Tolerance of a decimal gold. Three digits are a rounding: 3.14 for pi. Two are one only of a value that does not
    terminate: 0.67 for 2/3 and for 0.667, but 1.5 for nothing else."""
    if not rounds_to(value, gold) or gold[2] < 2:
        return False
    shown = decimal_of(answer)
    if shown is not None and shown[1] <= gold[1]:
        return False
    if gold[2] >= 3 or not _terminates(value):
        return True
    near = value.limit_denominator(9)
    return gold[1] >= 2 and shown is not None and not _terminates(near) and rounds_to(near, shown)


def _as_a_float(gold: Fraction, shown: tuple[Fraction, int, int] | None) -> bool:
    """Whether a decimal is the gold to as many digits as a double carries (15 to 17)."""
    if shown is None or shown[2] < 15 or gold == 0:
        return False
    error = abs(shown[0] - gold)
    return error <= abs(gold) / 2**52 or (shown[1] >= 0 and error <= Fraction(1, 10 ** shown[1]))


def equal(gold: Node, answer: Node, *, heavy: bool) -> bool:
    """Equality of two scalars, with the gold's own precision if the gold is a decimal.

    heavy False: raises NeedsWorker where exact rational arithmetic does not decide. Raises Undefined, TooLarge.
    """
    if gold == answer:
        return True
    signs = infinity_sign(gold), infinity_sign(answer)
    if signs != (0, 0):
        return signs[0] == signs[1]
    if holds(gold, "infty") or holds(answer, "infty"):
        return False
    a, b = rational(gold), rational(answer)
    decimal = decimal_of(gold)
    if a is not None and b is not None:
        if decimal is None and not _terminates(a) and _as_a_float(a, decimal_of(answer)):
            return True
        return a == b or (decimal is not None and _within_precision(b, answer, decimal))
    if not heavy:
        raise NeedsWorker
    if names(gold) or names(answer):
        return _equal_functions(gold, answer)
    return _equal_constants(gold, answer, decimal)


def _equal_constants(gold: Node, answer: Node, decimal: tuple[Fraction, int, int] | None) -> bool:
    more = MORE_DIGITS + _digits_written(gold) + _digits_written(answer)
    low, high = Numeric(DIGITS), Numeric(more)
    x, y = low.value(gold), low.value(answer)
    if decimal is not None and decimal[2] >= 2 and abs(low.mp.im(y)) < low.mp.mpf(10) ** (-DIGITS + 10):
        return bool(abs(low.mp.re(y) - low.fraction(decimal[0])) * 2 <= low.mp.mpf(10) ** (-decimal[1]))
    if not _close(x, y, low, DIGITS, strict=False):
        return False
    return _close(high.value(gold), high.value(answer), high, more, strict=True)


def _digits_written(node: Node) -> int:
    """Digits that the rational parts of a tree need beyond the usual ones, at most `MOST_DIGITS`."""
    value = rational(node)
    if value is not None:
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        return min(MOST_DIGITS, 2 * bits * 3 // 10) if bits > 300 else 0
    return min(MOST_DIGITS, sum(_digits_written(child) for child in children(node)))


def _close(x: Any, y: Any, numeric: Numeric, digits: int, *, strict: bool) -> bool:
    """Relative agreement; against (numerical) zero, both must have sunk into the rounding noise of this precision."""
    mp = numeric.mp
    scale = max(abs(x), abs(y))
    noise = mp.mpf(10) ** (-digits + 12)
    if abs(x - y) <= noise * scale:
        return True
    return bool(scale <= noise) if strict else bool(abs(x - y) <= noise * max(1, scale))


def _point(symbols: list[str], number: int) -> dict[str, Fraction]:
    """Values of the variables for one sample: positive ones first, then of any sign; integers for the later tries."""
    rng = random.Random(f"llmrl/{number}/{len(symbols)}")
    out = {}
    for place, symbol in enumerate(symbols):
        size = Fraction(rng.randrange(10_007, 300_007), 100_003) + Fraction(place, 7)
        if number % 3 == 1:
            size /= 5
        if number >= 6 and rng.random() < 0.6:
            size = -size
        if number >= POINTS or (symbol in _INTEGER_NAMES and number % 2):
            size = Fraction(rng.randrange(1, 12))
        out[symbol] = size
    return out


def _apart(node: Node, joined: frozenset[str]) -> Node:
    """GM as G M, where the other side does not know GM as one name."""
    if not isinstance(node, Name) or node.text not in joined:
        return rebuilt(node, lambda part: _apart(part, joined))
    letters: list[Node] = [Name(letter) for letter in node.text]
    return reduce(lambda left, right: Call("*", (left, right)), letters)


def _sampled(left: Node, right: Node, numbers: Iterable[int]) -> Iterator[tuple[int, Any, Any, Any]]:
    """(number, mpmath, left, right) at the points where both have a value."""
    symbols = sorted(names(left) | names(right))
    for number in numbers:
        numeric = Numeric(DIGITS, _point(symbols, number))
        try:
            yield number, numeric.mp, numeric.value(left), numeric.value(right)
        except (Undefined, TooLarge):
            continue


def _equal_functions(gold: Node, answer: Node) -> bool:
    joined = frozenset(n for n in names(gold) ^ names(answer) if len(n) > 1 and n.isalpha() and n.isupper())
    gold, answer = _apart(gold, joined), _apart(answer, joined)
    if len(names(gold) | names(answer)) > 12:
        raise TooLarge("more than 12 variables")
    complex_written = holds(gold, "i") or holds(answer, "i")
    real = elsewhere = 0
    whole = holds_op(gold, "fact2") or holds_op(answer, "fact2")  # n!! means something else between the integers
    for number, mp, x, y in _sampled(gold, answer, range(POINTS if whole else 0, POINTS + 6)):
        if number >= POINTS and (real >= 3 or elsewhere >= 6):
            break
        tiny = mp.mpf(10) ** (-DIGITS + 12) * max(1, abs(x), abs(y))
        agree = abs(x - y) <= tiny
        is_real = abs(mp.im(x)) <= tiny and abs(mp.im(y)) <= tiny
        if not agree and (is_real or complex_written):
            return False
        real += bool(agree and is_real)
        elsewhere += bool(agree)
    return real >= 3 or elsewhere >= 6


def constant_ratio_sign(left: Node, right: Node) -> int | None:
    """The sign of the constant c with left = c * right everywhere, None if there is no such constant."""
    if names(left) != names(right) or not 0 < len(names(left)) <= 12:
        return None
    ratios = [x / y for _, mp, x, y in _sampled(left, right, range(POINTS)) if y != 0 and mp.im(x) == mp.im(y) == 0]
    if len(ratios) < 4 or ratios[0] == 0 or any(abs(r / ratios[0] - 1) > 1e-40 for r in ratios[1:]):
        return None
    return 1 if ratios[0] > 0 else -1
