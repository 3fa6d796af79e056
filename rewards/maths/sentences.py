"""What a sentence states: the quantity it commits to, or nothing if it bounds, compares, computes with or cites a number.

A sentence is read in three steps. Every number, maths span, equation and list becomes one item; the words are cut into
clauses, of which those that begin with "since", "if", "after" and their like state nothing beside another; what is left is
searched from its end for a clause that states an item (`statement.py`, `shape.py`). Two candidates are none. `DOUBT` is what
no shape shows: a sentence that guesses, reports or supposes.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llmrl.rewards.maths.plain import delimited, fractions, ratios
from llmrl.rewards.maths.plainer import spelled_out, without_denials
from llmrl.rewards.maths.spans import BARE, NUMBER, last_step, spans_of
from llmrl.rewards.maths.statement import (
    ITEM,
    NO_HINTS,
    UNDONE,
    Hints,
    Item,
    N,
    candidates,
    computed,
    in_ascii,
    text_of,
    value_of_quantity,
    with_unit,
)
from llmrl.rewards.maths.units import numerals

# Words by which a sentence does not commit to what it says, whatever its shape.
_DOUBTS = """
    more or less|ignor\\w+|naive|rough(?:ly)?|preliminary|provisional
    none|neither|nor|except|wrong|incorrect|mistake\\w*|maybe|perhaps|possibly|probably|likely|unlikely
    presumabl[ey]|supposedly|allegedly|apparently|reportedly|seemingly|arguably|might|could|(?-i:may)|ought|seems?|appears?
    either(?! (?:way|point|case|method|approach)\\b)(?=[^,.;]{0,20}[\\d\ue000-\uf8ff])
    otherwise|unless|whether|depending|provided|as (?:if|though)|one would|would be wrong|would\\b.*\\bif
    if [^,]*\\bwere(?! to\\b)|for (?:example|instance)|according to (?:my|some\\w*)|give or take
    at first|first (?:idea|thought)
    (?:suppos|assum|presum|guess|estimat|conjectur|suspect|claim|rumou?r|hint)\\w*|doubt(?:s|ed|ful)?|imagine|pretend|tempted|inclined
    (?:said|says)(?! (?:yes|no)\\b)|say (?:it|there|we|s?he)|(?<!all )told|(?:upper|lower) bound|one possib\\w+|a candidate
"""
DOUBT = re.compile(rf"\b(?:{'|'.join(_DOUBTS.replace('    ', '').split(chr(10))[1:-1])})\b", re.IGNORECASE)
LONGEST_SENTENCE = 500  # characters without its maths spans; of a longer one the end is read
_IS_ITEM = re.compile(rf"=\s*{N}")
_START = r"[^\w\ue000-\uf8ff]*"
_BUT_NOT = re.compile(r"(?:\b(?:but|though|although)|, which)\b[^.]*(?:n['’]t|\b(?:not|no|never|wrong))\b")
# A clause that begins with one of these states nothing; one that begins with a preposition may, where it stands alone.
_CONJUNCTION = re.compile(
    rf"^{_START}(?:and |but )?(?:since|because|as(?! an? [a-z]{{3}})|if|when|whenever|given|although|though|while"
    rf"|whereas|where|unless|until"
    r"|assuming|let|who(?:ever)?|what(?:ever)?|having|whether|for which|such that)\b",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"\s*(?:where|when|for which|such that)\b", re.IGNORECASE)
_ADVERBIAL = re.compile(
    rf"^{_START}(?:and |but )?(?:after(?! \w+ing (?:\w+ ){{0,2}}(?:I|we)\b)|before|with|using|including|of which(?! there)"
    rf"|out of|of|in|at|by|from|among|on|to"
    r"|for(?! an? (?:\w+ ){1,3}of))\b",
    re.IGNORECASE,
)
_THERE_IS = re.compile(  # After the stop there are 27 passengers; in 7 years he will be 14.
    rf"\bthere (?:is|are|was|were|will be)(?: \w+)? {N}|\bin {N} \w+ (?:s?he|it|they|we|I|[A-Z]\w+) will\b"
)
_RESULT = re.compile(
    rf"^{_START}(?:and )?(?:so|thus|therefore|hence|then|\w+ing|that is|th(?:at|is) means|that makes|that gives|it follows"
    r"|altogether|in total|which|i\.e|or|namely|equivalently|in other words|and th(?:is|at) is"
    r"|but the actual|but (?:after|on) \w+ing"
    r"|for an? \w+ (?:\w+ )?of|finally|together|and (?:its|their) \w+ (?:is|are)"
    r"|and (?:its|their|the) (?:equivalent|resulting|final|required|combined|overall) \w+"
    r"|and (?:their|the|its) (?:\w+ )?(?:sum|product|difference|quotient|ratio|average|mean|total"
    r"|larger|smaller|largest|smallest|greatest|least|roots|solutions|zeros))\b"
    r"|\b(?:(?:is|are) (?:needed|required|necessary)|left|altogether|in total|in all|of which"
    r"|remain\w*|therefore|thus|hence|total)\b",
    re.IGNORECASE,
)
_TO_GET = re.compile(rf"\bto (?:get|obtain|yield)\b[^{N[1:-1]}]*{N}")
_REASON = re.compile(rf"^{_START}(?:and )?(?:since|because)\b", re.IGNORECASE)
_NONE = re.compile(r"\b(?:none|neither)\b", re.IGNORECASE)  # None of them fit, which means that there are 0.
_MEANS = re.compile(rf"{_START}(?:and )?(?:so|thus|therefore|hence|which means|meaning)\b", re.IGNORECASE)
_CONCLUDES = re.compile(rf"{_START}(?:and )?(?:so|thus|therefore|hence|then)\b", re.IGNORECASE)
_CLAUSES = re.compile(
    rf"[,;]\s*|\s+(?=if\b[^,]*{N})"
    r"|\s+(?=(?:(?:thus|therefore|hence|then) (?:the|an?|it|s?he|they|we|you|there|this|[A-Z\ue000-\uf8ff])|so|but"
    r"|while|whereas|because|since|(?<!of )which|including|where|whether|for which|such that|it follows"
    r"|we (?:find|get|have|obtain|see))\b)|(?<!after)(?<!by)(?<!of)(?<!for)(?<!before)(?<!without)\s+(?=(?:making|giving"
    r"|leaving)\b)|\s+(?=and\s+(?:then|so|thus|therefore|hence|her|his|their|its|the|it|he|she|they|we|[A-Z][a-z]+"
    r"|\w+ (?:has|have|had|is|are|was|were|gets?|got|equals))\b)"
)
TAIL = re.compile(
    r"[,;]?\s+(?:because|since|which|as|when|where|by|after|assuming|using|so|given|if|for|in total|altogether"
    r"|respectively)\b.*$|\s*\((?:since|because|as|or|i\.e\.|approx|rounded|which)[^)]*\)?.*$",
    re.IGNORECASE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"\s*(?:\\[a-z]+ ?)?[A-Za-z]?[₀-₉]*(?:_\{?\w+\}?)?'*(?:\([^()=+*/-]*\))?\s*=|[^=]*$")
_BECAUSE = re.compile(rf"\b(?:since|because|as|when|given|if)[^\w{N[1:-1]}]*$", re.IGNORECASE)
_POINT = re.compile(r"\(\s*[-−]?[\d./]+(?:\s*,\s*[-−]?[\d./]+)+\s*\)")
_SUBJECT = re.compile(
    rf"\W*(?:(?:so|thus|therefore|hence|then|and|but|while)\W+)*([A-Z][a-z]+|(?:her|his|their|the) \w+) (\w+) {N}"
)
_OF_WHAT = re.compile(
    rf"\b(?:the|its|their) ([a-z]+(?: (?!of\b|is\b|was\b|must\b)[a-z]+)?)(?: of [^{N[1:-1]},;]*)?"
    r" (?:is|are|was|equals|must be)\b",
    re.IGNORECASE,
)
_UNREAL = re.compile(r"\bif\b[^.]*\bwere\b(?! to\b)[^.]*\bwould\b|\bwould\b[^.]*\bif\b[^.]*\bwere\b", re.IGNORECASE)
_WORDS = (
    r"(?:\s+(?!(?:so|and|or|is|are|was|of|in|for|the|to|than|when|if|as|at|on|from|by|with"
    r"|equals?|gives?|makes?|ha[sd]|have|leaves?|costs?|pays?)\b)[a-zA-Z/Ω]+){0,4}"
)
_OPERATOR = r"(?:[-−–+*/×÷^·x]|times|plus|minus|divided by)"
_ARITHMETIC = rf"[($]*{N}\)?{_WORDS}(?:\s*{_OPERATOR}\s*[($]*{N}\)?{_WORDS})+"
_SUM = re.compile(rf"(?:{_ARITHMETIC}\s*[=≈]\s*)+(?=\$?{N})")
_LEFTUNDONE = re.compile(_ARITHMETIC)
_NO_NAME = r"(?!(?:is|be|of|he|to|in|at|by|as|it|so|do|we|us|am|on|or|if|up|no|an|a|I|A)\b *=)"
_TERM = rf"{_NO_NAME}[\d.]*[a-zA-Z]\w?(?:\([^()\s]*\))?(?:\^\d+)?"
_EQUATION = re.compile(rf"(?<![\w{UNDONE}])({_TERM}(?:\s*[-+*/]\s*{_TERM})*)\s*=\s*\$?({N})")
_LIST = re.compile(rf"({N})((?:\s*,?\s*\b(?:and|or)(?:\s+(?:maybe|perhaps|possibly|also))?\s+{N}|\s*,\s*{N})+)")
# Where an inequality or an interval follows: holds exactly when x > 5, all real numbers x with x > 5, lies in (5, 6).
RELATION = re.compile(
    r"[<>≤≥∈]|\\(?:[lg]eq?(?:slant)?|[lg]t|in|mathbb)(?![a-z])|^\s*(?:\\left)?[\[(][^\[\]]*,[^\[\]]*[\])]\s*$"
)
_FILLER = (
    r"(?:(?:all|every|any|the|those|real|integers?|values?|numbers?|points?|elements?|set|of|only|exactly|precisely|interval|[b-z])"
    r"\s+)"
)
_HOLDS = re.compile(
    r"\b(?:holds?|(?:is|are)(?: \w+ly)? (?:true|satisfied|defined|valid|fulfilled|met|solved|(?:in|de)creasing)"
    r"|is (?:at (?:least|most)|greater than|less than|non-?negative|non-?positive|negative|positive)"
    r"(?: or equal to)?(?: zero| 0)?"
    r"|(?:in|de)creases?)\s+(?:exactly|precisely|only|just|true)?"
    rf"\s*(?:for|when(?:ever)?|if|iff|on)\s+(?:and only (?:if|when|for)\s+)?{_FILLER}*(?:(?:with|such that|where"
    rf"|in)\s+)?{_FILLER}*(?={N})"
)
_SUCH = re.compile(rf"\b{_FILLER}+(?:with|such that|where|satisfying|for which|in)\s+{_FILLER}*(?={N})", re.IGNORECASE)
_COMPOUND_UNITS = re.compile(r"(?:\b|\d)(?:hour|hr|h\b|min|day|week|year|f[oe][oe]t|pound)")
_COMPOUND = re.compile(  # 2 hours and 40 minutes are one quantity
    r"(?<![\w.,/$-])(\d+) ?(years?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|feet|foot|pounds?),?(?: and)? "
    r"(\d+(?:\.\d+)?) ?(months?|days?|hours?|minutes?|mins?|min|m(?= |$)|seconds?|secs?|s|inch(?:es)?|ounces?)(?!\w)"
)
_EITHER = re.compile(rf"\beither\s+(?={N},? or {N})")
_LIES = re.compile(
    r"\b(?:(?:must )?lies? in|(?:takes? on|attains?|takes?|reach(?:es)?) (?:all|any|every)(?: real)? values? in"
    rf"|belongs? to|consists? of|(?:is|are|be) in|ranges over)\s+{_FILLER}*(?={N})"
)
_ABOUT = re.compile(rf"\bis (?:about|approximately|roughly) ({N})")  # a physical quantity: about 3 * 10^8
_ASIDE = re.compile(rf"\s*\([^()]*(?:[a-z]{{2}}|=)[^()]*\)|(?<=[a-z]) \({N}\)(?= [a-z])")


def marked(sentence: str) -> tuple[str, list[Item]]:
    """The sentence with one character of `N` for every item."""
    items: list[Item] = []

    def hold(text: str, computed: bool = False) -> str:
        items.append(Item(text, computed))
        return chr(0xE000 + len(items) - 1)

    def item(place: str) -> Item:
        return items[ord(place) - 0xE000]

    def listed(match: re.Match[str]) -> str:
        parts = [item(place) for place in ITEM.findall(match.group())]
        if any("=" in part.text for part in parts) and not all(_ASSIGNMENT.match(part.text) for part in parts):
            return match.group()  # 36n = 72, or n = 2: steps, no list of answers
        if len({RELATION.search(part.text) is None for part in parts}) > 1:
            return match.group()  # since k > 0, k = 5
        if len(parts) > 2 and "=" in (chain := parts[-1].text).partition("=")[2]:
            known = [part.text.partition("=")[0].strip() for part in parts[:-1]]
            if all(re.search(rf"(?<![a-z\\]){re.escape(name)}", chain.split("=")[1]) for name in known):
                return match.group()  # a = 2, b = -1, and z = a + bi = 2 - i
        if (
            "," in match[2]
            and all("=" in part.text for part in parts)
            and _BECAUSE.search(match.string[: match.start()])
        ):
            return match.group()  # since d = c - 8, d = 1
        joint = " or " if re.search(r"\bor\b", match[2]) else ", "
        return hold(joint.join(part.text for part in parts), all(part.computed for part in parts))

    sentence = sentence if sentence.isascii() else ITEM.sub(" ", sentence)
    pieces, at = [], 0
    for start, end, content in spans_of(sentence):
        content, derived = last_step(content)
        content = content.rstrip()
        comma = content[-1:] if content.endswith((",", ";")) else ""
        content = content.rstrip(" .,;")
        said = f" {content} " if BARE.fullmatch(content) else hold(content, derived)
        pieces += [sentence[at:start], said, comma]
        at = end
    text = "".join([*pieces, sentence[at:]])[-LONGEST_SENTENCE:]
    if any(map(RELATION.search, (held.text for held in items))):
        text = _LIES.sub("is ", _SUCH.sub("", _HOLDS.sub("is ", text)))
    text = text if not items else _ABOUT.sub(lambda m: f"is {m[1]}" if "10" in item(m[1]).text else m.group(), text)
    if "negative" in text or "minus" in text:
        text = re.sub(r"(?<![\d)\ue000-\uf8ff] )\b(?:negative|minus) (?=\d)", "-", text)
    if "out of" in text:
        text = re.sub(r"\b(\d+) out of (?:every )?(\d+)\b", r"\1/\2", text)
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = _POINT.sub(lambda m: hold(m.group()), text) if "(" in text else text
    if _COMPOUND_UNITS.search(text):
        text = _COMPOUND.sub(lambda m: hold(rf"{m[1]} \text{{{m[2]}}} {m[3]} \text{{{m[4]}}}"), text)
    text = NUMBER.sub(
        lambda m: hold(f"{m.group().removesuffix(m[1])} \\text{{{in_ascii(m[1])}}}" if m[1] else m.group()), text
    )
    if "(" in text:
        outside = _ASIDE.sub("", text)
        text = outside if ITEM.search(outside) else text
    text = _SUM.sub("= ", text) if len(items) > 1 else text
    text = _EQUATION.sub(lambda m: hold(f"{m[1]} = {item(m[2]).text}", True), text) if "=" in text else text
    text = _EITHER.sub("", text) if "either" in text else text
    if len(items) > 1:
        text = _LIST.sub(listed, _LEFTUNDONE.sub(UNDONE, text))
    return text, items[:6_000]


@lru_cache(maxsize=16)
def with_maths(text: str) -> str:
    """The text with delimiters around its plain mathematics too."""
    text = ratios(text) if "ratio" in text or "odds" in text else text
    if "chance" in text or "probability" in text:
        text = re.sub(r"\b(\d+) in (\d+)\b", r"\1/\2", text)
    pieces, at = [], 0
    for start, end, _ in spans_of(text):
        pieces += [delimited(text[at:start]), text[start:end]]
        at = end
    return "".join([*pieces, delimited(text[at:])])


def stated(sentence: str, hints: Hints = NO_HINTS) -> str | None:
    """The quantity that `sentence` states, with its unit; None if it states none, or none clearly.

    >>> stated("So Sue has 8 apples left"), stated("It is more than 6"), stated("By Theorem 5"), stated("It is not 6 but 9")
    ('8', None, None, '9')
    """
    text, items = marked(fractions(numerals(spelled_out(without_denials(sentence)))))
    clauses = [clause for clause in _CLAUSES.split(text) if clause.strip()]
    counted = [clause for clause in clauses if ITEM.search(clause)]
    free = [clause for clause in counted if not _CONJUNCTION.match(clause)]
    free = free or [clause for clause in counted if _IS_ITEM.search(clause) or _RELATIVE.match(clause)]
    stating = [said for said in free if not _ADVERBIAL.match(said) or _THERE_IS.search(said) or _TO_GET.search(said)]
    stating = stating or free[-1:]
    if len(stating) > 1 and re.match(r"\W*\w+ing\b", stating[0]):  # Dividing by 4, we get
        del stating[0]
    if len(stating) > 1 and (hints.noun or hints.name or hints.subject):
        stating = _asked_for(stating, hints)
    for place in reversed(range(len(stating))):
        clause = stating[place]
        found = candidates(clause, text, items, hints)
        if len(found) > 1:
            return None
        if found:
            at = found[0]
            if computed(clause, at, items):
                if DOUBT.search(ITEM.split(clause[:at])[-1]):
                    return None
                return value_of_quantity(clause, at, items) or with_unit(clause, at, items)
            free = [
                said
                for said in clauses
                if not (ITEM.search(said) or _CONJUNCTION.match(said) or _ADVERBIAL.match(said))
                and not (_NONE.search(said) and _MEANS.match(clause))
            ]
            around = (*clauses[clauses.index(clause) :], *free)
            doubted = DOUBT.search(text) is not None and any(map(DOUBT.search, around))
            doubted = doubted or _BUT_NOT.search(text, text.index(clause)) is not None
            doubted = doubted or _UNREAL.search(text) is not None
            others = [text_of(said, c, items) for said in stating[:place] for c in candidates(said, text, items, hints)]
            mine = text_of(clause, at, items)
            others = [other for other in others if other != mine]  # 84 / 7 = 12 weeks, i.e. 12 weeks of saving
            if not RELATION.search(mine):  # n ≥ 4, so the least is 4
                others = [other for other in others if not RELATION.search(other)]
            reason = clauses[clauses.index(clause) - 1] if clause != clauses[0] else ""
            concludes = (
                _RESULT.search(clause) or _REASON.match(reason) or _TO_GET.search(clause) or mine == r"\emptyset"
            )
            if doubted or (others and not concludes):
                return None
            return with_unit(clause, at, items)
        if _CONCLUDES.match(clause):
            return None
    return None


def _asked_for(stating: list[str], hints: Hints) -> list[str]:
    """The clauses without those that say the same of another than the question asks about: "Ana is 17 and Ben is 11";
    "so there are 12 girls, which leaves 18 boys"."""
    if hints.name:
        about = [_SUBJECT.match(clause) for clause in stating]
        if all(about) and len({match[2] for match in about if match}) == 1:
            mine = [clause for clause, match in zip(stating, about) if match and match[1] == hints.name]
            return mine if len(mine) == 1 else stating
    said = [_OF_WHAT.search(clause) for clause in stating] if hints.subject else []
    if said and all(said):
        named = [clause for clause, match in zip(stating, said) if match and match[1].lower() == hints.subject]
        return named if len(named) == 1 else stating
    counts = re.compile(rf"{N} {re.escape(hints.noun)}\b") if hints.noun else None
    if counts and _CONCLUDES.match(stating[0]) and counts.search(stating[0]) and not counts.search(stating[-1]):
        return stating[:-1] if re.search(rf"{N} [a-z]+s\b", stating[-1]) else stating
    return stating
