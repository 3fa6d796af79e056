"""Whether the words of a clause state the number in it: the shape of a statement, looked for; everything else states none.

Two shapes count: subject, verb, number ("Sue has 8 apples") and number, noun ("8 apples are left"). Between verb and
number stand no unknown words. Verbs that may take a bare number are a closed list; any other verb, known by its ending,
its auxiliary or as an irregular past, needs a noun or a currency as its object, because a bare number is then rather
what somebody rejects, tries or claims. "I" and "we" take verbs of the list only. A bare number as subject is a count where its
verb is a plural ("12 were adults") and no answer where it is a singular ("12 fails"), but for "12 is the answer".
"""

from __future__ import annotations

import re

_LINKS = "is are was were be been equals equal totals total totaled numbers remains remain remained"
_TAKES_BARE = frozenset(
    f"{_LINKS} gives give gave giving make makes made making get gets got getting has have had obtain"
    " yield yields leave leaves leaving becomes become find need needs needed cost costs take takes took lasts lasted"
    " pay pays paid weigh weighs earn earns earned hold holds contain contains measures measured averages owes → ≈ = :".split()
)
_TWO_OBJECTS = frozenset(
    "take takes took cost costs give gives gave giving feed feeds fed pay pays paid bring brings brought owe owes earn earns earned leaves save saves saved".split()
)
_OF_ONE = frozenset(
    "is was has does comes makes looks seems works fails gives goes means satisfies divides exceeds sounds appears feels leads solves would could might may can cannot should".split()
)
_OF_MANY = frozenset("are were have remain altogether left together total more such".split())
_PLURALS = frozenset("they we you i people children men women all".split())
_ORDERS = frozenset("take make get find need have give obtain leave pay hold".split())
_OF_WE = frozenset("get got have had obtain find found need are see count counted reach reached".split())
_IRREGULAR = frozenset(
    "ate began bought built brought came caught cut dealt did drank drew drove dug fed fell flew fought found gave got grew"
    " had held hit kept laid led left lent lost made met paid put ran read rode rose sang sat saw sent set shot slept sold"
    " spent spun stole swam swept taught threw took wore won wove wrote eaten drunk driven given taken written grown".split()
)
_AUXILIARIES = frozenset("must can will would shall should to do did does has have had 'll cannot".split())
_FILLERS = frozenset(
    "only just exactly precisely simply still also now then therefore thus hence already indeed actually finally clearly currently"
    " together altogether".split()
)
_BETWEEN = frozenset("us them him her me you himself herself themselves itself each up a an another".split())
_CONNECTIVES = frozenset(
    "so thus therefore hence then and but also altogether together overall finally that which this consequently now"
    " or total all of these those them".split()
)
_SUBJECTS = frozenset("i we you he she it they there who".split())
_MATRIX = frozenset(
    "that so which means mean meaning find see know conclude get have shows show confirms tells implies imply follows is where and but"
    " then thus therefore hence because since until while as if than deduce answer find".split()
)
_PREPOSITIONS = frozenset(
    "in into after for of from with without at over on onto during by per to toward towards among within until till since"
    " before between through across against like unlike out under above below beyond past around about up down off"
    " near than as via".split()
)
_DETERMINERS = frozenset("a an the this that these those his her its their our my your each every some any no".split())
_NO_NOUN = (
    _PREPOSITIONS
    | _AUXILIARIES
    | frozenset(
        "is are was were be and or but so because if when where while which that who not altogether together left total"
        " times plus minus too more less fewer now then again".split()
    )
)
_NOUN = re.compile(r"[\s*$)]*(?:(?:more|additional|extra|such|different|other|full|whole|half) )*([A-Za-z°]+)")
_PARTITIVE = re.compile(r"\s*(?:out )?of (?:the|these|those|them|his|her|its|their|our|all|which)\b", re.IGNORECASE)
_PREDICATE = re.compile(
    r"\W*(?:is|are)(?: (?:therefore|thus|indeed|also|then|hence))? (?:the|our|my (?:final )?answer|also the)\b(?! (?:wrong|first)\b)"
)
_WORD_BEHIND = re.compile(r"[\s$*)]*([\w']+)")
_MODAL = re.compile(r"\b(?:would|could|should|cannot)\b")
_EXPANDED = {"s": " is", "re": " are", "ll": " will", "ve": " have"}
_CONTRACTED = re.compile(r"\b(it|that|there|here|this|which|s?he|they|we|you|I)['’](s|re|ll|ve)\b", re.IGNORECASE)
_RESULT = re.compile(r"\b(?:so|thus|therefore|hence|altogether|in total|in all|total|left|out of)\b", re.IGNORECASE)


def _words(before: str) -> list[str]:
    if "'" in before or "’" in before:
        before = _CONTRACTED.sub(lambda m: m[1] + _EXPANDED[m[2]], before)
    words = [word.strip('*_"“”(),.$') for word in before.replace("in total", "").replace("in all", "").split()]
    return [word for word in words if word and word.lower() not in _FILLERS]


def _finite(words: list[str], at: int) -> bool:
    """Whether the unknown word at this place is a finite verb with a subject before it."""
    word, before = words[at].lower(), words[at - 1].lower()
    if at == 0 or not word.isalpha() or word in _NO_NOUN or word in _DETERMINERS:
        return False
    if before in _AUXILIARIES or before == "and":
        return at > 1
    if before in _PREPOSITIONS or before in _DETERMINERS:
        return False
    if word.endswith("ed") or word in _IRREGULAR:
        return True
    if word.endswith("s"):
        return not word.endswith(("ss", "us", "is"))
    if before in _TAKES_BARE:
        return False
    plural = before.endswith("s") and not before.endswith(("ss", "us", "is", "'s"))
    return plural or before in _PLURALS or "and" in words[:at]


def _object(words: list[str]) -> int | None:
    """The place of a verb whose other object (Ben in "took Ben 4 hours") stands at the end of the words."""
    named = words[-1][0].isupper() or words[-1].endswith("s") or words[-2:-1] and words[-2].lower() in _DETERMINERS
    if not named or words[-1].lower() in _NO_NOUN:
        return None
    for place in range(len(words) - 2, max(len(words) - 6, -1), -1):
        if words[place].lower() in _TWO_OBJECTS:
            return place
        if words[place].lower() in _PREPOSITIONS:
            break
    return None


def has_noun(said: str, after: str) -> bool:
    """Whether the number is one of something: a currency, a unit, a noun behind it."""
    if said[:1] in "$€£" or said.endswith(("%", "}", "€")) or _PARTITIVE.match(after):
        return True
    noun = _NOUN.match(after)
    return noun is not None and noun[1].lower() not in _NO_NOUN and not noun[1].endswith("ly")


def stated_by_verb(before: str, said: str, after: str, sentence: str) -> bool:
    """Whether a verb and a subject before the number state it."""
    words = _words(before)
    while words and words[-1].lower() in _BETWEEN:
        words.pop()
    if not words:
        return False
    at = len(words) - 1
    if words[at].lower() in _ORDERS and all(word.lower() in _CONNECTIVES for word in words[:at]):
        return False
    if words[at].lower() not in _TAKES_BARE:
        other = _object(words)
        if other is not None and has_noun(said, after):
            at = other
        elif not _finite(words, at) or not (has_noun(said, after) or _RESULT.search(sentence)):
            return False
    return _subject([word.lower() for word in words[: at + 1]], counted=has_noun(said, after))


def _subject(words: list[str], *, counted: bool) -> bool:
    """Whether the subject of the last word may state something: no "I" of thoughts, no clause that another one reports."""
    at = len(words) - 1
    for place in range(at):
        word = words[place]
        if word not in _SUBJECTS:
            continue
        rest = place + 1
        while words[rest] in _AUXILIARIES and rest < at:
            rest += 1
        lead = [word for word in words[:place] if word not in _CONNECTIVES]
        if words[at - 1] == "to" and words[at] in ("get", "obtain"):
            return True
        if rest < at:  # of another verb: one that concludes, or of a relative clause ("the number we want is 5")
            if words[rest] in _MATRIX or (lead and words[at] in _LINKS):
                continue
            if word in ("i", "we"):
                return False
            continue
        if word in ("i", "we") and words[at] not in _OF_WE and not (counted and "can" in words[place:]):
            return False
        if not lead or lead[0] in _PREPOSITIONS:
            return True
        return words[place - 1 - (words[place - 1] == "that")] in _MATRIX
    return True


def stated_as_subject(before: str, said: str, after: str) -> bool:
    """Whether the clause begins with the number, and counts something or names the answer."""
    words = [word.lower() for word in _words(before)]
    opened = max((place for place, word in enumerate(words) if word in ("that", "why")), default=0)
    if opened and words[opened - 1] in _MATRIX:
        words = words[opened + 1 :]
    if any(word not in _CONNECTIVES for word in words):
        return False
    behind = _WORD_BEHIND.match(after)
    if behind is None or _PREDICATE.match(after):
        return True
    word = behind[1].lower()
    if word in _OF_ONE or _MODAL.search(after):
        return False
    return (
        has_noun(said, after)
        or word in _OF_MANY
        or (word in _PREPOSITIONS and word not in ("to", "than", "as"))
        or word.endswith("ed")
        or word in _IRREGULAR
    )
