"""A sentence in plainer words, with the same statement: denials, asides and checks gone, roundabout words replaced.

`_REWRITES` are patterns with what takes their place, each behind words without which it cannot match. `_ASIDES` are cut
where what stands before them says something. Reads text only; every pattern is linear.
"""

from __future__ import annotations

import re

from llmrl.rewards.maths.spans import says_something

_DENIED = re.compile(  # "not 6 but 9", "isn't 6, it's 9": what is denied goes, what is said stays
    r"(?:\bnot|n't)\s+(?=[^\s,;]*\d)[^\s,;]{1,30}[,;]?\s+(?:but(?: rather)?|it(?:'s| is)|rather)\s+", re.IGNORECASE
)
_ANYTHING_BUT = re.compile(r"\banything but\b", re.IGNORECASE)
_CORRECTED = re.compile(  # 6, I mean 9
    r"(?<![\d.,])[$€£]?\d[\d.,]*[\s,;–—-]{1,8}(?:I mean|sorry|make that|or rather|correction|no,? wait|wait,? no|wait"
    r"|no|oops|actually|scratch that)\b[\s,:–—-]{1,8}(?=[$€£]?\d)",
    re.IGNORECASE,
)
_MARKS_OF_DENIAL = "no No n't nything mean orry that rather orrection ait oops ctually instead"
_DENIES = tuple(_MARKS_OF_DENIAL.split())
_AFTERTHOUGHT = re.compile(
    r"[,;(]?\s*\b(?:and\s+|but\s+)?(?:not|rather than|instead of)\s+[^\s,;]*\d[^\s,;]*"
    r"(?:, (?:as|because|since)\b[^,;]*)?[\s.)]*$",
    re.IGNORECASE,
)
_OF_THE_FIRST = re.compile(
    r"(?<=[a-z\d]) (?:out )?of (?:the|his|her|their|its|my|our|your) (?:original|initial) \d+\b(?: [a-z]+)?(?=\W*$)"
)
_PART_OF_DAY = re.compile(r"(\d{1,2}:\d\d)(?: o'clock)? (?:in the|at) (morning|afternoon|evening|night)\b")
_ATTAINS = ("attain", "reach", "achiev", "assumed", "taken", "occur", "happen")
_ATTAINED = re.compile(  # The maximum is 40, and it is attained at x = 20.
    r",? (?:(?:and|which) )?(?:(?:it|this|that) )?(?:(?:is|are|was) )?(?:attained|reached|achieved|assumed|taken|occur(?:s"
    r"|ring)"
    r"|happen(?:s|ing))(?: exactly| only)? (?:at|when|for|if)\b(?:(?!,? (?:so|thus|hence|therefore)\b)[^.;])*",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r",? (?:and )?(?:which|this|that|it) (?:also |indeed |again )?(?:confirms?|agrees? with|match(?:es)?|verif(?:ies|y)"
    r"|checks? out|is consistent with|coincides? with)\b(?! (?:only|(?:option|choice|answer)\b))[^.;]*",
)
_CONFIRMS = ("confirm", "agree", "match", "verif", "check", "consisten", "coincid")
_IN_THE_END = re.compile(
    r"^\W*(?:(?:so|thus|therefore|hence)\W+)?(?:at|by|in) the end(?: of (?:the|that|this) \w+)?,? (?=\W*\d)", re.I
)
_INDEED = re.compile(r",? (?:and )?indeed\b(?![^=]*\b(?:so|thus|therefore|answer)\b)[^;]*=[^;]*$")
_ALSO_CALLED = re.compile(
    r", (?:or )?equivalently,? [^,=]{1,60}, (?=(?:is|are|equals|must)\b)"
)  # cos 30, or equivalently sin 60, is
_ONE_OF = re.compile(r" (?:must be|has to be|is) one of (?=[^.]*\d[^.]*\b(?:and|or)\b)")
_REASON_COLON = re.compile(r"^(\W*(?:since|because|as)\b[^:,]*):(?= )", re.IGNORECASE)
# A condition about the things in question, not about the reader.
_ASSUMING = re.compile(
    r", assuming (?:that )?(?:its|his|her|their|the|each|every|all|both|s?he|it|they|no|a constant)\b[^,;]*$"
)
_OR_ROUGHLY = re.compile(  # exactly 144 pi, or roughly 452.4 if you prefer a decimal
    r"((?:\\pi|π|\\sqrt\{?\d+\}?|√\d+|\})\$?),? (?:or|which is|that is)"
    r" (?:about|roughly|approximately) \$?\d[\d.,]*(?<=\d)\$?\\?%?\$?"
    r"(?: (?:if you|as a|in) [^.,;]*)?"
)
_OF_NONE = re.compile(r"(\d [a-z]+ (?:who )?[a-z]+ )(?:neither|none)\b[^.,;]*")  # 14 students play neither of the two
_WE_EXPECT = re.compile(r"\b(?:on average,? we|we (?:would )?therefore) expect(?: to \w+)?(?: an?)? (?=\W*[\d\\])")
_IFF = re.compile(r"(?:\$[^$]+\$|\\\([^)]*\\\)) (?:if and only if|exactly when|iff) (?=(?:\$|\\\()\s*[a-z] ?=)")
_DASH = re.compile(r"((?:[=(,]|\bis|\bequals) ?)–(?=\d)")
_WHAT_IS_LEFT = re.compile(r"^(\W*)What (?:is|was|remains)(?: [a-z]+){0,3} (is|are) (?=\W*\d)")
_ON_AVERAGE = re.compile(r", which (?:is|means|makes) (?:an average|a rate|a speed)\b[^,;]*$")
_REWRITES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    ((", that is, ",), re.compile(", that is, "), ", i.e. "),
    ((":",), _REASON_COLON, r"\1,"),
    (("expect",), _WE_EXPECT, "the mean is "),
    (("only if", "exactly when", "iff"), _IFF, ""),
    (("–",), _DASH, r"\1-"),
    (("What",), _WHAT_IS_LEFT, r"\1The rest \2 "),
    (("average", "rate", "speed"), _ON_AVERAGE, ""),
    (("could be either",), re.compile("could be either"), "is"),
    (("assuming",), _ASSUMING, ""),
    (("rough", "about", "approx"), _OR_ROUGHLY, r"\1"),
    (("equivalently",), _ALSO_CALLED, " "),
    (("one of",), _ONE_OF, " is "),
    (("neither", "none"), _OF_NONE, r"\1"),
    ((" the end",), _IN_THE_END, ""),
)
_ASIDES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("indeed",), _INDEED),
    (_ATTAINS, _ATTAINED),
    (_CONFIRMS, _CONFIRMED),
)


def without_denials(sentence: str) -> str:
    """ "not 6 but 9", "9, not 6" and "9 of the original 15" as 9."""
    if "original" in sentence or "initial" in sentence:
        sentence = _OF_THE_FIRST.sub("", sentence)
    if not any(word in sentence for word in _DENIES):
        return sentence
    sentence = _DENIED.sub(" ", _ANYTHING_BUT.sub("never", sentence))
    return _AFTERTHOUGHT.sub("", _CORRECTED.sub(" ", sentence))


def spelled_out(sentence: str) -> str:
    """The sentence by `_REWRITES` and without `_ASIDES`; 9:15 in the morning as 9:15 am."""
    for cues, pattern, plainer in _REWRITES:
        if any(cue in sentence for cue in cues):
            sentence = pattern.sub(plainer, sentence)
    for cues, pattern in _ASIDES:
        if any(cue in sentence for cue in cues) and (aside := pattern.search(sentence)):
            before = sentence[: aside.start()]
            sentence = before + sentence[aside.end() :] if says_something(before) else sentence
    if ":" not in sentence:
        return sentence
    return _PART_OF_DAY.sub(lambda m: m[1] + (" am" if m[2] == "morning" else " pm"), sentence)
