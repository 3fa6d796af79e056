"""Procedural tasks: pure functions of (seed, index, difficulty knobs) -> one raw data row.

Row i depends on the seed and on i alone, so rows can be made in any order and in any process. Each row has id,
problem, answer and identity; two rows of one identity pose the same problem (3 + 5 and 5 + 3), and the held-out split
is made on it. The later one is left out, unless it names another `variant`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llmrl.data.critiques import chains
from llmrl.data.frames import frames
from llmrl.data.programs import programs
from llmrl.errors import DataError
from llmrl.importing import load
from llmrl.seeding import generator
from llmrl.settings.env import EnvConfig

RawRow = dict[str, Any]
MAX_TRIES = 1000


def addition(seed: int, index: int, *, low: int = 2, high: int = 99, terms: int = 2) -> RawRow:
    """ "What is a + b? Answer with the number only." with every term in low..high.

    >>> row = addition(0, 0, high=9)
    >>> sum(row["terms"]) == int(row["answer"])
    True
    """
    _require(terms >= 2, f"terms={terms} leaves nothing to add; use 2 or more")
    _require(low <= high, f"low={low} is above high={high}")
    rng = generator(seed, "addition", index)
    numbers = [rng.randint(low, high) for _ in range(terms)]
    expression = " + ".join(map(str, numbers))
    return {
        "id": f"addition/{expression.replace(' ', '')}",
        "problem": f"What is {expression}? Answer with the number only.",
        "answer": str(sum(numbers)),
        "terms": numbers,
        "identity": f"{'+'.join(map(str, sorted(numbers)))}",
    }


def arithmetic(seed: int, index: int, *, steps: int = 2, digits: int = 1) -> RawRow:
    """`steps` operators out of + - * with the parentheses they need, on numbers of at most `digits` digits.

    >>> row = arithmetic(0, 0, steps=3)
    >>> row["problem"].endswith("Answer with the number only.")
    True
    """
    _require(steps >= 1, f"steps={steps} leaves nothing to compute; use 1 or more")
    _require(1 <= digits <= 9, f"digits={digits} must be in 1..9")
    tree = _expression(generator(seed, "arithmetic", index), steps, 10**digits - 1)
    text = tree.text()
    return {
        "id": f"arithmetic/{text.replace(' ', '')}",
        "problem": f"What is {text}? Answer with the number only.",
        "answer": str(tree.value),
        "identity": tree.canonical(),
    }


def countdown(seed: int, index: int, *, count: int = 3, high: int = 20, target_high: int = 100) -> RawRow:
    """Reach a target with all of `count` numbers in 1..high. Always solvable: the target is built from the numbers.

    `answer` is one solution of possibly many: verify by evaluating. Intermediate results are whole numbers.

    >>> countdown(0, 0, count=2)["problem"].startswith("Using the numbers [")
    True
    """
    _require(count >= 2, f"count={count} leaves nothing to combine; use 2 or more")
    _require(high >= 2, f"high={high} is too small; use 2 or more")
    _require(target_high >= 1, f"target_high={target_high} must be positive")
    rng = generator(seed, "countdown", index)
    for _ in range(MAX_TRIES):
        numbers = [rng.randint(1, high) for _ in range(count)]
        tree = _combined(rng, numbers)
        if tree.value.denominator == 1 and 1 <= tree.value <= target_high and tree.value not in numbers:
            break
    else:
        raise DataError(f"countdown(count={count}, high={high}) found no target in 1..{target_high}; raise target_high")
    target = int(tree.value)
    return {
        "id": f"countdown/{'-'.join(map(str, numbers))}/{target}",
        "problem": (
            f"Using the numbers {numbers}, write an expression that equals {target}. Use +, -, *, / and parentheses, "
            "and every number exactly once. Answer with the expression only."
        ),
        "answer": tree.text(),
        "numbers": numbers,
        "target": target,
        "identity": f"countdown {sorted(numbers)} {target}",
    }


def episodes(seed: int, index: int, *, text: str = "Begin.") -> RawRow:
    """Numbered tasks for environments that pose their own: the row says nothing but which one it is, by a number that
    keys the environment's draws.

    >>> episodes(0, 3)["problem"].startswith("Begin. (")
    True
    """
    number = generator(seed, "episodes", index).randrange(10**9)
    return {"id": f"episodes/{number}", "problem": f"{text} ({number})", "answer": "", "identity": f"episode {number}"}


def demonstrations(
    seed: int,
    index: int,
    *,
    env: str,
    args: dict[str, Any] | None = None,
    turns: int = 8,
    thoughts: bool = False,
    skill: float = 0.0,
) -> RawRow:
    """Turns of episodes of the game `env` with `args`, of at most `turns` turns, for an sft stage before reinforcement
    learning: what the policy would see (with memory window(1)) and an answer in its form, whose action is drawn at random,
    but for a share `skill` that follows the game's own hints. With `thoughts` the answer says the state first, so that a
    model that is shown pictures learns to read them.

    >>> demonstrations(0, 0, env="numberline")["answer"] in ('{"action": "-"}', '{"action": "+"}')
    True
    """
    _require(turns >= 1, f"turns={turns}: use 1 or more")
    _require(0 <= skill <= 1, f"skill={skill} is a share of the actions; use 0 to 1")
    config = EnvConfig(name=env, args=args or {}, turns=turns)
    make = load("llmrl.envs.demos:demonstration")  # by name: environments stand above data
    row: RawRow = make(seed, index, config=config, thoughts=thoughts, skill=skill)
    return row


GENERATORS: dict[str, Callable[..., RawRow]] = {
    "addition": addition,
    "episodes": episodes,
    "arithmetic": arithmetic,
    "chains": chains,
    "countdown": countdown,
    "demonstrations": demonstrations,
    "programs": programs,
    "frames": frames,
}


def is_generator(source: str) -> bool:
    """Whether a recipe's source names a generator, whose split is made by hash and whose rows are made on demand."""
    return source in GENERATORS or source.startswith("reasoning_gym:")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise DataError(reason)


@dataclass(frozen=True, slots=True)
class _Node:
    """An expression; a leaf has no operator. Values are exact."""

    value: Fraction
    operator: str = ""
    left: _Node | None = None
    right: _Node | None = None

    @classmethod
    def join(cls, operator: str, left: _Node, right: _Node) -> _Node:
        a, b = left.value, right.value
        value = a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b
        return cls(value, operator, left, right)

    def text(self) -> str:
        """With the fewest parentheses that keep the tree's shape where the shape matters."""
        if self.left is None or self.right is None:
            return str(self.value)
        left, right = self.left.text(), self.right.text()
        product = self.operator in "*/"
        if product and self.left.operator in ("+", "-"):
            left = f"({left})"
        if (product and self.right.operator in ("+", "-")) or (
            self.operator in "-/" and self.right.operator in (("+", "-") if self.operator == "-" else ("*", "/"))
        ):
            right = f"({right})"
        return f"{left} {self.operator} {right}"

    def canonical(self) -> str:
        """Equal for expressions that differ only in the order of terms or of factors."""
        if self.operator == "*":
            return "*".join(sorted(factor._as_factor() for factor in self._factors()))
        terms = sorted(self._terms(1))
        return "".join(f"{'+' if sign > 0 else '-'}{text}" for text, sign in terms).removeprefix("+")

    def _as_factor(self) -> str:
        return f"({self.canonical()})" if self.operator else str(self.value)

    def _factors(self) -> list[_Node]:
        if self.operator != "*" or self.left is None or self.right is None:
            return [self]
        return self.left._factors() + self.right._factors()

    def _terms(self, sign: int) -> list[tuple[str, int]]:
        if self.operator not in ("+", "-") or self.left is None or self.right is None:
            return [(self.canonical() if self.operator else str(self.value), sign)]
        return self.left._terms(sign) + self.right._terms(sign if self.operator == "+" else -sign)


def _expression(rng: random.Random, steps: int, high: int) -> _Node:
    if steps == 0:
        return _Node(Fraction(rng.randint(1, high)))
    left = rng.randrange(steps)
    operator = rng.choice("+-*")
    return _Node.join(operator, _expression(rng, left, high), _expression(rng, steps - 1 - left, high))


def _combined(rng: random.Random, numbers: list[int]) -> _Node:
    """Join two random expressions until one is left; division only where it comes out even."""
    nodes = [_Node(Fraction(number)) for number in numbers]
    while len(nodes) > 1:
        left = nodes.pop(rng.randrange(len(nodes)))
        right = nodes.pop(rng.randrange(len(nodes)))
        even = right.value != 0 and (left.value / right.value).denominator == 1
        nodes.append(_Node.join(rng.choice("+-*/" if even else "+-*"), left, right))
    return nodes[0]
