"""The answer of a text without a box: behind "answer is", the whole of it, or what its last sentence states."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmrl.rewards.boxes import boxes_of
from llmrl.rewards.maths.final_sentence import (
    asked_behind,
    concludes,
    conclusion_before,
    final_sentence,
    split_sentences,
    without_claim,
    without_steps,
)
from llmrl.rewards.maths.lists import counted_list, in_one_line, together
from llmrl.rewards.maths.moments import CLOCK, DATE, YEAR, moment
from llmrl.rewards.maths.new_number import only_new
from llmrl.rewards.maths.plain import fractions
from llmrl.rewards.maths.plainer import without_denials
from llmrl.rewards.maths.restated import restated
from llmrl.rewards.maths.second_thoughts import AGAIN, afterthoughts, judges, takes_back
from llmrl.rewards.maths.sentences import (
    DOUBT,
    TAIL,
    stated,
    with_maths,
)
from llmrl.rewards.maths.spans import FIGURES, NUMBER, last_step, says_something, spans_of
from llmrl.rewards.maths.spoken import said_in_words
from llmrl.rewards.maths.statement import DENIAL, MULTIPLE, Hints
from llmrl.rewards.maths.units import ONE_WORD, numerals, spoken_value

LONGEST_ANSWER = 1_500
LAST_WORDS = 600  # characters at the end in which a response may say that it does not know
FINAL_PART = 4_000  # characters at the end in which a phrase, a maths span or a number is looked for
_MARKER = re.compile(
    r"(?:\bfinal\s+answer|\banswers?|\bfinal\s+result|\b(?:correct|right|best)\s+(?:option|choice)|^[ \t]*A(?=:)"
    r"|\bans\b\.?(?=[:. ]))(?:\s+to\s+[^.\n]{0,60}?)?[\s*_\"]*(?:\b(?:is|are|(?:should|must) be)\b|:|=|≈|→|->|(?<=ns\.)"
    r"|(?=n't\b|n’t\b))[\s*_:]*(?:simply\s+|just\s+)?",
    re.IGNORECASE | re.MULTILINE,
)
# "Possible answer: 5" is no "correct answer".
_QUALIFIED = re.compile(
    r"\b(?!(?:the|an?|our|my|its?|this|that|and|so|to|correct|right|exact|full|complete|actual|true|numerical|required"
    r"|desired|requested|sought|short|simplified|overall|only|final|best|thus|hence|then|therefore|is|get|have|whose"
    r"|problem)\b)[a-z]+[\s*_]*$",
    re.IGNORECASE,
)
_IN_FACT = re.compile(r"\W*(?:in fact|actually|in reality|but|however|so|hence|thus|therefore)\b", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"(?:\\boxed|in|inside|within|given|below|above|as follows|the following|boxed)\b(?![^.\n]*\d)", re.IGNORECASE
)
_MULTIPLE = re.compile(
    rf"{MULTIPLE}\W*$|\b(?:square|cube|double|half|reciprocal|negative|opposite|inverse) of\W+(?:the|this|that)\W*$",
    re.IGNORECASE,
)
# An answer on a line of its own, then its reasons.
_FIRST_LINE = re.compile(
    r"([^\n]*\d[^\n]*)\n\s*(?=(?:because|since|explanation|reason(?:ing)?|here|this is|we have|to see)\b)",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:do|can|could|am|i['’]m|is)(?: not|n't|'t|not) (?:know|tell|determine|be determined|sure|say|solve|find|answer"
    r"|finish|decide|figure|see how|compute|view|see|access|able to)\b"
    r"|\b(?:did|was|were|have|could)(?: not|n['’]t) (?:manage|able|been able|succeed)\b|\bfailed to (?:find|solve|finish)\b"
    r"|\bno idea\b|\bgive up\b|\b(?:is|are|remains?|still|answer:?) unknown\b|^unknown\b"
    r"|\bunsure\b|\bunable to\b|\b(?:not (?:have )?enough|insufficient) information\b",
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
_TAIL_DOUBTS = re.compile(
    r"\b(?:otherwise|unless|depending|maybe)\b|^\W*if\b|^\W*(?:which|but|though)\b.*(?:not|n['’]t|wrong)\b", re.DOTALL
)
_IF = re.compile(r"\b(?:if|whether|unless)\b", re.IGNORECASE)
_CLAUSES = re.compile(r"[,;:]|\b(?:so|thus|therefore|hence|then|and)\b", re.IGNORECASE)
LEAD = re.compile(
    r"^\\text\s*\{(?![^{}]*\b(?:not|than|most|least|about|or)\b)[^{}]*(?:\}\s*[A-Za-z]\s*\\text\s*\{\s*)?"
    r"\b(?:is|are|equals)\s*\}\s*(?=\S)"
    r"|^(?:\\text\{\s*)?(?:probably|likely|exactly|simply|just|only|both|therefore|thus|hence|then|so"
    r"|equal to|equals|(?:the )?(?:final )?answer(?: is)?:?|it is|it's|which is)\b[\s:,]*(?:\}\s*)?(?=\S)",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(?:^|\s)(\([A-E]\)\s[^\n]*?|[A-E][).:]\s[^\n]*?)[.\s]*$")
# Denies no answer: the number of committees that don't work.
_THAT_DO_NOT = re.compile(r"\b(?:that|which|who) (?:\w+n['’]t|(?:do|does|did|is|are|was|were|can) ?not)\b")
_DOLLARS_AND_CENTS = re.compile(r"(?<![\d,.$])\$?(\d{1,3}(?:,\d{3})+|\d+) dollars?,? (?:and )?(\d\d) cents\b")
_ALSO_IN_CENTS = re.compile(r"\$(\d+\.\d\d),? or (\d+) cents\b")
_FINAL_HEADING = re.compile(r"^\W*(?:the )?final answer\W*\n+(?=\s*\S)", re.IGNORECASE | re.MULTILINE)
_LABEL = re.compile(r"^\W*(?:\*\*|[-*>#]\s)?(?:Step|Part|Case) \d+\W*[:.)]\s+", re.IGNORECASE)
_COUNT_IN_WORDS = re.compile(  # So five integers satisfy it; not "the five integers"
    rf"(?<!the )(?<!these )(?<!those )(?<!all )(?<!both )(?<!his )(?<!her )(?<!their )(?<!its )(?<!last )(?<!first )(?<!of )"
    rf"(?<!with )(?<!\d )(?<!one )\b(?!one\b|\w+ion\b|hundred|thousand){ONE_WORD}\b"
    r"(?= (?:more |other |different |such |possible )?[a-z]+s\b(?! of\b)| (?:in total|altogether|in all)\b)",
    re.IGNORECASE,
)
_NUMBER_WORD = re.compile(rf"\b{ONE_WORD}\b(?=[ .!]|$)", re.IGNORECASE)
_CUT = re.compile(
    r"(?:\b(?:and|or|but|the|an|of|which|because|since|if|thus|therefore|hence)|,? and the (?:rest|others?|remaining \w+))$"
)
_TOTAL_ROW = re.compile(
    r"(?:^|\n)\|\W*(?:\w+ )?(?:total|sum)\b[^|\n\d]*\|(?:[^|\n\d]*\|)*([^|\n]*\d[^|\n]*)\|\s*$", re.IGNORECASE
)
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
_AT_FIRST = re.compile(r",? (?:at first|initially|originally|to begin with|in the beginning)\b")
_INFINITY = re.compile(r"\b(is|equals|to) (negative |minus |positive |-)?infinity\b(?!.*\b(?:but|not)\b)")
_ZERO = re.compile(r"\b(is|are|be|equals|equal to|out as|out to be) zero\b(?! or)")
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


def from_phrase(text: str, hints: Hints) -> Extracted | None:
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
        before = split_sentences(text[: match.start()])[-1]
        clause = _CLAUSES.split(before)[-1]
        clause = (
            before if re.match(r"\s*that\b", clause) else clause
        )  # I do not believe, as you know, that the answer is
        if (
            _QUALIFIED.search(clause)
            or _MULTIPLE.search(clause)
            or DOUBT.search(clause)
            or DENIAL.search(_THAT_DO_NOT.sub("", clause))
            or _IF.search(clause)
        ):
            later = split_sentences(rest)[1:]
            if later and _IN_FACT.match(later[0]):
                return _from_last_sentence(" ".join(later), hints)
            return Extracted(None, "the answer is only supposed")
        if rest and not _ELSEWHERE.match(rest) and not (rest[0] == "\\" and boxes_of(rest[:200])[:1]):
            return _after_marker(rest[:LONGEST_ANSWER], hints)
    return None


def _after_marker(rest: str, hints: Hints) -> Extracted:
    """What the sentence behind "answer is" says: all of it if it is nothing but an answer, else what it states."""
    sentence, *later = split_sentences(re.sub(r"^-\s+(?=\d)", "", rest))
    if later and AGAIN.search(rest) and (again := second_thought(later, hints)):
        return again
    if later and takes_back(later[0]):
        return Extracted(None, "the answer is taken back")
    sentence = without_denials(sentence).strip(' *_`"')
    while lead := LEAD.match(sentence):
        sentence = sentence[lead.end() :]
    if sentence.count("}") > sentence.count("{"):  # of a JSON object around the answer
        sentence = sentence.rstrip('} "')
    spans = spans_of(sentence)
    if spans and spans[0][0] == 0 and spans[0][1] >= len(sentence.rstrip(" .")):
        return Extracted(spans[0][2].strip(), "answer phrase")
    line = TAIL.sub("", re.sub(r"(?<=[\d$]) (?:times|instead)\W*$", "", sentence))
    if _TAIL_DOUBTS.search(sentence[len(line) :]):
        return Extracted(None, "the answer is only supposed")
    line = line.rstrip(" *_`.,;").lstrip(" *_`,;")
    line = line if re.match(r"\.\d", line) else line.lstrip(". ")
    if _stands_alone(line) or _CHOICE.match(line) or not re.search(r"[\d$\\]", _in_digits(line)):
        return Extracted(_undelimited(line), "answer phrase")
    return _stated(f"is {with_maths(_in_digits(sentence))}", hints, "answer sentence")


def stated_behind(behind: str, hints: Hints) -> Extracted | None:
    """What a text says that follows a wrong answer, None if nothing."""
    found = from_phrase(behind, hints) or _from_last_sentence(behind, hints)
    return found if found.answer is not None and not judges(found.answer) else None


def second_thought(later: list[str], hints: Hints, *, boxed: bool = False) -> Extracted | None:
    """What the sentences behind an answer put in its place ("Wait, I forgot two, so it's 14"); None if they leave it be."""
    for rest, error in afterthoughts(later, boxed=boxed):
        if found := stated_behind(rest, hints):
            return found
        if error:
            return Extracted(None, "the answer is taken back")
    return None


def _in_digits(text: str) -> str:
    """The text with every number in words as a numeral."""
    return _NUMBER_WORD.sub(lambda match: str(spoken_value(match.group())), fractions(numerals(text)))


def _from_last_sentence(text: str, hints: Hints) -> Extracted:
    """What the last sentence with a number or an expression states; two lines mostly decide."""
    text = without_steps(text)
    ending = "\n".join(text.rsplit("\n", 2)[-2:])
    if len(ending) < len(text) and "\\" not in text and "$$" not in text:  # without displayed maths no span is cut
        found = _from_part(ending, hints, whole=False)
        if found.answer is not None or found.where not in ("last sentence", "conclusion", "no answer found"):
            return found
    return _from_part(text, hints, whole=True)


def _from_part(text: str, hints: Hints, *, whole: bool) -> Extracted:
    """The same of the end of a text, or of all of it (whole)."""
    sentences = split_sentences(with_maths(text))
    said_in = [i for i, sentence in enumerate(sentences) if says_something(sentence)]
    place = final_sentence(sentences, said_in)
    if place is None and not whole:
        return Extracted(None, "no answer found")
    if not said_in:
        digits = _in_digits(text)
        return _from_last_sentence(digits, hints) if digits != text else Extracted(None, "no answer found")
    place = said_in[-1] if place is None else place
    if place == said_in[-1] < len(sentences) - 1 and concludes(sentences[-1]) and _COUNT_IN_WORDS.search(sentences[-1]):
        place = len(sentences) - 1
    sentences[-1] = _COUNT_IN_WORDS.sub(lambda m: str(spoken_value(m.group().lower())), sentences[-1])
    said = without_claim(sentences[place])
    if said.endswith("?") or asked_behind(sentences[place + 1 :]):
        return Extracted(None, "the last number is asked")
    if any(takes_back(later) for later in sentences[place + 1 :]):
        return Extracted(None, "the last number is taken back")
    if place == len(sentences) - 1 and _CUT.search(said):
        return Extracted(None, "the last sentence is cut")
    if chosen := _CHOICE.search(said):
        above = _CHOICE.search(sentences[place - 1]) if place else None
        if above and above[1].lstrip("(")[0] != chosen[1].lstrip("(")[0]:
            return Extracted(None, "the options once more")
        return Extracted(chosen.group(1), "last choice")
    if NUMBER.fullmatch(said.strip(" *-.")) and place and NUMBER.fullmatch(sentences[place - 1].strip(" *-.")):
        return Extracted(None, "the last number ends a list")
    found = _stated(_plainly(said), hints, "last sentence")
    if found.answer is None:
        known = hints.figures.union(FIGURES.findall(" ".join(sentences[:place])))
        if new := only_new(_plainly(said), known):
            return Extracted(new, "new number")
    if found.answer is None and (before := conclusion_before(sentences, said_in, place)) is not None:
        return _stated(_plainly(without_claim(sentences[before])), hints, "conclusion")
    return found


def _plainly(sentence: str) -> str:
    """The sentence without marks of emphasis, a bullet and the stop at its end."""
    return re.sub(r"\*\*|[.!]+$|^\W*[-*>#]\s", "", _LABEL.sub("", sentence))


def _stated(sentence: str, hints: Hints, where: str) -> Extracted:
    """What a sentence states, with the same value in another unit where it says that too."""
    if ("namely" in sentence or ":" in sentence) and (counted := counted_list(sentence)):
        before, listed = counted
        if found := stated(before, hints):
            return Extracted(found, where, other=listed)
    twice = restated(sentence)
    if twice and not twice[0]:
        return Extracted(None, "two values that differ")
    found = stated(twice[0] if twice else sentence, hints)
    return Extracted(found, where, other=twice[1] if twice and found else None)


def _dollars_alone(match: re.Match[str]) -> str:
    """$0.75 of "$0.75, or 75 cents"; the text as it is if they differ."""
    return f"${match[1]}" if match[1].replace(".", "").lstrip("0") == match[2] else match.group()


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
    return last_step(spans[0][2])[0].strip() if spans and spans[0][:2] == (0, len(marked.rstrip("."))) else line


def from_prose(text: str, hints: Hints) -> Extracted:
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
    text = in_one_line(text) if "\n" in text else text
    text = _FINAL_HEADING.sub("Final answer: ", text) if "inal " in text else text
    if " cents" in text:
        text = _ALSO_IN_CENTS.sub(_dollars_alone, _DOLLARS_AND_CENTS.sub(r"$\1.\2", text))
    text = (_SPACES.sub(" ", text) if "  " in text or "\t" in text else text).strip()[-FINAL_PART:]
    for wanted, form in ((hints.date, DATE), (hints.year, YEAR), (hints.clock, CLOCK)):
        if wanted and (when := moment(text, form)):
            return Extracted(when, "last date")
    if found := from_phrase(text, hints):
        return found
    whole = _TITLE.sub("", text.strip(), count=1)
    lower = whole.lower()
    if any(word in lower for word in _UNSURE_WORDS) and _UNSURE.search(whole[-LAST_WORDS:]):
        return Extracted(None, "the response does not commit itself")
    if "⟹" in whole or "⇒" in whole:
        text = re.sub("[⟹⇒]", "; so ", text)
    if said := said_in_words(text, hints):
        return Extracted(*said)
    if hints.at_first:
        text = _AT_FIRST.sub("", text)
    if "infinity" in text:
        text = _INFINITY.sub(lambda m: f"{m[1]} {'-' if m[2] in ('negative ', 'minus ', '-') else ''}∞", text)
    if " zero" in text:
        text = _ZERO.sub(r"\1 0", text)
    if "→" in whole and re.fullmatch(r"[a-z]\w?\s*=[^=]+", after := whole.rpartition("→")[2].strip()):
        whole = after
    if _stands_alone(whole):
        return Extracted(_undelimited(whole) or None, "whole response")
    found = _from_last_sentence(text, hints)
    if hints.coordinates and found.answer and "=" in found.answer and not found.other:
        found = replace(found, other=together(text, hints.coordinates))
    if found.answer is None and (first := _FIRST_LINE.match(text)) and _stands_alone(first[1].strip()):
        return Extracted(first[1].strip(), "first line")
    return found
