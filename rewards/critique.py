"""Critique rewards: what a critique of a draft is worth, by its verdict and by the refinement it led to.

Pure functions (Critique-RL, arXiv:2510.24320). A critique ends with "Correctness of the final answer: Correct" or
"... Wrong". Stage I rewards the verdict alone, stage II the refinement and the verdict. "paper" and "released" are the
two schemes that the paper's equations and the authors' code give; they differ where a verdict is wrong.
"""

from __future__ import annotations

import math
import re
from typing import Literal

Verdict = Literal["correct", "wrong"]
Parser = Literal["strict", "released"]
Scheme = Literal["paper", "released"]
HelpMode = Literal["r_refine", "r_delta", "r_correction"]

LABEL = "Correctness of the final answer:"
_MARKUP = r"[\s*_`#>\"'\[\](){}<:：-]*"
_WORD = r"(?:not\s+correct|incorrect|correct|wrong)(?![A-Za-z0-9])"
_SCORE = re.compile(
    rf"score{_MARKUP}of{_MARKUP}the{_MARKUP}final{_MARKUP}answer{_MARKUP}(?<![\d.])(-?\d{{1,6}}(?:\.\d{{1,6}})?)(?![\d.]*\d)",
    re.IGNORECASE,
)
_FINAL = re.compile(
    rf"correctness{_MARKUP}of{_MARKUP}the{_MARKUP}final{_MARKUP}answer{_MARKUP}({_WORD})"
    rf"(?:{_MARKUP}(?:[|/,]|\bor\b){_MARKUP}({_WORD}))?",
    re.IGNORECASE,
)


def verdict(text: str) -> Verdict | None:
    """The critique's verdict on the final answer, or None if it gives none or contradicts itself.

    Read after "Correctness of the final answer", in any case, with any markup, quotes or brackets around it;
    "Incorrect" and "not correct" are "wrong", "Correctly" is no verdict. The same verdict twice is one verdict, two
    different ones ("Correct" and later "Wrong", or the choice "Correct | Wrong" copied) are none. The verdicts on
    single steps are not read.

    >>> verdict("**Correctness of the final answer:** [Incorrect]")
    'wrong'
    """
    words = {word.casefold() for match in _FINAL.findall(text) for word in match if word}
    said: set[Verdict] = {"correct" if word == "correct" else "wrong" for word in words}
    return said.pop() if len(said) == 1 else None


def stated_score(text: str) -> float | None:
    """The number after "Score of the final answer:", or None if there is none or there are different ones.

    >>> stated_score("**Score of the final answer:** 7.5"), stated_score("Score of the final answer: good")
    (7.5, None)
    """
    said = {float(number) for number in _SCORE.findall(text)}
    return said.pop() if len(said) == 1 else None


def credited(text: str, origin_correct: bool, *, parser: Parser = "strict") -> bool:
    """Whether the critique's verdict agrees with the truth about the draft, `origin_correct`.

    strict: `verdict(text)` is the true one; none and contradictions are wrong. released: the text contains the label
    with the true verdict, letter for letter. That is what the authors' code tests first, so a critique that gives both
    verdicts is always right there, and "Correctly" counts as "Correct": kept to compare with it, not to train with.
    ValueError for an unknown parser.

    >>> both = "Correctness of the final answer: Correct\\nCorrectness of the final answer: Wrong"
    >>> credited(both, True), credited(both, True, parser="released")
    (False, True)
    """
    if parser == "strict":
        return verdict(text) == ("correct" if origin_correct else "wrong")
    if parser == "released":
        return f"{LABEL} {'Correct' if origin_correct else 'Wrong'}" in text
    raise ValueError(f"parser={parser!r} is not a parser; use strict or released")


def discrimination_reward(credited: bool, *, scheme: Scheme = "paper") -> float:
    """Stage I: 1 for a right verdict; for a wrong or missing one 0 ("paper", eq. 7) or -1 ("released").

    ValueError for an unknown scheme.

    >>> discrimination_reward(False, scheme="released")
    -1.0
    """
    _check_scheme(scheme)
    if credited:
        return 1.0
    return 0.0 if scheme == "paper" else -1.0


def refinement_reward(
    origin_correct: bool,
    refined_correct: bool,
    credited: bool,
    *,
    mode: HelpMode = "r_refine",
    scheme: Scheme = "paper",
    beta: float = 0.2,
) -> float:
    """Stage II: what the refinement is worth, and the verdict beside it.

    The help is 1 for a right refinement (r_refine, eq. 4), refinement minus draft (r_delta, eq. 5), or 1 for a repaired
    draft and 0.2 for a right draft kept (r_correction, eq. 6). paper: help + beta * [right verdict] (eq. 9). released:
    help + beta with a right verdict, -1 with a wrong one, whatever the refinement. The KL part is the algorithm's.
    ValueError for an unknown mode or scheme.

    >>> refinement_reward(False, True, True), refinement_reward(False, True, False, scheme="released")
    (1.2, -1.0)
    """
    _check_scheme(scheme)
    if mode == "r_refine":
        helped = float(refined_correct)
    elif mode == "r_delta":
        helped = float(refined_correct) - float(origin_correct)
    elif mode == "r_correction":
        helped = (0.2 if origin_correct else 1.0) if refined_correct else 0.0
    else:
        raise ValueError(f"mode={mode!r} is not a help mode; use r_refine, r_delta or r_correction")
    if credited:
        return helped + beta
    return helped if scheme == "paper" else -1.0


def graded_discrimination(critic_score: float, oracle_score: float, *, delta: float) -> float:
    """The verdict's reward where correctness is a grade: max(0, 1 - |critic - oracle| / delta), appendix E.

    `delta` > 0 is the distance at which nothing is left of the reward, in the units of the two scores. ValueError for
    another delta, or a score that is not finite.

    >>> graded_discrimination(7.0, 8.0, delta=4.0)
    0.75
    """
    if not delta > 0:
        raise ValueError(f"delta={delta}; the distance at which the reward ends must be above 0")
    if not (math.isfinite(critic_score) and math.isfinite(oracle_score)):
        raise ValueError(f"critic_score={critic_score}, oracle_score={oracle_score}; both must be finite")
    return max(0.0, 1.0 - abs(critic_score - oracle_score) / delta)


def _check_scheme(scheme: str) -> None:
    if scheme not in ("paper", "released"):
        raise ValueError(f"scheme={scheme!r} is not a reward scheme; use paper or released")
