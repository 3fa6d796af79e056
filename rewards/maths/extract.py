"""Finds the answer a response commits to. First stage of the maths checker; reads text only, knows no mathematics.

Only the first turn counts, and of that what follows the last `</think>`. Order: the last balanced `\\boxed{}` (or
`\\fbox{}`, `\\boxed 7`) with something in it; then `#### x`; then "final answer is" / "answer:"; then a whole response
that is nothing but an expression; then what the last sentence with a number states (`sentences.py`). Never the first
number.

Several boxes: the last one counts (a correction is allowed), but boxes that follow each other as a list ("\\boxed{7} or
\\boxed{8}") are one answer with several parts, and four or more different boxes are stuffing, refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmrl.rewards.boxes import MANY_BOXES, boxes_of
from llmrl.rewards.maths.sentences import DOUBT, NUMBER, TAIL, spans_of, stated, without_denials
from llmrl.rewards.maths.units import ONE_WORD, canonical_unit, numerals, spoken_value

LONGEST_RESPONSE = 400_000  # characters; only the end of a longer one is read
LONGEST_ANSWER = 1_500
FINAL_PART = 4_000  # characters at the end in which a phrase, a maths span or a number is looked for

_OPENING = re.compile(
    r"^\s*(?:<\|im_start\|>\s*(?:assistant)?|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<s>)\s*"
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|endoftext|end_of_text|end|start_header_id|user)\|>|</s>|<end_of_turn>"
    r"|<start_of_turn>|<eos>|\[INST\]|\n\s*(?:#+\s*)?(?:\*\*)?(?:User|Human|Instruction)(?:\*\*)?\s*:"
)
_NEXT_QUESTION = re.compile(r"\n\s*(?:#+\s*)?(?:\*\*)?(?:Question|Problem|Q)(?:\s*\d+)?(?:\*\*)?\s*:")
_COMMITS = re.compile(r"####|boxed|\banswer\b", re.IGNORECASE)
_EMPTY_BOX = re.compile(
    r"[\s?.…_-]*|(?:\\(?:text|mathrm)\s*\{)?\s*(?:insert |your |the |final )*(?:answer|result)(?: here)?\s*\}?"
    r"|\\[cl]?dots",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"wait|actual|correct|mistake|instead|therefore|\bso\b|thus|final|hence|error|should|sorry|oops|hmm|let me"
    r"|again|check|then|simplif|which|gives|equal|=|rewrite|convert|now|approx|≈|first|second|next|step|part"
    r"|\bno\b|\bnot\b|but",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"(?:\bfinal\s+answer|\banswers?|\bfinal\s+result|\b(?:correct|right|best)\s+(?:option|choice)|^[ \t]*A(?=:))\b"
    r"(?:\s+to\s+[^.\n]{0,60}?)?[\s*_\"]*(?:\bis\b|\bare\b|:|=|≈|(?=n't\b|n’t\b))[\s*_:]*(?:simply\s+|just\s+)?",
    re.IGNORECASE | re.MULTILINE,
)
_ELSEWHERE = re.compile(
    r"(?:\\boxed|in|inside|within|given|below|above|as follows|the following|boxed)\b(?![^.\n]*\d)", re.IGNORECASE
)
_NEGATED_BEFORE = re.compile(
    r"(?:not\b|n't|\bnever\b|\bneither\b|\bnone of\b|\bwrong(?:ly)?\b|\bincorrect(?:ly)?\b)[^.\n]{0,12}$"
    r"|\bwere\s*[$({\\[]*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"^[\s$*})\].,]*(?:is|was|are|would be|seems)?\s*(?:not\b(?!\s*[$\d\\-])|n't|wrong|incorrect|false)", re.IGNORECASE
)
_UNSURE = re.compile(
    r"\b(?:do|can|could|am|is)(?: not|n't|'t|not) (?:know|tell|determine|be determined|sure|say|solve|find|answer"
    r"|finish|decide|figure|see how|compute)\b"
    r"|\bno idea\b|\bgive up\b|\bunknown\b|\bunsure\b|\bunable to\b|\bnot enough information\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<![0-9])\.(?=\s|$)|\.(?=\s+[A-Z])|\.\s*$|\n\s*\n|[!?](?=\s+[A-Z]|\s*$)")
_SENTENCES = re.compile(
    r"(?<!\beq\.)(?<!\bfig\.)(?<!\bno\.)(?<!i\.e\.)(?<!e\.g\.)(?<=[.!?])\s+|\n|;|\bbut\b(?<!not)", re.IGNORECASE
)
_TAKEN_BACK = re.compile(
    r",\s*(?:which|but (?:this|that|it))\s+(?:is|was|can|must|seems)\s*(?:n't|not|wrong|incorrect|false|impossible)"
)
_CLAUSES = re.compile(r"[,;:]|\b(?:so|thus|therefore|hence|then|and)\b", re.IGNORECASE)
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
    r"^(?:\$|\\\)|\*|\s)*\s*(\\?%|percent\b|per cent\b|pct\b|thousand\b|million\b|billion\b|dozen\b)", re.IGNORECASE
)
_ALTERNATIVE = re.compile(
    r"^(?:\$|\\\)|\*|,|\s|\\text\s*\{|\\quad|\\,)*\b(or|and)\b(?:,?\s*(?:maybe|perhaps|possibly|also|even|else"
    r"|just|simply))*"
    r"\s*\}?\s*,?\s*(\$?\s*(?:[a-zA-Z]\s*=\s*)?[-−+]?\s*(?:\d|\\d?frac|\\sqrt|\\pm).{0,40})",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:\\text\{\s*)?(?:probably|likely|exactly|simply|just|only|both|therefore|thus|hence|then|so"
    r"|equal to|equals|(?:the )?(?:final )?answer(?: is)?:?|it is|it's|which is)\b[\s:,]*(?:\}\s*)?(?=\S)",
    re.IGNORECASE,
)
_CHOICE_IN_BOLD = re.compile(r"\*\*\s*(\(?[A-E]\)?[).:]?\s[^*\n]*?)\s*\*\*[.\s]*$")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>\s*$", re.DOTALL | re.IGNORECASE)
_ONE_LINE_BLOCK = re.compile(r"```(?:latex|tex|text|math|plaintext|md)?[ \t]*\n[ \t]*([^\n`]+?)[ \t]*\n[ \t]*```")
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_IN_WORDS = re.compile(rf"(?:negative |minus )?(?:{ONE_WORD}\b|\d)", re.IGNORECASE)
# 27 apples were sold: the number and what it counts.
_PREDICATE = re.compile(
    rf"^({NUMBER.pattern}(?: [a-z]+){{0,3}}?) (?:is|are|was|were|will|would|have|has|had|can|remain\w*|left)\b"
    r"(?! (?:not|wrong|in))[^\d$\\]*$"
)
_MORE = re.compile(r"^([$€£]?[\d.,/]+) more (?=[a-z])(?!than\b)(?!\w+ than\b)")


@dataclass(frozen=True, slots=True)
class Extracted:
    """`answer` is the text committed to, None if there is none; `where` says how it was found, or why not."""

    answer: str | None
    where: str
    boxes: int = 0  # different boxes seen
    stuffed: bool = False


def _joint(pieces: list[tuple[int, int, str]], text: str) -> list[int]:
    """Indices of the last run of pieces that stand in one list; just the last one if nothing joins it."""
    run = [len(pieces) - 1]
    while run[0] > 0:
        between = text[pieces[run[0] - 1][1] : pieces[run[0]][0]]
        words = re.sub(r"\\(?:text|mathrm|quad|qquad|\(|\)|\[|\]|,|;)|[${}*]|\b[a-zA-Z]\s*=\s*$", " ", between)
        if len(words) > 60 or "\n\n" in words.strip(" ") or _CORRECTION.search(words) or re.search(r"[0-9.]", words):
            break
        if not re.fullmatch(
            r"[\s,;/|&-]*(?:\b(?:and|or|also|possibly|perhaps|maybe|either|else|even)\b[\s,;]*)*", words
        ):
            break
        run.insert(0, run[0] - 1)
    return run


def _same(a: str, b: str) -> bool:
    return re.sub(r"\s+", "", a) == re.sub(r"\s+", "", b)


def _join(pieces: list[tuple[int, int, str]], run: list[int]) -> str:
    texts: list[str] = []
    for i in run:
        if not any(_same(pieces[i][2], other) for other in texts):
            texts.append(pieces[i][2])
    return ", ".join(texts)


def _from_boxes(text: str) -> Extracted | None:
    pieces = [piece for piece in boxes_of(text) if not _EMPTY_BOX.fullmatch(piece[2])]
    if not pieces:
        return None
    different: list[str] = []
    for _, _, content in pieces[-200:]:
        if len(different) < 50 and not any(_same(content, other) for other in different):
            different.append(content)
    run = _joint(pieces, text)
    count = len(different)
    if count >= MANY_BOXES and len(run) < count:
        return Extracted(None, f"{count} different boxes", count, True)
    start, end, _ = pieces[run[-1]]
    if len(run) == 1 and (
        _NEGATED_BEFORE.search(text[max(0, start - 40) : start]) or _NEGATED_AFTER.search(text[end : end + 40])
    ):
        return Extracted(None, "the last box is negated", count)
    answer = _with_neighbours(pieces[run[-1]], text) if len(run) == 1 else _join(pieces, run)
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
        rest = " " + scaled.group(1)
    if not rest and (other := _ALTERNATIVE.match(after.split("\n")[0])):
        spans, number = spans_of(other.group(2)), NUMBER.match(other.group(2).lstrip("$ "))
        another = spans[0][2] if spans and spans[0][0] == 0 else number.group() if number else other.group(2)
        rest = f" {other.group(1).lower()} {another.strip(' .$')}"
    said = content + rest
    if _MINUS_BEFORE.search(before):
        said = f"-({said})" if re.search(r"[-+,=]", said) else f"-{said}"
    return said


def _from_phrase(text: str) -> Extracted | None:
    """What follows the last "#### " or "answer is" that has something behind it."""
    _, marker, rest = text.rpartition("####")
    if marker:
        line = rest.strip().split("\n", 1)[0]
        return Extracted(line.strip() or None, "####")
    for match in reversed(list(_MARKER.finditer(text))):
        rest = text[match.end() :].lstrip(" \t\r\n*_>:`}")
        clause = _CLAUSES.split(_SENTENCES.split(text[: match.start()])[-1] or "")[-1]
        if DOUBT.search(clause):
            return Extracted(None, "the answer is only supposed")
        if rest and not _ELSEWHERE.match(rest) and not (rest[0] == "\\" and boxes_of(rest[:200])[:1]):
            return _after_marker(rest[:LONGEST_ANSWER])
    return None


def _after_marker(rest: str) -> Extracted:
    rest = re.sub(r"^-\s+(?=\d)", "", rest)
    spans = spans_of(rest)
    if spans and spans[0][0] <= 2:
        return _phrase_spans(rest, spans)
    end = _SENTENCE_END.search(rest)
    sentence = (rest[: end.start()] if end else rest).split("\n", 1)[0]
    if (
        re.match(r"(?:not|never|unknown|unclear)\b|n't|n’t", rest, re.IGNORECASE)
        and without_denials(sentence) == sentence
    ):
        return Extracted(None, "the answer is negated")
    if _TAKEN_BACK.search(sentence):
        return Extracted(None, "the answer is taken back")
    sentence = without_denials(sentence).strip()
    while lead := _LEAD.match(sentence):
        sentence = sentence[lead.end() :]
    prose = re.match(r"[A-Za-z']{2,}[ ,]|\w+\s+is\b", sentence) and re.search(r"\d|\$|\\[(\[]", sentence)
    if prose and not _IN_WORDS.match(sentence):
        whole = rest[: end.start()] if end else rest
        return Extracted(stated(whole.split("\n", 1)[0]), "answer sentence")
    line = _PREDICATE.sub(r"\1", TAIL.sub("", sentence)).strip(' *_`.,;"')
    if line.count("}") > line.count("{"):  # of a JSON object around the answer
        line = line.rstrip('} "')
    if re.search(r"\bnot\b|n't", line):
        line = re.split(r"[,;]?\s*\b(?:and\s+|but\s+)?not\b", line)[0].strip(" ,;(")
    if re.search(r"\b(?:or|and)$", line):
        return Extracted(None, "the answer is one of several")
    return Extracted(_MORE.sub(r"\1 ", line) or None, "answer phrase")


def _phrase_spans(rest: str, pieces: list[tuple[int, int, str]]) -> Extracted:
    stop = 1
    while stop < len(pieces) and len(_joint(pieces[: stop + 1], rest)) == stop + 1:
        stop += 1
    if _NEGATED_AFTER.search(rest[pieces[stop - 1][1] : pieces[stop - 1][1] + 40]):
        return Extracted(None, "the answer is negated")
    answer = ", ".join(content.strip() for _, _, content in pieces[:stop])
    after = rest[pieces[stop - 1][1] :]
    if scaled := _SCALED.match(after):
        return Extracted(f"{answer} {scaled.group(1)}", "answer phrase")
    tail = re.match(r"\s*((?:[a-zA-Z]+[ /]?){1,3})(?:\^\{?(\d)\}?)?\s*(?:[.,;\n]|$)", after)
    if stop == 1 and tail and not TAIL.match(" " + tail.group(1)):
        power = f"^{tail.group(2)}" if tail.group(2) else ""
        answer += f" \\text{{ {tail.group(1).strip()}}}{power}"
    return Extracted(answer, "answer phrase")


def _from_last_sentence(text: str) -> Extracted:
    """What the last sentence with a number or a maths span states."""
    pieces = spans_of(text)
    numbers = [m for m in NUMBER.finditer(text) if not any(s <= m.start() < e for s, e, _ in pieces[-60:])]
    last = numbers[-1] if numbers else None
    if pieces and (last is None or pieces[-1][1] > last.start()):
        return _from_spans(text, pieces)
    if last is None:
        in_digits = re.sub(
            rf"\b{ONE_WORD}\b(?=[ .!]|$)", lambda m: str(spoken_value(m.group())), numerals(text), flags=re.IGNORECASE
        )
        return _from_last_sentence(in_digits) if in_digits != text else Extracted(None, "no answer found")
    if re.match(r"[^.!\n]*\?", text[last.end() :]) or _NEGATED_AFTER.search(text[last.end() : last.end() + 40]):
        return Extracted(None, "the last number is negated or asked")
    if chosen := _CHOICE_IN_BOLD.search(text, max(0, last.start() - 200)):
        return Extracted(chosen.group(1), "last choice")
    before = _SENTENCES.split(text[: last.start()])[-1] or ""
    after = (_SENTENCES.split(text[last.end() :])[0] or "").rstrip(".")
    above = text[: last.start() - len(before)].rstrip().split("\n")[-1]
    if not before.strip(" *-") and NUMBER.fullmatch(above.strip(" *-.")):
        return Extracted(None, "the last number ends a list")
    return Extracted(stated(before + last.group() + after), "last sentence")


def _from_spans(text: str, pieces: list[tuple[int, int, str]]) -> Extracted:
    run = _joint(pieces, text)
    start, end, _ = pieces[run[-1]]
    if _NEGATED_BEFORE.search(text[max(0, start - 40) : start]) or _NEGATED_AFTER.search(text[end : end + 40]):
        return Extracted(None, "the last expression is negated")
    if len(run) == 1:
        before = _SENTENCES.split(text[:start])[-1] or ""
        after = (_SENTENCES.split(text[end:])[0] or "").rstrip(".")
        said = stated(before + text[start:end] + after)
        return Extracted(
            said.strip(" .,;\n") if said else None, "last maths span" if said else "the last expression is hedged"
        )
    return Extracted(_join(pieces, run).strip(" .,;\n"), "last maths span")


def _stands_alone(whole: str) -> bool:
    """Whether a response is nothing but an answer: one short line, all of it mathematics or all of it a few words."""
    if len(whole) > 200 or "\n" in whole or DOUBT.search(whole):
        return False
    spans = spans_of(whole)
    if spans:
        return spans[0][1] - spans[0][0] >= len(whole.rstrip("."))
    if len(re.findall(r"\$\d", whole)) > 1:
        return False
    prose = re.sub(r"\\[a-zA-Z]+", "", whole)
    if re.search(rf"\d|\b{ONE_WORD}\b", prose) and re.search(r"\b(?:is|are|was|were|equals|gives|makes)\b", prose):
        return False
    if re.search(r"[A-Za-z]{2,},?\s+[A-Za-z]{2,}|[A-Za-z]{2,}\s+\d", prose):
        return not re.search(r"\d", prose) and len(prose.split()) <= 6
    return True


def _own_turn(response: str) -> str:
    """The response up to where another turn or another question begins, without chat tokens."""
    text = _OPENING.sub("", response[-LONGEST_RESPONSE:])
    for end in _TURN_ENDS.finditer(text):
        if text[: end.start()].strip():
            text = text[: end.start()]
            break
    for end in _NEXT_QUESTION.finditer(text):
        if _COMMITS.search(text[: end.start()].rpartition("</think>")[2]):
            return text[: end.start()]
    return text


def extract(response: str) -> Extracted:
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
    found = _from_boxes(text) if "box" in text else None
    found = found or _from_prose(text[-4 * FINAL_PART :])
    if found.answer is not None and (lead := _LEAD.match(found.answer)):
        opened = lead.group().count("{") > lead.group().count("}")
        found = replace(found, answer=("\\text{" if opened else "") + found.answer[lead.end() :])
    if found.answer is not None and len(found.answer) > LONGEST_ANSWER:
        return Extracted(None, f"the answer is longer than {LONGEST_ANSWER} characters", found.boxes, found.stuffed)
    return found


def after_the_box(response: str) -> Extracted | None:
    """What "answer is" says after the last box, None if it says nothing there."""
    text = _own_turn(response).rpartition("</think>")[2]
    pieces = boxes_of(text)
    return _from_phrase(text[pieces[-1][1] :][-FINAL_PART:]) if pieces else None


def _from_prose(text: str) -> Extracted:
    """The answer of a text without a box."""
    text = re.sub(r"\\(?:boxed|fbox)\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"<<[^<>\n]*>>|\[asy\].*?\[/asy\]", "", text, flags=re.DOTALL)  # a calculator's notes, drawings
    text = _BLOCK.sub(" ", _ONE_LINE_BLOCK.sub(r"\1", text))
    text = re.sub(r"[ \t]{2,}", " ", text.strip())[-FINAL_PART:]
    if found := _from_phrase(text):
        return found
    whole = re.sub(r"^\W*(?:result|value|total)\s*[:=]\s*(?=\S)", "", text.strip(), flags=re.IGNORECASE)
    if _UNSURE.search(whole):
        return Extracted(None, "the response does not commit itself")
    return Extracted(whole or None, "whole response") if _stands_alone(whole) else _from_last_sentence(text)
