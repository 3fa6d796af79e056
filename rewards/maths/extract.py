"""Finds the answer a response commits to. First stage of the maths checker; reads text only, knows no mathematics.

Order: after the last `</think>` only; then the last balanced `\\boxed{}` (or `\\fbox{}`, `\\boxed 7`); then `#### x`;
then "final answer is" / "answer:"; then a whole response that is nothing but an expression; then the last maths span;
then the last number of the last sentence that has one. Never the first number.

Several boxes: the last one counts (a correction is allowed), but boxes that follow each other as a list ("\\boxed{7} or
\\boxed{8}") are one answer with several parts, and four or more different boxes are stuffing, refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmrl.rewards.boxes import MANY_BOXES, boxes_of
from llmrl.rewards.maths.units import canonical_unit

LONGEST_RESPONSE = 400_000  # characters; only the end of a longer one is read
LONGEST_ANSWER = 1_500
TAIL = 4_000  # characters at the end in which a phrase, a maths span or a number is looked for

_CORRECTION = re.compile(
    r"wait|actual|correct|mistake|instead|therefore|\bso\b|thus|final|hence|error|should|sorry|oops|hmm|let me"
    r"|again|check|then|simplif|which|gives|equal|=|rewrite|convert|now|approx|≈|first|second|next|step|part|\bno\b|\bnot\b|but",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"(?:\bfinal\s+answer|\banswers?|\bfinal\s+result|\b(?:correct|right|best)\s+(?:option|choice))\b(?:\s+to\s+[^.\n]{0,60}?)?[\s*_]*(?:\bis\b|\bare\b|:|=|≈)[\s*_:]*(?:simply\s+|just\s+)?",
    re.IGNORECASE,
)
_DELIMITER = re.compile(r"\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_CLOSES = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
_NEGATED_BEFORE = re.compile(
    r"(?:not\b|n't|\bnever\b|\bneither\b|\bnone of\b|\bwrong(?:ly)?\b|\bincorrect(?:ly)?\b)[^.\n]{0,12}$|\bwere\s*[$({\\[]*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"^[\s$*})\].,]*(?:is|was|are|would be|seems)?\s*(?:not\b|n't|wrong|incorrect|false)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<![0-9])\.(?=\s|$)|\.(?=\s+[A-Z])|\.\s*$|\n\s*\n|[!?](?=\s+[A-Z]|\s*$)")
_TAIL = re.compile(
    r"[,;]?\s+(?:because|since|which|as|when|where|by|after|assuming|using|so|given|if|for|in total|altogether"
    r"|respectively)\b.*$"
    r"|\s*\((?:since|because|as|or|i\.e\.|approx|rounded|which)[^)]*\)?.*$",
    re.IGNORECASE | re.DOTALL,
)
# What stands beside a box and changes what it says: -\boxed{5}, x \ne \boxed{5}, \boxed{5}\%, \boxed{5}\text{ km}.
_REFUSED_BEFORE = re.compile(r"(?:\\neq?|\\not\s*=|≠|!=)\s*(?:\\,|\\;|\s)*$")
_MINUS_BEFORE = re.compile(r"(?:^|[=$(\[{,:&]|\s\\\(|\\\[|\bis|\bare|\bget|\\approx)\s*[-−]\s*$")
_SPAN_END = re.compile(r"\$|\\\]|\\\)|\\end\b|\n")
_GOES_ON = re.compile(
    r"(?:\\[,;: ]|\s)*(?:\\?%|[-+*/^!]|[A-Za-z0-9]"
    r"|\\(?:text|mathrm|mbox|textrm|pi|sqrt|frac|cdot|times|pm|circ|degree|infty)\b)"
)
_WORDS_BESIDE = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
_SPEAKS = re.compile(r"\b(?:or|and|not|wrong|incorrect|maybe|percent)\b", re.IGNORECASE)
_GLUED_ON = re.compile(r"\^\{?\w+\}?|\\?%|[\^!]|[A-Za-z]{1,2}(?![A-Za-z])|\^\{?\\circ")
_LEAD = re.compile(
    r"^(?:\\text\{\s*)?(?:probably|likely|exactly|simply|just|only|both|therefore|thus|hence|then|so"
    r"|equal to|equals|(?:the )?(?:final )?answer(?: is)?:?|it is|it's|which is)\b[\s:,]*(?:\}\s*)?(?=\S)",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(
    r"(?<![\w.,/^\\{])[-+−]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?(?![\w^/]|\.\d|,\d)"
)


# Words by which a sentence does not commit to the number it names.
_HEDGED = re.compile(
    r"not\b|n't|\b(?:none|neither|nor|except|or|wrong|incorrect|maybe|perhaps|possibly|either|if|were|suppose|assum\w+"
    r"|contradict\w+|more|less|fewer|greater|larger|smaller|least|most|between|over|under|above|below|about|around"
    r"|approximately|roughly|nearly|almost|up to|exceeds?|guess|option|divided|times|plus|minus|multiple|multipl\w+"
    r"|half|unless|until)\b",
    re.IGNORECASE,
)
_CHOICE_IN_BOLD = re.compile(r"\*\*\s*(\(?[A-E]\)?[).:]?\s[^*\n]*?)\s*\*\*[.\s]*$")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>\s*$", re.DOTALL | re.IGNORECASE)


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
        words = re.sub(r"\\(?:text|mathrm|quad|qquad|\(|\)|\[|\]|,|;)|[${}*]", " ", between)
        if len(words) > 60 or "\n\n" in words.strip(" ") or _CORRECTION.search(words) or re.search(r"[0-9.]", words):
            break
        if not re.fullmatch(
            r"[\s,;/|&-]*(?:\b(?:and|or|also|possibly|perhaps|maybe|either|else|even)\b[\s,;]*)*", words
        ):
            break
        run.insert(0, run[0] - 1)
    return run


def spans_of(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every maths span $..$, $$..$$, \\(..\\), \\[..\\], in order and in one pass."""
    found: list[tuple[int, int, str]] = []
    opened: tuple[str, int, int] | None = None
    for match in _DELIMITER.finditer(text):
        mark = match.group()
        if opened is None:
            opened = (_CLOSES[mark], match.start(), match.end()) if mark in _CLOSES else None
        elif mark == opened[0]:
            content = text[opened[2] : match.start()]
            if mark == "$" and _between_prices(content, text[match.end() : match.end() + 1]):
                opened = (mark, match.start(), match.end())
                continue
            if content.strip():
                found.append((opened[1], match.end(), content))
            opened = None
    return found


def _between_prices(content: str, after: str) -> bool:
    """Whether what stands between two dollar signs is no mathematics but the way from one price to the next."""
    return re.match(r"\d.*[\s*(=+-]$", content, re.DOTALL) is not None and after.isdigit()


def _same(a: str, b: str) -> bool:
    return re.sub(r"\s+", "", a) == re.sub(r"\s+", "", b)


def _join(pieces: list[tuple[int, int, str]], run: list[int]) -> str:
    texts: list[str] = []
    for i in run:
        if not any(_same(pieces[i][2], other) for other in texts):
            texts.append(pieces[i][2])
    return ", ".join(texts)


def _from_boxes(text: str) -> Extracted | None:
    pieces = boxes_of(text)
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
        return Extracted(None, "the last box is negated", count)
    return Extracted(answer, "box", count, count >= MANY_BOXES)


def _unit_or_denial(words: re.Match[str]) -> str:
    """Words beside a box count if they are a unit or change what it says ("or 6"), not if they are talk."""
    said = words.group(1)
    return words.group() if _SPEAKS.search(said) or canonical_unit(said) else ""


def _with_neighbours(piece: tuple[int, int, str], text: str) -> str | None:
    """A box's content with a minus before it and with what its maths span goes on with; None behind an unequal sign."""
    start, end, content = piece
    before, after = text[max(0, start - 40) : start], text[end : end + 80]
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
    said = content + rest
    if _MINUS_BEFORE.search(before):
        said = f"-({said})" if re.search(r"[-+,=]", said) else f"-{said}"
    return said


def _from_phrase(text: str) -> Extracted | None:
    """What follows the last "#### " or "answer is"."""
    _, marker, rest = text.rpartition("####")
    if marker:
        line = rest.strip().split("\n", 1)[0]
        return Extracted(line.strip() or None, "####")
    last = None
    for match in _MARKER.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() :].lstrip(" \t\r\n*_>:")
    if re.match(r"(?:not|never|unknown|unclear)\b", rest, re.IGNORECASE):
        return Extracted(None, "the answer is negated")
    rest = rest[:LONGEST_ANSWER]
    spans = spans_of(rest)
    if spans and spans[0][0] <= 2:
        return _phrase_spans(rest, spans)
    end = _SENTENCE_END.search(rest)
    line = rest[: end.start()] if end else rest
    line = _TAIL.sub("", line.split("\n", 1)[0]).strip(" *_`.,;")
    if re.search(r"\bnot\b|n't", line):
        line = re.split(r"[,;]?\s*\b(?:and\s+|but\s+)?not\b", line)[0].strip(" ,;(")
    return Extracted(_told(line) or line or None, "answer phrase")


def _told(line: str) -> str | None:
    """The quantity of a whole sentence with one number: 8 apples of "Sue has 8 apples"; None for anything else."""
    numbers = list(_PLAIN_NUMBER.finditer(line))
    before = line[: numbers[0].start()] if numbers else ""
    if len(numbers) != 1 or not re.match(r"[A-Z][a-z']*\s+(?:[A-Za-z']+\s+)*[A-Za-z']+[\s*]*$", before):
        return None
    if _HEDGED.search(line) or re.search(r"[=\\^]", line):
        return None
    return line[numbers[0].start() :].replace("*", "")


def _phrase_spans(rest: str, pieces: list[tuple[int, int, str]]) -> Extracted:
    stop = 1
    while stop < len(pieces) and len(_joint(pieces[: stop + 1], rest)) == stop + 1:
        stop += 1
    if _NEGATED_AFTER.search(rest[pieces[stop - 1][1] : pieces[stop - 1][1] + 40]):
        return Extracted(None, "the answer is negated")
    answer = ", ".join(content.strip() for _, _, content in pieces[:stop])
    tail = re.match(r"\s*((?:[a-zA-Z]+[ /]?){1,3})(?:\^\{?(\d)\}?)?\s*(?:[.,;\n]|$)", rest[pieces[stop - 1][1] :])
    if stop == 1 and tail and not _TAIL.match(" " + tail.group(1)):
        power = f"^{tail.group(2)}" if tail.group(2) else ""
        answer += f" \\text{{ {tail.group(1).strip()}}}{power}"
    return Extracted(answer, "answer phrase")


def _from_spans(text: str) -> Extracted | None:
    pieces = spans_of(text)
    if not pieces:
        return None
    run = _joint(pieces, text)
    start, end, _ = pieces[run[-1]]
    if _NEGATED_BEFORE.search(text[max(0, start - 40) : start]) or _NEGATED_AFTER.search(text[end : end + 40]):
        return Extracted(None, "the last expression is negated")
    return Extracted(_join(pieces, run).strip(" .,;\n"), "last maths span")


def _from_number(text: str) -> Extracted:
    last = None
    for match in _PLAIN_NUMBER.finditer(text):
        last = match
    if last is None:
        return Extracted(None, "no answer found")
    sentence = re.split(r"(?<=[.!?])\s+|\n|;|\bbut\b", text[: last.start()])[-1]
    asked = re.match(r"[^.!\n]*\?", text[last.end() :]) is not None
    if asked or re.search(
        r"not\b|n't|\bnone\b|\bneither\b|\bnor\b|\bexcept\b|\bor\b|\bwrong\b|\bincorrect\b|\bmaybe\b|\bperhaps\b|\bpossibly\b|\beither\b"
        r"|^\W*(?:if|suppose)\b[^,]*\bwere\s*$",
        sentence.lower(),
    ):
        return Extracted(None, "the last number is hedged")
    if _NEGATED_AFTER.search(text[last.end() : last.end() + 40]):
        return Extracted(None, "the last number is negated")
    if chosen := _CHOICE_IN_BOLD.search(text, max(0, last.start() - 200)):
        return Extracted(chosen.group(1), "last choice")
    before = text[: last.start()].rstrip()
    if re.search(r"\d\s*[-+*/×÷^,;]$", before) or re.search(r"\d$", before.rstrip("$")):
        return Extracted(None, "the last number is an operand or ends a list")
    return Extracted(last.group(), "last number")


def _stands_alone(whole: str) -> bool:
    """Whether a response is nothing but an answer: one short line, all of it mathematics or all of it a few words."""
    if len(whole) > 200 or "\n" in whole:
        return False
    spans = spans_of(whole)
    if spans:
        return spans[0][1] - spans[0][0] >= len(whole.rstrip("."))
    if len(re.findall(r"\$\d", whole)) > 1:
        return False
    prose = re.sub(r"\\[a-zA-Z]+", "", whole)
    if re.search(r"\d", prose) and re.search(r"\b(?:is|are|was|were|equals|gives|makes)\b", prose):
        return False
    if re.search(r"[A-Za-z]{2,},?\s+[A-Za-z]{2,}", prose):
        return not re.search(r"\d", prose) and len(prose.split()) <= 6
    return True


def extract(response: str) -> Extracted:
    """The answer `response` commits to. Linear in its length (only the last 400,000 characters are read).

    >>> extract("So \\\\boxed{7}. Wait, I mean \\\\boxed{8}.").answer
    '8'
    >>> extract("x = 7 or so, the answer is $\\\\frac12$.").answer
    '\\\\frac12'
    """
    text = response[-LONGEST_RESPONSE:]
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return Extracted(None, "the reasoning was not closed")
    if "<answer>" in text and (tagged := _TAGGED.search(text[-4 * TAIL :])):
        text = tagged.group(1)
    found = _from_boxes(text) if "box" in text else None
    text = re.sub(r"[ \t]{2,}", " ", text[-4 * TAIL :].strip())[-TAIL:]
    found = found or _from_phrase(text)
    if found is None:
        whole = re.sub(r"^\W*(?:result|value|total)\s*[:=]\s*(?=\S)", "", text.strip(), flags=re.IGNORECASE)
        if _stands_alone(whole):
            found = Extracted(whole or None, "whole response")
        else:
            found = _from_spans(text) or _from_number(text)
    if found.answer is not None and (lead := _LEAD.match(found.answer)):
        opened = lead.group().count("{") > lead.group().count("}")
        found = replace(found, answer=("\\text{" if opened else "") + found.answer[lead.end() :])
    if found.answer is not None and len(found.answer) > LONGEST_ANSWER:
        return Extracted(None, f"the answer is longer than {LONGEST_ANSWER} characters", found.boxes, found.stuffed)
    return found
