"""What a question asks for, as far as it decides between two readings of an answer: a percentage, a difference, a unit, an
expression. Reads text only; a question that asks for none of them, or none at all, leaves everything as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from llmrl.rewards.maths.judge import bare
from llmrl.rewards.maths.spans import FIGURES, spans_of
from llmrl.rewards.maths.units import canonical_unit

# A question for a percentage: the word in the sentence that asks, and not behind a number (20 percent of what?).
_ASKING = re.compile(
    r"[^.!?]*\?|[^.!?]*\b(?:find|determine|calculate|compute|express|give|what|how|answer)\b[^.?!]*", re.IGNORECASE
)
_PERCENT = re.compile(r"(?<![\d}$])(?<![\d}$] )(?<!-)\bper\s?cent(?:age)?s?\b|[a-z]\$?\s*\\?%", re.IGNORECASE)
_DIFFERENCE = re.compile(
    r"\bhow (?:much|many(?: \w+){0,2}) (?:more|fewer|less|\w+er)\b|\bby how (?:much|many)\b|\bhow many times\b"
    r"|\bdifference\b",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"\bhow many (\w+)\b(?! (?:per|and)\b)|\bin ((?:(?:square|cubic) )?\w+(?: per \w+)?)\s*\?", re.IGNORECASE
)
_COUNTED = re.compile(r"\bhow many (?!more\b|of\b|times\b|different\b|total\b)(\w+)", re.IGNORECASE)
_NAMED = re.compile(r"\b[Hh]ow (?:old|tall|heavy|fast|long|far|rich) (?:is|was) ([A-Z][a-z]+)\b(?!['’])")
_SUBJECT = re.compile(
    r"\b(?:what (?:is|was|are)|find|compute|determine|calculate) (?:the |their |its )?"
    r"(?:((?:larger|smaller|greater|lesser|largest|smallest|greatest|least|first|second|third|last) [a-z]+)\s*[?.]\s*$"
    r"|((?!value|number|sum|product|difference|total|smallest|largest|greatest|least|probability)[a-z]{4,}) of\b)",
    re.IGNORECASE,
)
_IN_BASE = re.compile(
    r"\b(?:in|to|into) (?:base[- ]\$?(\d{1,2})\b|(binary|octal|hexadecimal)\b)(?=[^.?!]*[.?!]?\s*$)", re.IGNORECASE
)
_BASE_NAMES = {"binary": 2, "octal": 8, "hexadecimal": 16}
_AT_FIRST = re.compile(
    r"\b(?:at first|initially|originally|to begin with|in the beginning|start(?:ed)? with)\b", re.IGNORECASE
)
_YEAR = re.compile(r"\b(?:which|what) year\b", re.IGNORECASE)
_LISTED = re.compile(r"\b((?:[a-zA-Z-]+, ){0,3}[a-zA-Z-]+,? or [a-zA-Z-]+)\s*\?\s*$")
_OPPOSITES = (
    ("converge", "diverge"),
    ("even", "odd"),
    ("increasing", "decreasing"),
    ("parallel", "perpendicular"),
    ("rational", "irrational"),
)
_PERSON = re.compile(
    r"(?<![.?!] )(?<!^)\b(?!(?:If|How|What|Which|Who|When|Find|Is|In|The|A|An|Does|I)\b)[A-Z][a-z]{1,12}\b"
    r"|^[A-Z][a-z]+(?= (?:is|has|runs|can|was|had)\b)"
)
_OPTION = re.compile(r"(?:^|[\s{])\(?([A-F])[).:]\}?(?:[\s~]|\\(?![A-Za-z]))*")
_AMOUNT = re.compile(r"\bhow (?:many|much)\b", re.IGNORECASE)
_MISSING = re.compile(
    r"\b(?:more|additional|extra|an?other|needs?|must|left|remain\w*|should|to (?:buy|get|reach)|missing)\b",
    re.IGNORECASE,
)
_VARIABLE = re.compile(
    r"\b(?:what is|find|compute|determine|calculate|solve for)(?: the value of)? (?:\$([a-z])\$|([b-z])\b)\s*(?:[.?]|$)",
    re.IGNORECASE,
)
_KINDS = ("s min h day week month year", "mm cm m km in ft yd mi", "mg g kg lb oz ton", "mL L gal qt pt", "usd cent")
_SPELLED_OUT = {"mph": "mi/h", "kph": "km/h"}
_SAME_KIND = {unit: frozenset(kind.split()) for kind in _KINDS for unit in kind.split()}


@dataclass(frozen=True, slots=True)
class Asked:
    """difference: by how much or how many times. other_units: those that would be another answer. dozens: the number of
    dozens is the answer. amount: how many there are, not how many more are needed. noun: what it counts.
    name: whose age or the like. subject: "larger number". year: it asks for a year. at_first: what was in the beginning.
    base: of the number asked for.
    expressions: in `bare` form. variable: the one whose value is asked. offered: the words to choose from.
    options: the texts of the letters to choose from."""

    percent: bool = False
    difference: bool = False
    other_units: frozenset[str] = frozenset()
    dozens: bool = False
    amount: bool = False
    noun: str = ""
    name: str = ""
    subject: str = ""
    figures: frozenset[str] = frozenset()
    year: bool = False
    at_first: bool = False
    base: int = 10
    expressions: frozenset[str] = frozenset()
    variable: str = ""
    offered: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=4_096)
def asked(question: str) -> Asked:
    """What the end of a question asks for.

    >>> asked("By what percent did it grow?").percent, asked("At a 20% discount, what is the price?").percent
    (True, False)
    >>> asked("How many minutes more does it take?").difference, "a+b" in asked("If $2a=4$, what is $a + b$?").expressions
    (True, True)
    """
    sentences = _ASKING.findall(question)
    named = [many or other for many, other in _UNIT.findall(" ".join(sentences))]
    unit = canonical_unit(named[-1].lower()) if named else None
    nouns = _COUNTED.findall(" ".join(sentences))
    difference = any(_DIFFERENCE.search(sentence) for sentence in sentences)
    variable = _VARIABLE.search(question)
    name = _NAMED.search(question)
    needed = _MISSING.search(" ".join(sentences)) is not None
    return Asked(
        percent=any(_PERCENT.search(sentence) for sentence in sentences),
        difference=difference,
        other_units=_others(unit) if unit else frozenset(),
        dozens=bool(named) and named[-1].lower() in ("dozen", "dozens"),
        amount=_AMOUNT.search(question) is not None and not difference and not needed,
        noun=nouns[-1] if nouns and not difference else "",
        name=name[1] if name else "",
        subject=(subject[1] or subject[2]).lower() if (subject := _SUBJECT.search(question)) else "",
        base=_base(question),
        figures=frozenset(FIGURES.findall(question)),
        year=_YEAR.search(question) is not None,
        at_first=_AT_FIRST.search(" ".join(sentences)) is not None,
        expressions=frozenset(bare(content) for _, _, content in spans_of(question) if "=" not in content),
        variable=(variable[1] or variable[2]) if variable else "",
        offered=_offered(question),
        options=_options(question),
    )


def _others(unit: str) -> frozenset[str]:
    """The other units of the same kind: of a length, of an area, of a speed."""
    above, _, below = _SPELLED_OUT.get(unit, unit).partition("/")
    base, power, exponent = above.partition("^")
    found = {f"{other}{power}{exponent}" for other in _SAME_KIND.get(base, ())}
    if below:
        found = {f"{one}/{other}" for one in found for other in _SAME_KIND.get(below, ())}
        found |= {short for short, long in _SPELLED_OUT.items() if long in found}
    return frozenset(found) - {unit}


def _base(question: str) -> int:
    """The base in which an answer is asked for, 10 where none is."""
    found = _IN_BASE.search(question)
    if not found:
        return 10
    return int(found[1]) if found[1] else _BASE_NAMES[found[2].lower()]


def _offered(question: str) -> tuple[str, ...]:
    """The words of "A, B or C?" at the end of a question, and the names in it."""
    listed = _LISTED.search(question)
    words = re.split(r",\s*(?:or\s+)?|\s+or\s+", listed[1]) if listed else []
    return tuple(dict.fromkeys([word.strip() for word in words] + _PERSON.findall(question)))


def alternatives(gold: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """The offered words with the gold's spelling of its own; the gold and its opposite if it is none of them."""
    stem = gold.lower().removesuffix("s")
    same = [word for word in offered if word.lower().removesuffix("s") == stem]
    opposite = next((pair for pair in _OPPOSITES if stem in pair), ())
    if not same:
        return (gold, *(word for word in opposite if word != stem))
    return (gold, *(word for word in offered if word not in same))


def _options(question: str) -> dict[str, str]:
    """The texts of (A), (B), .. at the end of a question; none where the letters are not in order."""
    marks = list(_OPTION.finditer(question))
    if len(marks) < 2 or "".join(mark[1] for mark in marks) != "ABCDEF"[: len(marks)]:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [re.sub(r"\\q?quad|\\text\w*\s*\{?\s*$", "", question[m.end() : end]) for m, end in zip(marks, ends)]
    return {mark[1]: text.strip(" \n\t,;$") for mark, text in zip(marks, texts)}
