"""A value with what may stand behind it in the maths grammar: a unit in words, a currency, a ratio, a modulus."""

from __future__ import annotations

from llmrl.rewards.maths.grammar import Grammar
from llmrl.rewards.maths.nodes import Call, Name, Node, Num, Quantity, Ratio
from llmrl.rewards.maths.read import CURRENCIES, Unreadable
from llmrl.rewards.maths.units import SCALES, UNITS, canonical_unit

_KNOWN = frozenset(UNITS.values())
MONEY = ("usd", *sorted(set(CURRENCIES.values())))


def quantity(p: Grammar) -> Node:
    """A sum, then perhaps a ratio, then perhaps a unit in words."""
    if p.is_op(*MONEY):
        return _money(p, p.take().text)
    value = p.sum()
    if p.is_op(":") and not p.in_set and isinstance(value, (Num, Name, Call)):
        value = _ratio(p, value)
    value = _scaled(p, value)
    if p.is_op("pmod"):
        return _modulo(p, value)
    if isinstance(value, Call) and value.op == "deg" and (scale := _temperature(p)):
        return Quantity(value.args[0], scale)
    words = _unit_words(p)
    if words:
        unit = canonical_unit(words)
        if unit is None:
            raise Unreadable(f"words {words!r}")
        return Quantity(value, unit)
    if p.is_op(*MONEY):
        return Quantity(value, p.take().text)
    return value


def _money(p: Grammar, unit: str) -> Node:
    """$3, $3 million, $3 dollars, $3 per day."""
    value = _scaled(p, p.sum())
    words = _unit_words(p)
    if words.lower().startswith(("per ", "a ", "each", "/")):
        rest = canonical_unit("x " + words)
        if rest is None:
            raise Unreadable(f"words {words!r}")
        return Quantity(value, unit + rest.removeprefix("x"))
    if words:
        said = canonical_unit(words)
        if said is None or (said != unit and _KNOWN & set(said.split())):
            raise Unreadable("two units")  # but $45 left
    return Quantity(value, unit)


def _modulo(p: Grammar, value: Node) -> Node:
    """3 \\pmod{7}: a residue class."""
    p.at += 1
    modulus = p.argument()
    if not isinstance(modulus, Num) or modulus.value.denominator != 1:
        raise Unreadable("a modulus that is not a number")
    return Quantity(value, f"mod {modulus.value}")


def _temperature(p: Grammar) -> str:
    token = p.peek()
    if token is None or token.kind not in ("name", "word") or token.text not in ("C", "F", "Celsius", "Fahrenheit"):
        return ""
    p.at += 1
    return "deg" + token.text[0]


def _scaled(p: Grammar, value: Node) -> Node:
    """Number words behind a number: 3 million."""
    token = p.peek()
    if token is not None and token.kind == "word" and token.text.lower() in SCALES and isinstance(value, Num):
        p.at += 1
        return Num(value.value * SCALES[token.text.lower()])
    return value


def _ratio(p: Grammar, first: Node) -> Node:
    items, written = [first], p.tokens[p.at - 1].text
    while p.is_op(":"):
        p.at += 1
        token = p.peek()
        written += ":" + (token.text if token else "")
        items.append(p.sum())
    return Ratio(tuple(items), written)


def _unit_words(p: Grammar) -> str:
    words: list[str] = []
    while True:
        token, after = p.peek(), p.peek(1)
        if token is None:
            break
        if token.kind == "word":
            words.append(token.text)
            p.at += 1
        elif words and p.is_op("/") and after is not None and after.kind in ("word", "name"):
            p.at += 1
            words.append("/" + p.take().text)
        elif words and p.is_op("^"):
            p.at += 1
            power = p.argument()
            if not isinstance(power, Num) or power.value not in (1, 2, 3):
                raise Unreadable("a unit with a strange power")
            words[-1] += f"^{power.value}"
        else:
            break
    return " ".join(words)
