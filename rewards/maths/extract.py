"""Finds the answer a response commits to. First stage of the maths checker; reads text only, knows no mathematics.

Only the first turn counts, and of that what follows the last `</think>`. Order: the last balanced `\\boxed{}` (or
`\\fbox{}`, `\\boxed 7`) with something in it; then `#### x`; then "final answer is" / "answer:"; then a whole response
that is nothing but an expression; then what the last sentence with a number states (`sentences.py`), or its one new number
(`new_number.py`), or what the sentence before an aside states. Never the first number.

What follows an answer may put another in its place ("Wait, I forgot two, so it's 14") or take it back; a mere check does
not. Several boxes: the last one counts (a correction is allowed), but boxes that follow each other as a list ("\\boxed{7} or
\\boxed{8}") are one answer with several parts, and four or more different boxes are stuffing, refused.
"""

from __future__ import annotations

import re
from dataclasses import replace

from llmrl.rewards.boxes import MANY_BOXES, boxes_of
from llmrl.rewards.maths.final_sentence import split_sentences
from llmrl.rewards.maths.prose import (
    FINAL_PART,
    LEAD,
    LONGEST_ANSWER,
    Extracted,
    from_phrase,
    from_prose,
    second_thought,
    stated_behind,
)
from llmrl.rewards.maths.second_thoughts import AGAIN, denied, disowned, unreal
from llmrl.rewards.maths.spans import NUMBER, sides, spans_of
from llmrl.rewards.maths.statement import NO_HINTS, Hints
from llmrl.rewards.maths.units import UNIT, UNITS, canonical_unit

LONGEST_RESPONSE = 400_000  # characters; only the end of a longer one is read
_OPENING = re.compile(
    r"^\s*(?:<\|im_start\|>\s*(?:assistant)?|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<s>)\s*"
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|endoftext|end_of_text|end|start_header_id|user)\|>|</s>|<end_of_turn>"
    r"|<start_of_turn>|<eos>|\[INST\]|\n[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:User|Human|Instruction)(?:\*\*)?\s*:"
)
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:Question|Problem|Q)(?:\s*\d+)?(?:\*\*)?\s*:")
# A base model goes on with the next of its examples.
_NEXT_TASK = re.compile(r"\n[ \t]*\n[ \t]*Question:.*\n[ \t]*Answer:")
_COMMITS = re.compile(r"####|boxed|\banswer\b", re.IGNORECASE)
_EMPTY_BOX = re.compile(
    r"[\s?.…_-]*|(?:\\(?:text|mathrm)\s*\{)?\s*(?:insert |your |the |final )*(?:answer|result)(?: here)?\s*\}?|\\[cl]?dots",
    re.IGNORECASE,
)
_JOINS = re.compile(
    r"[\s,;/|&-]*(?:\b(?:and|or|also|possibly|perhaps|maybe|either|else|even)\b[\s,;]*)*", re.IGNORECASE
)
_NOT_THE_LAST = re.compile(r",\s*(?:and |but )?not\W*$")  # \boxed{22}, not \boxed{20}
# What stands beside a box and changes what it says: -\boxed{5}, x \ne \boxed{5}, \boxed{5}\%, \boxed{5}\text{ km}.
_REFUSED_BEFORE = re.compile(
    r"(?:(?:\\neq?|\\not\s*=|≠|!=)\s*(?:\\,|\\;|\s)*|\beither\b[^.\n]{0,40}\bor\s*[$({\\[]*"
    r"|(?:\\pm|\\cdot|\\times|\\sqrt\s*\{|\\frac\s*\{|\\frac\s*\{[^{}]*\}\s*\{|\d\s*[*×/])\s*)$"
)
_MINUS_BEFORE = re.compile(r"(?:^|[=$(\[{,:&]|\s\\\(|\\\[|\bis|\bare|\bget|\\approx)\s*[-−]\s*$")
_SPAN_END = re.compile(r"\$|\\\]|\\\)|\\end\b|\n")
_GOES_ON = re.compile(
    r"(?:\\[,;: ]|\s)*(?:\\?%|[-+*/^!]|[A-Za-z0-9]|,\s*(?:[-−+]?\s*\d|\\(?:frac|sqrt|pm))"
    r"|\\(?:text|mathrm|mbox|textrm|pi|sqrt|frac|cdot|times|pm|circ|degree|infty)\b)"
)
_WORDS_BESIDE = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
_SPEAKS = re.compile(r"\b(?:or|and|not|wrong|incorrect|maybe|percent|pct)\b", re.IGNORECASE)
_GLUED_ON = re.compile(r"\s*\\(?:cdot|times)\s*\S+|\^\{?\w+\}?|\\?%|[\^!/]\d*|[A-Za-z]{1,2}(?![A-Za-z])|\^\{?\\circ")
_SCALED = re.compile(
    r"^(?:\$|\\\)|\*|\s)*\s*(\\?%|(?:percent|per cent|pct|thousand|million|billion|dozen)\b"
    rf"|(?!units?\b|[ap]m\b|won\b)(?:{UNIT})(?=[\s.,;)]|$))"
)
_ALTERNATIVE = re.compile(
    r"^(?:\$|\\\)|\*|,|\s|\\text\s*\{|\\quad|\\,)*\b(or|and)\b(?:,?\s*(?:maybe|perhaps|possibly|also|even|else|just"
    r"|simply))*\s*\}?\s*,?\s*(\$?\s*(?:[a-zA-Z]\s*=\s*)?[-−+]?\s*(?:\d|\\d?frac|\\sqrt|\\pm).{0,40})",
    re.IGNORECASE,
)
_BOXED_CHOICE = re.compile(
    r"[\s$.,;*)\]\\]*(?:(?:which|this|that|it|so) )?(?:(?:is|corresponds to|matches|means|gives) )?(?:the )?"
    r"(?:option|choice|answer) \(?([A-F])\b"
)
_INSTEAD = re.compile(
    r"(?:\b(?:so|thus|hence|therefore|sorry|wait|no|actually|and)\b|[;,.\n])\W*(?:the|our|my) (?:\w+ )?answer\b[^.\n]{1,40}"
    r"\binstead\b",
    re.IGNORECASE,
)
_HOWEVER = re.compile(r"[^.\n]{0,20}[.,;]\W*(?:but|however)\b", re.IGNORECASE)
# A derivative, an indefinite integral or an infinite limit on the left, which cannot be evaluated: the answer is behind the
# last "=". Of what can be evaluated the whole equation is compared, without the antiderivative between its limits.
_OPERATOR = re.compile(
    r"\s*(?:\\[dt]?frac\s*\{\s*(?:d|\\partial)(?:\^\d)?\s*[a-z]?\s*\}|\\int\s*(?![\s_\\])"
    r"|\\(?:lim|sum|int)(?![a-z]).*=\s*[-+]?\s*\\infty\W*$)",
    re.DOTALL,
)
_BETWEEN_LIMITS = re.compile(r"=[^=]*(?:\]|\||\))\s*_[^=]*(?==)")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>\s*$", re.DOTALL | re.IGNORECASE)


def _joint(pieces: list[tuple[int, int, str]], text: str) -> list[int]:
    """Indices of the last run of pieces that stand in one list; just the last one if nothing joins it."""
    run = [len(pieces) - 1]
    while run[0] > 0:
        between = text[pieces[run[0] - 1][1] : pieces[run[0]][0]]
        words = re.sub(r"\\(?:text|mathrm|quad|qquad|\(|\)|\[|\]|,|;)|[${}*]|\b[a-zA-Z]\s*=\s*$", " ", between)
        if len(words) > 60 or "\n\n" in words.strip(" ") or not _JOINS.fullmatch(words):
            break
        run.insert(0, run[0] - 1)
    return run


def _unlike(pieces: list[tuple[int, int, str]]) -> list[str]:
    """The different contents, in order."""
    return list({re.sub(r"\s+", "", content): content for _, _, content in reversed(pieces)}.values())[::-1]


def _from_boxes(text: str, hints: Hints) -> Extracted | None:
    pieces = [piece for piece in boxes_of(text) if not _EMPTY_BOX.fullmatch(piece[2])]
    if not pieces:
        return None
    run = _joint(pieces, text)
    count = len(_unlike(pieces[-200:]))
    if count >= MANY_BOXES and len(run) < count:
        return Extracted(None, f"{count} different boxes", count, True)
    start, end, content = pieces[run[-1]]
    behind = text[end:][-FINAL_PART:]
    if hints.letter and (choice := _BOXED_CHOICE.match(behind)):
        return Extracted(choice[1], "choice behind the box", count)
    if 1 < len(pieces) < 8 and (cut := _NOT_THE_LAST.search(text, max(0, start - 20), start)):
        return _from_boxes(text[: cut.start()], hints)
    if len(run) == 1 and denied(text[max(0, start - 120) : start], text[end : end + 80]):
        return stated_behind(behind, hints) or Extracted(None, "the last box is negated", count)
    supposed = unreal(text[max(0, start - 160) : start])
    if (supposed or _INSTEAD.search(behind)) and (again := from_phrase(behind, hints)) and again.answer:
        return replace(again, boxes=count)
    if supposed and _HOWEVER.match(behind):
        return Extracted(None, "the last box supposes what is not so", count)
    if AGAIN.search(behind) and (again := second_thought(split_sentences(behind), hints, boxed=True)):
        return replace(again, boxes=count)
    if disowned(content, behind):
        return Extracted(None, "the last box is taken back", count)
    answer = _with_neighbours(pieces[run[-1]], text) if len(run) == 1 else ", ".join(_unlike([pieces[i] for i in run]))
    if answer is None:
        return Extracted(None, "the last box is part of something else", count)
    return Extracted(answer, "box", count, count >= MANY_BOXES)


def _unit_or_denial(words: re.Match[str]) -> str:
    """Words beside a box count if they are a unit or change what it says ("or 6"), not if they are talk."""
    said = words.group(1)
    return words.group() if _SPEAKS.search(said) or canonical_unit(said) else ""


def _with_neighbours(piece: tuple[int, int, str], text: str) -> str | None:
    """A box's content with what stands beside it: a minus, a unit, another answer; None if it is part of a larger term."""
    start, end, content = piece
    before, after = text[max(0, start - 60) : start], text[end : end + 80]
    if _REFUSED_BEFORE.search(before):
        return None
    close = _SPAN_END.search(after)
    rest = after[: close.start()] if close and close.group() != "\n" else ""
    rest = _WORDS_BESIDE.sub(_unit_or_denial, rest)
    prose = close is not None and close.group() == "$" and re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", rest))
    if not _GOES_ON.match(rest) or (prose and "\\text" not in rest):
        rest = ""
    if not close or close.group() == "\n":  # no maths span: only what is glued to the box
        glued = _GLUED_ON.match(after)
        rest = glued.group() if glued else ""
    if not rest and (scaled := _SCALED.match(after)):
        rest = f" \\text{{{scaled[1]}}}" if scaled[1] in UNITS else f" {scaled[1]}"
    if not rest and (other := _ALTERNATIVE.match(after.split("\n")[0])):
        spans, number = spans_of(other.group(2)), NUMBER.match(other.group(2).lstrip("$ "))
        another = spans[0][2] if spans and spans[0][0] == 0 else number.group() if number else other.group(2)
        rest = f" {other.group(1).lower()} {another.strip(' .$')}"
    said = content + rest
    if _MINUS_BEFORE.search(before):
        said = f"-({said})" if re.search(r"[-+,=]", said) else f"-{said}"
    return said


def _own_turn(response: str) -> str:
    """The response up to where another turn or another question begins, without chat tokens."""
    text = _OPENING.sub("", response[-LONGEST_RESPONSE:])
    for end in _TURN_ENDS.finditer(text):
        if text[: end.start()].strip():
            text = text[: end.start()]
            break
    if not any(mark in text for mark in ("Q", "Question", "Problem")):
        return text
    if (task := _NEXT_TASK.search(text)) and "=" in text[: task.start()]:
        text = text[: task.start()]
    committed = _COMMITS.search(text, text.rfind("</think>") + 1)
    another = _NEXT_QUESTION.search(text, committed.end()) if committed else None
    return text[: another.start()] if another else text


def extract(response: str, hints: Hints = NO_HINTS) -> Extracted:
    """The answer `response` commits to. Linear in its length (only the last 400,000 characters are read).

    >>> extract("So \\\\boxed{7}. Wait, I mean \\\\boxed{8}.").answer
    '8'
    >>> extract("x = 7 or so, the answer is $\\\\frac12$.").answer
    '\\\\frac12'
    """
    text = _own_turn(response)
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return Extracted(None, "the reasoning was not closed")
    if "<answer>" in text and (tagged := _TAGGED.search(text[-4 * FINAL_PART :])):
        text = tagged.group(1)
    found = _from_boxes(text, hints) if "box" in text else None
    found = found or from_prose(text[-4 * FINAL_PART :], hints)
    if found.answer is not None and (lead := LEAD.match(found.answer)):
        opened = lead.group().count("{") > lead.group().count("}")
        found = replace(found, answer=("\\text{" if opened else "") + found.answer[lead.end() :])
    if found.answer is not None and "=" in found.answer and "\\" in found.answer:
        equation = _BETWEEN_LIMITS.sub("", found.answer) if "\\int" in found.answer else found.answer
        found = replace(found, answer=_last_side(equation) if _OPERATOR.match(equation) else equation)
    if found.answer is not None and len(found.answer) > LONGEST_ANSWER:
        return Extracted(None, f"the answer is longer than {LONGEST_ANSWER} characters", found.boxes, found.stuffed)
    return found


def _last_side(equation: str) -> str:
    """What stands behind the last "=" that is in no braces; all of it where that is a list."""
    last = sides(equation)[-1]
    return equation if "," in last else last.strip()


def after_the_box(response: str) -> Extracted | None:
    """What "answer is" says after the last box, None if it says nothing there."""
    text = _own_turn(response).rpartition("</think>")[2]
    pieces = boxes_of(text)
    return from_phrase(text[pieces[-1][1] :][-FINAL_PART:], NO_HINTS) if pieces else None
