"""Exact and high-precision values of answer trees. Nothing here can run long: every size is checked before it is used.

`rational` gives the exact `Fraction` of a tree that has one (integers through `int`, never a float). `Numeric`
evaluates any scalar tree with mpmath at a chosen precision and at chosen values of its variables; two expressions are
equal if they agree to almost all digits wherever both are real. mpmath is imported only there, inside a worker
process.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
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


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """The tree with `change` of its direct parts; ratios, matrices and leaves stay as they are."""
    if isinstance(node, Call):
        return Call(node.op, tuple(map(change, node.args)))
    if isinstance(node, Relation):
        return Relation(tuple(map(change, node.sides)), node.ops)
    if isinstance(node, Group):
        return Group(node.kind, tuple(map(change, node.items)))
    return Quantity(change(node.value), node.unit) if isinstance(node, Quantity) else node


def substitute(node: Node, name: str, value: Node) -> Node:
    """The tree with `value` in place of a variable."""
    return value if node == Name(name) else rebuilt(node, lambda part: substitute(part, name, value))


def some(node: Node, test: Callable[[Node], bool]) -> bool:
    """Whether the tree or any part of it passes the test."""
    return test(node) or any(some(part, test) for part in children(node))


def holds(node: Node, name: str) -> bool:
    """Whether a constant or variable occurs in the tree."""
    return some(node, lambda part: part == Name(name))


def holds_op(node: Node, *ops: str) -> bool:
    """Whether one of the operations occurs in the tree."""
    return some(node, lambda part: isinstance(part, Call) and part.op in ops)


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


def _factorial(n: int, step: int = 1) -> int:
    if n < 0:
        raise Undefined("the factorial of a negative number")
    return math.factorial(n) if step == 1 else math.prod(range(n, 0, -step))


def _quotient(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise Undefined("division by zero")
    return _small(top / bottom)


def _remainder(a: int, m: int) -> int:
    if m <= 0:
        raise Undefined("a modulus that is not positive")
    return a % m


def _choices(n: int, k: int) -> int:
    if n < 0 or k < 0:
        raise Undefined("a binomial of negative numbers")
    return math.comb(n, k)


_ARITHMETIC: dict[str, Callable[..., Fraction | None]] = {
    "+": lambda a, b: _small(a + b), "mixed": lambda a, b: _small(a + b), "neg": lambda a: -a, "pct": lambda a: a / 100,
    "*": lambda a, b: _small(a * b), "/": _quotient, "^": lambda a, b: _power(a, b), "sqrt": lambda a: _exact_root(a, 2),
    "root": lambda a, n: _exact_root(a, *_integers([n], 1000)), "abs": abs, "max": lambda *v: max(v),
    "min": lambda *v: min(v),
}  # fmt: skip
# op -> (the function, the largest argument)
_OF_INTEGERS: dict[str, tuple[Callable[..., int], int]] = {
    "fact": (_factorial, 3000), "fact2": (lambda n: _factorial(n, 2), 3000), "binom": (_choices, 5000),
    "gcd": (math.gcd, 10**300), "lcm": (math.lcm, 10**300), "mod": (_remainder, 10**300),
}  # fmt: skip


def _apply(op: str, v: list[Fraction]) -> Fraction | None:
    if op in _OF_INTEGERS:
        function, most = _OF_INTEGERS[op]
        return Fraction(function(*_integers(v, most)))
    if op in ("floor", "ceil"):
        return Fraction(math.floor(v[0]) if op == "floor" else math.ceil(v[0]))
    return _ARITHMETIC[op](*v) if op in _ARITHMETIC else None


_SIMPLE: dict[str, Callable[..., Any]] = {
    "+": operator.add, "mixed": operator.add, "neg": operator.neg, "*": operator.mul, "/": operator.truediv,
    "pct": lambda a: a / 100, "abs": abs,
}  # fmt: skip
_NUMERIC = {  # op -> mpmath's name
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "coth": "coth", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
    "arcsec": "asec", "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "ln": "log",
    "exp": "exp", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "fact": "factorial", "fact2": "fac2",
    "binom": "binomial",
}  # fmt: skip
_UNBOUNDED = frozenset(("ln", "arctan", "arccot", "sqrt", "floor", "ceil"))
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
        if op in _SIMPLE:
            return _SIMPLE[op](*v)
        if op == "^":
            return self._power(v[0], v[1])
        if op in ("root", "cbrt"):
            degree = v[1] if op == "root" else mp.mpf(3)
            if mp.im(v[0]) == 0 and mp.re(v[0]) < 0 and degree == int(mp.re(degree)) and int(mp.re(degree)) % 2:
                return -mp.power(-v[0], 1 / degree)
            return mp.power(v[0], 1 / degree)
        if op == "deg":
            return v[0] * mp.pi / 180
        if op == "log":
            return mp.log(v[0]) / mp.log(v[1] if len(v) > 1 else 10)
        if op in ("max", "min"):
            return max(v, key=mp.re) if op == "max" else min(v, key=mp.re)
        if op not in _NUMERIC:
            raise Undefined(op)
        if any(abs(x) > (3000 if op in ("fact", "fact2", "binom") else _LARGEST) for x in v) and op not in _UNBOUNDED:
            raise TooLarge(f"{op} of a huge number")
        return getattr(mp, _NUMERIC[op])(*v)

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
