"""Text -> tokens for the maths checker: unicode and LaTeX spelling variants become one spelling, then a flat token
list.

Nothing is evaluated here. `Unreadable` is raised for what is too long or cannot be mathematics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from llmrl.rewards.maths.unicode_math import ascii_math
from llmrl.rewards.maths.units import ONE_WORD, UNITS, numerals, spoken_value

MOST_TOKENS = 600
MOST_DIGITS = 3_000


class Unreadable(ValueError):
    """The text is not an answer this checker can read."""


@dataclass(frozen=True, slots=True)
class Token:
    """kind: num, name (one letter or a Greek command), word (text), cmd (LaTeX command), op (everything else)."""

    kind: str
    text: str
    spaced: bool = False  # white space stood before it


_GONE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg"
    r"|rm|bf|it|tiny|small|large|Large|LARGE|huge|Huge|mathstrut|strut|checkmark|boldmath|allowbreak|nobreak|tag\*?\{[^{}]*\}|label\{[^{}]*\}|(?:text)?color\{[^{}]*\})(?![a-zA-Z])"
)
CURRENCIES = {"€": "eur", "euro": "eur", "texteuro": "eur", "£": "gbp", "pounds": "gbp", "¥": "yen", "₹": "inr", "₩": "won",
              "₽": "rub"}  # fmt: skip
_CURRENCY = re.compile(r"\\(?:euro|texteuro|pounds)(?![a-zA-Z])|[€£¥₹₩₽]")
_CLOCK = re.compile(r"(?<!\d)(\d{1,2}:\d\d)\s*(?:\\(?:text|mathrm)\s*\{)?\s*([ap])\.?\s?m\b\.?\s*\}?", re.IGNORECASE)
# Answers side by side without a comma: 2 \quad 5, or a line each.
_BESIDE = re.compile(r"(?<=[\w)}\]])\s*(?:\\q?quad|\n)\s*(?=[-+]?\d|[a-zA-Z]\s*[=_]|\\d?frac|\\sqrt)")
# What a last bracket or \\text says about the answer: (double root), (eggs), \\text{, which is prime}, \\text{ for all } x.
_REMARK = re.compile(
    r"(?<=\S)(?:(?:\s+|(?<=\d))\(\s*(?:\\text\s*\{)?([A-Za-z][A-Za-z ,.'-]*(?:\^\d| 2)?)\}?\s*\)"
    r"|(?:\s|\\ )*\(\s*\\text\s*\{\s*(?:at|when|for|if|since)\b[^()]*\)"
    r"|\s*\\(?:text|mathrm)\s*\{\s*\(?(only|twice|correct|rounded|a?\s*double root)\)?\s*\}"
    r"|\s*\\text\s*\{\s*,?\s*(?:(which is|since|because)\b[^{}]*\}|for (?:all|every|any)\b[^{}]*\}[^=]*))$"
)
_MEANS_MORE = re.compile(
    r"\b(?:or|not|no|wrong|incorrect|false|less|more|per ?cent|hundred|thousand|million|billion|dozen|base|mod|half)\b"
)


# \\frac{\\text{km}}{\\text{h}} and \\mathrm{m} \\cdot \\mathrm{s}^{-2} as \\text{km/h}, \\text{m/s^2}
_UNIT_FRACTION = re.compile(
    r"\\frac\s*\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}\s*\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}(?:\^\{?(\d)\}?)?\s*\}"
    r"|\\(?:text|mathrm)\s*\{\s*(\w+)\s*\}(?:\s|~|\\cdot|\\[,;: ])*\\(?:text|mathrm)\s*\{\s*(\w+)\s*\}\s*\^\s*\{\s*-(\d)\s*\}"
    r"|\\(?:text|mathrm)\s*\{\s*(\w+)\s*(?:\s|~|\\cdot|\\[,;: ])\s*(\w+)\s*\^\s*\{?\s*-(\d)\s*\}?\s*\}"
)
_CHOSEN = re.compile(r"(?:\{\}\s*|(?<![\w)}\]]))[\^_]\{?(\d+)\}?\s*([CP])\s*_\{?(\d+)\}?")


def _chosen(match: re.Match[str]) -> str:
    """^5C_2 and _5C_2 as a binomial, ^5P_2 as the number of arrangements."""
    n, kind, k = match.groups()
    return f"\\binom{{{n}}}{{{k}}}" + (f"({k})!" if kind == "P" else "")


def _remark(match: re.Match[str]) -> str:
    """Nothing, but a unit in brackets, 8 (cm^2), stays a unit, and what changes the meaning stays."""
    said = match[1] or ""
    if _MEANS_MORE.search(match.group()):
        return match.group()
    if any(word in UNITS and len(word) > 1 for word in re.split(r"[\s^]", said)):
        return f" \\text{{{said}}}"
    return match.group() if said and (len(said) < 4 or not set(said) & set("aeiou")) else ""  # a product


def _per(match: re.Match[str]) -> str:
    top, bottom, power = (
        match.group(1, 2, 3) if match[1] else match.group(4, 5, 6) if match[4] else match.group(7, 8, 9)
    )
    return f"\\text{{{top}/{bottom}{f'^{power}' if power and power != '1' else ''}}}"


_HOURS_AND_MINUTES = re.compile(  # 2 h 20 min
    r"(\d+)\s*(?:\\text\s*\{)?\s*(?:h|hrs?)\s*\}?\s*(?:and\s*)?(\d+)\s*(?:\\text\s*\{)?\s*(?:m|mins?)(?![a-z])\s*\}?"
)
_CONSTANT_TIMES_E = re.compile(r"(?<![A-Za-z\\])([A-Z])e(?=\s*\^)")  # Ce^{3x}
_OHMS = re.compile(r"(?<=\d)(?:\s|\\[,; ])*(?:\\(?:text|mathrm)\{\s*)?\\?Omega\b\s*\}?")
_TRANSPOSED = re.compile(
    r"\(([^(),]+(?:,[^(),]+)+)\)\^\{?\s*(?:\\(?:top|intercal)|(?:\\(?:mathsf|mathrm|text)\s*\{?)?T\}?)\s*\}?(?![a-z])"
)


def _column(match: re.Match[str]) -> str:
    return r"\begin{pmatrix} " + r" \\ ".join(match[1].split(",")) + r" \end{pmatrix}"


_CANCELLED = re.compile(r"\\b?cancel\s*(?:\{([^{}]*)\}|(\d))")
_SPACING = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|medspace|hfill|hskip|space)(?![a-zA-Z])|\\hspace\*?\{[^{}]*\}"
    r"|(?<!\\)\\[,;:> ]|~|\\phantom\{[^{}]*\}"
)
_SPACED_THOUSANDS = re.compile(
    r"(?<![\d.,])(\d{1,3})((?:(?:\{,\}|\\,|\\ |~|\\:|\\;| |_(?=\d{3}(?:\D|$)))\d{3})+)(?![\d])"
)
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!\d|,\d)")
# Groupings of other countries: 1'234'567 and 1.234.567 can mean nothing else; 12,34,567 and 1.234,5 are a second reading.
_SURE_GROUPS = re.compile(r"(?<![\d.,'])\d{1,3}(?:(?:'\d{3})+(?:[.,]\d+)?|(?:\.\d{3}){2,}(?:,\d+)?)(?![\d'])")
_INDIAN = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+|\d{4,}),\d{1,2}(?![\d,])")
_MINUS_IN_WORDS = re.compile(
    rf"^((?:\\text\s*\{{)?)\s*(?:negative|minus)\s+(?=\d|\\|infinity\b|{ONE_WORD}\b)", re.IGNORECASE
)
_ALIGNMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|gather\*?|split|cases)\}")
_ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*(?:\\(?:text|mathrm|textrm)\{\s*)?(?:st|nd|rd|th)\b\s*\}?\s*\}?")
_DEGREE = re.compile(
    r"\^\s*\{?\s*\\(?:text|mathrm)\s*\{o\}\s*\}?|\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))|\\(?:degree|textdegree)(?![a-zA-Z])"
)
# 0.1\\bar6, 0.\\dot{3}, 0.\\dot14\\dot2 and 0.(6): the digits that repeat.
_DIGITS = r"(?:\{\s*(\d+)\s*\}|(\d))"
_CYCLE = re.compile(
    rf"(?<=\.)(\d*)\s*\\(?:bar|overline|dot)\s*{_DIGITS}(?:\s*(\d*)\s*\\dot\s*{_DIGITS})?|(?<=\.)()\((\d+)\)"
)
_REPEATING_DOTS = re.compile(r"(?<!\d)(\d{0,30}\.)(\d{3,60})\s*(?:\\(?:ldots|dots|cdots)|\.\.\.)")


def thousands_readings(text: str) -> list[str]:
    """The readings of plain commas between digit groups: as thousands, and where lists are possible, as a list."""
    text = _SURE_GROUPS.sub(_continental, text)
    if "," in text and (_INDIAN.search(text) or _DECIMAL_COMMA.search(text)):
        other = _DECIMAL_COMMA.sub(_continental, _INDIAN.sub(lambda m: m.group().replace(",", ""), text))
        return [other, text]
    if not _COMMA_THOUSANDS.search(text):
        return [text]
    joined = _COMMA_THOUSANDS.sub(lambda m: m.group(1) + m.group(2).replace(",", ""), text)
    inside = re.search(r"[(\[{][^()\[\]{}]*\d,\d{3}", text) is not None
    if inside and not re.search(r",\s", text):
        return [text, joined]
    return [joined, text]


def _continental(match: re.Match[str]) -> str:
    """1.234.567,8 and 1'234.5 with no groups and a decimal point."""
    text = match.group()
    if "'" in text:
        return text.replace("'", "").replace(",", ".")
    return text.replace(".", "").replace(",", ".")


def _repeating(match: re.Match[str]) -> str:
    """0.333... and 0.1666... as repeating decimals, if a block is shown often enough to be clear."""
    whole, decimals = match.group(1), match.group(2)
    for lead in range(len(decimals) - 2):
        shown = decimals[lead:]
        for size in range(1, len(shown) // 2 + 1):
            block = shown[:size]
            if len(shown) >= 3 and (block * (len(shown) // size + 1)).startswith(shown):
                return f"{whole}{decimals[:lead]}\\overline{{{block}}}"
    return match.group()


def _spoken(text: str) -> str:
    """Numbers in words as numerals, and a number said twice, 18 (eighteen) or eighteen (18), once."""
    text = _MINUS_IN_WORDS.sub(r"\1-", text)
    if twice := re.match(r"(-?\d+|-?[A-Za-z -]+)\s*\(\s*(-?\d+|-?[A-Za-z -]+)\s*\)(?=\s*[a-z]|$)", text):
        values = [spoken_value(said) for said in twice.groups()]
        digits = [said.lstrip("-").isdigit() for said in twice.groups()]
        if values[0] is not None and values[0] == values[1] and digits[0] != digits[1]:
            text = f"{values[0]}{text[twice.end() :]}"
    return numerals(text)


def _aligned(text: str) -> str:
    """The lines of an alignment without its marks; a line that begins with = goes on with the one before."""
    if not _ALIGNMENT.search(text):
        return text
    text = re.sub(r"&\s*(?=[=<>]|\\[lg]eq?|\\ne|\\approx)", " ", _ALIGNMENT.sub(" ", text))
    return re.sub(r"\\\\(?:\[\w.]+\])?\s*(?==|$)", " ", text.strip())


_PER_CENT = re.compile(r"\bper\s?cents?\b|\bpcts?\b\.?|\bpercents\b", re.IGNORECASE)
# A second way of writing the same: \\frac12 (or 0.5).
_ALSO = re.compile(r"(?:\\text\s*\{\s*)?\(\s*(?:or|i\.e\.,?)\s+([^()]*)\)\s*\}|\(\s*or\s+([^()]*)\)")
# 3\\text{ to }4 as a ratio, and a remark (three) that \\text holds.
_TO = re.compile(r"^(\d+)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(\d+)$")
_IN_BRACKETS = re.compile(r"\\text\s*\{\s*(\([A-Za-z -]+\))\s*\}")
_OVER = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*?)\\over(?![a-zA-Z])((?:[^{}]|\{[^{}]*\})*)\}")


def _infix_over(text: str) -> str:
    """TeX's {a \\over b} as \\frac{a}{b}."""
    text = f"{{{text}}}"
    while (made := _OVER.sub(r"\\frac{\1}{\2}", text)) != text:
        text = made
    return text[1:-1] if text.startswith("{") else text


@lru_cache(maxsize=4_096)
def clean(text: str) -> str:
    """One spelling for what LaTeX, markdown and unicode can write in many ways."""
    text = _IN_BRACKETS.sub(r" \1", ascii_math(text).strip())
    text = _TO.sub(r"\1:\2", _spoken(_aligned(text)))
    text = re.sub(r"\s*(?:\{,\}|,\\!)\s*(?=\d{3}(?!\d))", "{,}", text)
    text = _PER_CENT.sub("percent", text.replace("\\!", "").replace("\\/", ""))
    if "h" in text and "m" in text:
        text = _HOURS_AND_MINUTES.sub(r"\1 \\text{ hours } \2 \\text{ minutes}", text)
    if "e^" in text:
        text = _CONSTANT_TIMES_E.sub(r"\1 e", text)
    if "Omega" in text:
        text = _OHMS.sub(r" \\text{ohm}", text)
    if ")^" in text:
        text = _TRANSPOSED.sub(_column, text)
    if "cancel" in text:
        text = _CANCELLED.sub(r"{\1\2}", text)
    if "\\over" in text:
        text = _infix_over(text)
    text = _ALSO.sub(lambda m: f" or {m[1] or m[2]}", text)
    text = re.sub(r"\\\((.*?)\\\)", r" \1 ", text, flags=re.DOTALL)
    text = re.sub(r"(?<!\\)\\\[(?!\d+(?:pt|em|ex|mm|cm)\])|(?<!\\)\\\]", " ", text)
    if len(text) > 2 and text.startswith("$") and text.endswith("$") and not text.endswith("\\$"):
        text = text.strip("$")
    text = text.replace("\\$", " \\usd ")
    text = re.sub(r"\$\s*(?=[\d.])(?![^$]*\$)", r" \\usd ", text).replace("$", " ")
    text = re.sub(r"([-+*/]|\\times|\\cdot)(\s*)\\usd (?=\s*[\d.])", r"\1\2", text)  # $200 - $182
    text = _CURRENCY.sub(lambda m: f" \\{CURRENCIES[m.group().lstrip(chr(92))]} ", text)
    text = re.sub(r"^\\text\s*\{\s*(USD|EUR|GBP|Rs\.?)\s*\}\s*(?=\d)", r"\1 ", text)
    text = re.sub(r"^(?:USD|US\$|US \\usd)\s*(?=\d)", r" \\usd ", text)
    text = re.sub(r"^Rs\.?\s*(?=\d)", r" \\inr ", text)
    text = _CLOCK.sub(lambda m: f"{m.group(1)} \\text{{{m.group(2).lower()}m}}", text.replace("{:}", ":"))
    text = re.sub(r"(?<=\d)\s*\{,\}\s*(?=\d{1,2}(?!\d)|\d{4})", ".", text)
    text = re.sub(r"(?<=[\d.}])\s*[xX]\s*(?=10\s*\^)", r" \\times ", text)
    text = _BESIDE.sub(" , ", text)
    text = _UNIT_FRACTION.sub(_per, _GONE.sub(" ", text))
    text = _SPACED_THOUSANDS.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)
    text = _ORDINAL.sub("", text)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\[dt]binom(?![a-zA-Z])", r"\\binom", text)
    text = _DEGREE.sub(r" \\degree ", text)
    text = text.replace("\\%", "%").replace("\\#", "#").replace("\\&", " and ").replace("\\_", "_")
    text = re.sub(r"(?<![\w)\]}])\*\*(?=\S)|(?<=\S)\*\*$|^\*\*|`", "", text)
    text = _CHOSEN.sub(_chosen, text)
    text = _REMARK.sub(_remark, text)
    text = re.sub(r"\b(sq|cu)\.\s*(?=[a-z])", r"\1 ", text)
    text = _CYCLE.sub(lambda m: f"{m[1] or ''}\\overline{{{''.join(group or '' for group in m.groups()[1:])}}}", text)
    text = _REPEATING_DOTS.sub(_repeating, text)
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    text = re.sub(r"\{\s*(or|and)\s*\}", r" \1 ", text)
    text = re.sub(r"([-+])\s*\\(usd|eur)(?![a-zA-Z])", r"\\\2 \1", text)
    if "\\begin{" in text:  # row breaks that lost a backslash on the way
        text = re.sub(r"(?<!\\)\\(?=[\d-])", r"\\\\ ", text)
    text = re.sub(r"\s+", " ", text).strip()
    while text.endswith((".", ",", ";", ":")) and not text.endswith(("..", "\\,", "\\;", "\\:")):
        text = text[:-1].rstrip()
    return text


FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan", "arccot",
    "asin", "acos", "atan", "ln", "log", "lg", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "gcd", "lcm", "max",
    "min", "arcsec", "arccsc", "arcsinh", "arccosh", "arctanh", "deg", "det",
}  # fmt: skip
_PLAIN_COMMANDS = {
    **{name: name for name in FUNCTIONS}, "pi": "pi", "infinity": "infty", "inf": "infty", "infty": "infty",
    "oo": "infty", "or": "or", "and": "and", "union": "cup", "theta": "theta", "alpha": "alpha", "beta": "beta",
    "phi": "phi", "lambda": "lambda", "choose": "choose", "percent": "percent", "sigma": "sigma", "omega": "omega",
    "pm": "pm", "mod": "mod",
}  # fmt: skip
_TEXT_COMMANDS = {
    "text", "mathrm", "textrm", "textbf", "textit", "mbox", "hbox", "operatorname", "mathsf", "texttt", "mathtt",
    "textnormal", "textsf", "mathit", "mathbf", "boldsymbol", "bm", "emph", "mathop", "ensuremath",
}  # fmt: skip
_BOLD = {"mathbf", "boldsymbol", "bm", "mathit"}
_SHORT_WORDS = {
    "yes", "no", "odd", "even", "true", "false", "the", "is", "not", "all", "one", "two", "three", "four", "five",
    "six", "ten", "if", "of", "to", "in", "at", "dne", "none", "both", "it", "cm", "mm", "km", "ft", "mi", "yd", "kg",
    "mg", "lb", "oz", "hr", "min", "sec", "mph", "pm", "am", "DNE", "NONE", "YES", "TRUE", "FALSE", "USD", "EUR", "GBP",
}  # fmt: skip
_LEX = re.compile(
    r"(?P<space>\s+)|(?P<num>\d+\.\d+|\d*\.(?=\\overline)|\.\d+|\d+)|(?P<cmd>\\[a-zA-Z]+|\\.)|(?P<run>[A-Za-z]+)"
    r"|(?P<op><=|>=|!=|<>|==|=|\*\*|\.\.\.|.)",
    re.DOTALL,
)


def tokenize(text: str) -> list[Token]:
    """Tokens of a cleaned text. Raises Unreadable if there are too many, or a number has too many digits."""
    tokens: list[Token] = []
    spaced = False
    at = 0
    while at < len(text):
        match = _LEX.match(text, at)
        if match is None:  # pragma: no cover - the last alternative takes any character
            raise Unreadable(f"character {text[at]!r}")
        at, kind, value = match.end(), match.lastgroup or "", match.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "num" and len(value) > MOST_DIGITS:
            raise Unreadable(f"a number of {len(value)} digits")
        if kind == "cmd" and value[1:] in _TEXT_COMMANDS:
            bold = re.compile(r"\s*\{\s*([A-Za-z])\s*\}").match(text, at) if value[1:] in _BOLD else None
            if bold:
                at = bold.end()
                tokens.append(Token("name", bold.group(1), spaced))
                spaced = False
                continue
            at, found = _text_command(text, at, spaced)
            tokens.extend(found)
        elif kind == "run":
            tokens.extend(_letters(value, spaced, tokens[-1] if tokens else None))
        elif kind == "cmd":
            tokens.append(Token("cmd", {"{": "lbrace", "}": "rbrace", "|": "lVert"}.get(value[1:], value[1:]), spaced))
        else:
            tokens.append(Token(kind, value, spaced))
        spaced = False
        if len(tokens) > MOST_TOKENS:
            raise Unreadable(f"more than {MOST_TOKENS} tokens")
    return tokens


def _text_command(text: str, at: int, spaced: bool) -> tuple[int, list[Token]]:
    """Tokens of \\text{...} whose name ends at `at`: mathematics inside is read as such, words stay words."""
    opened = re.compile(r"\s*\*?\s*\{").match(text, at)
    if not opened:
        return at, []
    depth, end = 1, opened.end()
    while end < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    inner = text[opened.end() : end - 1].strip() if depth == 0 else text[opened.end() :]
    low = inner.lower().strip(" ,.")
    if inner in ("i", "e"):
        return end, [Token("name", inner, spaced)]
    if low in ("and", "or", "percent"):
        return end, [Token("cmd", low, spaced)]
    if re.fullmatch(r"[A-Za-z]+", inner) and ((inner in FUNCTIONS and inner != "min") or low in ("infinity", "choose")):
        return end, [Token("cmd", "infty" if low == "infinity" else inner, spaced)]
    if re.fullmatch(r"[A-Za-z°][A-Za-z\s.'°-]*(?:/\s*[A-Za-z\s]+)?(?:\^\d)?", inner):
        return end, [Token("word", inner, spaced)]
    if not inner:
        return end, []
    return end, tokenize(inner)


def _letters(run: str, spaced: bool, before: Token | None) -> list[Token]:
    """A run of plain letters: a known name, a word, or a product of one-letter names."""
    low = run.lower()
    if run == "min" and before is not None and before.kind == "num":
        return [Token("word", run, spaced)]
    if run in _PLAIN_COMMANDS or (len(run) > 2 and low in _PLAIN_COMMANDS):
        return [Token("cmd", _PLAIN_COMMANDS.get(run) or _PLAIN_COMMANDS[low], spaced)]
    after_number = before is not None and (before.kind == "num" or before.text in (")", "}", "degree"))
    behind = spaced and before is not None and (after_number or before.kind == "word")
    if behind and len(run) == 3 and run.islower() and set(run) & set("aeiou") and not set(run) <= set("abcde"):
        return [Token("word", run, spaced)]  # 1/3 cup, pi/4 rad; not 2 xyz or 2 abc
    if (
        before is not None
        and before.kind == "num"
        and run in UNITS
        and (len(run) > 2 or run in ("ml", "mL", "Hz", "Pa"))
    ):
        return [Token("word", run, spaced)]
    if run == "mg" and not after_number:
        return [Token("name", "m", spaced), Token("name", "g")]
    if run in _SHORT_WORDS or (
        low in _SHORT_WORDS and (spaced or not after_number) and len(run) > 1 and not run.isupper()
    ):
        return [Token("word", run, spaced)]
    if len(run) == 1:
        return [Token("name", run, spaced)]
    if run.isupper() and len(run) <= 8:
        return [Token("name", run, spaced)]
    if len(run) <= 4 and run[0].isupper() and not run[1:].islower():  # GMm
        return [Token("name", letter, spaced and place == 0) for place, letter in enumerate(run)]
    for name in ("arcsin", "arccos", "arctan", "sqrt", "sin", "cos", "tan", "log", "ln", "pi"):
        if run.startswith(name) and 0 < len(run) - len(name) <= 2:
            return [Token("cmd", name, spaced), *_letters(run[len(name) :], False, None)]
    if len(run) >= 4 or run[0].isupper():
        return [Token("word", run, spaced)]
    return [Token("name", letter, spaced and place == 0) for place, letter in enumerate(run)]
