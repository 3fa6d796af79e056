"""Whether the words around a number have the shape of a statement; what has none of the shapes states nothing.

Subject, verb, number ("Sue has 8 apples"), with no unknown word between verb and number; or number and noun ("8 apples are
left"). Verbs that take a bare number are a closed list. Any other verb is known by its ending, its auxiliary, a plural
subject or as an irregular past, and needs a noun or a currency as its object: a bare number is rather what somebody rejects
or claims. "I" and "we" take only verbs of the list, and a clause with an own subject may depend on a verb that concludes
("we see that it is 8"), not on another ("I would guess it is 8"). A bare number as subject is a count where its verb is a
plural ("8 were adults"), a mere value where it is a singular ("8 fails"), and an answer in "8 is the answer".
"""

from __future__ import annotations

import re

_WORDS = """
    link is are was were be been equals equal totals total totaled numbers remains remain remained;
    bare gives give gave giving make makes made making get gets got getting has have had obtain yield yields leave leaves
    leaving becomes become find need needs needed cost costs take takes took lasts lasted pay pays paid weigh weighs earn
    earns earned hold holds contain contains measures measured averages owes → ≈ = :;
    two_objects make makes made take takes took cost costs give gives gave giving feed feeds fed pay pays paid
    bring brings brought owe owes earn earns earned leaves save saves saved;
    order take make get find need have give obtain leave pay hold;
    of_we get got have had obtain find found need are see count counted reach reached;
    irregular ate began bought built brought came caught cut dealt did drank drew drove dug fed fell flew fought found gave
    got grew had held hit kept laid led left lent lost made met paid put ran read rode rose sang sat saw sent set shot slept
    sold spent spun stole swam swept taught threw took wore won wove wrote eaten drunk driven given taken written grown;
    auxiliary must can will would shall should to do did does has have had cannot;
    adverb only just exactly precisely simply still also now then therefore thus hence already indeed actually finally
    clearly currently together altogether;
    indirect us them him her me you himself herself themselves itself each up a an another;
    connective so thus therefore hence then and but or also overall finally that which this consequently now total all of
    these those them i.e namely equivalently;
    subject i we you he she it they there who;
    plural they we you i people children men women all;
    concluding that so which means mean meaning find see know conclude found saw concluded get have shows show confirms tells
    implies imply follows is where and but then thus therefore hence because since until while as if than deduce answer;
    preposition in into after for of from with without at over on onto during by per to toward towards among within until till
    since before between through across against like unlike out under above below beyond past around about up down off
    near than as via;
    determiner a an the this that these those his her its their our my your each every some any no;
    no_noun is are was were be and or but so because if when where while which that who not altogether together left total
    times plus minus too more less fewer now then again;
    of_one is was has does comes makes looks seems works fails gives goes means satisfies divides exceeds sounds appears feels
    leads solves would could might may can cannot should;
    of_many are were have remain altogether left together total more such
"""
_CLASS = {name: frozenset(words) for name, *words in map(str.split, _WORDS.split(";"))}
PREPOSITIONS, _DETERMINERS, _AUXILIARIES = (_CLASS[name] for name in ("preposition", "determiner", "auxiliary"))
_TAKES_BARE = _CLASS["link"] | _CLASS["bare"]
_NO_NOUN = PREPOSITIONS | _AUXILIARIES | _CLASS["no_noun"]
_NOUN = re.compile(r"[\s*$)]*(?:(?:more|additional|extra|such|different|other|full|whole|half) )*([A-Za-z°]+)")
_PLAIN = re.compile(r"[-+−$€£]?[\d.,/: ]*%?")
_PARTITIVE = re.compile(r"\s*(?:out )?of (?:the|these|those|them|his|her|its|their|our|all|which)\b", re.IGNORECASE)
_PREDICATE = re.compile(
    r"\W*(?:is|are)(?: (?:therefore|thus|indeed|also|then|hence))? (?:the|our|my (?:final )?answer)\b(?! (?:wrong|first)\b)"
)
_WORD_BEHIND = re.compile(r"[\s$*)]*([\w']+)")
_MODAL = re.compile(r"\b(?:would|could|should|cannot)\b")
_SINGULAR = re.compile(r"\W*\w+s (?:the|an?|this|that|these|those|no|all|our|its?|both|every)\b")  # 8 fits the pattern
_EXPANDED = {"s": " is", "re": " are", "ll": " will", "ve": " have"}
_CONTRACTED = re.compile(r"\b(it|that|there|here|this|which|s?he|they|we|you|I)['’](s|re|ll|ve)\b", re.IGNORECASE)
_RESULT = re.compile(r"\b(?:so|thus|therefore|hence|altogether|in total|in all|total|left|out of)\b", re.IGNORECASE)


def _words(before: str) -> list[str]:
    """The words without adverbs that change nothing; "it's" as two."""
    if "'" in before or "’" in before:
        before = _CONTRACTED.sub(lambda m: m[1] + _EXPANDED[m[2].lower()], before)
    words = [word.strip('*_"“”(),.$') for word in before.replace("in total", "").replace("in all", "").split()]
    return [word for word in words if word and word.lower() not in _CLASS["adverb"]]


def _finite(words: list[str]) -> bool:
    """Whether the last word, which is on no list, is a finite verb with a subject before it."""
    word, before = words[-1].lower(), words[-2].lower() if len(words) > 1 else "a"
    if (
        not word.isalpha()
        or word in _NO_NOUN | _DETERMINERS
        or before in PREPOSITIONS - {"to"}
        or before in _DETERMINERS
    ):
        return False
    if before in _AUXILIARIES or before == "and":
        return len(words) > 2
    if word.endswith("ed") or word in _CLASS["irregular"]:
        return True
    if word.endswith("s"):
        return not word.endswith(("ss", "us", "is"))
    plural = before.endswith("s") and not before.endswith(("ss", "us", "is", "'s")) and before not in _TAKES_BARE
    return plural or before in _CLASS["plural"] or ("and" in words and before not in _TAKES_BARE)


def _with_object(words: list[str]) -> int:
    """How many words end with a verb whose other object (Ben in "took Ben 4 hours") is the rest; 0 if there is none."""
    named = words[-1][0].isupper() or words[-1].endswith("s") or (words[-2:-1] and words[-2].lower() in _DETERMINERS)
    if not named or words[-1].lower() in _NO_NOUN:
        return 0
    for place in range(len(words) - 2, max(len(words) - 6, -1), -1):
        if words[place].lower() in _CLASS["two_objects"]:
            return place + 1
        if words[place].lower() in PREPOSITIONS:
            break
    return 0


def _has_noun(said: str, after: str) -> bool:
    """Whether the number is one of something: a currency, a unit, a noun behind it."""
    if not _PLAIN.fullmatch(said) or said[:1] in "$€£" or said.endswith(("%", "}", "€")) or _PARTITIVE.match(after):
        return True
    noun = _NOUN.match(after)
    return noun is not None and noun[1].lower() not in _NO_NOUN and not noun[1].endswith("ly")


def stated_by_verb(before: str, said: str, after: str, sentence: str) -> bool:
    """Whether a verb and a subject before the number state it."""
    words = _words(before.rpartition(": ")[2] or before)
    while words and words[-1].lower() in _CLASS["indirect"]:
        words.pop()
    if not words:
        return False
    counted = _has_noun(said, after)
    if words[-1].lower() not in _TAKES_BARE and " ".join(words[-2:]) not in ("I found", "we found"):
        if counted and (size := _with_object(words)):
            words = words[:size]
        elif not (counted or _RESULT.search(sentence)) or not _finite(words):
            return False
    low = [word.lower() for word in words]
    if low[-1] in _CLASS["order"] and _CLASS["connective"].issuperset(low[:-1]):
        return False
    return _subject(low, counted=counted)


def _subject(words: list[str], *, counted: bool) -> bool:
    """Whether the subject of the last word may state something: no "I" of thoughts, no clause that another one reports."""
    at = len(words) - 1
    if words[-2:] in (["to", "get"], ["to", "obtain"], ["and", "get"], ["and", "obtain"], ["and", "find"]):
        return True
    for place in [place for place in range(at) if words[place] in _CLASS["subject"]]:
        rest = place + 1
        while words[rest] in _AUXILIARIES and rest < at:
            rest += 1
        lead = [word for word in words[:place] if word not in _CLASS["connective"]]
        first_person = words[place] in ("i", "we")
        if rest < at:  # of another verb: one that concludes, or of a relative clause ("the number we want is 5")
            if first_person and words[rest] not in _CLASS["concluding"] and not (lead and words[at] in _CLASS["link"]):
                return False
            continue
        if first_person and words[at] not in _CLASS["of_we"] and not (counted and "can" in words[place:]):
            return False
        if not lead or lead[0] in PREPOSITIONS:
            return True
        return words[place - 1 - (words[place - 1] == "that")] in _CLASS["concluding"]
    return True


def stated_as_subject(before: str, said: str, after: str) -> bool:
    """Whether the clause begins with the number, and counts something or names the answer."""
    words = [word.lower() for word in _words(before)]
    opened = max((place for place, word in enumerate(words) if word in ("that", "why")), default=0)
    if opened and words[opened - 1] in _CLASS["concluding"]:
        words = words[opened + 1 :]
    if not _CLASS["connective"].issuperset(words):
        return False
    behind = _WORD_BEHIND.match(after)
    if behind is None or _PREDICATE.match(after):
        return True
    word = behind[1].lower()
    if word in _CLASS["of_one"] or _SINGULAR.match(after) or _MODAL.search(after):
        return False
    counts = word in _CLASS["of_many"] or word in _CLASS["irregular"] or word.endswith("ed")
    return counts or _has_noun(said, after) or word in PREPOSITIONS - {"to", "than", "as"}
