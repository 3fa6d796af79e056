"""Answer classes for majority voting: which of a question's responses say the same thing.

A task names one of these functions (`Task.vote`). Each takes all responses to one question and gives every response the
name of its class, or None if it gave no answer (it abstains). The verdicts are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_SHOWN = 200  # characters of a class name


def number(responses: Sequence[str]) -> list[str | None]:
    """Classes of exact numbers: "7", "7.0" and "7/1" vote together.

    >>> number(["It is 7.", "7.0", "8", "no idea"])
    ['7', '7', '8', None]
    """
    from llmrl.rewards.exact_number import ExactNumber, parse_number

    found = [parse_number(ExactNumber().extract(response)[0]) for response in responses]
    return [None if value is None else str(value) for value in found]


def literal(responses: Sequence[str]) -> list[str | None]:
    """Classes of what stands in the last <answer> tags, white space apart.

    >>> literal(["so <answer>[1,  2]</answer>", "<answer>[1, 2]</answer>", "[1, 2]"])
    ['[1, 2]', '[1, 2]', None]
    """
    found = [re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL) for response in responses]
    return [" ".join(answers[-1].split())[:LONGEST_SHOWN] or None if answers else None for answers in found]


def maths(responses: Sequence[str]) -> list[str | None]:
    """Classes of mathematical answers, by the checker that verifies them: 1/2 and 0.5 vote together.

    >>> maths([r"\\boxed{\\frac12}", "The answer is 0.5.", r"\\boxed{3}", ""])
    ['\\\\frac12', '\\\\frac12', '3', None]
    """
    from llmrl.rewards.math_answer import final_answer, verify_answer

    classes: dict[str, str] = {}  # an answer as written -> the name of its class
    named: list[str | None] = []
    for response in responses:
        answer = final_answer(response)
        if answer is None:
            named.append(None)
            continue
        if answer not in classes:
            same = (
                name for name in dict.fromkeys(classes.values()) if verify_answer(f"\\boxed{{{answer}}}", name).correct
            )
            classes[answer] = next(same, answer)
        named.append(classes[answer])
    return named
