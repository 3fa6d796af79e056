"""Which number a clause states: by what stands directly before and behind each, and by the clause's shape (`shape.py`).

An item behind "=" comes first, then one that a verb states, then one that begins its clause. What a preposition, a bound
or a comparison takes does not count, and two candidates are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmrl.rewards.maths.shape import PREPOSITIONS, stated_as_subject, stated_by_verb
from llmrl.rewards.maths.units import SCALES, UNIT

N = "[\ue000-\uf8ff]"  # the place of an item in a marked sentence
ITEM = re.compile(N)
UNDONE = "§"  # the place of arithmetic that is left undone
DENIAL = re.compile(r"(?:\b(?:not|never|cannot|no)\b|n't|n’t)", re.IGNORECASE)
# Twice the total, the square of the answer: what is stated of it is another number.
MULTIPLE = (
    r"(?:(?:twice|double|triple|thrice|half|(?:two|three|four|five|ten|\d+|[\ue000-\uf8ff]) times)(?: of)? (?:the|its?|his"
    r"|her|their|this|that)\b|(?:the )?(?:square|cube|square root|double|half|negative|opposite|inverse|complement"
    r"|reciprocal) of (?:the|its?|his|her|their|this|that)\b)"
)
_HARDLY = re.compile(
    rf"{DENIAL.pattern}|\b(?:almost|nearly|hardly|barely|scarcely|nobody|no one|nothing|few|used to|I (?:first|initially) \w+"
    rf"|(?:hop|want|plan|expect|intend|tri|wish)(?:e?[sd]|n?ed)? to|should have"
    r"|^\W*(?:some|many|most|others)|(?:target|goal|threshold|attempt) (?:is|was)"
    r"|my (?!(?:final |own )?(?:answer|result|solution|total|calculations?)\b)"
    rf"|(?:method|approach|attempt|case|scenario) (?:{N}|[A-Z]) (?:is|gives?|yields?|makes?|leads?)"
    r"|(?:first|second|third|other|one|another|alternative) (?:method|approach|attempt|way|case) (?:is|gives?|yields?))\b"
    rf"|^\W*(?:(?:so|thus|then|hence|therefore|but|and)\b\W*)?{MULTIPLE}(?![^{N[1:-1]}]*{N})",
    re.IGNORECASE,
)
_PART = (
    r"half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|tenths?|multiple|factor|divisor|power|root|square|cube"
    r"|double|triple|percent|fraction|logarithm|reciprocal|inverse|proof|set|list|group|pair"
)
_MEASURE = (
    r"length|width|height|depth|area|volume|perimeter|radius|diameter|measure|degree|order|slope|remainder|value"
    r"|equation|formula|form|solution|coordinates"
)
# A total of, an area of; not a third of, at a speed of.
_OF_A_MEASURE = (
    r"(?<!\bat )(?<!\bin )(?<!\bby )(?<!\bof )(?<!\bon )(?<!\bfrom )(?<!\bafter )"
    rf"\ban? (?:[a-z-]+ )?(?!(?:{_PART})\b)[a-z]+ of"
)
# A preposition that still states what follows it, by the verb before it.
_STATES = re.compile(
    r"(?:[≈→:]|\b(?:answer of"
    rf"|(?:has|have|having|leaving) (?:(?:an?|the) )?(?:{_MEASURE})|(?<!or )equal to|leav(?:es?|ing) \w+ with"
    r"|(?:(?:is|was|be|now) worth)|(?:left|starts?|started|began|begins?|ends?|ended|finish\w*)(?: up| out| off)? with"
    r"|(?:comes?|came|amount(?:s|ed)?|adds? up|evaluates?|simplifies|reduces|reduced|sums?|totals?|total|rises?|rose"
    r"|risen|fallen|grown|grows?|grew|increas\w+|decreas\w+|drop\w*|falls?|fell|goes|went|works out|boils down"
    r"|round(?:s|ed)?(?: \S+)?|(?:br(?:ing|ought)|rais)\w*(?: \w+){1,3})(?: up| down| out)? to"
    r"|(?:factor(?:s|ed)|written|expressed|rewritten|simplified|given|described|represented|determined) (?:as|by)"
    r"|(?:sends?|maps?|carries|moves?) \S+ to"
    r"|priced at|arriv(?:e|es|ed|ing) at|chang(?:es?|ed|ing)(?: \w+){0,3} from \S+ to"
    r"|consists? of(?: the)?(?: (?:elements?|numbers?|points?|values?))?"
    rf"|(?:comes?|came) out (?:as|at|to be))|{_OF_A_MEASURE})"
    r"(?: (?:now|then|only|just|exactly|simply|therefore|thus|a|precisely|still|also|equal to|a total of))*\s*[$(]*$",
    re.IGNORECASE,
)
_DEFINITE = r"(?:the|these|those|all|both|each|every|his|her|its|their|our|my|your|first|last|next|previous|other|same)"
_PREPOSITION = rf"(?:{'|'.join(PREPOSITIONS - {'up', 'down', 'off', 'near', 'than', 'as', 'via'})})"
_TAKEN = re.compile(rf"\b{_PREPOSITION}(?: \w+ing)?(?: (?:{_DEFINITE}|only|exactly|just))*[\s$]*$", re.IGNORECASE)
_BESIDE = re.compile(r"\b(?:in|for|on|with|to)[\s$]*$", re.IGNORECASE)  # 24 pens in 12 boxes
_KNOWN = re.compile(rf"\b{_DEFINITE}[\s$]*$|\bof[\s$]*$", re.IGNORECASE)
# What directly before a number makes it a bound or an operand, though it looks like a verb.
_USED = re.compile(rf"(?:\b(?:exceed\w*|divid\w+|try|test)|\(|[<>≤≥]|\w\s*[-+*/×÷^]|{UNDONE})[\s$(]*$", re.IGNORECASE)
_CONDITION = re.compile(
    r"\b(?:(?<!arriving )(?<!arrive )at"
    r"|when|for|if|with|where|(?:putt|sett|us|lett|tak|insert|plugg|substitut)ing(?: in| into)?|let|than"
    r"|unless|until|since|because|say|try|put|(?<!given )by|take|test|consider|suppose"
    r"|(?:solutions?|roots?|zeros?) (?:to|of)|the case|(?:parallel|perpendicular|orthogonal|tangent) to|check|verify|solve)"
    r"(?: (?:we|the|that|case|set|have))*[^\w\ue000-\uf8ff]*$",
    re.IGNORECASE,
)
_BEHIND = re.compile(  # an operand or a part of a name
    rf"^\W{{0,2}}(?:-?(?:sided|fold)\b|(?:st|nd|rd|th)\b|[-*+/^×÷{UNDONE}]\s*(?:{N}|\w)|[x×]\s*{N}"
    rf"|on (?:the|both) (?:left|right|sides?)\b|times (?:{N}|the|that|what|her|his|\$)|(?:or|and|plus|minus|divided"
    rf"|multiplied|modulo|mod)\b|(?:to|by) \$?{N}"
    r"|(?:is|are|was|were|does|do|did|will|can)?\s*(?:not\b|n't|cannot))",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"\b(?:than|less|fewer|short|shy|off|or longer|or so|at (?:most|least|best|worst))\b|^ *times as|^\W*as an?\b",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[-+−$€£\\]*[\d.]+(?:[,/ :][\d.]+)*%?\s*(?:\\text|$)")
_FOR = re.compile(r"\bfor[\s$]*$")
_JOINED = re.compile(r"(?:\b(?:and|or)|,)[\s$]*(?:[a-z]+ )?$")
_PER = r"/[a-z]{1,3}| per (?:hour|minute|second)"
_UNIT_BEHIND = re.compile(
    rf"[\s*$]*((?i:[ap]\.?m\b)|(?:{UNIT}|{'|'.join(SCALES)}|percent|per cent|pct|%)(?:{_PER})?(?:\^\d|²|³)?)(?![\w^])"
)
_GROWS = re.compile(r"\b(?:up|down|\w+ed|\w+s|rose|fell|grew|shrank) by\s*$")
_RELATION = re.compile(r"[<>≤≥∈]|\\(?:[lg]eq?(?:slant)?|[lg]t|in)(?![a-z])")
_GIVEN = re.compile(r"\bknow(?: that)?[\s$]*$|\b(?:[Ww]e|us|I) (?:start|begin)\w* (?:with|from)[\s$]*$")
_NAMES = re.compile(
    r"^(?!\W*(?:take|consider|choose|pick|use|let|plug|substitute|reflect|rotate|translate"
    r"|plot)\b).*\bthe (?:[a-z]+ )?[a-z]+[\s$]*$",
    re.IGNORECASE,
)
_TO = re.compile(
    r"\b(?:is|are) (?:therefore |thus |also )?equivalent to[\s$]*$"
    r"|\b(?!(?:belong|correspond|point|lead|refer|appl|add)\w* to)[a-z]+(?:s|ed) (?:down )?to[\s$]*$"
)
_DENIED_BEHIND = re.compile(
    r"\W*(?:is|are|was|were|does|do|did|will|can|could|would|has|have)?\s*(?:not\b|n['’]t|cannot|fails?\b|impossible"
    r"|(?:already |clearly )?too (?:big|large|small|high|low))"
)
# 120 - 80 = 40 are not in the club
_MANY_DO_NOT = re.compile(r"\s*(?:[a-z]+ )?(?:are|were|do|did|have) ?n[o'’]t [a-z]+")
_LEADS = re.compile(r"\b(?:leads? to|results? in|produces?)[\s$]*$")
# multiply 5 by 3 to get 15
_OBTAINED = re.compile(r"\bto (?:get|obtain|yield)(?: (?:a|an|the) (?:\w+ ){1,3}of)?[\s$]*$")
_LIMIT = re.compile(r"\b(?:limit|cap|quota|ceiling|allowance)\b[^,]*\b(?:is|was|of)[\s$]*$")
# It is 47 if the coins are fair; it was 47 before the sale.
_SOMETIMES = re.compile(r"[\s$)]*(?:if|unless|provided|without|(?:of \w+ )?before)\b", re.IGNORECASE)
_WAS = re.compile(r"\b(?:was|were)\b[^,]*$", re.IGNORECASE)
_TIME = re.compile(r"\s*(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?)\b")


# The distance between the foci is $2c = 24$: the last side, though an equation of a line would be the whole.
_QUANTITY_IS = re.compile(
    r"\b(?:the|its|their|our) (?:\w+ ){0,3}(?:distance|length|area|volume|perimeter|sum|product|difference|number|total"
    r"|probability|maximum|minimum|radius|diameter|average|mean|median|height|width|slope|ratio|remainder|cost|price"
    r"|largest|smallest|greatest|least|larger|smaller|greater)\b[^=\d]*"
    r"\b(?:is|equals|(?:comes|telescopes|evaluates|amounts|simplifies) to|has (?:measure|length|area|volume))\s*$",
    re.IGNORECASE,
)
_VALUE_LAST = re.compile(
    r"^(?!\s*[A-Za-z]\s*=).*=\s*([-\d.,/{}\\$%]*\d[-\d.,/{}\\$%]*|\\[td]?frac\{\d+\}\{\d+\}"
    r"|[-\d\s]*(?:\\sqrt\{?\d+\}?|\\pi))\s*$",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Hints:
    """What question and gold say about the form of the answer. difference: the question asks by how much or how many
    times, so that a comparison is an answer. noun: what it asks how many of. name: whose age or the like. subject:
    what it asks for ("larger number"). year: it asks for a year. at_first: it asks what was in the beginning.
    figures: the numbers in it. words, polar, letter, date, clock: the gold is words, is "yes" or another such word, is the
    letter of a choice, is a date, is a time of day.
    alternatives: the gold's words and those that the question offers beside them.
    coordinates: how many numbers the gold's pair or triple has.
    """

    difference: bool = False
    noun: str = ""
    name: str = ""
    subject: str = ""
    figures: frozenset[str] = frozenset()
    year: bool = False
    at_first: bool = False
    words: bool = False
    polar: bool = False
    letter: bool = False
    date: bool = False
    clock: bool = False
    alternatives: tuple[str, ...] = ()
    coordinates: int = 0


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Item:
    """A number, maths span, equation or list. computed: an equation, or what stands behind one's sign."""

    text: str
    computed: bool


def computed(clause: str, at: int, items: list[Item]) -> bool:
    return items[ord(clause[at]) - 0xE000].computed or clause[:at].rstrip(" $(").endswith(("=", "≈"))


def text_of(clause: str, at: int, items: list[Item]) -> str:
    return items[ord(clause[at]) - 0xE000].text


def value_of_quantity(clause: str, at: int, items: list[Item]) -> str | None:
    """24 of "the distance between them is 2c = 24", with its unit; None where the sentence names no quantity, or the item
    no value."""
    value = _VALUE_LAST.search(text_of(clause, at, items)) if _QUANTITY_IS.search(clause[:at]) else None
    if not value:
        return None
    return value[1] if value[1].endswith("%") else value[1] + _unit_behind(clause, at)


def with_unit(clause: str, at: int, items: list[Item]) -> str:
    said = text_of(clause, at, items)
    return said if said.endswith("%") else said + _unit_behind(clause, at)


def _unit_behind(clause: str, at: int) -> str:
    unit = _UNIT_BEHIND.match(clause[at + 1 :])
    return f" \\text{{{in_ascii(unit.group(1))}}}" if unit else ""


def in_ascii(unit: str) -> str:
    return unit.replace("²", "^2").replace("³", "^3")


def candidates(clause: str, sentence: str, items: list[Item], hints: Hints) -> list[int]:
    """Where the items stand that the clause may state; those behind "is", "=" or "makes" before all others."""
    places = [match.start() for match in ITEM.finditer(clause)]
    if places and _LEADS.search(clause[: places[-1]]) and not _PLAIN.match(text_of(clause, places[-1], items)):
        return places[-1:]
    equal = [at for at in places if computed(clause, at, items)]
    equal = [
        at
        for at in equal
        if "=" not in text_of(clause, at, items) or not _CONDITION.search(clause[:at]) or _STATES.search(clause[:at])
    ]
    equal = [at for at in equal if not _DENIED_BEHIND.match(clause[at + 1 :]) or _MANY_DO_NOT.match(clause[at + 1 :])]
    if equal:
        return equal[-1:]
    obtained = [at for at in places if _OBTAINED.search(clause[:at])]
    if obtained:
        return obtained[-1:]
    free: list[int] = []
    others: list[int] = []
    behind_is: list[int] = []
    taken: list[int] = []
    for at in places:
        before, after, said = clause[:at], clause[at + 1 :], text_of(clause, at, items)
        compared = _COMPARED.search(after) is not None and not hints.difference
        if computed(clause, at, items) or _BEHIND.match(after) or compared or _HARDLY.search(before):
            continue
        if _qualified(before, said, after):
            continue
        if _USED.search(before) and not _STATES.search(before):
            continue
        if (
            stated_by_verb(before, said, after, sentence)
            or _STATES.search(before)
            or (not _PLAIN.match(said) and _TO.search(before))
        ):
            behind_is.append(at)
        elif _TAKEN.search(before) or _KNOWN.search(before):
            alone = len(places) < 10 and all(
                _KNOWN.search(clause[:other]) and not _STATES.search(clause[:other]) for other in places if other != at
            )
            if alone and _measured(before, said, after, difference=hints.difference):
                return [at]
            if _BESIDE.search(before) and not _UNIT_BEHIND.match(after):
                taken.append(at)
        elif stated_as_subject(before, said, after) or _named(before, said, after):
            free.append(at)
        elif _JOINED.search(before):
            others.append(at)
    chosen = behind_is[-1:] or free
    priced = len(chosen) == 1 and text_of(clause, chosen[0], items)[0] in "$€£"
    if len(chosen) == 1:  # 12 pairs that are labelled with 25
        taken = [at for at in taken if not re.search(r"\b(?:that|which|whose|who)\b", clause[chosen[0] : at])]
    if len(chosen) == 1 and not (priced and all(_FOR.search(clause[:at]) for at in taken)):  # $8 for 2 pens
        chosen += [at for at in (*free, *others, *taken) if at > chosen[0]]  # 24 pens in 12 boxes; 5 dogs and 8 cats
    if len(chosen) > 1 and hints.noun:  # 5 dogs and 8 cats, where the question is how many cats
        named = [at for at in chosen if re.match(rf"\s*(?:more )?{re.escape(hints.noun)}\b", clause[at + 1 :])]
        chosen = named if len(named) == 1 and not _COMPARED.search(clause) else chosen
    return chosen


def _qualified(before: str, said: str, after: str) -> bool:
    """Whether the words around it say that it holds at another time, on a condition or as a limit only."""
    if behind := _SOMETIMES.match(after):
        word = behind.group().lower()
        return (
            _WAS.search(before) is not None if word.endswith("before") else "without" not in word or "would" in before
        )
    if not _PLAIN.match(said) and _GIVEN.search(before):
        return True
    return _LIMIT.search(before) is not None and re.match(r"\s+[a-z]{3}", after) is not None


def _named(before: str, said: str, after: str) -> bool:
    """The point $(2, -1)$ at the end of its clause."""
    return not _PLAIN.match(said) and not after.strip(" .$)") and _NAMES.search(before) is not None


def _measured(before: str, said: str, after: str, *, difference: bool) -> bool:
    """Up by 100%, for $12, in 3 hours, cut into 5 pieces: what a preposition may introduce and still be the answer."""
    found = re.search(r"\b(in|into|after|on|for|at|by)(?: (?:exactly|just|only|precisely))?[\s$]*$", before)
    if not found:
        return False
    percent = said.endswith("%") or re.match(r"\s*(?:per ?cent|pct)", after) is not None
    if found[1] == "by" and (difference or percent) and _GROWS.search(before):
        return True
    if re.search(r"\b(?:is|are|was|were|been)(?: \w+)? (?!divi|multip|up\b|down\b)\w+ (?:into|by)[\s$]*$", before):
        return found[1] == "into" or re.match(rf"\s+(?!(?:{UNIT})\b)[a-z]", after) is not None
    if found[1] == "by":
        return False
    if found[1] == "for":
        room = re.search(r"\b(?:room|space|enough|seats?) for\s*$", before)
        return room is not None or said[0] in "$€£" or "\\text" in said or _UNIT_BEHIND.match(after) is not None
    if found[1] == "at":
        return (
            ":" in said
            or said[0] == "("
            or re.match(r"\s*(?:mph|[a-z]+/|[a-z]+ per|(?i:[ap]\.?m\b))", after) is not None
        )
    return ":" in said or (found[1] in ("in", "on", "after") and _TIME.match(after) is not None)
