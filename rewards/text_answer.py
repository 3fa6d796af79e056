"""Small rewards on the text of an answer: exact match, choice letter, predicted output of a program."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from llmrl.rewards.boxes import boxes_of
from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

LONGEST = 20_000


def final_text(text: str) -> str | None:
    """What follows the last `</think>`; None if the reasoning was opened and not closed."""
    if "<think>" in text and "</think>" not in text:
        return None
    return text.rpartition("</think>")[2].strip()


def _flags(trajectory: Trajectory, answered: bool) -> tuple[str, ...]:
    truncated = trajectory.status.kind is StatusKind.TRUNCATED
    return tuple(name for name, seen in (("no_answer", not answered), ("truncated", truncated)) if seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """1.0 if the final text equals `prompt.answer`, white space at the ends aside, else 0.0; None without an answer.

    ignore_case, and collapse: any run of white space counts as one space.
    """

    ignore_case: bool = False
    collapse: bool = False

    def _form(self, text: str) -> str:
        text = " ".join(text.split()) if self.collapse else text.strip()
        return text.casefold() if self.ignore_case else text

    def __call__(self, trajectory: Trajectory) -> Score:
        gold, said = self._form(trajectory.prompt.answer), final_text(trajectory.text)
        if not gold:
            return Score(value=None, reason="the row has no answer")
        right = said is not None and self._form(said) == gold
        return Score(value=float(right), reason="" if right else "different", flags=_flags(trajectory, bool(said)))

    def validate(self) -> None:
        expect(self, "Paris", full=["Paris", " Paris\n"], none=["", "Pari", "Paris or London", "<think>Paris"])


_CHOICE_PHRASE = re.compile(
    r"\b(?:answer|choice|option|solution|pick|choose|select)(?:\s+(?:is|choice|option))*"
    r"\s*[:=]?\s*(?:is\s+)?[\s*_$]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\(?([A-Za-z])\)?(?![A-Za-z'])",
    re.IGNORECASE,
)


_NAMES_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLetter:
    """1.0 if the chosen letter is `prompt.answer`, else 0.0; None if the gold is not one of `letters`.

    Read from, in this order: the last box that names a letter, the last "answer is X" or "pick X", a final text that is
    only a letter or begins with "(X)", "X." or "X)". A text that names several letters in that place chooses none.
    """

    letters: str = "ABCDE"

    def chosen(self, text: str) -> str:
        """The letter, "" if there is none or more than one.

        >>> ChoiceLetter().chosen("I think the answer is (B)."), ChoiceLetter().chosen("A or B")
        ('B', '')
        """
        said = final_text(text[-LONGEST:])
        if not said:
            return ""
        boxes = [re.sub(r"\\(?:textbf|text|mathrm|mathbf)\s*", "", box) for _, _, box in boxes_of(said)]
        if boxes and _NAMES_LETTER.search(boxes[-1]):
            inner = boxes[-1]
            return self._only(re.sub(r"[{}()\s.$]", "", inner)) or self._leading(
                inner.replace("{", "").replace("}", "")
            )
        if found := list(_CHOICE_PHRASE.finditer(said)):
            rest = said[found[-1].end() : found[-1].end() + 30]
            hedged = re.match(r"\s*(?:,|or|and|/)\s*\(?[A-Za-z]\)?(?![A-Za-z])", rest)
            return "" if hedged else self._only(found[-1].group(1).upper())
        return self._only(said.strip("()*. \n")) or self._leading(said)

    def _leading(self, text: str) -> str:
        match = re.match(r"\s*\*{0,2}(?:\(([A-Z])\)|([A-Z])[.):])\*{0,2}\s*(.*)", text, re.DOTALL)
        if not match or re.search(r"\([A-Z]\)|\b[A-Z][.):]\s|\b(?:or|and)\s+\(?[A-Z]\b", match.group(3)):
            return ""
        return self._only(match.group(1) or match.group(2))

    def _only(self, text: str) -> str:
        return text if len(text) == 1 and text in self.letters else ""

    def __call__(self, trajectory: Trajectory) -> Score:
        gold = trajectory.prompt.answer.strip().strip("()").upper()
        if len(gold) != 1 or gold not in self.letters:
            return Score(value=None, reason=f"the gold answer {gold[:20]!r} is not one of {self.letters}")
        letter = self.chosen(trajectory.text)
        return Score(
            value=float(letter == gold), reason=f"chose {letter or 'none'}", flags=_flags(trajectory, bool(letter))
        )

    def validate(self) -> None:
        full = ["B", "(B)", "The answer is (B).", "\\boxed{B}", "\\boxed{\\text{(B)}}", "B) 45", "Answer: **B**",
                "Answer: $B", "So \\boxed{12}. Answer: B", "I pick B."]  # fmt: skip
        expect(self, "B", full=full, none=["", "A", "A or B", "A, B, C, D", "The answer is B or C.", "<think>B"])


_ANSWER_TAGS = re.compile(r"(?:<answer>|\[ANSWER\])(.*?)(?:</answer>|\[/ANSWER\])", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedOutput:
    """Code-output prediction: 1.0 if the final text is a Python literal equal to `prompt.answer`, type included.

    Read from the last `<answer>...</answer>` or `[ANSWER]...[/ANSWER]`, else the last ```...``` block, else the whole
    final text; an `assert f(..) == value` is its value. Only literals are read (`ast.literal_eval`); nothing is
    evaluated. None if the gold is not a literal.
    """

    def __call__(self, trajectory: Trajectory) -> Score:
        readable, gold = _literal(trajectory.prompt.answer)
        if not readable:
            return Score(value=None, reason="the gold answer is not a literal")
        said = final_text(trajectory.text[-LONGEST:]) or ""
        tags = [match[1] for match in _ANSWER_TAGS.finditer(said)]
        said = tags[-1] if tags else said
        text = (_FENCED.findall(said) or [said])[-1].strip().strip("`").strip()
        text = re.sub(r"^assert\s+\w+\(.*\)\s*==\s*", "", text, flags=re.DOTALL)
        found, value = _literal(text)
        right = found and _same_literal(value, gold)
        return Score(value=float(right), reason="" if right else "different", flags=_flags(trajectory, found))

    def validate(self) -> None:
        full = ["[1, 'a']", "[ANSWER][1, 'a'][/ANSWER]", "So <answer> [1, 'a'] </answer>.", '```python\n[1, "a"]\n```']
        expect(self, "[1, 'a']", full=full, none=["", "[1]", "(1, 'a')", "[1, 'a'] or [2]", "__import__('os')"])


def _same_literal(a: Any, b: Any) -> bool:
    """Equal, and of the same types throughout: 1 is not True, [1] is not (1,); a dict's order does not matter."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, (list, tuple)):
        return all(_same_literal(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        kinds = {key: type(key) for key in a}
        return all(kinds[key] is type(key) and _same_literal(a[key], b[key]) for key in b)
    if isinstance(a, (set, frozenset)):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return repr(a) == repr(b)


def _literal(text: str) -> tuple[bool, Any]:
    try:
        return True, ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False, None
