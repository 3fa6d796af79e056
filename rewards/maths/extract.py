"""Finds the answer a response commits to. First stage of the maths checker; reads text only, knows no mathematics.

Only the first turn counts, and of that what follows the last `</think>`. Order: the last balanced `\\boxed{}` (or
`\\fbox{}`, `\\boxed 7`) with something in it; then `#### x`; then "final answer is" / "answer:"; then a whole response
that is nothing but an expression; then what the last sentence with a number states (`sentences.py`). Never the first
number.

What follows an answer may put another in its place ("Wait, I forgot two, so it's 14") or take it back; a mere check does
not. Several boxes: the last one counts (a correction is allowed), but boxes that follow each other as a list ("\\boxed{7} or
\\boxed{8}") are one answer with several parts, and four or more different boxes are stuffing, refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from llmrl.rewards.boxes import MANY_BOXES, boxes_of
from llmrl.rewards.maths.plain import fractions
from llmrl.rewards.maths.restated import restated
from llmrl.rewards.maths.second_thoughts import (
    AGAIN,
    afterthoughts,
    denied,
    disowned,
    judges,
    takes_back,
    unreal,
)
from llmrl.rewards.maths.sentences import (
    DOUBT,
    NUMBER,
    TAIL,
    says_something,
    spans_of,
    stated,
    with_maths,
    without_denials,
)
from llmrl.rewards.maths.statement import DENIAL, MULTIPLE, NO_HINTS, UNIT, Hints
from llmrl.rewards.maths.units import ONE_WORD, UNITS, canonical_unit, numerals, spoken_value

LONGEST_RESPONSE = 400_000  # characters; only the end of a longer one is read
LONGEST_ANSWER = 1_500
FINAL_PART = 4_000  # characters at the end in which a phrase, a maths span or a number is looked for

_OPENING = re.compile(
    r"^\s*(?:<\|im_start\|>\s*(?:assistant)?|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<s>)\s*"
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|endoftext|end_of_text|end|start_header_id|user)\|>|</s>|<end_of_turn>"
    r"|<start_of_turn>|<eos>|\[INST\]|\n[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:User|Human|Instruction)(?:\*\*)?\s*:"
)
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:Question|Problem|Q)(?:\s*\d+)?(?:\*\*)?\s*:")
_COMMITS = re.compile(r"####|boxed|\banswer\b", re.IGNORECASE)
_EMPTY_BOX = re.compile(
    r"[\s?.…_-]*|(?:\\(?:text|mathrm)\s*\{)?\s*(?:insert |your |the |final )*(?:answer|result)(?: here)?\s*\}?|\\[cl]?dots",
    re.IGNORECASE,
)
_JOINS = re.compile(
    r"[\s,;/|&-]*(?:\b(?:and|or|also|possibly|perhaps|maybe|either|else|even)\b[\s,;]*)*", re.IGNORECASE
)
_MARKER = re.compile(
    r"(?:\bfinal\s+answer|\banswers?|\bfinal\s+result|\b(?:correct|right|best)\s+(?:option|choice)|^[ \t]*A(?=:)"
    r"|\bans\b\.?(?=[:. ]))(?:\s+to\s+[^.\n]{0,60}?)?[\s*_\"]*(?:\b(?:is|are|(?:should|must) be)\b|:|=|≈|→|->|(?<=ns\.)"
    r"|(?=n't\b|n’t\b))[\s*_:]*(?:simply\s+|just\s+)?",
    re.IGNORECASE | re.MULTILINE,
)
# "Possible answer: 5" is no "correct answer".
_QUALIFIED = re.compile(
    r"\b(?!(?:the|an?|our|my|its?|this|that|and|so|to|correct|right|exact|full|complete|actual|true|numerical|required"
    r"|desired|requested|sought|short|simplified|overall|only|final|thus|hence|then|therefore|is|get|have|whose"
    r"|problem)\b)[a-z]+[\s*_]*$",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"(?:\\boxed|in|inside|within|given|below|above|as follows|the following|boxed)\b(?![^.\n]*\d)", re.IGNORECASE
)
_NOT_THE_LAST = re.compile(r",\s*(?:and |but )?not\W*$")  # \boxed{22}, not \boxed{20}
_MULTIPLE = re.compile(
    rf"{MULTIPLE}\W*$|\b(?:square|cube|double|half|reciprocal|negative|opposite|inverse) of\W+(?:the|this|that)\W*$",
    re.IGNORECASE,
)
# "Yes, it is." and "..., so no, it isn't prime."
_POLAR = re.compile(
    r"(?:^|(?<=[.!?:] )|(?<=[.!?]\n)|\n|,\s|\b(?:so|thus|hence|therefore|then|is)\W{1,3})(?:\W*)\b(yes|no|true|false)\b"
    r"(?=\W*$|\s*[,.;:!—–-](?!\W*(?:if|unless|provided|wait|only|when)\b)| because\b| since\b| for (?:all|every)\b)",
    re.IGNORECASE,
)
_WHO = re.compile(
    r"\W*(?i:(?:so|thus|therefore|hence|and|then)\b\W*)?([A-Z][a-z]+) (?:is|was|has|had|wins?|won|finishe[sd]|came|runs?|ran)"
    r" (?:first\b|the (?:\w+est|most|least|winner|one|only)\b)"
)
# An answer on a line of its own, then its reasons.
_FIRST_LINE = re.compile(
    r"([^\n]*\d[^\n]*)\n\s*(?=(?:because|since|explanation|reason(?:ing)?|here|this is|we have|to see)\b)",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\bleaves?(?: us with)?(?: only)?(?: option)? \(?([A-F])\)?(?=[\s.])|\b(?:is|are|choose|pick|select|take|matches"
    r"|option|choice|answer|statement|letter)[:\s*$]*\(?([A-F])\)?[\s*$.!]*$"
    r"|(?:^|\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence)\W{1,2})\(?([A-F])\)? is (?:the )?(?:right|correct|best|true|answer)\b"
    r"|\bonly\s+(?:option |choice |statement )?\(?([A-F])\)?\s+(?:works?|fits?|is|remains|satisfies|matches|holds?|can)\b",
)
_RULED_OUT = re.compile(
    rf"{DENIAL.pattern}|\b(?:fails?|rule|excluded?|eliminated?|wrong|incorrect|false|except)\b", re.IGNORECASE
)
_UNSURE = re.compile(
    r"\b(?:do|can|could|am|i['’]m|is)(?: not|n't|'t|not) (?:know|tell|determine|be determined|sure|say|solve|find|answer"
    r"|finish|decide|figure|see how|compute|view|see|access|able to)\b"
    r"|\b(?:did|was|were|have|could)(?: not|n['’]t) (?:manage|able|been able|succeed)\b|\bfailed to (?:find|solve|finish)\b"
    r"|\bno idea\b|\bgive up\b|\bunknown\b|\bunsure\b|\bunable to\b|\b(?:not (?:have )?enough|insufficient) information\b",
    re.IGNORECASE,
)
_UNSURE_WORDS = (
    "not ",
    "n't",
    "n’t",
    "'t",
    "no idea",
    "give up",
    "unknown",
    "unsure",
    "unable",
    "insufficient",
    "failed to",
)
_SENTENCES = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][$)])"
    r"|(?<=[.!?]\$\$))(?<!\beq\.)(?<!\bfig\.)(?<!\bno\.)(?<!i\.e\.)(?<!e\.g\.)(?<!\bsq\.)(?<!\bft\.)(?<!\bapprox\.)\s+"
    r"|(?:(?<=\\\])|(?<=\$\$)|(?<=\*\}))\s*(?=[A-Z][a-z]+[ ,])|\n+|;",
    re.IGNORECASE,
)
_ASIDE_SENTENCE = re.compile(
    r"\W*(?:(?:please )?note|remark|remember|recall|keep in mind|(?:as|just) a reminder|reminder|tip|fun fact|alternatively"
    r"|check\w*|verif\w+|verification|indeed|because|here (?:is|are) (?:how|why)|more generally|explanation"
    r"|reason(?:ing)?|this makes sense|as (?:a check|expected)"
    r"|(?:we|you|one|i) can (?:\w+ )?(?:verify|check|confirm)(?!.*\bonly\b)|to (?:check|verify|confirm)"
    r"|(?:this|that|which|it|the (?:answer|result)) (?:\w+ )?(?:agrees|matches(?! (?:option|choice|answer|only))|confirms"
    r"|coincides|is consistent)"
    r"|(?:for|in|by) (?:comparison|reference|contrast)|see (?:page|section|chapter|also))\b|\(",
    re.IGNORECASE,
)
# What may follow a sentence that concludes, and puts nothing in its place: what would be, and the steps once more.
_CONCLUDES = re.compile(
    r"\W*(?:so|thus|therefore|hence|consequently|altogether|in total)\b(?!.*\bso (?:far|much|many)\b)"
    r"|.*\b(?:in total|altogether|in all)\W*$",
    re.IGNORECASE,
)
_UNREAL = re.compile(r"\W*(?:if|had|without)\b[^.]*\bwould\b|.*\bwould (?:have|be)\b[^.]*\bif\b", re.IGNORECASE)
_STEPS = re.compile(
    r"\n[ \t]*(?:(?:key|main|the|all|summary|list|of) )*(?:steps?|points?|ideas?|method|approach"
    r"|recap)(?: \w+)?[ \t]*:?[ \t]*\n",
    re.IGNORECASE,
)
_ITS_THE_ANSWER = re.compile(
    r"[,;]? (?:and |which |— ?)?(?:that|this|it)?['’]?(?:s| is) (?:the|our|my) (?:final )?answer(?: \w+ \w+)?\W*$",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\W*(?:(?:and|but|so|now|then)\W+)?(?:how (?:many|much|long|far|old|often)|what|which|when|who|where)\b"
    r"(?!.*\b(?:you|I|we)\b)[^?]*\?\W*$"
    r"|\W*(?:we|i) (?:are asked|(?:still |now )?(?:need|want|have) to (?:find|compute|determine|calculate|know))\b",
    re.IGNORECASE,
)
_TAIL_DOUBTS = re.compile(
    r"\b(?:otherwise|unless|depending|maybe)\b|^\W*if\b|^\W*(?:which|but|though)\b.*(?:not|n['’]t|wrong)\b", re.DOTALL
)
_IF = re.compile(r"\b(?:if|whether|unless)\b", re.IGNORECASE)
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
    r"^(?:\$|\\\)|\*|\s)*\s*(\\?%|(?:percent|per cent|pct|thousand|million|billion|dozen)\b"
    rf"|(?!units?\b|[ap]m\b|won\b)(?:{UNIT})(?=[\s.,;)]|$))"
)
_ALTERNATIVE = re.compile(
    r"^(?:\$|\\\)|\*|,|\s|\\text\s*\{|\\quad|\\,)*\b(or|and)\b(?:,?\s*(?:maybe|perhaps|possibly|also|even|else|just"
    r"|simply))*\s*\}?\s*,?\s*(\$?\s*(?:[a-zA-Z]\s*=\s*)?[-−+]?\s*(?:\d|\\d?frac|\\sqrt|\\pm).{0,40})",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^\\text\s*\{(?![^{}]*\b(?:not|than|most|least|about|or)\b)[^{}]*\b(?:is|are|equals)\s*\}\s*(?=\S)"
    r"|^(?:\\text\{\s*)?(?:probably|likely|exactly|simply|just|only|both|therefore|thus|hence|then|so"
    r"|equal to|equals|(?:the )?(?:final )?answer(?: is)?:?|it is|it's|which is)\b[\s:,]*(?:\}\s*)?(?=\S)",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(?:^|\s)(\([A-E]\)\s[^\n]*?|[A-E][).:]\s[^\n]*?)[.\s]*$")
_OPTION = re.compile(
    r"\b(?:option|choice|statement|answer)\s+\(?([A-E])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b",
    re.IGNORECASE,
)
_PREDICATE_WORDS = re.compile(
    r"\b(?:is|are|was|were|be|falls on|lands on|comes|opens)\s+(?:(?:an?|the|on(?: an?)?)\s+)?"
    r"([a-z][a-z-]*(?: [a-z][a-z-]*)?)\W*$",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^\W*(?:\*\*|[-*>#]\s)?(?:Step|Part|Case) \d+\W*[:.)]\s+", re.IGNORECASE)
_NUMBER_WORD = re.compile(rf"\b{ONE_WORD}\b(?=[ .!]|$)", re.IGNORECASE)
_CUT = re.compile(
    r"(?:\b(?:and|or|but|the|an|of|which|because|since|if|thus|therefore|hence)|,? and the (?:rest|others?|remaining \w+))$"
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
_TOTAL_ROW = re.compile(
    r"(?:^|\n)\|\W*(?:\w+ )?(?:total|sum)\b[^|\n\d]*\|(?:[^|\n\d]*\|)*([^|\n]*\d[^|\n]*)\|\s*$", re.IGNORECASE
)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>\s*$", re.DOTALL | re.IGNORECASE)
_MARKDOWN = re.compile(
    r"(?<![\w)])\*\*|\*\*(?![\w(])|^[ \t]*(?:>|#{1,3}(?!#))[ \t]*|[ \t]#{1,3}[ \t]*$|`(?=[$\d])|(?<=\d)`", re.MULTILINE
)
_ONE_LINE_BLOCK = re.compile(
    r"```(?:latex|tex|text|math|plaintext|md|json|output)?[ \t]*\n[ \t]*([^\n`]+?)[ \t]*\n[ \t]*```"
)
_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


_PLAIN_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{[^{}]*\}")
_NOTES = re.compile(r"<<[^<>\n]*>>|\[asy\].*?\[/asy\]", re.DOTALL)  # a calculator's notes, drawings
_MARKS = frozenset(">#`")
_SPACES = re.compile(r"[ \t]{2,}")
_TITLE = re.compile(r"^\W*(?:result|value|total|solution)\s*[:=]\s*(?=\S)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Extracted:
    """`answer` is the text committed to, None if there is none; `where` says how it was found, or why not. `other`: the
    same value in another unit, where the response says both."""

    answer: str | None
    where: str
    boxes: int = 0  # different boxes seen
    stuffed: bool = False
    other: str | None = None


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
        return _stated_behind(behind, hints) or Extracted(None, "the last box is negated", count)
    supposed = unreal(text[max(0, start - 160) : start])
    if (supposed or _INSTEAD.search(behind)) and (again := _from_phrase(behind, hints)) and again.answer:
        return replace(again, boxes=count)
    if supposed and _HOWEVER.match(behind):
        return Extracted(None, "the last box supposes what is not so", count)
    if AGAIN.search(behind) and (again := _second_thought(_sentences(behind), hints, boxed=True)):
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


def _from_phrase(text: str, hints: Hints) -> Extracted | None:
    """What follows the last "#### " or "answer is" that has something behind it."""
    _, marker, rest = text.rpartition("####")
    if marker:
        line = rest.strip().split("\n", 1)[0]
        return Extracted(line.strip() or None, "####")
    lower = text.lower()
    if not any(word in lower for word in ("ans", "result", "option", "choice", "a:")):
        return None
    for match in reversed(list(_MARKER.finditer(text))):
        rest = text[match.end() :].lstrip(" \t\r\n*_>:`}")
        clause = _CLAUSES.split(_sentences(text[: match.start()])[-1])[-1]
        if (
            _QUALIFIED.search(clause)
            or _MULTIPLE.search(clause)
            or DOUBT.search(clause)
            or DENIAL.search(clause)
            or _IF.search(clause)
        ):
            return Extracted(None, "the answer is only supposed")
        if rest and not _ELSEWHERE.match(rest) and not (rest[0] == "\\" and boxes_of(rest[:200])[:1]):
            return _after_marker(rest[:LONGEST_ANSWER], hints)
    return None


def _after_marker(rest: str, hints: Hints) -> Extracted:
    """What the sentence behind "answer is" says: all of it if it is nothing but an answer, else what it states."""
    sentence, *later = _sentences(re.sub(r"^-\s+(?=\d)", "", rest))
    if later and AGAIN.search(rest) and (again := _second_thought(later, hints)):
        return again
    if later and takes_back(later[0]):
        return Extracted(None, "the answer is taken back")
    sentence = without_denials(sentence).strip(' *_`"')
    while lead := _LEAD.match(sentence):
        sentence = sentence[lead.end() :]
    if sentence.count("}") > sentence.count("{"):  # of a JSON object around the answer
        sentence = sentence.rstrip('} "')
    spans = spans_of(sentence)
    if spans and spans[0][0] == 0 and spans[0][1] >= len(sentence.rstrip(" .")):
        return Extracted(spans[0][2].strip(), "answer phrase")
    line = TAIL.sub("", re.sub(r"(?<=[\d$]) (?:times|instead)\W*$", "", sentence))
    if _TAIL_DOUBTS.search(sentence[len(line) :]):
        return Extracted(None, "the answer is only supposed")
    line = line.strip(" *_`.,;")
    if _stands_alone(line) or _CHOICE.match(line) or not re.search(r"[\d$\\]", _in_digits(line)):
        return Extracted(_undelimited(line), "answer phrase")
    return _stated(f"is {with_maths(_in_digits(sentence))}", hints, "answer sentence")


def _stated_behind(behind: str, hints: Hints) -> Extracted | None:
    """What a text says that follows a wrong answer, None if nothing."""
    found = _from_phrase(behind, hints) or _from_last_sentence(behind, hints)
    return found if found.answer is not None and not judges(found.answer) else None


def _second_thought(later: list[str], hints: Hints, *, boxed: bool = False) -> Extracted | None:
    """What the sentences behind an answer put in its place ("Wait, I forgot two, so it's 14"); None if they leave it be."""
    for rest, error in afterthoughts(later, boxed=boxed):
        if found := _stated_behind(rest, hints):
            return found
        if error:
            return Extracted(None, "the answer is taken back")
    return None


def _sentences(text: str) -> list[str]:
    """The sentences of a text, at least one; a stop within a maths span ends none."""
    spans = spans_of(text)[-60:] if "$" in text or "\\" in text else []
    inside = {place for start, end, _ in spans for place in range(start + 1, end)}
    cuts = [match.end() for match in _SENTENCES.finditer(text) if match.start() not in inside]
    return [text[start:end].strip() for start, end in pairwise([0, *cuts, len(text)])]


def _in_digits(text: str) -> str:
    """The text with every number in words as a numeral."""
    return _NUMBER_WORD.sub(lambda match: str(spoken_value(match.group())), fractions(numerals(text)))


def _from_last_sentence(text: str, hints: Hints) -> Extracted:
    """What the last sentence with a number or an expression states."""
    if (steps := list(_STEPS.finditer(text))) and _ends_with_conclusion(
        text[: steps[-1].start()], text[steps[-1].end() :]
    ):
        text = text[: steps[-1].start()]
    ending = "\n".join(text.rsplit("\n", 2)[-2:])  # two lines mostly decide; without displayed maths no span is cut
    for part in (ending, text) if len(ending) < len(text) and "\\" not in text and "$$" not in text else (text,):
        sentences = _sentences(with_maths(part))
        said_in = [i for i, sentence in enumerate(sentences) if says_something(sentence)]
        place = _final(sentences, said_in)
        if place is not None:
            break
    if not said_in:
        digits = _in_digits(text)
        return _from_last_sentence(digits, hints) if digits != text else Extracted(None, "no answer found")
    place = said_in[-1] if place is None else place
    said = _LABEL.sub(
        "", _ITS_THE_ANSWER.sub("", sentences[place]) if "answer" in sentences[place] else sentences[place]
    )
    if said.endswith("?") or any(map(_ASKS.match, sentences[place + 1 :])):
        return Extracted(None, "the last number is asked")
    if any(takes_back(later) for later in sentences[place + 1 :]):
        return Extracted(None, "the last number is taken back")
    if place == len(sentences) - 1 and _CUT.search(said):
        return Extracted(None, "the last sentence is cut")
    if chosen := _CHOICE.search(said):
        return Extracted(chosen.group(1), "last choice")
    if NUMBER.fullmatch(said.strip(" *-.")) and place and NUMBER.fullmatch(sentences[place - 1].strip(" *-.")):
        return Extracted(None, "the last number ends a list")
    return _stated(re.sub(r"\*\*|[.!]+$|^\W*[-*>#]\s", "", said), hints, "last sentence")


def _stated(sentence: str, hints: Hints, where: str) -> Extracted:
    """What a sentence states, with the same value in another unit where it says that too."""
    twice = restated(sentence)
    if twice and not twice[0]:
        return Extracted(None, "two values that differ")
    found = stated(twice[0] if twice else sentence, hints)
    return Extracted(found, where, other=twice[1] if twice and found else None)


def _ends_with_conclusion(text: str, steps: str) -> bool:
    """Whether a text concludes before a list of steps that compute nothing."""
    last = _sentences(text.rstrip())[-1]
    return (
        bool(_CONCLUDES.match(last) and says_something(last))
        and "=" not in steps
        and not re.search(r"\b(?:so|thus|therefore|hence)\b", steps, re.IGNORECASE)
    )


def _final(sentences: list[str], said_in: list[int]) -> int | None:
    """Which of the sentences that say something is the last that is no aside; None if all are.

    "That is the answer" ends a response; behind a conclusion, what would be is an aside too.
    """

    def aside(i: int) -> bool:
        goes_on = i > 0 and sentences[i][:1].islower() and _ASIDE_SENTENCE.match(sentences[i - 1])
        return bool(goes_on or _ASIDE_SENTENCE.match(sentences[i]))

    for i in reversed(said_in):
        if "answer" in sentences[i] and _ITS_THE_ANSWER.search(sentences[i]) and not DOUBT.search(sentences[i]):
            return i
    places = [i for i in said_in if not aside(i)]
    real = len(places) - 1
    while real > 0 and "would" in sentences[places[real]] and _UNREAL.match(sentences[places[real]]):
        real -= 1
    if real < len(places) - 1 and not _CONCLUDES.match(sentences[places[real]]):
        return places[-1]
    return places[real] if places else None


def _stands_alone(whole: str) -> bool:
    """Whether a response is nothing but an answer: one short line, all of it mathematics or all of it a few words."""
    if len(whole) > 200 or "\n" in whole or DOUBT.search(whole):
        return False
    spans = spans_of(with_maths(whole))
    if spans:
        whole = with_maths(whole)
        return spans[0][1] - spans[0][0] >= len(whole.rstrip("."))
    if len(re.findall(r"\$\d", whole)) > 1:
        return False
    prose = _in_digits(re.sub(r"\\[a-zA-Z]+", "", whole))
    if re.search(r"\d", prose) and re.search(r"[A-Za-z]{2,}.*=|\b(?:is|are|was|were|equals|gives|makes)\b", prose):
        return False
    if re.search(r"[A-Za-z]{2,},?\s+[A-Za-z]{2,}|[A-Za-z]{2,}:?\s+\d", prose):
        return not re.search(r"\d", prose) and len(prose.split()) <= 6
    return True


def _undelimited(line: str) -> str:
    """What stands between the delimiters if the line is one maths span, the line as it is otherwise."""
    marked = with_maths(line)
    spans = spans_of(marked)
    return spans[0][2].strip() if spans and spans[0][:2] == (0, len(marked.rstrip("."))) else line


def _own_turn(response: str) -> str:
    """The response up to where another turn or another question begins, without chat tokens."""
    text = _OPENING.sub("", response[-LONGEST_RESPONSE:])
    for end in _TURN_ENDS.finditer(text):
        if text[: end.start()].strip():
            text = text[: end.start()]
            break
    if not any(mark in text for mark in ("Q", "Question", "Problem")):
        return text
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
    found = found or _from_prose(text[-4 * FINAL_PART :], hints)
    if found.answer is not None and (lead := _LEAD.match(found.answer)):
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
    depth, at = 0, 0
    for place, sign in enumerate(equation):
        depth += (sign == "{") - (sign == "}")
        at = place + 1 if sign == "=" and not depth else at
    return equation if "," in equation[at:] else equation[at:].strip()


def after_the_box(response: str) -> Extracted | None:
    """What "answer is" says after the last box, None if it says nothing there."""
    text = _own_turn(response).rpartition("</think>")[2]
    pieces = boxes_of(text)
    return _from_phrase(text[pieces[-1][1] :][-FINAL_PART:], NO_HINTS) if pieces else None


def _from_prose(text: str, hints: Hints) -> Extracted:
    """The answer of a text without a box."""
    if "box" in text:
        text = _PLAIN_BOX.sub(" ", text)
    if "<<" in text or "[asy]" in text:
        text = _NOTES.sub("", text)
    if "```" in text:
        text = _BLOCK.sub(" ", _ONE_LINE_BLOCK.sub(r"\1", text))
    if "**" in text or not _MARKS.isdisjoint(text):
        text = _MARKDOWN.sub("", text)
    if "|" in text and (row := _TOTAL_ROW.search(text)):
        text = f"{text[: row.start()]}\nThe total is {row[1].strip()}."
    text = (_SPACES.sub(" ", text) if "  " in text or "\t" in text else text).strip()[-FINAL_PART:]
    if found := _from_phrase(text, hints):
        return found
    whole = _TITLE.sub("", text.strip(), count=1)
    lower = whole.lower()
    if any(word in lower for word in _UNSURE_WORDS) and _UNSURE.search(whole):
        return Extracted(None, "the response does not commit itself")
    judged = any(word in text for word in ("correct", "right", "best", "true"))
    if judged and (option := list(_OPTION.finditer(text))):
        return Extracted(option[-1].group(1), "option")
    last = text.rstrip().rpartition("\n")[2]
    if hints.polar and (said := _POLAR.findall(text)) and not DOUBT.search(last):
        return Extracted(said[-1], "yes or no")
    if hints.letter and not _RULED_OUT.search(last) and not DOUBT.search(last) and (named := _LETTER.search(last)):
        return Extracted(named[named.lastindex or 1], "last letter")
    named = (_WHO.match(last) or _PREDICATE_WORDS.search(last)) if hints.words else None
    if named and not DENIAL.search(last) and not DOUBT.search(last):
        return Extracted(named[1], "last words")
    if "→" in whole and re.fullmatch(r"[a-z]\w?\s*=[^=]+", after := whole.rpartition("→")[2].strip()):
        whole = after
    if _stands_alone(whole):
        return Extracted(_undelimited(whole) or None, "whole response")
    found = _from_last_sentence(text, hints)
    if found.answer is None and (first := _FIRST_LINE.match(text)) and _stands_alone(first[1].strip()):
        return Extracted(first[1].strip(), "first line")
    return found
