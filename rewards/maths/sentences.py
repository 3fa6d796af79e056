"""What a sentence states: the quantity it commits to, or nothing if it bounds, compares, computes with or cites a number.

One list of hedges (`DOUBT`, `_BEFORE`, `_AFTER`) serves every way of finding an answer in prose.
"""

from __future__ import annotations

import re

from llmrl.rewards.maths.units import SCALES, UNITS, numerals

_DELIMITER = re.compile(r"\\(?:begin|end)\{(?:align|gather|equation)\*?\}|\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_ENVIRONMENTS = [f"{name}{star}" for name in ("align", "gather", "equation") for star in ("", "*")]
_CLOSES = {f"\\begin{{{name}}}": f"\\end{{{name}}}" for name in _ENVIRONMENTS} | {
    "$$": "$$",
    "$": "$",
    "\\(": "\\)",
    "\\[": "\\]",
}
_UNIT = "|".join(sorted((re.escape(name) for name in UNITS if len(name) < 12 and name != "in"), key=len, reverse=True))
NUMBER = re.compile(
    r"(?<![\w.,/^\\{])[-+−]?[$€£]?(?:\d+ \d+/\d+|\d{1,2}:\d\d|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?)"
    rf"(?:[€£¢]|(?:{_UNIT})(?:/[a-z]{{1,3}})?(?![\w^])|(?![\w^]|/[\d(\\]|\.\d|,\d))"
)
# Words by which a sentence does not commit to what it names, wherever they stand in it.
DOUBT = re.compile(
    r"not\b|n't|\b(?:none|neither|nor|never|cannot|except|wrong|incorrect|maybe|perhaps|possibly|might|could|either"
    r"|if [^,]*\bwere|suppos\w+|assum\w+|contradict\w+|guess\w*|estimat\w+|unless|unsure|doubt\w*|instead of"
    r"|hints?|hinted|claims?|claimed|rumou?r\w*|said|says|told|too (?:big|large|small|high|low|many|few|much|little)"
    r"|fails?|impossible|out of time|probably|likely)\b",
    re.IGNORECASE,
)
_CITED = (
    r"theorem|lemma|proposition|corollary|definition|axiom|equation|eq|problem|exercise|example|question|figure|fig"
    r"|table|section|chapter|page|row|column|line|step|case|part|item|no|number|option|choice|formula|rule|property"
    r"|method|remark|note|round|stage|phase|contest|exam|test|task|volume|appendix|version|level|exponent|base|year|grade"
    r"|room|day|age|rank|chapter|verse|footnote|paragraph|assumption|hypothesis|condition|inequality|identity|algorithm"
)
_PART_OF = (
    r"half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|tenths?|multiples?|factors?|divisors?|powers?|roots?"
    r"|square|cube|double|triple|percent|%|out|digits?|sum|product|difference|rest|fraction|logarithm|reciprocal"
    r"|inverse|instead|each|none|all|any"
)
# What directly before a number makes it something else than the answer.
_BEFORE = re.compile(
    rf"(?:\b(?:than|between|and|or|the|first|last|next|previous|these|those|least|most|over|under|above|below|beyond|past"
    rf"|near|nearly|almost|about|around|roughly|approximately|approx\.?|twice|thrice|double|triple|half|times|minus|plus"
    rf"|modulo|mod|within|until|till|through|versus|vs|per|with|without|from|on|at|in|into|to|toward|towards|by|for|during"
    rf"|since|before|after|among|against|across|like|unlike|exceed(?:s|ing|ed)?|add(?:ing|ed)?|subtract(?:ing|ed)?"
    rf"|counting|divid\w+|divides|multipl\w+|check|consider|try|when|where|let|if|(?:{_CITED})s?\.?)"
    rf"|(?:{_PART_OF}) of(?: the)?|(?<!\bthat)(?<!\bit)(?<!\bhere)(?<!\bthere)(?<!\bwhich)'s|\bx"
    rf"|[\w)}}]\s*[-+*/×÷^]|\d\s*[,;:]"
    r"|[(<>≤≥]|\d)\s*\**$",
    re.IGNORECASE,
)
# Words that state what follows them, whatever stood before.
_STATES = re.compile(
    r"(?:[=≈]|\b(?:(?:that|it|here|there|which)'s|is|are|was|were|be|equals?|equal to|gives?|gave|makes?|made|get|gets|got"
    r"|leaves?(?: \w+ with)?|(?:left|starts?|started|began|begins?|ends?|ended|finish\w*)(?: up| out| off)? with"
    r"|up to a total of|(?:comes?|came|amount(?:s|ed)?|adds? up|evaluates?|simplifies|reduces|reduced|sums?|totals?|total"
    r"|rises?|rose|grows?|grew|increas\w+|decreas\w+|drop\w*|falls?|fell|goes|went|works out)(?: up| down| out)? to"
    r"|total(?:s|ed)?|total of|have|has|had|obtain|yields?))"
    r"(?: (?:now|then|only|just|exactly|simply|therefore|thus|a total of|equal to|precisely|still))*"
    r"\s*[*$(]*$",
    re.IGNORECASE,
)
# Anna has 12 and Ben has 36; when x = 36 this fails.
_PARALLEL = re.compile(
    r"\d[^.;=]{0,40}?\b(?:and|while|but|whereas)\s+(?!so\b|thus\b|then\b|therefore\b|hence\b|the total|together|altogether)"
    r"[A-Za-z']+(?:\s+[A-Za-z']+)?\s+(?:has|have|had|is|are|was|were|gets?|got)\s*[$*]*$"
)
_TRIED = re.compile(r"\b(?:when|if|for|at|try|let|suppose|with)\s+\$?\w+\s*=\s*$", re.IGNORECASE)
_COMPUTED = re.compile(r"[=≈]\s*[*$(]*$")
_ASIDE = re.compile(
    r"\b(?:in|after|for|of|out of|of the|per|from|with|at|over|on|to make|and|by|than|between)(?: the)?$", re.IGNORECASE
)
_BOUND = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt|leq|geq|in)(?![a-z])")
_CONDITION = re.compile(
    r"\b(?:at|when|for|if|with|where|let|as|than|unless|until|since|because|say|try|put|by)$", re.IGNORECASE
)
# What directly behind a number makes it an operand or a part of a name; what behind it compares.
_OPERAND = re.compile(
    r"^\W{0,2}(?:-?(?:sided|fold)\b|(?:st|nd|rd|th)\b|[-*+/^×÷]\s*\d|[x×]\s*\d|times (?:\d|as|more|less|the"
    r"|that|what|bigger"
    r"|larger|older|her|his|\$)|(?:or|and|to|by|plus|minus|divided|multiplied|modulo|mod)\b)"
    r"|\bis wrong\b",
    re.IGNORECASE,
)
_COMPARED = re.compile(r"\b(?:than|less|fewer)\b", re.IGNORECASE)
_UNIT_BEHIND = re.compile(rf"[\s*$]*((?:{_UNIT}|{'|'.join(SCALES)}|percent|per cent|pct)(?:\^\d|²|³)?)(?![\w^])")
_TIME = re.compile(r"\s*(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?)\b")
_DURING = re.compile(r"\b(?:in|after|over|for|during|at the end of)(?: the)?\s*$")
_NAMED = re.compile(r"\b([a-zA-Z]) is (?=[-\d$])")
_SUBORDINATE = re.compile(
    r"^\W*(?:since|because|as|if|when|after|given|with|of|out of|in|at|for|so|then|by|from|from the|among)\b",
    re.IGNORECASE,
)
_CLAUSE_BEFORE = re.compile(r"\d[^.;=]{0,40}?(?:,|\band\b|\bbut\b|\bwhile\b|\bor\b)\s*(?:[A-Za-z']+\s+){0,3}$")
_DENIED = re.compile(  # "not 6 but 9", "isn't 6, it's 9": what is denied goes, what is said stays
    r"(?:\bnot|n't)\s+[^\s,;]{1,30}[,;]?\s+(?:but(?: rather)?|it(?:'s| is)|rather)\s+", re.IGNORECASE
)
_AFTERTHOUGHT = re.compile(
    r"[,;(]?\s*\b(?:and\s+|but\s+)?(?:not|rather than|instead of)\s+[^\s,;]*\d[^\s,;]*[\s.)]*$", re.IGNORECASE
)
TAIL = re.compile(
    r"[,;]?\s+(?:because|since|which|as|when|where|by|after|assuming|using|so|given|if|for|in total|altogether"
    r"|respectively)\b.*$"
    r"|\s*\((?:since|because|as|or|i\.e\.|approx|rounded|which)[^)]*\)?.*$",
    re.IGNORECASE | re.DOTALL,
)
# Several values, or one with letters: the solutions are x = 3 and x = 5; it is (3, 4).
_LISTED = re.compile(
    r"(?:\b(?:is|are|obtain|get)|:)\s+((?:\(|[a-zA-Z]\s*=|[-−+$\d]+[^A-Za-z]*\b(?:and|or)\b)"
    r"(?:[^A-Za-z]|\b[a-zA-Z]\b|\b(?:and|or)\b|\\[a-zA-Z]+)*)$"
)


def spans_of(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every maths span $..$, $$..$$, \\(..\\), \\[..\\], in order and in one pass."""
    found: list[tuple[int, int, str]] = []
    opened: tuple[str, int, int] | None = None
    for match in _DELIMITER.finditer(text):
        mark = match.group()
        if opened is None:
            opened = (_CLOSES[mark], match.start(), match.end()) if mark in _CLOSES else None
        elif mark == opened[0]:
            content = text[opened[2] : match.start()]
            if "begin" in text[opened[1] : opened[2]]:
                content = text[opened[1] : match.end()]
            if mark == "$" and _between_prices(content, text[match.end() : match.end() + 1]):
                opened = (mark, match.start(), match.end())
                continue
            if content.strip():
                found.append((opened[1], match.end(), content))
            opened = None
    return found


def _between_prices(content: str, after: str) -> bool:
    """Whether what stands between two dollar signs is no mathematics but the way from one price to the next."""
    if re.match(r"\d.*[\s*(=+-]$", content, re.DOTALL) and after.isdigit():
        return True
    return re.search(r"(?<!\\)\b[a-z]{2,} [a-z]{2,} [a-z]{2,}", re.sub(r"\\\w+\s*\{[^{}]*\}", "", content)) is not None


def without_denials(sentence: str) -> str:
    """ "not 6 but 9" and "9, not 6" as 9."""
    return _AFTERTHOUGHT.sub("", _DENIED.sub(" ", sentence))


def stated(sentence: str) -> str | None:
    """The quantity that `sentence` states, with its unit; None if it states none, or none clearly.

    >>> stated("So Sue has 8 apples left"), stated("It is more than 6"), stated("By Theorem 5"), stated("It is not 6 but 9")
    ('8', None, None, '9')
    """
    sentence = numerals(without_denials(sentence))
    said_last = sentence.rpartition("=")[0].rpartition(",")[2] + sentence.rpartition("=")[2]
    if DOUBT.search(said_last if re.search(r"=\s*\$?\d[^=]*$", sentence) else sentence):
        return None
    pieces = spans_of(sentence)
    numbers = [m for m in NUMBER.finditer(sentence) if not any(s <= m.start() < e for s, e, _ in pieces)]
    items = sorted([(s, e, content) for s, e, content in pieces] + [(m.start(), m.end(), m.group()) for m in numbers])
    if not items:
        return None
    names = _NAMED.findall(sentence)
    if len(set(names)) > 1 and not _SUBORDINATE.match(sentence):
        return None
    if whole := _LISTED.search(sentence):
        return whole.group(1).replace("$", "")
    computed = [place for place, item in enumerate(items) if _COMPUTED.search(sentence[: item[0]])]
    if computed and not _STATES.search(sentence[: items[-1][0]]):
        items = items[: computed[-1] + 1]
    for place in reversed(range(len(items))):
        start, end, said = items[place]
        before, after = sentence[:start], re.split(r"[,;]", sentence[end:])[0] if computed else sentence[end:]
        if place < len(items) - 1:  # what stood behind it was an aside
            after = sentence[end : items[place + 1][0]]
            timed = _TIME.match(sentence[items[-1][1] :]) and _DURING.search(sentence[: items[-1][0]])
            if not (_STATES if timed or sentence[start] in "$\\" else _COMPUTED).search(before):
                return None
        if _says(before, said, after, others=len({item[2] for item in items}) > 1):
            unit = _UNIT_BEHIND.match(after)
            return said + (f" {unit.group(1)}" if unit and not said.endswith("%") else "")
        if not (_ASIDE.search(before.rstrip(" $*")) or not re.search(r"\d", said) or _BOUND.search(said)):
            return None
    return None


def _says(before: str, said: str, after: str, *, others: bool) -> bool:
    """Whether the words around a number or a maths span let it stand as the answer."""
    computed = _COMPUTED.search(before) is not None
    if others and _PARALLEL.search(before) and not _SUBORDINATE.match(before):
        return False
    if computed and _TRIED.search(before):
        return False
    if _OPERAND.search(after) or (_COMPARED.search(after) and not computed) or not re.search(r"\d|\\[a-z]|=", said):
        return False
    if re.search(r"\bthan or equal to\W*$", before):
        return False
    if computed or _STATES.search(before):
        return True
    if "=" in said:  # an equation states itself
        return _CONDITION.search(before.rstrip(" $*(")) is None
    if _BEFORE.search(before.rstrip(" $*")) and not _measured(before, said, after, others=others):
        return False
    return not (others and _CLAUSE_BEFORE.search(before) and not _SUBORDINATE.match(before))


def _measured(before: str, said: str, after: str, *, others: bool) -> bool:
    """Up by 100%, for $12, in 3 hours: what a preposition may introduce and still be the answer."""
    if re.search(r"\b(?:up|down|increased?|decreased?|rose|fell|grew|shrank|\w+ed|\w+s) by\s*$", before):
        return said.endswith("%")
    if others or not (found := re.search(r"\b(in|after|for|at|by)\s*$", before)):
        return False
    if found[1] == "for":
        return said[0] in "$€£" or _UNIT_BEHIND.match(after) is not None
    return (
        ":" in said
        or (found[1] == "at" and said[0] == "(")
        or (found[1] in ("in", "after") and _TIME.match(after) is not None)
    )
