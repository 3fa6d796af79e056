"""Countdown: reach the target with the given numbers, each used once. Own parser, exact rationals; nothing is
evaluated."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from llmrl.rewards.boxes import boxes_of
from llmrl.rewards.text_answer import final_text
from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

LONGEST = 300
_TOKEN = re.compile(r"\s*(?:(\d{1,12})|(.))")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "{": "(", "}": ")"})


class NotAnExpression(ValueError):
    """The text is not + - * / and parentheses over plain numbers."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """(exact value, numbers used in order). Raises NotAnExpression.

    >>> evaluate("(3 + 4) * 2 / 5")
    (Fraction(14, 5), [3, 4, 2, 5])
    """
    if len(text) > LONGEST:
        raise NotAnExpression("too long")
    text = re.sub(r"\\(?:times|cdot)", "*", re.sub(r"\\div", "/", text)).translate(_SIGNS)
    text = re.sub(r"\\d?frac\((\d+)\)\((\d+)\)", r"(\1/\2)", text).replace("\\left", "").replace("\\right", "")
    tokens = [number or sign for number, sign in _TOKEN.findall(text.strip())]
    used: list[int] = []
    value, rest = _sum(tokens, 0, used, 0)
    if rest != len(tokens):
        raise NotAnExpression(f"{tokens[rest]!r} is left over")
    return value, used


def _sum(tokens: list[str], at: int, used: list[int], depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, used, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, used, depth)
        value, at = (value + right if tokens[at] == "+" else value - right), after
    return value, at


def _product(tokens: list[str], at: int, used: list[int], depth: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, used, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, used, depth)
        if tokens[at] == "/" and right == 0:
            raise NotAnExpression("division by zero")
        value, at = (value * right if tokens[at] == "*" else value / right), after
    return value, at


def _atom(tokens: list[str], at: int, used: list[int], depth: int) -> tuple[Fraction, int]:
    if at >= len(tokens) or depth > 40:
        raise NotAnExpression("it ends too early or is nested too deeply")
    token = tokens[at]
    if token.isdigit():
        used.append(int(token))
        return Fraction(int(token)), at + 1
    if token != "(":
        raise NotAnExpression(f"{token!r} is not allowed")
    value, at = _sum(tokens, at + 1, used, depth + 1)
    if at >= len(tokens) or tokens[at] != ")":
        raise NotAnExpression("a parenthesis is not closed")
    return value, at + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Countdown:
    """1.0 if the completion's expression reaches the target with the row's numbers, else 0.0.

    The row has `numbers` and `target` (the column names can be set; without a target column `prompt.answer` is it).
    The expression is taken from the last <answer>...</answer>, else the last box, else the last line with an "=" or
    operator; "= value" behind it must be true. use_all: every number exactly once, else each at most once. partial:
    reward of a well formed expression that uses the right numbers but misses the target.
    """

    numbers: str = "numbers"
    target: str = "target"
    use_all: bool = True
    partial: float = 0.0

    def _expression(self, text: str) -> str:
        said = final_text(text[-20_000:]) or ""
        tags = re.findall(r"<answer>(.*?)</answer>", said, re.DOTALL)
        if tags:
            return str(tags[-1]).strip()
        if boxes := boxes_of(said):
            return boxes[-1][2].strip()
        lines = [line for line in said.splitlines() if re.search(r"\d\s*[-+*/×÷]|\\times|\\div", line)]
        return re.sub(r"^.*:", "", lines[-1]).strip(" $.`*") if lines else said.strip(" $.`*")

    def __call__(self, trajectory: Trajectory) -> Score:
        columns = trajectory.prompt.columns
        given, target = columns.get(self.numbers), columns.get(self.target, trajectory.prompt.answer)
        try:
            wanted, supply = Fraction(str(target)), Counter(int(n) for n in given or ())
        except (ValueError, TypeError, ZeroDivisionError):
            return Score(value=None, reason=f"the row's {self.numbers!r} or {self.target!r} cannot be read")
        if not supply:
            return Score(value=None, reason=f"the row has no {self.numbers!r}")
        flags = ("truncated",) if trajectory.status.kind is StatusKind.TRUNCATED else ()
        sides = self._expression(trajectory.text).split("=")
        try:
            value, used = evaluate(sides[0])
            claimed = [evaluate(side)[0] for side in sides[1:]]
        except NotAnExpression as error:
            return Score(value=0.0, reason=f"no expression: {error}"[:200], flags=(*flags, "no_answer"))
        spent = Counter(used)
        if spent != supply if self.use_all else spent - supply:
            return Score(value=0.0, reason=f"it uses {used[:20]}, not {sorted(supply.elements())}", flags=flags)
        if any(side != value for side in claimed):
            return Score(value=0.0, reason="its own equation is false", flags=flags)
        if value != wanted:
            return Score(value=self.partial, reason=f"it makes {value}, not {wanted}"[:200], flags=flags)
        return Score(value=1.0, reason="reached", flags=flags)

    def validate(self) -> None:
        columns = {self.numbers: [3, 4, 2], self.target: 14}
        good = ["<answer>(3 + 4) * 2</answer>", "\\boxed{2 \\times (3+4) = 14}", "2*(4+3)", "so: (3+4)×2 = 14"]
        bad = [
            "", "14", "<answer>7 * 2</answer>", "<answer>(3+4)*2*1</answer>", "<answer>3+4+2 = 14</answer>",
            "<answer>(3+4)*2 + 0*9</answer>", "<answer>__import__('os')</answer>", "<answer>2**3+4</answer>",
        ]  # fmt: skip
        expect(self, "", full=good, none=bad, columns=columns, worst=max(0.0, self.partial))
