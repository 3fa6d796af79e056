"""Units and plain words for the maths checker: which words may stand behind a number, and which change its meaning."""

from __future__ import annotations

import re

# unit, its name, other spellings; plurals and British spellings of the name are made.
_SPELLINGS = """
    cm centimeter cms; mm millimeter; m meter; km kilometer kms; in inch inches; ft foot feet; yd yard yds; mi mile;
    g gram; kg kilogram kgs; mg milligram; lb pound lbs; oz ounce; ton tonne tons; s second sec secs; min minute mins;
    h hour hr hrs; day; week; month; year yr yrs; L liter l; mL milliliter ml; deg degree °; rad radian;
    usd dollar USD; cent ¢; eur euro € EUR; gbp GBP; yen; inr rupee INR; won; rub ruble; unit u; mph; kph kmh; gal gallon;
    qt quart; pt pint; acre; hz hertz; n newton; j joule; ohm Ω Omega; w watt; v volt; mol mole; pa pascal; k kelvin;
    am a.m. a.m; pm p.m. p.m
"""


MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"


def _spelled(unit: str, *others: str) -> list[str]:
    name = others[0] if others and len(others[0]) > 3 else unit
    full = [name, name.replace("liter", "litre").replace("meter", "metre")]
    return [unit, *others, *full, *(f"{one}s" for one in full if len(one) > 2)]


UNITS = {name: names[0] for names in map(str.split, _SPELLINGS.split(";")) for name in _spelled(*names)}

UNIT = "|".join(sorted((re.escape(name) for name in UNITS if len(name) < 12 and name != "in"), key=len, reverse=True))

# Closed word classes that change what a number says; a phrase with one of them is not a unit.
_STOP_WORDS = """
    or and not no nor but if then else is are was were be been isn aren t n't the a an this that these those it its
    than more less fewer greater least most at below above under over between except without minus plus times divided
    multiplied by squared cubed factorial root square-root half halves third thirds quarter quarters fourth fifth
    double triple twice dozen hundred hundreds thousand thousands million millions billion billions trillion percent
    percents wrong incorrect false true right correct invalid impossible undefined answer answers because since when
    where while to from into with for in on of about approximately around roughly nearly almost maybe perhaps possibly
    either neither both only mod modulo base choose remainder remaining unknown variable infinity first second-last
    last second_to e.g i.e instead rather actually should would could might may can cannot one two three four five six
    seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty
    forty fifty sixty seventy eighty ninety
"""
_STOP = frozenset(_STOP_WORDS.split())
# Prepositions that are fine inside a compound unit ("miles per hour", "units of length").
_INNER = frozenset(("per", "of", "a", "each"))
_SQUARE = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
NUMBER_WORDS = {word: value for value, word in enumerate(_NUMBER_WORDS.split())}
_TENS = {
    word: 10 * place
    for place, word in enumerate(["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 3)
}
_COUNTING = NUMBER_WORDS | _TENS | {word: SCALES[word] for word in ("hundred", "thousand", "million", "billion")}
ONE_WORD = rf"(?:{'|'.join(sorted(_COUNTING, key=len, reverse=True))})"
_SPOKEN = re.compile(
    rf"\b{ONE_WORD}(?:(?:[ -]|(?<=hundred) and (?={ONE_WORD}\b)|(?<=thousand) and (?={ONE_WORD}\b)){ONE_WORD})+\b"
    rf"|\b(?:{'|'.join(_TENS)})\b",
    re.IGNORECASE,
)


def spoken_value(said: str) -> int | None:
    """The integer that digits or number words say, None if they say none.

    >>> spoken_value("twenty-five"), spoken_value("two hundred and six"), spoken_value("two three"), spoken_value("-7")
    (25, 206, None, -7)
    """
    if re.fullmatch(r"-?[0-9]{1,18}", said):
        return int(said)
    total = part = 0
    last = 10**12
    words = said.strip(" -").lower()
    for word in re.split(r"[ -]+", words):
        if word == "and":
            continue
        value = _COUNTING.get(word)
        if value is None:
            return None
        if value == 100 and 0 < part < 10:
            part, last = part * 100, 100
        elif value >= 1_000 and part and (total == 0 or total % (value * 1_000) == 0):
            total, part, last = total + part * value, 0, value
        elif value < 100 and (last >= 100 or (20 <= last < 100 and 0 < value < 10)):
            part, last = part + value, value
        else:
            return None
    return -(total + part) if said.lstrip().startswith("-") else total + part


_WORD = re.compile(r"[a-z]+")
_DOZEN = re.compile(r"\b(half )?(?:a|one) dozen\b", re.IGNORECASE)
_AND_A_HALF = re.compile(rf"\b({ONE_WORD}|\d+) and (?:a|one) (half|quarter)\b", re.IGNORECASE)


def numerals(text: str) -> str:
    """The text with numbers of several words (twenty-five, two hundred, three and a half) as numerals."""
    if _COUNTING.keys().isdisjoint(words := _WORD.findall(text.lower())) and {"half", "quarter", "dozen"}.isdisjoint(
        words
    ):
        return text
    text = _DOZEN.sub(lambda m: "6" if m[1] else "12", text)
    text = _AND_A_HALF.sub(lambda m: f"{spoken_value(m[1].lower())} 1/{2 if m[2].lower() == 'half' else 4}", text)

    def numeral(match: re.Match[str]) -> str:
        value = spoken_value(match.group())
        return match.group() if value is None else str(value)

    return _SPOKEN.sub(numeral, text)


def canonical_unit(phrase: str) -> str | None:
    """One spelling for a unit phrase, or None if the phrase is not a unit but changes the meaning.

    >>> canonical_unit("square inches"), canonical_unit("miles per hour"), canonical_unit("is wrong")
    ('in^2', 'mph', None)
    """
    if phrase.strip() in UNITS:
        return UNITS[phrase.strip()]
    text = phrase.strip().strip(".").replace("-", " ").replace("²", "^2").replace("³", "^3")
    text = re.sub(r"(?<=[a-z]) (?:to|that|which|who|for|in|on) [a-z ]+$", "", re.sub(r"\s+", " ", text))
    if not text or len(text) > 60 or not re.fullmatch(r"[A-Za-z°€¢/ ^0-9.]+", text):
        return None
    if text in UNITS:
        return UNITS[text]
    words = [w for w in re.split(r"[ ]|(/)", text) if w]
    if len(words) > 6:
        return None
    out: list[str] = []
    power = ""
    for place, word in enumerate(words):
        low = word.lower().rstrip(".")
        if low in _SQUARE and place + 1 < len(words):
            power = _SQUARE[low]
            continue
        if word == "/" or (low == "per" and place + 1 < len(words)):
            out.append("/")
            continue
        if low in _INNER and 0 < place < len(words) - 1:
            continue
        core, _, exponent = low.partition("^")
        head = word.partition("^")[0]
        if core in ("squared", "cubed") and out and out[-1] != "/":
            out[-1] += "^2" if core == "squared" else "^3"
            continue
        if not core.isalpha() or (exponent and not exponent.isdigit()):
            return None
        known = UNITS.get(head) or UNITS.get(core)
        if core in _STOP and not (known and len(words) == 1):
            return None
        if known is None:
            known = core[:-1] if len(core) > 3 and core.endswith("s") and not core.endswith("ss") else core
        out.append(known + (f"^{exponent}" if exponent else power))
        power = ""
    if power or not out or out[-1] == "/":
        return None
    unit = " ".join(out).replace(" / ", "/").replace("/ ", "/")
    return {"mi/h": "mph", "km/h": "kph"}.get(unit, unit)


def normal_words(text: str) -> str:
    """Words for a textual comparison: lower case, no articles, punctuation or double spaces."""
    text = re.sub(r"(?<=[a-z]),\s*(?:and\s+)?(?=[a-z])", " and ", text.lower())
    text = re.sub(r"[^\w\s:+\-/^.]", " ", text)
    text = re.sub(r"\b([ap])\.?\s?m\b\.?", r"\1m", text).replace(".", "") if re.search(r"\d:\d", text) else text
    words = [w.strip(".") for w in text.split() if w not in ("the", "a", "an")]
    return " ".join(w for w in words if w)
