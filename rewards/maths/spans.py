"""Where mathematics stands in a text, and what the last step of a derivation is. Reads text only."""

from __future__ import annotations

import re

from llmrl.rewards.maths.units import UNIT

_DELIMITER = re.compile(r"\\(?:begin|end)\{(?:align|gather|equation)\*?\}|\$\$|\$|\\[()\[\]]|\\.", re.DOTALL)
_ENVIRONMENTS = [f"{name}{star}" for name in ("align", "gather", "equation") for star in ("", "*")]
_CLOSES = {f"\\begin{{{name}}}": f"\\end{{{name}}}" for name in _ENVIRONMENTS} | {
    "$$": "$$",
    "$": "$",
    "\\(": "\\)",
    "\\[": "\\]",
}
_ARROW = re.compile(r"\\(?:Rightarrow|Longrightarrow|implies|iff|Leftrightarrow)(?![a-zA-Z])")
_STEP = re.compile(r"(?<=\d)\s*\\(?:long)?rightarrow(?=[^=]*=)")  # x/5 = 4 -> x = 20
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|cases|array)\}.*?\\end\s*\{\1\}", re.DOTALL)
_NAMED = re.compile(r"[\s&]*\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([^()=+*/-]*\))?[\s&]*")
_ALIGNED = re.compile(r"\\(?:begin|end)\s*\{(?:align|gather|equation|split)(?:ed)?\*?\}")
_LINE_BREAK = re.compile(r"\\\\(?:\[\w.]+\])?")
_SOLVED = re.compile(r"[\s&]*\\?[A-Za-z]\w?(?:_\{?\w+\}?)?\s*&?\s*=[^=A-Za-z]*$")  # a line x = 2 of a solution
_GOES_ON = re.compile(r"(?:[\s&~]|\\q?quad)*(?:=|\\equiv)")
FIGURES = re.compile(r"\d+(?:\.\d+)?")
NUMBER = re.compile(
    r"(?<![\w.,/^\\{])[-+−]?[$€£]?(?:\d+ \d+/\d+|\d{1,2}:\d\d(?: ?(?i:[ap]\.?m\b))?|(?:(?:\d{1,3}(?:[, ]\d{3})+"
    r"|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?%?)"
    rf"(?:[€£¢]|((?:{UNIT})(?:/[a-z]{{1,3}})?)(?![\w^])|(?![\w^]|/[\d(\\]|\.\d|,\d))"
)
BARE = re.compile(
    r"\s*(?!\\(?:emptyset|varnothing|infty|pi)\b)(?:\\(?:angle|triangle|mathrm"
    r"|text)\s*\{?)?\\?[A-Za-z]+\}?'*(?:_\{?\w+\}?)?\s*"
)  # $x$


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


def last_step(content: str) -> tuple[str, bool]:
    """(the end of a derivation, whether it is computed): what stands behind the last arrow; of lines that begin with "="
    the last side, with the first where that is a name ("A = 5", "f(x) = 5"). "2(a + b) + 3c" at the left is no part of an
    answer.
    """
    *before, content = _ARROW.split(_STEP.sub(r"\\Rightarrow", content))
    if before:
        content = _ALIGNED.sub("", content).replace("&", " ").replace("\\qquad", " ").replace("\\quad", " ")
    held = _MATRIX.sub(lambda m: m.group().replace("\\\\", "\0").replace("&", "\1"), _ALIGNED.sub("", content).strip())
    lines = _LINE_BREAK.split(held)
    place = len(lines) - 1
    while place and _GOES_ON.match(lines[place]):
        place -= 1
    if place < len(lines) - 1:
        first, last = (sides(line.replace("&", " ")) for line in (lines[place], lines[-1]))
        found = f"{first[0]}={last[-1]}" if _NAMED.fullmatch(first[0]) else last[-1]
        return found.replace("\0", "\\\\").replace("\1", "&").strip(), True
    steps = place and all("=" in line for line in lines) and not all(map(_SOLVED.match, lines))
    if steps:  # 2x = 36, 18 = x: the last line of a derivation
        content = lines[-1].replace("&", " ").replace("\0", "\\\\").replace("\1", "&")
    return content, "=" in content


def sides(equation: str) -> list[str]:
    """The sides of an equation or a congruence; a sign within braces parts none."""
    found, depth, at = [], 0, 0
    for match in re.finditer(r"[{}]|(?<![<>!\\])=|\\equiv(?![a-z])", equation):
        sign = match.group()
        if sign in "{}":
            depth += 1 if sign == "{" else -1
        elif not depth:
            found.append(equation[at : match.start()])
            at = match.end()
    return [*found, equation[at:]]


def says_something(sentence: str) -> bool:
    """Whether a number, an equation or an expression stands in the sentence."""
    if NUMBER.search(sentence):
        return True
    return any(not BARE.fullmatch(content) for _, _, content in spans_of(sentence))
