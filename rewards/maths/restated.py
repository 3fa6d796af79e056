"""One value said twice, in two units ("3.5 hours, that is, 3 hours and 30 minutes") or two forms ("7/2, or 3.5 as a
decimal"). Equal values are one answer with two readings; values that differ are none. Exact arithmetic, except that a
decimal may round the other value."""

from __future__ import annotations

import re
from fractions import Fraction

from llmrl.rewards.maths.judge import approximate
from llmrl.rewards.maths.units import UNITS

_SIZES = """
    s 1 min 60 h 3600 day 86400 week 604800; mm 1 cm 10 m 1000 km 1000000; in 1 ft 12 yd 36 mi 63360;
    mg 1 g 1000 kg 1000000 ton 1000000000; oz 1 lb 16; mL 1 L 1000; cent 1 usd 100
"""
_KINDS = [line.split() for line in _SIZES.split(";")]
_SIZE = {unit: (kind[0], int(size)) for kind in _KINDS for unit, size in zip(kind[::2], kind[1::2])}
_ONE = r"(?:\\\()?(\d[\d,]*(?:\.\d+|/\d+)?) ?([A-Za-z]{1,11})(?![\w^²³/])(?:\\\))?"
_AMOUNT = rf"{_ONE}(?:(?: and|,)? {_ONE})?"
_TWICE = re.compile(
    rf"(?<![\d.,/$^-]){_AMOUNT}(?: (?:long|deep|away|wide|high|tall|old|in total))?\)?"
    r"(?:[,;]? \(?(or|i\.e\.|that is|that's|which is|which equals|which makes|namely|equivalently|in other words)"
    rf",? (?:the same as |equal to |exactly )?| ?([=(]) ?){_AMOUNT}(?=\)?\s*(?:[.,;:!]|$))"
)
_FORM = (
    r"(?:as an?|in) (?:(?:im)?proper |mixed |simplified |exact |decimal |common |percent(?:age)? )*"
    r"(?:number|fraction|decimal|percent(?:age)?|form|notation)"
)
_VALUE = r"(\$[^$\n]{1,60}\$|\\\([^\n]{1,60}?\\\)|[\d./ ]*[\d/]%?)"
_TWO_FORMS = re.compile(
    rf"{_VALUE}(?: {_FORM})?,? \(?(?:or|i\.e\.|that is|which is)(?: equivalently)?,? {_VALUE},? {_FORM}\)?"
)
_FORMS = (" number", " fraction", " decimal", " percent", " form", " notation")
_MARKS = (" or ", "i.e.", "that", "which", "namely", "equivalently", "in other words", "=", "(")


def restated(sentence: str) -> tuple[str, str] | None:
    """(the sentence with the first of two equal values alone, the other value); ("", "") if they differ; None if there
    are no two values of one kind. A value in two units ("3 hours and 30 minutes") is left out.

    >>> restated("It lasts 2 hours, i.e. 120 minutes."), restated("It lasts 2 hours, i.e. 90 minutes.")
    (('It lasts 2 hours.', '120 \\\\text{minutes}'), ('', ''))
    """
    if any(form in sentence for form in _FORMS) and (forms := _TWO_FORMS.search(sentence)):
        values = [re.sub(r"^(?:\$|\\\()|(?:\$|\\\))$", "", text).strip() for text in forms.groups()]
        one, two = map(approximate, values)
        if one is not None and two is not None:
            rounding = [float(_half_place(value.rstrip("%"))) for value in values]
            equal = abs(one - two) <= max(1e-12, *rounding)
            return (sentence[: forms.end(1)] + sentence[forms.end() :], values[1]) if equal else ("", "")
    match = _TWICE.search(sentence) if any(mark in sentence for mark in _MARKS) else None
    if not match:
        return None
    sides = [match.group(*range(1, 5)), match.group(*range(7, 11))]
    said, again = _size(*sides[0]), _size(*sides[1])
    if said is None or again is None or said[0] != again[0] or sides[0][1::2] == sides[1][1::2]:
        return None
    (_, first, unit), (_, second, other) = said, again
    near = [_half_place(side[0]) * size for side, size in zip(sides, (unit, other))]
    if first != second and abs(first - second) > max(near):
        return None if match[5] == "or" or match[6] == "(" else ("", "")
    single = [side for side in sides if side[2] is None]
    if not single:
        return None
    alone = f"{single[0][0]} {single[0][1]}{sentence[match.end() :].removeprefix(')')}"
    another = sides[0] if single[0] is sides[1] else sides[1]
    return sentence[: match.start()] + alone, " ".join(
        rf"{value} \text{{{unit}}}" for value, unit in zip(another[::2], another[1::2]) if value
    )


def _size(number: str, unit: str, more: str | None, smaller: str | None) -> tuple[str, Fraction, int] | None:
    """(kind, value in its smallest unit, size of the unit)."""
    kind, size = _SIZE.get(UNITS.get(unit, ""), ("", 0))
    if not size or not re.fullmatch(r"[\d,]+(?:\.\d+|/0*[1-9]\d*)?", number):
        return None
    value = Fraction(number.replace(",", "")) * size
    if more is None or smaller is None:
        return kind, value, size
    rest = _size(more, smaller, None, None)
    return (kind, value + rest[1], size) if rest and rest[0] == kind else None


def _half_place(number: str) -> Fraction:
    """Half a unit of the last decimal where there are two or more, else 0."""
    places = len(number.partition(".")[2])
    return Fraction(1, 2 * 10**places) if places >= 2 else Fraction(0)
