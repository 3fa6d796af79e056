"""Answers that are words: yes or no, the letter of a choice, a name, one of the alternatives of the question. Reads text
only."""

from __future__ import annotations

import re

from llmrl.rewards.maths.final_sentence import is_aside, split_sentences
from llmrl.rewards.maths.sentences import DOUBT
from llmrl.rewards.maths.spans import spans_of
from llmrl.rewards.maths.statement import DENIAL, Hints

# "Yes, it is." and "..., so no, it isn't prime."
_POLAR = re.compile(
    r"(?:^|(?<=[.!?:] )|(?<=[.!?]\n)|\n|,\s|\b(?:so|thus|hence|therefore|then|is)\W{1,3})(?:\W*)\b(yes|no|true|false)\b"
    r"(?=\W*$|\s*[,.;:!—–-](?!\W*(?:if|unless|provided|wait|only|when)\b)| because\b| since\b| for (?:all|every)\b)",
    re.IGNORECASE,
)
_WHO = re.compile(
    r"(?:[^.]*,)?\W*(?i:(?:so|thus|therefore|hence|and|then)\b\W*)?"
    r"(?:(?i:we (?:see|find|know) that|it(?: is|'s)) )?([A-Z][a-z]+)"
    r"(?: who)? (?:is|was|has|had|wins?|won|finishe[sd]|came|runs?|ran)"
    r" (?:first\b|more\b|fewer\b|[a-z]+er\b(?! than)|the (?:\w+est|most|least|winner|one|only)\b)"
)
_LETTER = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice) \(?([A-F])\)? it is\W*$|"
    r"\((?:option|choice|answer) ([A-F])\)(?!.*\b(?:option|choice)\b)|\bit['’]s \(?([A-F])\)?\W*$|"
    r"\b(?:choose|pick|select|answer is|option is|choice is) \(?([A-F])\)?(?=,? (?:that is|which is|i\.e\."
    r"|namely|because|since)\b)"
    r"|\bleaves?(?: us with)?(?: only)?(?: option)? \(?([A-F])\)?(?=[\s.])|\b(?:is|are|choose|pick|select|take|matches"
    r"|option|choice|answer|statement|letter)[:\s*$]*\(?([A-F])\)?[\s*$.!]*$"
    r"|(?:^|\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence)\W{1,2})\(?([A-F])\)? is (?:the )?(?:right|correct|best|true|answer)\b"
    r"|\bonly\s+(?:option |choice |statement )?\(?([A-F])\)?\s+(?:works?|fits?|is|remains|satisfies|matches|holds?|can)\b",
)
_RULED_OUT = re.compile(
    rf"{DENIAL.pattern}|\b(?:fails?|rule|excluded?|eliminated?|wrong|incorrect|false|except)\b", re.IGNORECASE
)
_OPTION = re.compile(
    r"^\W*\(?([A-E])\)? is (?:the )?(?:correct|right)(?: \w+)?[.,;]|"
    r"\b(?:option|choice|statement|answer)\s+\(?([A-E])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b",
    re.IGNORECASE,
)
_PREDICATE_WORDS = re.compile(
    r"(?:\bit['’]s|\bmak(?:es|ing) it|\b(?:is|are|was|were|be)|\b(?:falls on|lands on|comes|opens))\s+"
    r"(?:(?:the (?:equation|graph|picture|standard form) of )?(?:an?|the|on(?: an?)?)\s+)?"
    r"([a-z][a-z-]*(?: [a-z][a-z-]*)?)"
    r"(?:\W*$|\*{0,2} ?\([^()]*\)\W*$"
    r"|,? (?:centered|with|whose|because|since|which|opening|passing|having)\b(?!.*\b(?:but|not|or)\b))",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(r"\s*\\(?:text|textbf|mathrm|textrm)\s*\{\s*[A-Za-z][A-Za-z -]+\}[\s.]*")
_WHY = re.compile(r",? (?:because|since) ")
_CHOICE_LINE = re.compile(r"\W*([A-F])\)[ .:](?!.*\b(?:not|wrong|or|incorrect|false)\b)")
_ANOTHER_OPTION = re.compile(r"\W*(?:[Oo]ption|[Cc]hoice) \(?[A-F]\b")
_SHOWN = re.compile(r"\\(?:textbf|mathbf|text|mathrm)\s*\{\(?([A-F])\)?\}")
_NOR_THAT = re.compile(r",? (?:and )?not \(?[A-F]\)?(?=\W*$)")
_SO = re.compile(r"[,;.] (?:so|thus|hence|therefore)\b,? ")
# An alternative that is named and not taken: not equilateral or scalene.
_NOT_TAKEN = re.compile(
    rf"(?:{DENIAL.pattern}|\b(?:than|instead|unlike|neither|nor|else|if|were|would|whereas|while|like)\b)[^,;.]*$",
    re.IGNORECASE,
)


def said_in_words(text: str, hints: Hints) -> tuple[str, str] | None:
    """(answer, how it was found), None if the text says none."""
    judged = any(word in text for word in ("correct", "right", "best", "true"))
    if judged and (option := list(_OPTION.finditer(text))):
        return option[-1][option[-1].lastindex or 1], "option"
    before, _, last = text.rstrip().rpartition("\n")
    if hints.polar and (said := _POLAR.findall(text)) and not DOUBT.search(_WHY.split(last)[0]):
        return said[-1], "yes or no"
    if hints.letter and not DOUBT.search(last):
        listed = _CHOICE_LINE.match(before.rstrip().rpartition("\n")[2])  # the options once more are no choice
        if not listed and (line := _CHOICE_LINE.match(last)):
            return line[1], "last letter"
        said = [sentence for sentence in split_sentences(_SO.split(last)[-1]) if not is_aside(sentence)]
        while len(said) > 1 and _ANOTHER_OPTION.match(said[-1]) and _RULED_OUT.search(said[-1]):
            said.pop()  # Option C, 24, is a multiple too, but not the least.
        part = _NOR_THAT.sub("", said[-1]) if said else ""
        if len(set(shown := _SHOWN.findall(part))) == 1 and not _RULED_OUT.search(part):
            return shown[0], "last letter"
        if not _RULED_OUT.search(part) and (named := _LETTER.search(part)):
            return named[named.lastindex or 1], "last letter"
    if not hints.words:
        return None
    if len(hints.alternatives) > 1 and (taken := _alternative(text, hints.alternatives)):
        return taken, "alternative"
    last = split_sentences(last)[-1]
    if DENIAL.search(last) or DOUBT.search(last):
        return None
    words = [content for _, _, content in spans_of(last) if _IN_WORDS.fullmatch(content)]
    if len(words) == 1:
        return words[0].strip(" ."), "last words"
    named = _WHO.match(last) or _PREDICATE_WORDS.search(last)
    return (named[1], "last words") if named else None


def _alternative(text: str, alternatives: tuple[str, ...]) -> str | None:
    """The one of the alternatives that the last sentence affirms that names any."""
    for sentence in reversed(split_sentences(text)[-3:]):
        found = {}
        for name in alternatives:
            places = [
                m.start() for m in re.finditer(rf"\b{re.escape(name.lower().removesuffix('s'))}", sentence.lower())
            ]
            if places:
                found[name] = any(not _NOT_TAKEN.search(sentence[:place]) for place in places)
        if found:
            taken = [name for name, affirmed in found.items() if affirmed]
            return taken[0] if len(taken) == 1 and not DOUBT.search(sentence) and "?" not in sentence else None
    return None
