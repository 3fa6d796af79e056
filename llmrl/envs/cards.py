"""Card games of gym-cards (Zhai et al. 2024, arXiv:2405.10292), re-made from their rules: EZPoints, Points24, Blackjack.

In the first two the policy writes a formula over its cards, one symbol a step, that must come to the target. Formulas are
parsed and never run.
"""

from __future__ import annotations

import ast
import operator
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

from llmrl.envs.game import Step, played
from llmrl.envs.pictures import cards

if TYPE_CHECKING:
    from PIL.Image import Image

NUMBERS = tuple(map(str, range(1, 11)))
Sign = Callable[[Fraction, Fraction], Fraction]
SIGNS: dict[str, Sign] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
OPERATORS = {ast.Add: SIGNS["+"], ast.Sub: SIGNS["-"], ast.Mult: SIGNS["*"], ast.Div: SIGNS["/"]}


@dataclass(slots=True, kw_only=True)
class Points:
    """Make `target` of the cards, each used once; picture cards count 10.

    10 for a right formula at "=", which ends the game; -1 for a wrong one, for a number that is on no card left, and for a
    formula longer than `longest`, where the game is cut; 0 for other symbols. A number that is not there changes nothing.
    `size` is the picture's edge in pixels.
    """

    seed: int
    count: int
    target: int
    symbols: tuple[str, ...]
    longest: int
    size: int = 64
    hand: tuple[int, ...] = field(init=False)
    formula: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        while True:
            self.hand = tuple(draw.randint(1, 13) for _ in range(self.count))
            if solution(tuple(sorted(min(10, card) for card in self.hand)), self.target, self.symbols):
                return

    @property
    def actions(self) -> tuple[str, ...]:
        return (*NUMBERS, *self.symbols, "=")

    def rules(self) -> str:
        signs = " ".join(self.symbols)
        return (
            f"Write a formula that comes to {self.target}, one symbol at a time: each card's number once (J, Q, K are 10), "
            f"{signs}, and = at the end."
        )

    def words(self, *, seen: bool) -> str:
        shown = "" if seen else f"Cards: {', '.join(_name(card) for card in self.hand)}. "
        return f"{shown}Formula: {' '.join(self.formula)}"

    def frame(self) -> Image:
        return cards([self.hand], size=self.size, below="".join(self.formula) or "?")

    def act(self, action: int) -> Step:
        symbol = self.actions[action]
        if symbol == "=":
            right = self._left() == Counter() and value_of(self.formula) == self.target
            return Step(reward=10.0 if right else -1.0, over=True, success=right)
        if symbol.isdigit() and not self._left()[int(symbol)]:
            return Step(reward=-1.0)
        self.formula.append(symbol)
        too_long = len(self.formula) > self.longest
        return Step(reward=-1.0 if too_long else 0.0, cut=too_long)

    def hint(self) -> int | None:
        """The next symbol of one right formula, while what is written is its beginning."""
        symbols = [*solution(tuple(sorted(min(10, card) for card in self.hand)), self.target, self.symbols), "="]
        at = len(self.formula)
        return self.actions.index(symbols[at]) if self.formula == symbols[:at] and at < len(symbols) else None

    def _left(self) -> Counter[int]:
        """The numbers of the cards that the formula has not used."""
        return Counter(min(10, card) for card in self.hand) - Counter(int(s) for s in self.formula if s.isdigit())


def value_of(formula: list[str]) -> Fraction | None:
    """What a formula comes to; None if it is none.

    >>> value_of(["2", "*", "(", "3", "+", "4", ")"])
    Fraction(14, 1)
    """
    try:
        return _value(ast.parse(" ".join(formula), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("no formula")


@cache
def solution(numbers: tuple[int, ...], target: int, symbols: tuple[str, ...]) -> tuple[str, ...]:
    """The symbols of a formula over all `numbers` that comes to `target`; () if `symbols` can write none.

    >>> solution((3, 4), 12, ("+", "*"))
    ('3', '*', '4')
    """
    signs = {sign: SIGNS[sign] for sign in symbols if sign in SIGNS}
    return _joined([(Fraction(number), (str(number),)) for number in numbers], target, signs) or ()


Part = tuple[Fraction, tuple[str, ...]]  # a value, and how it is written


def _joined(parts: list[Part], target: int, signs: Mapping[str, Sign]) -> tuple[str, ...] | None:
    """Join two parts in every way until one is left that is the target."""
    if len(parts) == 1:
        return parts[0][1] if parts[0][0] == target else None
    for (i, (a, left)), (j, (b, right)) in permutations(enumerate(parts), 2):
        rest = [part for place, part in enumerate(parts) if place not in (i, j)]
        for sign, apply in signs.items():
            if (sign in "+*" and i > j) or (sign == "/" and b == 0):
                continue
            found = _joined([*rest, (apply(a, b), (*_inside(left), sign, *_inside(right)))], target, signs)
            if found:
                return found
    return None


def _inside(written: tuple[str, ...]) -> tuple[str, ...]:
    return written if len(written) == 1 else ("(", *written, ")")


def _name(card: int) -> str:
    return {1: "A", 11: "J", 12: "Q", 13: "K"}.get(card, str(card))


def _ezpoints(*, seed: int, size: int = 64) -> Points:
    return Points(seed=seed, count=2, target=12, symbols=("+", "*"), longest=5, size=size)


def _points24(*, seed: int, size: int = 96) -> Points:
    return Points(seed=seed, count=4, target=24, symbols=("+", "-", "*", "/", "(", ")"), longest=20, size=size)


@dataclass(slots=True, kw_only=True)
class Blackjack:
    """Get nearer to 21 than the dealer, who draws up to 17, from a deck without end: 1, 0 or -1 at the end."""

    seed: int
    size: int = 64
    actions: tuple[str, ...] = ("stand", "hit")
    draw: random.Random = field(init=False)
    dealer: list[int] = field(init=False)
    hand: list[int] = field(init=False)
    over: bool = False

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.dealer, self.hand = ([self.draw.randint(1, 13) for _ in range(2)] for _ in range(2))

    def rules(self) -> str:
        return "Play blackjack: come nearer to 21 than the dealer, not above it. Actions: stand, hit."

    def words(self, *, seen: bool) -> str:
        if seen:
            return ""
        return f"Dealer: {_name(self.dealer[0])}. Your cards: {', '.join(map(_name, self.hand))}."

    def frame(self) -> Image:
        hidden: list[int | None] = [self.dealer[0], None]
        return cards([self.dealer if self.over else hidden, self.hand], size=self.size)

    def act(self, action: int) -> Step:
        if action == 1:
            self.hand.append(self.draw.randint(1, 13))
            self.over = points(self.hand) > 21
            return Step(reward=-1.0 if self.over else 0.0, over=self.over)
        self.over = True
        while points(self.dealer) < 17:
            self.dealer.append(self.draw.randint(1, 13))
        theirs, ours = points(self.dealer), points(self.hand)
        reward = 1.0 if theirs > 21 or ours > theirs else float(ours == theirs) - 1.0
        return Step(reward=reward, over=True, success=reward > 0)


def points(hand: list[int]) -> int:
    """What a hand counts: picture cards 10, an ace 11 if that fits.

    >>> points([1, 13]), points([1, 9, 5])
    (21, 15)
    """
    total = sum(min(10, card) for card in hand)
    return total + 10 if 1 in hand and total <= 11 else total


ezpoints, points24, blackjack = played(_ezpoints), played(_points24), played(Blackjack)
