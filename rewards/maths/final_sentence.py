"""Which sentence of a text says the answer: the last that is no remark, check, list of steps, or talk of what would be."""

from __future__ import annotations

import re
from itertools import pairwise

from llmrl.rewards.maths.sentences import DOUBT
from llmrl.rewards.maths.spans import FIGURES, says_something, spans_of
from llmrl.rewards.maths.statement import DENIAL

_SENTENCES = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][$)])"
    r"|(?<=[.!?]\$\$))(?<!\beq\.)(?<!\bfig\.)(?<!\bno\.)(?<!i\.e\.)(?<!e\.g\.)(?<!\bsq\.)(?<!\bft\.)(?<!\bapprox\.)\s+"
    r"|(?:(?<=\\\])|(?<=\$\$)|(?<=\*\}))\s*(?=[A-Z][a-z]+[ ,])|(?<!\bis)(?<!\bis )(?<!\bequals)\n+|;",
    re.IGNORECASE,
)
_ASIDE_SENTENCE = re.compile(
    r"\W*(?:(?:please )?note|remark|remember|recall|keep in mind|(?:as|just) a reminder|reminder|tip|fun fact|alternatively"
    r"|check\w*|verif\w+|verification|indeed|because(?![^.]*, )|here (?:is|are) (?:how|why)|more generally|explanation"
    r"|reason(?:ing)?|yes,? (?:because|since|as)|in case a decimal|(?:numerically|as a decimal),"
    r"|does (?:that|this|it) (?:make sense|check out)"
    r"|my (?:earlier|previous|first|initial|original) \w+[^.]{0,40} (?:was|were)|this makes sense|as (?:a check|expected)"
    r"|(?:in summary|in short|to (?:summari[sz]e|recap|sum up)),? (?:we|i)(?: \w+)? (?:(?:found|solved) (?:it|this)|used"
    r" (?:the|an?|this|that|our)\b|applied)"
    r"|(?:we|you|one|i) can (?:\w+ )?(?:verify|check|confirm)(?!.*\bonly\b)|to (?:check|verify|confirm)"
    r"|let(?: me| us|['’]s) (?:quickly )?(?:double[- ])?(?:check|verify|confirm)"
    r"(?!.*\b(?:so|must|should|actually|but|wait|no)\b)"
    r"|(?:this|that|which|it|the (?:answer|result)) (?:\w+ )?(?:agrees|matches(?! (?:option|choice|answer|only))|confirms"
    r"|coincides|is consistent)"
    r"|[^,.\n]{1,40}, (?:by comparison|in comparison|in contrast|by contrast|for comparison)"
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
_REASON = re.compile(r"^\W*(?:(?:and|but)\W)?(?:since|as|because)\b[^,]*,|\b(?:since|because)\b.*$", re.IGNORECASE)
_TURNS = re.compile(
    rf"{DENIAL.pattern}|\b(?:but|however|only|instead|rather|actually|wait|yet|although|though|still|need|want|find|let|now"
    r"|next|remain\w*|left|if|would|guess|check|first|second|then|or|more|less|fewer|than)\b|\?",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\W*(?:(?:and|but|so|now|then)\W+)?(?:how (?:many|much|long|far|old|often)|what|which|when|who|where)\b"
    r"(?!.*\b(?:you|I|we)\b)[^?]*\?\W*$"
    r"|\W*(?:we|i) (?:are asked|(?:still |now )?(?:need|want|have) to (?:find|compute|determine|calculate|know))\b",
    re.IGNORECASE,
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, at least one; a stop within a maths span ends none."""
    spans = spans_of(text)[-60:] if "$" in text or "\\" in text else []
    inside = {place for start, end, _ in spans for place in range(start + 1, end)}
    cuts = [match.end() for match in _SENTENCES.finditer(text) if match.start() not in inside]
    return [text[start:end].strip() for start, end in pairwise([0, *cuts, len(text)])]


def _ends_with_conclusion(text: str, steps: str) -> bool:
    """Whether a text concludes before a list of steps that compute nothing."""
    last = split_sentences(text.rstrip())[-1]
    return (
        bool(_CONCLUDES.match(last) and says_something(last))
        and "=" not in steps
        and not re.search(r"\b(?:so|thus|therefore|hence)\b", steps, re.IGNORECASE)
    )


def final_sentence(sentences: list[str], said_in: list[int]) -> int | None:
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


def conclusion_before(sentences: list[str], said_in: list[int], place: int) -> int | None:
    """The sentence before one that states nothing and brings no number that was not there; None if that turns against it.

    "10/30 + 1/30 = 11/30. As 11 and 30 share no factor, this is in lowest terms."
    """
    before = [i for i in said_in if i < place]
    said = _REASON.sub("", sentences[place])
    if not before or _TURNS.search(said) or DOUBT.search(said):
        return None
    known = set(FIGURES.findall(" ".join(sentences[: before[-1] + 1])))
    return before[-1] if known.issuperset(FIGURES.findall(sentences[place])) else None


def without_steps(text: str) -> str:
    """The text without a list of steps behind its conclusion."""
    steps = list(_STEPS.finditer(text))
    before, behind = (text[: steps[-1].start()], text[steps[-1].end() :]) if steps else (text, "")
    return before if steps and _ends_with_conclusion(before, behind) else text


def without_claim(sentence: str) -> str:
    """The sentence without ", and that is the answer" at its end."""
    return _ITS_THE_ANSWER.sub("", sentence) if "answer" in sentence else sentence


def is_aside(sentence: str) -> bool:
    """Whether it is a note, a check or the like."""
    return _ASIDE_SENTENCE.match(sentence) is not None


def concludes(sentence: str) -> bool:
    """Whether it begins with "so" or the like, or ends with "in total"."""
    return _CONCLUDES.match(sentence) is not None


def asked_behind(later: list[str]) -> bool:
    """Whether one of the later sentences asks for something else."""
    return any(map(_ASKS.match, later))
