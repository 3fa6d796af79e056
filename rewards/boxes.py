"""Boxes in a text: what stands in `\\boxed{}` and its relatives. Reads braces only, knows no mathematics."""

from __future__ import annotations

import re

MANY_BOXES = 4  # different boxes of one response that are no correction any more, but stuffing

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=[{\d\\a-zA-Z(\[+-])")


def closing_braces(text: str) -> dict[int, int]:
    """Where the group that opens at each "{" closes. Escaped braces do not count."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def boxes_of(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every outermost balanced box, in order."""
    found: list[tuple[int, int, str]] = []
    closing = closing_braces(text)
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1][1]:
            continue
        at = match.end()
        if text[at] == "{":
            end = closing.get(at, -1) + 1
            if end > 0:
                found.append((match.start(), end, text[at + 1 : end - 1]))
            continue
        bare = re.match(r"\s*([-+]?\d+(?:\.\d+)?|\\[a-zA-Z]+|[a-zA-Z])", text[at:])
        if bare:
            found.append((match.start(), at + bare.end(), bare.group(1)))
    return found
