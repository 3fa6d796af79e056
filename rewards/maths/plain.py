"""Mathematics that a sentence says without delimiters, put between them: "so x ≥ 2 + √3" as "so \\(x ≥ 2 + √3\\)".

Only what cannot be anything else: a root, a power, π, a function, an interval, a set, an inequality, or an equation or sum
with a letter in it; phrases such as "no solution" and "all real numbers" as their symbols. Numbers, their arithmetic and
"x = 5" stay words for `sentences.py`. Reads text only; every pattern is linear.
"""

from __future__ import annotations

import re

from llmrl.rewards.maths.units import ONE_WORD, spoken_value

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_FUNCTION = (
    r"(?:sqrt|cbrt|a?(?:rc)?(?:sin|cos|tan)|cot|sec|csc|ln|log(?:_\{?\w+\}?)?|exp|pi|theta|infinity|inf)(?![A-Za-z])"
)
_LETTER = r"(?<!°)(?:(?!a\s+[a-z]{2}|I\s+[a-z])[A-Za-z]|[A-Z]{2,3}|xyz?|ab|mn)(?![A-Za-z'’]|\.[a-z])"
_RAISED = "²³¹⁰⁴-⁹⁻⁺ⁿ"
_SYMBOL = rf"[√∛π∞∅ℝℤℕℚ°θφαβγδλμω½⅓⅔¼¾₀-₉{_RAISED}]"
_COMMAND = (
    r"\\(?:[dt]?frac|sqrt|pi|infty|theta|mathbb|emptyset|varnothing|left|right|cdot|times|leq?|geq?|in|cup|cap|pm)\b"
)
_LEAF = rf"[\d .,:;|+*×·⋅/÷^=<>≤≥∈≠≈∪∩±_−–-]|{_COMMAND}|{_SYMBOL}|(?<![A-Za-z])(?:{_FUNCTION}|{_LETTER})"
_INNER = rf"[(\[{{⟨](?:{_LEAF}){{0,80}}[)\]}}⟩]"
_GROUP = rf"[(\[{{⟨](?:{_LEAF}|{_INNER}){{1,80}}[)\]}}⟩]"
_ATOM = rf"(?:(?<![A-Za-z]){_FUNCTION} ?|{_NUMBER}|{_LETTER}|{_COMMAND} ?|{_SYMBOL}|[\^_]|{_GROUP})"
_TERM = rf"[-+−±]?{_ATOM}+"
_SIGN = (
    r"(?:<=|>=|!=|[-+−–*×·⋅/÷=<>≤≥≠≈∈∪∩±∖]|(?<=[\d ])[xX](?=\s?\d)|\\(?:cdot|times|leq?|geq?|in|cup|cap|pm|approx)\b)"
)
_RUN = re.compile(
    rf"(?<![\w.$\\'’/^_{{}}-]){_TERM}(?: ?{_SIGN} ?{_TERM}|(?<=\d) [x-z](?= ?[-+−=<>≤≥])"
    rf"|(?<=[= ][a-z]) [a-z][²³^/](?:{_TERM})?|(?<=[\dπ)]) {_GROUP}\^{_TERM})*"
)
_HINT = re.compile(
    rf"[≡√∛π∞∅ℝ∪∩∈≤≥<>±⟨¼-¾₀-₉^\\=+*/_{_RAISED}−-]|\b(?:sin|cos|tan|than|root) |[A-Za-z]\(|\([-−]?\d+,|\bsqrt|[\[{{]"
    rf"|\d[A-Za-z]|\b(?:ln|log|empty|solutions?|real|between|base|power|binary)\b"
)
_SURE = re.compile(rf"\d(?:_|[₀-₉]|i\b)|[√∛π∞∅ℝ∪∩∈±⟨^\\{_RAISED}]|(?<![A-Za-z]){_FUNCTION}")
_BRACKETED = re.compile(r"[\[({⟨][^\[\](){}]*,[^\[\](){}]*[\])}⟩]")
_MIXED = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3"}
# 2 times the square root of 3; x is less than or equal to 4; 1 in 6
_ROOT_IN_WORDS = re.compile(r"\b(?:(\d+) times )?the square root of (\d+)(?=\s*(?:[.!\n]|$))")
_BOUND_IN_WORDS = re.compile(
    r"\b(?:(?:all |any |every )?(?:real )?(?:numbers?|values?)(?: of)?(?: [a-z])?(?: (?:that|which) are)?"
    r"|([a-z]) (?:is|must be|has to be))"
    r" (?:strictly )?(less|smaller|greater|larger|bigger) than (or equal to )?([-−]?\d+(?:\.\d+|/\d+)?)(?=\s*(?:[.!\n]|$))"
)
_BETWEEN = re.compile(
    r"\b(is|are|lies?|must be)(?: strictly)? between ([-−]?\d+(?:\.\d+|/\d+)?) and ([-−]?\d+(?:\.\d+|/\d+)?)(?=\s*(?:[.!\n]"
    r"|$))"
)
_REALS_BUT = re.compile(
    r"\b(?:all|every|any) real(?:s| numbers?| values?)(?: of)?(?: [a-z])? (?:except|but|other than)(?: for)? (?:[a-z] ?= ?)?"
    r"([-−]?\d+(?:/\d+)?)(?: and ([-−]?\d+(?:/\d+)?))?(?=\s*(?:[.!\n]|$))"
)
_VARIABLE = re.compile(r"(?!(?<=\d )x \d)[A-Za-z]")
_APPROXIMATED = re.compile(
    r"(?<![\w.$/\\])((?:[A-Za-z] ?= ?)?[-−]?\d+/\d+) ?≈ ?([-−]?\d+\.\d+)(?![\w%/])"
)  # 7/3 ≈ 2.33
_CONGRUENT = re.compile(r"(?<![\w.])(\d+) ?≡ ?(\d+) \(mod (\d+)\)")
_BINARY = re.compile(
    r"(\bbinary (?:form|representation|expansion|number|notation)\b[^.\n;$\\]{0,40}\b(?:is|as) )([01]{2,})(?=\W*(?:\.|$))"
)
_BASES = re.compile(rf"\b([Bb]ase)[ -]({ONE_WORD})\b")
_IN_BASE = re.compile(r"(?<![\w.,^_$])(\d+) (?:in|to) base (\d{1,2})(?![\d.]\d)")  # 123 in base 5
_BASE_AHEAD = re.compile(  # In base 5 the number is written as 243.
    r"(\b[Ii]n base (\d{1,2}),? [^\d\n.;$\\]{0,60}\b(?:is|as|becomes|equals|get|have|to)(?: the)? )(\d+)(?=\W*(?:\.|$))"
)
_POWER_IN_WORDS = re.compile(  # 10 to the power of 12
    r"(?<![\w.,])(\d+) (?:raised )?to the (?:power (?:of )?([-−]?\d+)|(\d+)(?:st|nd|rd|th) power)(?!\d)"
)
_FACTORS = re.compile(r"\([^()]*[-+−][^()]*\) ?\([^()]*[-+−][^()]*\)")  # (a + b)(a - b)
_DIGIT = re.compile(r"\d")
_UNIT_POWER = re.compile(r"(?:[cdkm]?m|ft|in|yd|mi)[²³]|[A-Za-z]{1,2}/[A-Za-z][²³]?")
_BEHIND_NUMBER = re.compile(r"[\d½¼¾π)] $")
_REALS = re.compile(
    r"\b(?:all|every|any|the set of(?: all)?) real(?:s\b| numbers?\b| values?\b"
    r"|(?= [a-z]\b))(?: of)?(?: [a-z]\b)?+(?! (?:except|but|other|with|such|for|where|less|greater))"
)
_REALS_SOLVE = re.compile(
    r"\b(?:all|every|any) real(?:s| numbers?| values?)(?: of)?(?: [a-z])? (?:(?:is|are) (?:an? )?solutions?"
    r"|works?|solves?|satisf(?:y|ies)(?: (?:it|the|this) ?\w*)?)(?=\s*(?:[.!\n]|$))"
)
_NO_SOLUTION = re.compile(
    r"\bno (?:real |such )?(?:numbers?|values?|integers?|[a-z])(?: of [a-z])? (?:satisf\w+|works?"
    r"|solves?)(?: (?:it|the|this|both) ?\w*)?(?=\s*(?:[.!\n]|$))|\b(?:has|have|having|is|are|be) no (?:real |such |integer "
    r"|common |valid )?(?:solutions?|roots?|elements?)(?: at all)?(?=\s*(?:[.,!;\n]|$))"
    r"|\b(set|sets|intersection|domain|range) (?:is|are) empty(?=\s*(?:[.,!;\n]|$))",
    re.IGNORECASE,
)
_EMPTY_SET = re.compile(r"\b(?:the )?empty set\b", re.IGNORECASE)
_RATIO = re.compile(r"(?<![\d.,:/])(\d+(?:\.\d+)?)( to | ?: ?)(\d+(?:\.\d+)?)(?:\2(\d+(?:\.\d+)?))?(?![\d:]|[.,/]\d)")
_IN_RATIO = re.compile(r"\b(?:is|are|stand|mixed|divided|split|shared) in (?:the|a) ratio(?: of)? (?=\\\()")
_ORDINALS = {
    name: value
    for value, names in enumerate(
        ["half halves", "third", "quarter fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"], 2
    )
    for name in names.split()
}
_PART = re.compile(
    rf"\b(?:(one|an? (?=half\b))[ -]?({'|'.join(_ORDINALS)})|({ONE_WORD})[ -]({'|'.join(_ORDINALS)})s)\b", re.IGNORECASE
)


def fractions(text: str) -> str:
    """The text with its fractions in words as numerals; "twenty-third" is none.

    >>> fractions("one third of them, three-quarters, the twenty-third")
    '1/3 of them, 3/4, the twenty-third'
    """

    def numeral(match: re.Match[str]) -> str:
        if match[1]:
            return f"1/{_ORDINALS[match[2].lower()]}"
        return f"{spoken_value(match[3].lower())}/{_ORDINALS[match[4].lower()]}"

    return _PART.sub(numeral, text) if "h" in text or "quarter" in text else text


def delimited(text: str) -> str:
    """The text with `\\(..\\)` around mathematics that stands in it plainly.

    >>> delimited("So the side is 4√3 cm and y = 2x + 1."), delimited("So 2 + 3 = 5, x = 5 and 96 m² are left.")
    ('So the side is \\\\(4√3\\\\) cm and \\\\(y = 2x + 1\\\\).', 'So 2 + 3 = 5, x = 5 and 96 m² are left.')
    """
    if not _HINT.search(text):
        return text
    text = re.sub(r"(?<=\d)[½¼¾⅓⅔]", lambda m: _MIXED[m.group()], text) if not text.isascii() else text
    if "≡" in text:
        text = _CONGRUENT.sub(r"\\(\1 \\equiv \2 \\pmod{\3}\\)", text)
    if "binary" in text:
        text = _BINARY.sub(r"\1\2_{2}", text)
    if "base" in text:
        text = _IN_BASE.sub(r"\1_{\2}", _BASE_AHEAD.sub(r"\1\3_{\2}", _BASES.sub(_base, text)))
    if "power" in text:
        text = _POWER_IN_WORDS.sub(lambda m: f"{m[1]}^{{{m[2] or m[3]}}}", text)
    text = _RUN.sub(_wrapped, text)
    if "≈" in text:
        text = _APPROXIMATED.sub(r"\\(\1 \\approx \2\\)", text)
    if "than" in text or "except" in text or "but" in text:
        text = _REALS_BUT.sub(lambda m: rf"\(\mathbb{{R}}\setminus\{{{m[1]}{',' + m[2] if m[2] else ''}\}}\)", text)
        text = _BOUND_IN_WORDS.sub(_bound, text)
    if "between" in text:
        text = _BETWEEN.sub(r"\1 in \\((\2, \3)\\)", text)
    if "square root" in text:
        text = _ROOT_IN_WORDS.sub(r"\(\1\\sqrt{\2}\)", text)
    if "real" in text:
        text = _REALS.sub(r"\\(\\mathbb{R}\\)", _REALS_SOLVE.sub("it is all reals", text))
    if "no " in text or "empty" in text:
        text = _EMPTY_SET.sub(
            r"\\(\\emptyset\\)",
            _NO_SOLUTION.sub(lambda m: f"{'it' if m[0].startswith('no ') else m[1] or ''} is \\(\\emptyset\\)", text),
        )
    return text


def _base(match: re.Match[str]) -> str:
    return f"{match[1]} {spoken_value(match[2].lower())}"


def _bound(match: re.Match[str]) -> str:
    sign = "<" if match[2] in ("less", "smaller") else ">"
    return rf"\({match[1] or 'x'} {sign}{'=' if match[3] else ''} {match[4]}\)"


def ratios(text: str) -> str:
    """ "The ratio is 3 to 4" with 3:4 between delimiters, where the sentence speaks of a ratio."""
    text = _RATIO.sub(lambda m: rf"\({m[1]}:{m[3]}" + (f":{m[4]}" if m[4] else "") + r"\)", text)
    return _IN_RATIO.sub("is ", text)


def _wrapped(match: re.Match[str]) -> str:
    run = match.group()
    if (
        not _is_mathematics(run)
        or _UNIT_POWER.fullmatch(run)
        or (run[0].isalpha() and _BEHIND_NUMBER.search(match.string, max(0, match.start() - 2), match.start()))
    ):
        return run
    return rf"\({run.replace('<=', '≤').replace('>=', '≥')}\)"


def _is_mathematics(run: str) -> bool:
    if _SURE.search(run):
        return True
    if _BRACKETED.search(run) and not re.fullmatch(r"\(\d{1,3}(?:,\d{3})+\)", run):
        return True
    if not _VARIABLE.search(run):
        return False
    if _FACTORS.search(run):
        return True
    first, sign, last = run.rpartition("=")
    if _VARIABLE.search(last):
        return len(last.strip()) > 2 and _DIGIT.search(last) is not None if ")" not in first else sign != ""
    return any(sign in run for sign in "<>≤≥≠")
