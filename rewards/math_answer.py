"""Maths checker: does a response's final answer equal the gold answer? `verify_answer`, and `MathAnswer` as a Reward.

Three stages. `maths/extract.py` finds what the response commits to. Integers, fractions and everything else that exact
rational arithmetic decides is compared here and now (plain integers before any parsing). The rest (roots, functions,
variables) goes to a pool of worker processes with a wall-clock deadline, where mpmath compares to 200 digits; a worker
that misses the deadline is killed and the verdict is wrong with reason "timed out", counted. Callable from any thread
and any process. Model text is parsed by own grammars and never evaluated.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field, replace

from llmrl.rewards.exact_number import parse_number
from llmrl.rewards.maths.extract import Extracted, after_the_box, extract
from llmrl.rewards.maths.judge import CALCULUS, approximate, bare, judge, split_list, unit_of
from llmrl.rewards.maths.question import Asked, alternatives, asked
from llmrl.rewards.maths.scalars import NeedsWorker
from llmrl.rewards.maths.second_thoughts import AGAIN
from llmrl.rewards.maths.statement import Hints
from llmrl.rewards.maths.units import MONTH
from llmrl.rewards.validation import expect
from llmrl.rewards.workers import WorkerDied, WorkerPool, WorkerTimeout, WorkerUnusable
from llmrl.types import Score, StatusKind, Trajectory

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_AMOUNT = re.compile(r"\$?(-?[0-9]{1,15})(?:\.0+)?")  # $18.00
_LAST_BOX = re.compile(r"\\boxed\{(-?[0-9]{1,18})\}")
# A box that nothing else touches: then, and only then, is its content the whole answer.
_FREE_BEFORE = frozenset("=$([:,.>*")
_STATES = frozenset(("is", "are", "be", "get", "obtain", "answer", "equals", "so"))
_FREE_AFTER = re.compile(r"\s*(?:$|[$.;*)}]|,(?!\s*[-−+\d\\])|\\[\])])|\s+[A-Za-z]")
_OTHER_TURN = re.compile(
    r"<\||</s>|_of_turn>|\[INST\]|<answer>|\n[ \t#*]*(?:User|Human|Instruction|Question|Problem|Q)\b"
)
# Beside a box: it may be denied, a bound, a guess or what the careless get.
_DENYING_WORDS = """
    not cannot wrong incorrect never either would mistake error tempting tempted too than first bound forgot forget forgets
    forgetting forgotten might could may careless without something what were ignore ignores ignored ignoring but my though
    sure disregard who someone misses missed t
"""
_DENIES = frozenset(_DENYING_WORDS.split())
_WORD = re.compile("[a-z]+")
_ADDS = re.compile(r"\b(?:or|and|per ?cent|pct|thousand|million|billion|dozen)\b|%|<\|")  # behind a box
_IN_WORDS = re.compile(r"(?:\\text(?:bf)?\s*\{)?\s*[A-Za-z][A-Za-z ,'-]+\}?")  # a gold
_POINT = re.compile(r"\s*(?:\\left)?\(([^()]*,[^()]*)\)\s*")
_POLAR = re.compile(r"(?:\\text(?:bf)?\s*\{)?\s*(?:yes|no|true|false)\s*\.?\}?", re.IGNORECASE)
_LETTER = re.compile(r"(?:\\(?:text|textbf|mathrm)\s*\{)?\s*(?:[A-F]|\([A-F]\))\s*\}?")
_BASED = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
_IS_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
_IS_CLOCK = re.compile(r"\d{1,2}:\d\d(?: ?[ap]\.?m\.?)?", re.IGNORECASE)
_IS_DATE = re.compile(
    rf"(?:\\text(?:bf)?\s*\{{)?\s*(?:{MONTH}\b[\s}}~]*\d{{1,2}}(?:, ?\d{{4}})?|\d{{1,2}} {MONTH})\s*\}}?"
)
_NAMES_CHOICE = re.compile(r"(?:\W|\\(?:text|textbf|mathrm)\s*\{|option|choice)*[A-F]\b")
_PERCENT_SIGN = re.compile(r"\\?%|\b(?:percent|per cent|pct)\b|\\text\{\s*(?:percent|per cent|pct|\\?%)\s*\}")
_DOZEN = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?dozens?\b[^}]*\}?")
_MORE = re.compile(r"(?<![\w.,])(\d{1,15}) more\b")
_POOL = WorkerPool(
    "llmrl.rewards.maths.worker:handle", size=max(1, min(8, os.cpu_count() or 1)), memory_bytes=3 << 30, quiet=True
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """correct: None if the gold cannot be read (not applicable). extracted: what was compared, None if nothing was
    found.

    reason: one short sentence. flags: "no_answer", "many_boxes", "answer_stuffing", "timeout", "checker_error".
    """

    correct: bool | None
    extracted: str | None
    reason: str
    flags: tuple[str, ...] = field(default=())


def verify_answer(
    response: str, gold: str, *, timeout_s: float = 5.0, strict: bool = False, question: str = ""
) -> Verdict:
    """Check the final answer of `response` against `gold` (LaTeX, plain text or unicode; may be boxed or GSM8K's ####).

    timeout_s: limit of the whole call, the start of a worker included (0.4 s of an idle core, 1.5 s for the first integral
    or sum); only waiting for a worker while other threads use all of them comes on top. strict: refuse arithmetic left
    undone (3 + 4 for 7), for tasks where echoing the question would otherwise score. question: what was asked; it decides
    whether "7 more than Bob" or "$a+b = 7$" answers, and which unit does not. Raises nothing for any text; raises
    `WorkerUnusable` where a library of the checker is missing.

    >>> verify_answer("So it is \\\\boxed{0.5}", "\\\\frac12").correct
    True
    """
    box = response.rfind("\\boxed")
    if box >= 0 and "</think>" not in response and "<think>" not in response and response.find("\\boxed") == box:
        plain = _LAST_BOX.match(response, box)
        if (
            plain
            and _INTEGER.fullmatch(gold)
            and not (("<" in response or "\n" in response or "[" in response) and _OTHER_TURN.search(response))
            and "\\fbox" not in response
            and "\\framebox" not in response
        ):
            said = plain.group(1)
            if not _touched(response, box, plain.end()):
                right = said == gold or int(said) == int(gold)
                return Verdict(right, said, "equal integers" if right else "different integers")
    return _verify_response(response, gold, time.monotonic() + timeout_s, strict, asked(question[-4_000:]))


def _verify_response(response: str, gold: str, deadline: float, strict: bool, wanted: Asked) -> Verdict:
    found = extract(response, _hints(gold, wanted))
    verdict = _verify_found(found, response, gold, deadline, strict, wanted)
    if verdict.correct is False and found.other:
        return _verify_found(replace(found, answer=found.other), response, gold, deadline, strict, wanted)
    option = wanted.options.get(gold.strip("() \t")) if wanted.options else None
    if option and verdict.correct is False and found.answer and not _NAMES_CHOICE.match(found.answer):
        again = _verify_response(response, option, deadline, strict, replace(wanted, options={}))
        return again if again.correct else verdict
    return verdict


def _verify_found(found: Extracted, response: str, gold: str, deadline: float, strict: bool, wanted: Asked) -> Verdict:
    if wanted.dozens and found.answer:
        found = replace(found, answer=_DOZEN.sub("", found.answer))
    verdict = _verify(found, gold, deadline, strict)
    named, _, value = (found.answer or "").rpartition("=")
    if verdict.correct is False and named and bare(named.partition("=")[0]) in wanted.expressions:
        verdict = _verify(replace(found, answer=value), gold, deadline, strict)
    based = _BASED.fullmatch(gold.strip(" $")) if wanted.base != 10 else None
    if verdict.correct is False and based and based[2] == str(wanted.base):
        same = (found.answer or "").strip(" $.").upper() == based[1].upper()
        return replace(verdict, correct=True, reason="equal in the base asked for") if same else verdict
    if verdict.correct and wanted.other_units and unit_of(found.answer or "") in wanted.other_units:
        return replace(verdict, correct=False, reason="another unit than asked")
    named = named.partition("=")[0].strip()
    if verdict.correct and named and wanted.variable not in ("", named) and f"{wanted.variable} = " in response:
        return replace(verdict, correct=False, reason="another variable than asked")
    if verdict.correct and wanted.amount and found.where == "last sentence" and found.answer in _MORE.findall(response):
        return replace(verdict, correct=False, reason="so many more, where the whole is asked")
    if found.where == "box" and verdict.reason.startswith("the answer cannot be read") and not found.stuffed:
        again = after_the_box(response)  # an unreadable box does not hide "The answer is 7." after it
        return verdict if again is None else _verify(again, gold, deadline, strict)
    return verdict


def _hints(gold: str, wanted: Asked) -> Hints:
    hints = Hints(
        difference=wanted.difference,
        noun=wanted.noun,
        name=wanted.name,
        subject=wanted.subject,
        figures=wanted.figures,
        at_first=wanted.at_first,
    )
    if _INTEGER.fullmatch(gold):
        return replace(hints, year=wanted.year and _IS_YEAR.fullmatch(gold) is not None)
    words, point = _IN_WORDS.fullmatch(gold), _POINT.fullmatch(gold)
    return replace(
        hints,
        words=words is not None,
        coordinates=len(point[1].split(",")) if point else 0,
        alternatives=alternatives(bare(gold), wanted.offered) if words else (),
        polar=_POLAR.fullmatch(gold) is not None,
        letter=_LETTER.fullmatch(gold) is not None,
        date=_IS_DATE.fullmatch(gold) is not None,
        clock=_IS_CLOCK.fullmatch(gold.strip()) is not None,
    )


def final_answer(response: str) -> str | None:
    """The answer that `response` commits to, as written; None if it commits to none.

    >>> final_answer("It is \\\\boxed{7}."), final_answer("I don't know.")
    ('7', None)
    """
    return extract(response).answer


def _touched(response: str, start: int, end: int) -> bool:
    """Whether words of denial or mathematics beside the box may change what it says; the slow path looks closer."""
    before, after = response[max(0, start - 40) : start], response[end : end + 70]
    words, last = _WORD.findall(before.lower()), before.rstrip()[-1:]
    if last and last not in _FREE_BEFORE and not (last.isalpha() and words and words[-1] in _STATES):
        return True
    return (
        _FREE_AFTER.match(after) is None
        or not _DENIES.isdisjoint(words)
        or not _DENIES.isdisjoint(_WORD.findall(after.lower()))
        or _ADDS.search(after) is not None
        or (end < len(response) - 3 and AGAIN.search(response, end) is not None)
    )


def _verify(found: Extracted, gold: str, deadline: float, strict: bool) -> Verdict:
    flags = []
    if found.boxes > 1:
        flags.append("many_boxes")
    if found.stuffed:
        flags.append("answer_stuffing")
    if found.answer is None:
        flags.append("no_answer")
    answer = found.answer if found.answer is not None else ""
    if (amount := _AMOUNT.fullmatch(answer)) and _INTEGER.fullmatch(gold):
        right = int(amount[1]) == int(gold)
        return Verdict(right, answer, "equal integers" if right else "different integers", tuple(flags))
    correct, reason, more = _judge_anywhere(gold, answer, deadline, strict)
    if correct is not None and found.answer is None:
        correct, reason = False, found.where
    return Verdict(correct, found.answer, reason, (*flags, *more))


def _judge_anywhere(gold: str, answer: str, deadline: float, strict: bool) -> tuple[bool | None, str, tuple[str, ...]]:
    try:
        correct, reason = judge(gold, answer, heavy=False, strict=strict)
        return correct, reason, ()
    except NeedsWorker:
        pass
    request = json.dumps({"gold": gold, "answer": answer, "strict": strict}).encode()
    try:
        imports = b'{"imports": true}' if CALCULUS.search(gold + answer) else b""
        correct, reason = json.loads(_POOL.request(request, deadline - time.monotonic(), prepare=imports))
    except WorkerUnusable:
        raise
    except WorkerTimeout:
        return False, "timed out", ("timeout",)
    except WorkerDied as error:
        return False, f"the checker died: {error}", ("checker_error",)
    return correct, reason, ()


def _within(answer: str, gold: str, tolerance: float) -> bool:
    """Whether every number of the answer, in order, lies within `tolerance` of the gold's; never for other text."""
    pairs = [[approximate(part) for part in split_list(text)] for text in (answer, gold)]
    numbers = [value for side in pairs for value in side]
    if len(pairs[0]) != len(pairs[1]) or None in numbers:
        return False
    return all(abs(x - y) <= tolerance for x, y in zip(*pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class MathAnswer:
    """1.0 if the completion's final answer equals `prompt.answer`, 0.0 if not, None if the gold cannot be read.

    strict and timeout_s as in `verify_answer`. A completion that ran out of tokens only counts with a closed box.
    Where the question asks for a percentage, "20%" and "20" are the same answer. tolerance: name of a column that holds
    an absolute tolerance (OlympiadBench's `error`); an empty or missing value means none. Flags: those of `Verdict`, and
    "truncated".
    """

    timeout_s: float = 5.0
    strict: bool = False
    tolerance: str = ""

    def __call__(self, trajectory: Trajectory) -> Score:
        gold, text = trajectory.prompt.answer, trajectory.text
        truncated = trajectory.status.kind is StatusKind.TRUNCATED
        deadline = time.monotonic() + self.timeout_s
        question = trajectory.prompt.text[-4_000:]
        verdict = verify_answer(text, gold, timeout_s=self.timeout_s, strict=self.strict, question=question)
        if verdict.correct is not None and verdict.extracted and asked(question).percent:
            verdict = self._as_percent(verdict, gold, deadline)
        correct, reason = verdict.correct, verdict.reason
        allowed = trajectory.prompt.columns.get(self.tolerance)
        if correct is False and verdict.extracted and allowed and _within(verdict.extracted, gold, float(allowed)):
            correct, reason = True, f"within {allowed}"
        if correct and truncated and "box" not in text:
            correct, reason = False, "the completion was cut before it committed to an answer"
        flags = (*verdict.flags, "truncated") if truncated else verdict.flags
        if correct is None:
            return Score(value=None, reason=reason, flags=("unparsable_gold", *flags))
        said = f" ({verdict.extracted[:60]})" if verdict.extracted else ""
        return Score(value=float(correct), reason=reason + said, flags=flags)

    def _as_percent(self, verdict: Verdict, gold: str, deadline: float) -> Verdict:
        """20% and 20 are the same here; 2000% is not 20."""
        extracted = verdict.extracted or ""
        last = extracted.rpartition("=")[2].strip()  # 20/80 = 0.25 = 25%
        extracted = last if _PERCENT_SIGN.search(last) else extracted
        said, wanted = (_PERCENT_SIGN.sub("", text).strip() for text in (extracted, gold))
        marked = said != extracted.strip()
        if marked == (wanted != gold.strip()):
            return verdict
        again = _verify_response(f"\\boxed{{{said}}}", wanted, deadline, self.strict, Asked())
        value = parse_number(wanted)
        if again.correct or (marked and value is not None and abs(value) > 1):
            return Verdict(again.correct, verdict.extracted, again.reason, verdict.flags)
        return verdict

    def validate(self) -> None:
        """Raises ValueError if a gold answer does not get full marks, or a wrong or stuffed one gets any."""
        expect(
            self,
            "\\frac{7}{2}",
            full=["\\boxed{\\frac{7}{2}}", "The answer is 3.5.", "\\boxed{3\\frac12}"],
            none=[
                "",
                "\\boxed{}",
                "\\boxed{7}",
                "\\boxed{1, 2, 3.5}",
                "\\boxed{3 \\text{ or } 3.5}",
                "<think>\\boxed{3.5}",
            ],
        )
        expect(self, "2\\sqrt{2}", full=["\\boxed{\\sqrt8}"], none=["\\boxed{2.83}", "\\boxed{-\\sqrt8}"])
