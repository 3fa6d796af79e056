"""Exact-number reward: one number is read out of the completion by a strict rule and compared as a `Fraction`.

For tasks whose answer is a plain number (arithmetic, GSM8K-style). Nothing is evaluated and nothing is a float, so
10**16 + 1 differs from 10**16. The maths checker (`math_answer.py`) is for everything richer.

Where the number is looked for: after the last `</think>` if there is one, then after the last `after` marker if one is
set (a completion without the marker has no answer). What is read there:

* `mode="strict"`: the text, stripped, must be one number and nothing else but a final period.
* `mode="last"` (default): the last token that holds a digit must be a clean number. So "46", "46.", "12 + 34 = 46",
  "The answer is **46**" and "$46$" say 46. Refused: a list of different numbers ("45, 46", "45 or 46", one bare number
  a line), an operand of an unfinished sum ("12 + 34"), a number glued to letters ("46th", "x2"), and, in a completion
  that ran out of tokens, a number that touches its end (it may not be finished).

A number is an optional sign, digits with correct thousands commas or none, and optionally a decimal part or "/" and a
denominator: -1,234  0.50  3/4. At most 200 characters long.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

LONGEST = 200  # characters of one number
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_PLAIN = rf"{_DIGITS}(?:\.[0-9]+)?(?:/[0-9]+)?"
_NUMBER = re.compile(rf"[+-]?{_PLAIN}")
# Everything that could be part of a number or of a word with digits in it, in one piece.
_TOKEN = re.compile(r"(?<![A-Za-z0-9_.,/])[A-Za-z0-9_.,/]*[0-9][A-Za-z0-9_/]*(?:[.,][A-Za-z0-9_/]+)*")
_LIST_JOINT = re.compile(r"(?:[ \t]*(?:[,;/|&]|\bor\b|\band\b)[ \t]*)+|[ \t]+", re.IGNORECASE)
_OPERATOR_BEFORE = re.compile(r"[0-9)\]}][ \t$]*(?:[-+*/×÷^·%−]|\*\*|\\times|\\cdot|\\div)[ \t$]*\(?[ \t]*[+-]?$")
_BULLET = r"[\s>*#$-]*(?:\(?[0-9]+[.)]\s+)?"
_BARE_LINE = re.compile(rf"{_BULLET}([+-]?{_PLAIN})[\s.,;*$]*")


def parse_number(text: str) -> Fraction | None:
    """The exact value of `text` if it is one number (see the module), else None.

    >>> parse_number("1,234"), parse_number("0.50"), parse_number("12,34"), parse_number("7 or 8")
    (Fraction(1234, 1), Fraction(1, 2), None, None)
    """
    text = text.strip().replace("−", "-")
    if len(text) > LONGEST or not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    if not denominator:
        return Fraction(numerator)
    return Fraction(numerator) / int(denominator) if int(denominator) else None


def _last_number(text: str) -> tuple[str, str, str]:
    """(number as written, what follows it, why there is none)."""
    text = text.replace("−", "-")
    last = None
    for match in _TOKEN.finditer(text):
        last = match
    if last is None:
        return "", "", "no number"
    token = last.group().lstrip(".,/") if not re.match(r"\.[0-9]", last.group()) else last.group()
    start = last.end() - len(token)
    if len(token) > LONGEST or not re.fullmatch(_PLAIN, token):
        kind = "a list" if re.fullmatch(r"[0-9][0-9,;/]*", token) else "not a clean number"
        return "", "", f"{kind}: {token[:40]!r}"
    before = text[:start]
    sign = ""
    if _OPERATOR_BEFORE.search(before):
        return "", "", f"{token!r} is an operand, not a result"
    if before[-1:] in ("-", "+"):
        if before[-2:-1].isalnum():
            return "", "", f"{token!r} is glued to {before[-20:]!r}"
        sign = before[-1]
    if before[-1:].isalnum():
        return "", "", f"{token!r} is glued to letters"
    reason = _listed(text[: start - len(sign)], sign + token)
    return ("", "", reason) if reason else (sign + token, text[last.end() :], "")


def _listed(before: str, number: str) -> str:
    """Why `number`, standing after `before`, is the end of a list of different numbers; "" if it is not."""
    lines = before.rstrip().splitlines()
    own_line = before.rpartition("\n")[2]
    lines = lines[:-1] if own_line.strip() else lines
    line_above = _BARE_LINE.fullmatch(lines[-1]) if lines else None
    listed = "\n" in before and line_above and re.fullmatch(_BULLET, own_line)
    if listed and line_above and parse_number(line_above.group(1)) != parse_number(number):
        return "a list of different numbers, one a line"
    earlier = None
    for match in _TOKEN.finditer(before):
        earlier = match
    if earlier is None:
        return ""
    joint = before[earlier.end() :].replace("$", "").replace("*", "")
    if _LIST_JOINT.fullmatch(joint) and parse_number(earlier.group()) not in (None, parse_number(number)):
        return f"a list of different numbers ends in {earlier.group()[:20]}{joint}{number[:20]}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactNumber:
    """1.0 if the completion's number equals `prompt.answer` exactly, else 0.0; None if the gold is not a number.

    mode: "last" or "strict", see the module docstring. after: only text after the last occurrence of this marker
    counts, for instance "####". A gold answer may itself carry GSM8K's "#### 18".
    """

    mode: Literal["last", "strict"] = "last"
    after: str = ""

    def __post_init__(self) -> None:
        if self.mode not in ("last", "strict"):
            raise ValueError(f"mode={self.mode!r} is not known; use 'last' or 'strict'")

    def extract(self, text: str, *, truncated: bool = False) -> tuple[str, str]:
        """(the number as written, "") or ("", why there is none)."""
        if "<think>" in text and "</think>" not in text:
            return "", "the reasoning was not closed"
        text = text.rpartition("</think>")[2]
        if self.after:
            _, marker, text = text.rpartition(self.after)
            if not marker:
                return "", f"no {self.after!r} in the completion"
        if self.mode == "strict":
            stripped = text.strip()
            stripped = stripped[:-1] if stripped.endswith(".") else stripped
            if parse_number(stripped) is None:
                return "", "the text is not just one number"
            rest = "" if text == text.rstrip() else " "
            number, reason = stripped, ""
        else:
            number, rest, reason = _last_number(text)
        if truncated and number and not rest:
            return "", "the completion was cut at the number"
        return number, reason

    def __call__(self, trajectory: Trajectory) -> Score:
        gold = parse_number(trajectory.prompt.answer.rpartition("####")[2])
        if gold is None:
            return Score(value=None, reason=f"the gold answer {trajectory.prompt.answer[:40]!r} is not a number")
        truncated = trajectory.status.kind is StatusKind.TRUNCATED
        number, reason = self.extract(trajectory.text, truncated=truncated)
        value = parse_number(number) if number else None
        flags = tuple(
            flag
            for flag, seen in (
                ("no_answer", value is None),
                ("truncated", truncated),
                ("answer_stuffing", reason.startswith("a list")),
            )
            if seen
        )
        if value is None:
            return Score(value=0.0, reason=reason, flags=flags)
        return Score(value=float(value == gold), reason=f"read {number[:40]}", flags=flags)

    def validate(self) -> None:
        """Raises ValueError if a gold answer does not get full marks, or an empty or stuffed answer gets any."""
        marker = f"{self.after} " if self.after else ""
        expect(self, "46", full=[f"{marker}46"], none=["", f"{marker}45, 46", f"{marker}47", f"{marker}12 + 46"])
