"""Words with which a response takes an answer back, or puts another in its place: beside a box, or in a later sentence.

`denied` looks at the words directly around a box ("\\boxed{7} is wrong", "a student who forgets to carry gets \\boxed{7}").
`afterthoughts` finds the later sentences that come back to an answer ("Wait, I forgot two, so it's 14", "On checking, this
is wrong"). A mere check ("Let me verify: 12 / 4 = 3") is none. Reads text only; every pattern is linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NO = r"(?:\b(?:not|cannot)|n['’]t)"
_NOT_RIGHT = rf"{_NO}(?: be| quite)?(?: the)? (?:right|correct|true|possible|allowed|permitted)\b"
_MISTAKES = (
    r"mis(?:read|count|calc|plac|took|tak|s(?:ed|es|ing)\b)\w*|forg[eo]t\w*|wrong|incorrect|error|typo|left out|overlook\w*"
    r"|disregard|ignore|scratch|to correct|correct(?:ion|ed)|meant?"
)
_BEFORE = re.compile(
    r"(?:not\b|n't|\bnever\b|\bneither\b|\bnone of\b|\bwrong(?:ly)?\b|\bincorrect(?:ly)?\b)(?:(?!\bbut\b)[^.,;\n]){0,12}$"
    r"|\bif\b[^.\n]{0,30}\bwere\s*[$({\\[]*$"
    # a student who forgets to carry gets \boxed{7}
    r"|(?:\b(?:who|which|that|if|when)\b[^.\n]{0,20}\b(?:forg[eo]t|ignor|neglect|overlook|omit|miss)|\bby mistake\b"
    r"|\bnaive)[^.\n]{0,60}\b(?:gets?|got|obtain\w*|find\w*|would|gives?|is)\b[^.\n]{0,8}$"
    r"|\b(?:might|may|could|would) (?:be tempted|think|expect|guess|assume|believe)[^.,\n]{0,40}$"
    r"|\b(?:ignore|disregard)\b[^.\n]{0,20}$|\b(?:might|may|could) be\W*$|\b(?:less|more|fewer|greater|larger"
    r"|smaller) than\W*$",
    re.IGNORECASE,
)
_FORGETS = r"(?:forg|miss|ignor|neglect|omit|overlook|without|careless)"
_AFTER = re.compile(
    rf"^[\s$*}})\].,?!\\]*(?:(?:is|was|are|would be|seems)?\s*(?:not\b(?!\s*[$\d\\-])|n't|wrong|incorrect|false)"
    r"|would (?:be|have been)\b|if (?:there|it|they|we|all|the \w+) (?:were|had)\b|can(?:not|['’]t) be|or something"
    r"|(?:is|was) (?:(?:what|the \w+) (?:(?:\w+ ){1,3}(?:would|might|could)|(?:you|one|we|they)['’]d\b"
    rf"|[^.]{{0,40}}\b{_FORGETS})|(?:a|the) (?:\w+ )?(?:mistake|error)|tempting|my (?:first|initial|original|earlier)"
    r"|an? (?:\w+ )?(?:wrong|incorrect)|(?:only |just |merely )?an? (?:upper|lower) bound|too \w+)"
    r"|[^.\n]{0,45}?\bbut (?:it|that|this)(?:['’]s| is| was) (?:wrong|incorrect|false|not(?! the case)|a mistake)"
    rf"|(?:is|was|comes?|results?)\b[^.\n]{{0,40}}\b(?:if|when|by) (?:(?:one|you|we|someone) )?{_FORGETS}"
    r"|(?:but|though) I(?:['’]m| am) not (?:\w+ )?(?:sure|certain)|\?\W*(?:no|wait|hmm)\b"
    rf"|(?:but|though) (?:they|it|that|this|s?he|we|there)\b[^.\n]{{0,20}}{_NO}|[^.\n]{{0,20}}\b(?:by mistake|in error)\b"
    r"|(?:(?:no|wait|but|hmm|oops|oh|hold on|however)\b\W*)*(?:that|this|it|which)(?:'s| is| was| can| looks"
    r"| seems)?\s*(?:wrong|incorrect|false|(?:not|n't) (?:right|correct|true|it|be)\b)"
    r"|(?:\w+,? )?(?:that|this|it|which) (?:contradicts|violates) (?:the|our) (?:given|condition|problem|question|assum"
    r"|constr|requirement|hypothes|fact)"
    rf"|(?:(?!because|since|as\b|so\b|while)[^\d.\n]){{0,60}}?{_NO}(?: be)? (?:the )?(?:right|correct)\b)",
    re.IGNORECASE,
)
# A quick test: no second thought without one of these.
AGAIN = re.compile(
    rf"\b(?:{_MISTAKES}|let|wait|hold on|actually|hmm+|oops|sorry|apolog\w+|edit|on (?:second|closer|further)|no|mistake|bad"
    r"|mis\w+|reali[sz]\w+|not|cannot|instead|contradict\w*|violat\w+)\b|n['’]t\b",
    re.IGNORECASE,
)
# Words with which one comes back to an answer; those of group 1 may be a mere check.
_COMES_BACK = re.compile(
    r"\W*(?:(?:but|oh|ah|and|hmm+|ok(?:ay)?|well|so|however|no|oops|sorry|unfortunately|sadly)\W+)*"
    r"(?:(?:(?:on|upon|after|when|looking|thinking|going|coming)\b|(?:re-?|double-?)?check\w+)[^.;:\d\n]{0,40}?\W+)?"
    r"(?:(let(?:['’]s| me| us) (?:just |quickly )?(?:re\w+|double[- ]?check|check|verify|think|see|look|count)|wait|hold on)"
    r"|actually|hmm+|oops|sorry|apologies|correction|edit(?:ed)?\b|on (?:second|closer|further)|scratch"
    r"|no\b(?=\W*[,.;:—–-]|\W*$| wait)|i (?:(?:need|have) to correct|(?:have )?made an? (?:\w+ )?(?:mistake|error)|made"
    r"|mis\w+|forgot|overlooked|realis\w+|realiz\w+|see|meant?|have made"
    r"|should have|apologi)|my (?:mistake|bad|error|apologies)|(?:please )?(?:ignore|disregard)"
    rf"|(?:th(?:at|is)|(?:this|that|the|my) (?:answer|result|value|solution)(?: above)?)(?:['’]s| is| was| can"
    rf"| seems)[^.]{{0,12}}(?:\b(?:wrong|incorrect|mistake|error|(?<!answer is )not)\b|{_NOT_RIGHT}))"
    r"|^(?!.*\b(?:first|initially|earlier|if|would|might)\b).*\b(?:so|but|and) I (?:have )?made an? (?:\w+ )?(?:error"
    r"|mistake)",
    re.IGNORECASE,
)
_JUDGED = re.compile(r"(?:right|correct|wrong|incorrect|fine|unchanged|the same|confirmed|verified)\b", re.IGNORECASE)
_MEANT = re.compile(
    r"^(?:(?:that|it|this) (?:should|must|has to) (?:have )?be(?:en)? |I meant?(?: to (?:say|write))? )(?=\W*\d)",
    re.IGNORECASE,
)
_ERROR = re.compile(
    rf"\b(?:{_MISTAKES}|mistake|instead"
    r"|only (?:counted|considered|included)|(?:need|have) to (?:also )?(?:include|add|count|subtract|exclude)"
    rf"|twice|too (?:many|few|much|little|high|low|big|small))\b|{_NOT_RIGHT}"
    r"|\bcounts?\b.*\b(?:as well|too)\b",
    re.IGNORECASE,
)
_INSTEAD = re.compile(
    r"\b(?:should|must|has to|have to) (?:have )?be(?:en)?\b|\b(?:correct|right|true|actual|real|new|corrected"
    r"|final)(?: \w+){0,2}(?: (?:is|are)\b|:)|\banswer (?:is|becomes)\b"
    r"|\b(?:so|thus|hence|therefore),? (?:(?:it|that|there|the \w+)(?:['’]s| is| are)|we (?:get|have)|\d)",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"\W*(?:(?:hmm|oh|oops|sorry|wait|actually|but|however|no)\W+)*(?:no|wait|that|this|it|but)\b[^\d]{0,30}?"
    r"(?:(?:n['’]t|\bcannot) (?:be )?(?:right|correct|true|possible|work|make|add|it)"
    r"|\b(?:not|wrong|incorrect|false|no))\b|\W*(?:scratch that\b|no\b(?=\W*(?:$|[,.;:!—–-])| wait| i\b))",
    re.IGNORECASE,
)
# If n were even we would get \boxed{3}; as n is odd, the answer is 7.
_UNREAL = re.compile(r"\b(?:if\b[^.\n]{0,60}\b(?:were|had|was)|had)\b[^.\n]{0,60}\bwould\b[^.\n]{0,30}$", re.IGNORECASE)
_GIVES_UP = r"\bI(?: still)? (?:do not|don['’]t|did not|didn['’]t) know (?:the|what the)(?: \w+)? answer\b"


def unreal(before: str) -> bool:
    """Whether a box says what would be if something were otherwise; it may be what was asked."""
    return "would" in before and _UNREAL.search(before) is not None


def disowned(value: str, behind: str) -> bool:
    """Whether what follows a box says that its value cannot be the answer, or that the answer is not known."""
    said = rf"(?<![\w.]){re.escape(value[:60].strip())}\$?"
    cannot = r"(?:cannot|can not|can['’]t|could not|couldn['’]t) be (?:the|an?|our|my|right|correct)\b"
    return re.search(rf"{_GIVES_UP}|(?:{said}|\b(?:this|that|it)) {cannot}", behind) is not None


def denied(before: str, after: str) -> bool:
    """Whether the words around a box say that it is no answer: wrong, a guess, a bound or what the careless get."""
    return _BEFORE.search(before[-120:]) is not None or _AFTER.search(after[:80]) is not None


def takes_back(sentence: str) -> bool:
    """Whether the sentence says nothing but that the answer before it does not hold."""
    return _TAKES_BACK.match(sentence) is not None


def judges(answer: str) -> bool:
    """Whether what looks like an answer ("correct") only judges the one before."""
    return _JUDGED.match(answer) is not None


def afterthoughts(later: list[str], *, boxed: bool) -> Iterator[tuple[str, bool]]:
    """(what may state another answer, whether the one before is an error in any case), for sentences that come back to it.

    Behind a box, and after what may be a mere check, the sentence has to be explicit about the error or the new answer.

    >>> list(afterthoughts(["Wait, I forgot two, so it's 14."], boxed=False))
    [("I forgot two, so it's 14.", True)]
    """
    for place, sentence in enumerate(later[:30]):
        if cue := _COMES_BACK.match(sentence):
            rest = "\n".join([_MEANT.sub("it is ", sentence[cue.end() :].strip(" ,:")), *later[place + 1 :]])
            own, other = _ERROR.search(cue.group()), _ERROR.search(rest)
            if own or other or _INSTEAD.search(rest) or not (boxed or cue[1]):
                yield rest, bool(own and rest.strip(" .!")) if boxed else bool(own or other)
