"""The tree a maths answer is read into: plain frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Num:
    """An exact number as written; `places` is the number of decimals written, None for an integer."""

    value: Fraction
    places: int | None = None
    digits: int = 0  # significant digits written


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, a constant (pi, e, i, infty) or a name in words (`Area`)."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """`op` applied to `args`: + * / ^ neg pm mp fact pct deg abs floor ceil sqrt root log ln sin ... cup cap minus."""

    op: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Items in brackets: `kind` is the pair of brackets "()", "[]", "(]", "[)", "{}", "<>"."""

    kind: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """Several answers side by side; `joint` is ",", "and" or "or"."""

    items: tuple[Node, ...]
    joint: str = ","


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain `sides[0] ops[0] sides[1] ops[1] ...`; ops are = < <= > >= != ~ in."""

    sides: tuple[Node, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit in canonical spelling (see units.py)."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Based:
    """An integer written in another base."""

    value: int
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    items: tuple[Node, ...]
    written: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Text, normalised; compared as text only."""

    text: str


Node = Num | Name | Call | Group | Many | Relation | Matrix | Quantity | Based | Ratio | Words
