"""The part of maths checking that runs in a killable process: JSON request in, JSON verdict out.

A request is `{"gold": text, "answer": text}`. Anything the own reader does not know (integrals, sums, limits) goes to
latex2sympy, the LaTeX reader under math-verify; model text is parsed by a grammar there as here, never evaluated.
"""

from __future__ import annotations

import json
import re

from llmrl.rewards.math_judge import judge

_CALCULUS = re.compile(
    r"\\(?:int|iint|sum|prod|lim|limits|infty|frac|d|cdot|left|right"
    r"|pi|sqrt|to|ln|log|sin|cos|tan|exp|binom)(?![a-zA-Z])|\\[,;:! ]"
)
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_ASKS = re.compile(r"\\(?:int|iint|sum|prod|lim)(?![a-zA-Z])")


def handle(payload: bytes) -> bytes:
    """One request. A reading or comparing error is part of the verdict, not an exception."""
    request = json.loads(payload)
    if "imports" in request:
        import latex2sympy2_extended  # noqa: F401 - so that its slow import is not on a request's clock

        return b"null"
    correct, reason = judge(request["gold"], request["answer"], heavy=True, strict=request["strict"])
    if (
        correct is not True
        and not request["strict"]
        and (_ASKS.search(request["gold"]) or _ASKS.search(request["answer"]))
    ):
        verdict = _with_sympy(request["gold"], request["answer"])
        correct, reason = verdict if verdict is not None else (correct, reason)
    return json.dumps([correct, reason]).encode()


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
