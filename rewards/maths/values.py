"""Exact and high-precision values of answer trees. Nothing here can run long: every size is checked before it is used.

`rational` gives the exact `Fraction` of a tree that has one (integers through `int`, never a float). `Numeric`
evaluates any scalar tree with mpmath at a chosen precision and at chosen values of its variables; two expressions are
equal if they agree to almost all digits wherever both are real. mpmath is imported only there, inside a worker
process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from llmrl.rewards.maths.nodes import Call, Group, Many, Matrix, Name, Node, Num, Quantity, Ratio, Relation

MOST_BITS = 400_000
CONSTANTS = frozenset(("pi", "e", "i", "infty"))


class TooLarge(ValueError):
    """A value that would take too many digits."""


class Undefined(ValueError):
    """No value: division by zero, a list where a number should be, infinity."""


def children(node: Node) -> tuple[Node, ...]:
    """The direct parts of a tree."""
    if isinstance(node, Call):
        return node.args
    if isinstance(node, (Group, Many, Ratio)):
        return node.items
    if isinstance(node, Relation):
        return node.sides
    if isinstance(node, Matrix):
        return tuple(cell for row in node.rows for cell in row)
    if isinstance(node, Quantity):
        return (node.value,)
    return ()


def names(node: Node) -> frozenset[str]:
    """The variables of a tree, constants left out."""
    if isinstance(node, Name):
        return frozenset() if node.text in CONSTANTS else frozenset((node.text,))
    return frozenset().union(*(names(child) for child in children(node))) if children(node) else frozenset()


def substitute(node: Node, name: str, value: Node) -> Node:
    """The tree with `value` in place of a variable."""
    if isinstance(node, Name):
        return value if node.text == name else node
    if isinstance(node, Call):
        return Call(node.op, tuple(substitute(arg, name, value) for arg in node.args))
    if isinstance(node, Relation):
        return Relation(tuple(substitute(side, name, value) for side in node.sides), node.ops)
    return node


def holds(node: Node, name: str) -> bool:
    """Whether a constant or variable occurs in the tree."""
    return (isinstance(node, Name) and node.text == name) or any(holds(child, name) for child in children(node))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _small(value: Fraction) -> Fraction:
    if _bits(value) > MOST_BITS:
        raise TooLarge(f"a number of {_bits(value)} bits")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _exact_root(base, exponent.denominator) if exponent.denominator <= 64 else None
        return None if root is None else _power(root, Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        raise Undefined("0 to a power that is not positive")
    if abs(base) == 1:
        return base ** int(exponent % 2)
    if base == 0:
        return base
    if abs(exponent) * (_bits(base)) > MOST_BITS:
        raise TooLarge("a huge power")
    return base ** int(exponent)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The exact root, real and positive for even degrees, or None. An odd root of a negative number is real here."""
    if degree < 1 or (value < 0 and degree % 2 == 0):
        return None
    sign = -1 if value < 0 else 1
    out = []
    for part in (abs(value.numerator), value.denominator):
        root = math.isqrt(part) if degree == 2 else _integer_root(part, degree)
        if root**degree != part:
            return None
        out.append(root)
    return Fraction(sign * out[0], out[1])


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low


def _integers(values: list[Fraction], most: int) -> list[int]:
    if any(v.denominator != 1 for v in values):
        raise Undefined("an integer is needed")
    if any(abs(v) > most for v in values):
        raise TooLarge("an integer function of a huge number")
    return [int(v) for v in values]


def rational(node: Node) -> Fraction | None:
    """The exact value of a constant tree if plain arithmetic shows it to be rational, else None."""
    if isinstance(node, Num):
        return node.value
    if not isinstance(node, Call):
        return None
    values: list[Fraction] = []
    for arg in node.args:
        value = rational(arg)
        if value is None:
            return None
        values.append(value)
    return _apply(node.op, values)


def _apply(op: str, v: list[Fraction]) -> Fraction | None:
    if op in ("+", "mixed"):
        return _small(v[0] + v[1])
    if op == "neg":
        return -v[0]
    if op == "*":
        return _small(v[0] * v[1])
    if op == "/":
        if v[1] == 0:
            raise Undefined("division by zero")
        return _small(v[0] / v[1])
    if op == "^":
        return _power(v[0], v[1])
    if op == "pct":
        return v[0] / 100
    if op == "fact":
        (n,) = _integers(v, 3000)
        if n < 0:
            raise Undefined("the factorial of a negative number")
        return Fraction(math.factorial(n))
    if op == "fact2":
        (n,) = _integers(v, 3000)
        if n < 0:
            raise Undefined("the double factorial of a negative number")
        return Fraction(math.prod(range(n, 0, -2)))
    if op == "binom":
        n, k = _integers(v, 5000)
        if n < 0 or k < 0:
            raise Undefined("a binomial of negative numbers")
        return Fraction(math.comb(n, k))
    if op == "sqrt":
        return _exact_root(v[0], 2)
    if op == "root":
        return _exact_root(v[0], *_integers(v[1:], 1000))
    if op in ("abs", "floor", "ceil"):
        return abs(v[0]) if op == "abs" else Fraction(math.floor(v[0]) if op == "floor" else math.ceil(v[0]))
    if op in ("gcd", "lcm"):
        return Fraction((math.gcd if op == "gcd" else math.lcm)(*_integers(v, 10**300)))
    if op in ("max", "min"):
        return max(v) if op == "max" else min(v)
    if op == "mod":
        a, m = _integers(v, 10**300)
        if m <= 0:
            raise Undefined("a modulus that is not positive")
        return Fraction(a % m)
    return None


_PLAIN = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "coth": "coth", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
    "arcsec": "asec", "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "ln": "log",
    "exp": "exp",
}  # fmt: skip
_LARGEST = 10**7  # of the argument of an exponential or a periodic function


_contexts: dict[int, Any] = {}  # one mpmath context a precision; a worker has one thread


class Numeric:
    """Evaluates scalar trees at `digits` decimal digits; `at` gives the values of variables as Fractions."""

    def __init__(self, digits: int, at: Mapping[str, Fraction] | None = None) -> None:
        import mpmath

        if digits not in _contexts:
            _contexts[digits] = mpmath.mp.clone()
            _contexts[digits].dps = digits + 15
        self.mp = _contexts[digits]
        self.at = at or {}

    def fraction(self, value: Fraction) -> Any:
        return self.mp.mpf(value.numerator) / value.denominator

    def value(self, node: Node) -> Any:
        """The mpmath value. Raises Undefined or TooLarge."""
        try:
            result = self._value(node)
        except (Undefined, TooLarge):
            raise
        except (ArithmeticError, TypeError, ValueError) as error:  # poles, domains
            raise Undefined(str(error)) from error
        if not self.mp.isfinite(result):
            raise Undefined("not finite")
        return result

    def _value(self, node: Node) -> Any:
        if isinstance(node, Num):
            return self.fraction(node.value)
        if isinstance(node, Name):
            if node.text in ("pi", "e"):
                return +getattr(self.mp, node.text)
            if node.text == "i":
                return self.mp.mpc(0, 1)
            if node.text in self.at:
                return self.fraction(self.at[node.text])
            raise Undefined(f"{node.text} has no value")
        if not isinstance(node, Call):
            raise Undefined("not a number")
        if node.op == "det":
            return self._determinant(node.args[0])
        if not names(node):
            exact = rational(node)
            if exact is not None:
                return self.fraction(exact)
        return self._call(node.op, [self._value(arg) for arg in node.args])

    def _call(self, op: str, v: list[Any]) -> Any:
        mp = self.mp
        if op in ("+", "mixed"):
            return v[0] + v[1]
        if op == "neg":
            return -v[0]
        if op == "*":
            return v[0] * v[1]
        if op == "/":
            return v[0] / v[1]
        if op == "^":
            return self._power(v[0], v[1])
        if op == "sqrt":
            return mp.sqrt(v[0])
        if op == "root":
            if mp.im(v[0]) == 0 and mp.re(v[0]) < 0 and v[1] == int(mp.re(v[1])) and int(mp.re(v[1])) % 2:
                return -mp.power(-v[0], 1 / v[1])
            return mp.power(v[0], 1 / v[1])
        if op == "pct":
            return v[0] / 100
        if op == "deg":
            return v[0] * mp.pi / 180
        if op in ("abs", "floor", "ceil"):
            return {"abs": abs, "floor": mp.floor, "ceil": mp.ceil}[op](v[0])
        if op == "log":
            return mp.log(v[0]) / mp.log(v[1] if len(v) > 1 else 10)
        if op == "cbrt":
            return self._call("root", [v[0], mp.mpf(3)])
        if op == "fact":
            if abs(v[0]) > 3000:
                raise TooLarge("a factorial")
            return mp.gamma(v[0] + 1)
        if op == "fact2":
            if abs(v[0]) > 3000:
                raise TooLarge("a double factorial")
            return mp.fac2(v[0])
        if op == "binom":
            if any(abs(x) > 3000 for x in v):
                raise TooLarge("a binomial")
            return mp.binomial(v[0], v[1])
        if op in ("max", "min"):
            return max(v, key=mp.re) if op == "max" else min(v, key=mp.re)
        if op in _PLAIN:
            if abs(v[0]) > _LARGEST and op not in ("ln", "arctan", "arccot"):
                raise TooLarge(f"{op} of a huge number")
            return getattr(mp, _PLAIN[op])(v[0])
        raise Undefined(op)

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if self.mp.re(exponent) > 0:
                return base
            raise Undefined("0 to a power that is not positive")
        if abs(exponent) > _LARGEST or abs(self.mp.log(abs(base)) * exponent) > _LARGEST:
            raise TooLarge("a huge power")
        return self.mp.power(base, exponent)

    def _determinant(self, matrix: Node) -> Any:
        if not isinstance(matrix, Matrix) or len(matrix.rows) != len(matrix.rows[0]) or len(matrix.rows) > 8:
            raise Undefined("no determinant")
        rows = [[self._value(cell) for cell in row] for row in matrix.rows]
        return self.mp.det(self.mp.matrix(rows))
