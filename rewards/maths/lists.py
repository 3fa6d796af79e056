"""Lists that name what a sentence counts, or stand in lines under one. Reads text only."""

from __future__ import annotations

import re

# The two numbers are:\n- Smaller: 4\n- Larger: 9
_LISTED = re.compile(
    r"((?:^|(?<=\n))(?:[^\n]{0,200}\b(?:are|numbers|solutions?|values|roots|answers?)\b[^\n:]{0,80}(?=:)|(?:solutions|answers)))"
    r":?[ \t*]*\n"
    r"((?:[ \t]*(?:[-*•]|\d[.)])[ \t][^\n]{1,60}\n?){2,6})\s*\Z",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"[ \t]*(?:[-*•]|\d[.)])[ \t](?:[^\n:=]*:)?[ \t]*([^\n]*[^\s.,;])")
_SOLVED = re.compile(
    r"(?<![A-Za-z\\_{])([a-z])\$? ?= ?\$?(-?\d+(?:\.\d+|/\d+)?|-?\\[td]?frac\{?\d+\}?\{?\d+\}?)(?![\w^=/]|\.\d| ?[-+*=])"
)
# So there are 3 values of $n$, namely 2, 4 and 8
_NAMELY = re.compile(
    r"(.*?(?<![\d.,/])(\d+)\$? [^\n\d:]*?)(?:,? namely|:)\s*"
    r"((?:[^\n,]{1,30}, ){1,7}?(?:and )?[^\n,]{1,30}|[^\n,]{1,30} and [^\n,]{1,30})$",
    re.DOTALL,
)


def in_one_line(text: str) -> str:
    """The text with a list that ends it behind the line that announces it: "The numbers are:", "- Smaller: 4", "- Larger: 9"
    as "The numbers are 4 and 9."
    """
    last = text.rstrip().rpartition("\n")[2].lstrip()[:2]
    listed = _LISTED.search(text) if last[:1] in ("-", "*", "•") or last[-1:] in (".", ")") else None
    if not listed:
        return text
    verb = "" if re.search(r"\bare\W*$", listed[1]) else " are"
    return f"{text[: listed.end(1)]}{verb} {' and '.join(_ENTRY.findall(listed[2]))}."


def together(text: str, count: int) -> str | None:
    """The values of `count` unknowns at the end of a text, in the order of their letters; None if there are more or fewer.

    >>> together("So y = 4. Then x = 3 - 4 = -1, so x = -1.", 2)
    '(-1, 4)'
    """
    values = {name: value for name, value in _SOLVED.findall(text[-600:].replace("−", "-"))}
    return f"({', '.join(value for _, value in sorted(values.items()))})" if len(values) == count else None


def counted_list(sentence: str) -> tuple[str, str] | None:
    """(the sentence before the list, the list) where it has as many entries as the last number before it says.

    >>> counted_list("So there are 3 values of $n$, namely 2, 4 and 8")
    ('So there are 3 values of $n$', '2, 4, 8')
    """
    counted = _NAMELY.match(sentence) if len(sentence) < 400 else None
    if not counted:
        return None
    parts = [part.strip(" $\\()") for part in re.split(r",(?: and)?|\band\b", counted[3]) if part.strip()]
    return (counted[1], ", ".join(parts)) if len(parts) == int(counted[2]) else None
