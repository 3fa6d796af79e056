"""Format rewards: does the completion have the asked shape? They look at the form only, never at the answer.

`RegexFormat` matches a whole completion against a regular expression; `ThinkTags` demands one non-empty
`<think>...</think>` followed by an answer. The pattern comes from the recipe, never from a model; use it through the
reward pool if it may backtrack badly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmrl.types import Score, StatusKind, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexFormat:
    """`full` if the whole completion matches `pattern` (DOTALL, surrounding white space ignored), else `none`.

    >>> RegexFormat(pattern=r"[0-9]+").matches(" 46 ")
    True
    """

    pattern: str
    full: float = 1.0
    none: float = 0.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is not a regular expression: {error}") from error

    def matches(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text.strip(), re.DOTALL) is not None

    def __call__(self, trajectory: Trajectory) -> Score:
        ok = self.matches(trajectory.text)
        return Score(value=self.full if ok else self.none, reason="" if ok else "the format does not match")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkTags:
    """`full` for exactly one `<think>reasoning</think>` and then a non-empty answer, else `none`.

    answer_tags: the answer must in turn be `<answer>...</answer>` and nothing else. opened: the chat template already
    wrote the opening `<think>`, so the completion begins inside it. Flags "empty_reasoning" and "truncated".
    """

    answer_tags: bool = False
    opened: bool = False
    full: float = 1.0
    none: float = 0.0

    def problem(self, text: str) -> str:
        """What is wrong with the form of `text`; "" if nothing is.

        >>> ThinkTags().problem("<think>2+2</think> 4"), ThinkTags().problem("<think> </think> 4")
        ('', 'the reasoning is empty')
        """
        text = text.strip()
        if self.opened and not text.startswith("<think>"):
            text = "<think>" + text
        if not text.startswith("<think>"):
            return "it does not begin with <think>"
        if text.count("<think>") != 1 or text.count("</think>") != 1:
            return "it does not hold exactly one <think> and one </think>"
        reasoning, _, answer = text[len("<think>") :].partition("</think>")
        if not reasoning.strip():
            return "the reasoning is empty"
        answer = answer.strip()
        if self.answer_tags:
            if answer.count("<answer>") != 1 or answer.count("</answer>") != 1:
                return "it does not hold exactly one <answer> and one </answer>"
            if not (answer.startswith("<answer>") and answer.endswith("</answer>")):
                return "there is text outside the tags"
            answer = answer[len("<answer>") : -len("</answer>")].strip()
        return "" if answer else "the answer is empty"

    def __call__(self, trajectory: Trajectory) -> Score:
        problem = self.problem(trajectory.text)
        flags = ("empty_reasoning",) if problem == "the reasoning is empty" else ()
        if trajectory.status.kind is StatusKind.TRUNCATED:
            problem, flags = problem or "the completion was cut", (*flags, "truncated")
        return Score(value=self.none if problem else self.full, reason=problem, flags=flags)
