"""A calculator that the policy may call: arithmetic questions, one `calc: <expression>` a turn, then `answer: <number>`.

    policy       calc: 37 * 4            environment  148
    policy       answer: 148             environment  (the task is over; reward 1)

Expressions are numbers with + - * and brackets, parsed and never run.
"""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass, field

from llmrl.envs.protocol import Turn
from llmrl.types import Completion, Observation, Prompt

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
LIMIT, LONGEST = 10**12, 64


@dataclass(slots=True)
class Calculator:
    """The question is the data row's, and so is its answer; a wrong call costs `penalty`."""

    prompt: Prompt
    seed: int = 0
    penalty: float = 0.1
    used: list[str] = field(default_factory=list)

    def start(self) -> None:
        return None  # the row's own question

    def act(self, completion: Completion) -> Turn:
        """A call's value, or the end."""
        line = next((line for line in completion.text.splitlines() if line.strip()), "")
        word, _, rest = line.strip().partition(":")
        if word.lower() == "calc":
            self.used.append(rest.strip())
            try:
                return Turn(next=Observation.of(str(evaluate(rest))))
            except ValueError as error:
                return Turn(reward=-self.penalty, next=Observation.of(f"error: {error}"), flags=("bad_call",))
        right = word.lower() == "answer" and rest.strip() == self.prompt.answer
        return Turn(reward=float(right), info={"success": right, "calls": len(self.used)})


def evaluate(expression: str) -> int:
    """The value of an expression. Raises ValueError for what is none, or is too large.

    >>> evaluate("2 * (3 + 4) - 5")
    9
    """
    if len(expression) > LONGEST:
        raise ValueError(f"at most {LONGEST} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError("this is no expression") from None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_value(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    else:
        raise ValueError("use whole numbers, + - * and brackets")
    if abs(value) > LIMIT:
        raise ValueError("the number is too large")
    return value
