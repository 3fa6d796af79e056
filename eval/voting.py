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

    Two answers are one class if each is right where the other is the gold, so that classes do not depend on the order
    of the responses; a class is named by its shortest member.

    >>> maths([r"\\boxed{\\frac12}", "The answer is 0.5.", r"\\boxed{3}", ""])
    ['0.5', '0.5', '3', None]
    """
    from llmrl.rewards.math_answer import final_answer

    answers = [final_answer(response) for response in responses]
    named: dict[str, str] = {}  # an answer as written -> the name of its class, filled in an order of its own
    for answer in sorted({text for text in answers if text is not None}, key=lambda text: (len(text), text)):
        agreeing = (name for name in dict.fromkeys(named.values()) if _agree(name, answer))
        named[answer] = next(agreeing, answer)
    return [None if answer is None else named[answer] for answer in answers]


def _agree(one: str, other: str) -> bool:
    """Whether the checker takes each for the other: 0.333 is right for 1/3's rounding, and is not 1/3."""
    from llmrl.rewards.math_answer import verify_answer

    return all(verify_answer(f"\\boxed{{{x}}}", y).correct is True for x, y in ((one, other), (other, one)))
