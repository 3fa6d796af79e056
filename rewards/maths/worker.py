"""The part of maths checking that runs in a killable process: JSON request in, JSON verdict out.

A request is `{"gold": text, "answer": text}`. Anything the own reader does not know (integrals, sums, limits) goes to
latex2sympy, the LaTeX reader under math-verify; model text is parsed by a grammar there as here, never evaluated.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise

from llmrl.rewards.maths.judge import CALCULUS, bare, judge

_CALCULUS = re.compile(
    r"\\(?:int|iint|sum|prod|lim|limits|infty|frac|d|cdot|left|right"
    r"|pi|sqrt|to|ln|log|sin|cos|tan|exp|binom)(?![a-zA-Z])|\\[,;:! ]"
)
_INDEXED = re.compile(r"\\(?:sum|prod)(?:\\limits)?\s*_\s*\{\s*([a-z])\s*(?:=|\\in)")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*([\da-z])\s*([\da-z])")


def handle(payload: bytes) -> bytes:
    """One request. A reading or comparing error is part of the verdict, not an exception."""
    request = json.loads(payload)
    if "imports" in request:
        # So that the slow imports are not on a request's clock, and a reader that cannot read is no wrong answer.
        if _with_sympy("\\int_0^1 x\\,dx", "\\frac{1}{2}") != (True, "equal by sympy"):
            raise ImportError("latex2sympy2_extended cannot read an integral; reinstall it with the antlr4 it asks for")
        return b"null"
    gold, answer, strict = request["gold"], request["answer"], request["strict"]
    try:
        correct, reason = judge(gold, answer, heavy=True, strict=strict)
        if _INDEXED.search(gold) and _INDEXED.search(answer):
            gold, answer = _renamed(gold, answer)
            if bare(gold) == bare(answer):
                correct, reason = True, "same but for the name of the index"
        if correct is not True and not strict and (CALCULUS.search(gold) or CALCULUS.search(answer)):
            verdict = _chain(gold, answer) if len(_top_level_sides(answer)) > 1 else _with_sympy(gold, answer)
            correct, reason = verdict if verdict is not None else (correct, reason)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:  # of mpmath and sympy
        correct, reason = False, f"not compared: {type(error).__name__}: {error}"[:200]
    return json.dumps([correct, reason]).encode()


def _renamed(*texts: str) -> list[str]:
    """The texts with the index of every sum and product under a name that none of them uses, in order."""
    free = [letter for letter in "uvwzqjki" if not any(re.search(rf"(?<![a-zA-Z\\]){letter}", text) for text in texts)]
    out = []
    for text in texts:
        for new, old in zip(free, dict.fromkeys(_INDEXED.findall(text))):
            text = re.sub(rf"(?<![a-zA-Z\\]){old}(?![a-zA-Z])", new, text)
        out.append(text)
    return out


def _chain(gold: str, answer: str) -> tuple[bool, str] | None:
    """\\int_0^1 2x dx = 1: right if all sides are equal and the last is the gold."""
    sides = _top_level_sides(answer)
    if any(not side.strip() for side in sides) or len(sides) > 4:
        return None
    if not judge(gold, sides[-1], heavy=True)[0]:
        return None
    agree = all((_with_sympy(left, right) or (False,))[0] for left, right in pairwise(sides))
    return agree, "equal by sympy" if agree else "its own equation is not true"


def _top_level_sides(text: str) -> list[str]:
    """The text split at every "=" outside of braces (an index's "k=1" is inside)."""
    sides, depth, last = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == "=" and depth == 0:
            sides.append(text[last:at])
            last = at + 1
    return [*sides, text[last:]]


def _with_sympy(gold: str, answer: str) -> tuple[bool, str] | None:
    """Equality by latex2sympy and sympy; None where one side cannot be read that way."""
    if any(_CALCULUS.sub("", text).count("\\") for text in (gold, answer)):
        return None
    import sympy
    from latex2sympy2_extended import latex2sympy

    sides = []
    for text in (gold, answer):
        try:
            value = latex2sympy(_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text.strip().strip("$")))
        except Exception:  # noqa: BLE001 - a foreign parser's many errors all mean: not readable this way
            return None
        if not isinstance(value, sympy.Expr):
            return None
        sides.append(value.doit())
    equal = sympy.simplify(sides[0] - sides[1]) == 0
    return equal, "equal by sympy" if equal else "different by sympy"
