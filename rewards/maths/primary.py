"""The innermost things of the maths grammar: numbers, names, brackets, fractions, roots, functions, matrices."""

from __future__ import annotations

from fractions import Fraction

from llmrl.rewards.maths.grammar import Grammar
from llmrl.rewards.maths.nodes import Based, Call, Group, Matrix, Name, Node, Num, Quantity, Relation
from llmrl.rewards.maths.read import FUNCTIONS, Unreadable
from llmrl.rewards.maths.units import NUMBER_WORDS

_ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log",
}  # fmt: skip
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc",
            "sinh": "arcsinh", "cosh": "arccosh", "tanh": "arctanh"}  # fmt: skip
_MATRICES = {"pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array", "vmatrix"}
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar", "imath",
}  # fmt: skip
DECORATED = {"vec", "hat", "bar", "overrightarrow", "widehat", "tilde", "underline", "widetilde", "mathcal",
              "overleftrightarrow", "dot", "ddot"}  # fmt: skip


def number(text: str) -> Num:
    """A plain numeral as an exact number that knows how many decimals were written."""
    if "." not in text:
        return Num(Fraction(int(text)), None, len(text.lstrip("0")))
    whole, _, decimals = text.partition(".")
    return Num(Fraction(text if whole else "0" + text), len(decimals), len((whole + decimals).lstrip("0")))


def in_base(digits: str, base: int) -> Based:
    """The integer with these digits in this base; Unreadable if there is none."""
    if not 2 <= base <= 36:
        raise Unreadable(f"base {base}")
    try:
        return Based(int(digits, base), base)
    except ValueError as error:
        raise Unreadable(f"{digits} in base {base}") from error


def primary(p: Grammar) -> Node:
    token = p.take()
    if token.kind == "num":
        return _numeral(p, token.text)
    if token.kind == "name":
        return Name(token.text)
    if token.kind == "word":
        return _word(p, token.text)
    if token.text in ("(", "[", "{", "lbrace", "langle", "lparen", "lbrack") or token.text == "\\{":
        return _bracket(p, token.text)
    if token.text == "]":
        return _outward(p)
    if token.text in ("|", "lvert", "vert", "lVert"):
        return _absolute(p)
    if token.kind == "cmd":
        return _command(p, token.text)
    raise Unreadable(f"{token.text!r} where a value should be")


def _numeral(p: Grammar, text: str) -> Node:
    if p.is_op("overline") and "." in text:
        return _repeating(p, text)
    value = number(text)
    token, after = p.peek(), p.peek(1)
    if token is not None and token.kind == "name" and token.text in "eE" and not token.spaced and after is not None:
        sign = after.text in "+-" and after.kind == "op"
        digits = p.peek(2) if sign else after
        if digits is not None and digits.kind == "num" and digits.text.isdigit() and len(digits.text) <= 3:
            p.at += 3 if sign else 2
            power = int(digits.text) * (-1 if after.text == "-" else 1)
            places = max(0, (value.places or 0) - power)
            return Num(value.value * Fraction(10) ** power, places or None, value.digits)
    return value


def _repeating(p: Grammar, text: str) -> Node:
    """0.1\\overline{6}"""
    p.want("overline")
    p.want("{")
    block = p.take().text
    p.want("}")
    if not block.isdigit() or len(block) > 60:
        raise Unreadable("a strange repeating decimal")
    whole, _, lead = text.partition(".")
    shift = 10 ** len(lead)
    return Num(Fraction(int(whole + lead or "0"), shift) + Fraction(int(block), shift * (10 ** len(block) - 1)))


def _word(p: Grammar, text: str) -> Node:
    low = text.lower().strip()
    if low in NUMBER_WORDS:
        return Num(Fraction(NUMBER_WORDS[low]))
    while p.peek() is not None and p.peek().kind == "word":  # type: ignore[union-attr]
        low += " " + p.take().text.lower().strip()
    if p.is_op("_") and text.isupper() and text.isalpha() and len(text) <= 8:  # \\text{FF}_{16}
        return Name(text)
    if p.is_op("=", "approx") or (len(low) == 1 and low.isalpha()):
        return Name(text.strip() if len(low) == 1 else low)
    raise Unreadable(f"the word {text!r}")


def _bracket(p: Grammar, opening: str) -> Node:
    if opening == "{" or opening in ("lbrace", "\\{"):
        return _braces(p, plain=opening == "{")
    if opening == "langle":
        items, _ = p.items()
        p.want("rangle")
        return Group("<>", tuple(items))
    if p.is_op(")", "]"):
        raise Unreadable("empty brackets")
    bars, p.bars = p.bars, 0
    items, joints = p.items()
    p.bars = bars
    left = "(" if opening in ("(", "lparen") else "["
    right = p.want(")", "]", "rparen", "rbrack").text
    kind = left + (")" if right in (")", "rparen") else "]")
    if "or" in joints or "and" in joints:
        raise Unreadable("words in brackets")
    if len(items) > 1:
        return Group(kind, tuple(items))
    if kind not in ("()", "[]"):
        raise Unreadable("brackets that do not match")
    if kind == "[]" and isinstance(items[0], Group) and items[0].kind == "[]":
        return Group("[]", tuple(items))
    return items[0]


def _outward(p: Grammar) -> Node:
    """]a, b[ and its half-open relatives, as some countries write open ends."""
    items, _ = p.items()
    right = p.want("[", "]").text
    if len(items) != 2:
        raise Unreadable("brackets that do not match")
    return Group("(" + (")" if right == "[" else "]"), tuple(items))


def _braces(p: Grammar, *, plain: bool) -> Node:
    """{...} as LaTeX grouping or a set, \\{...\\} as a set; a set-builder gives its condition."""
    if p.is_op("}", "rbrace"):
        p.at += 1
        return Group("{}", ())
    bars, p.bars, in_set, p.in_set = p.bars, 1, p.in_set, not plain
    items, _ = p.items()
    condition = None
    if p.is_op("mid", "|", ":"):
        p.at += 1
        condition = p.alternatives()
    p.bars, p.in_set = bars, in_set
    p.want("}", "rbrace")
    if condition is not None:
        if len(items) != 1 or not isinstance(items[0], (Name, Relation)):
            raise Unreadable("a set-builder of another kind")
        return condition
    if len(items) == 1 and plain:
        return items[0]
    return Group("{}", tuple(items))


def _absolute(p: Grammar) -> Node:
    p.bars += 1
    inner = p.sum()
    p.bars -= 1
    p.want("|", "rvert", "vert", "rVert")
    return Call("abs", (inner,))


def _command(p: Grammar, name: str) -> Node:
    simple = {"pi": "pi", "infty": "infty", "imath": "i"}
    if name in simple:
        return Name(simple[name])
    if name in ("ldots", "dots", "cdots"):
        return Name("...")
    if name in GREEK:
        return Name(name.removeprefix("var"))
    if name in ("frac", "binom"):
        top, bottom = p.argument(), p.argument()
        return Call("/" if name == "frac" else "binom", (top, bottom))
    if name in ("sqrt", "uroot", "ucbrt", "uqdrt", "cbrt"):
        return _root(p, name)
    if name in FUNCTIONS:
        return _function(p, _ALIASES.get(name, name))
    if name in ("lfloor", "lceil"):
        inner = p.sum()
        p.want("rfloor" if name == "lfloor" else "rceil")
        return Call("floor" if name == "lfloor" else "ceil", (inner,))
    if name in ("emptyset", "varnothing"):
        return Group("{}", ())
    if name == "mathbb":
        return Name("bb" + p.take().text) if not p.is_op("{") else _blackboard(p)
    if name in ("angle", "triangle", "measuredangle"):
        if not p.starts_factor():
            return Name(name)
        return Name(f"{name} {_letters(p.argument())}")
    if name == "underline" and p.is_op("{") and (inside := p.peek(1)) is not None and inside.kind == "num":
        return p.argument()
    if name in ("overline", *DECORATED):
        kept = name in ("overline", "dot", "ddot")
        return Name(f"{name} {_letters(p.argument())}" if kept else _letters(p.argument()))
    if name == "boxed":
        return p.argument()
    if name == "begin":
        return _environment(p)
    raise Unreadable(f"the command \\{name}")


def _blackboard(p: Grammar) -> Node:
    p.want("{")
    letter = p.take().text
    p.want("}")
    return Name("bb" + letter)


def _letters(node: Node) -> str:
    if isinstance(node, Name):
        return node.text
    if isinstance(node, Call) and node.op == "*":
        return "".join(_letters(arg) for arg in node.args)
    raise Unreadable("a decorated expression")


def _root(p: Grammar, name: str) -> Node:
    degree: Node | None = None
    if name == "sqrt" and p.is_op("["):
        p.at += 1
        degree = p.sum()
        p.want("]")
    inner = p.primary() if name.startswith("u") or p.is_op("(") else p.argument()
    if isinstance(inner, (Group, Relation)):
        raise Unreadable("a root of a list")
    order = {"ucbrt": 3, "cbrt": 3, "uqdrt": 4}.get(name)
    if order is not None:
        degree = Num(Fraction(order))
    return Call("sqrt", (inner,)) if degree is None else Call("root", (inner, degree))


def _function(p: Grammar, name: str) -> Node:
    power: Node | None = None
    base: Node | None = None
    while p.is_op("^", "_", "**"):
        if p.take().text == "_":
            base = p.argument()
        else:
            power = p.exponent()
    if name in ("gcd", "lcm", "max", "min"):
        p.want("(", "{")
        items, _ = p.items()
        p.want(")", "}", "rbrace")
        return Call(name, tuple(items))
    inner = _function_argument(p)
    if name == "log" and base is not None:
        made: Node = Call("log", (inner, base))
    elif base is not None:
        raise Unreadable(f"\\{name} with a subscript")
    elif isinstance(power, Call) and power.op == "neg" and power.args[0] == Num(Fraction(1), None, 1):
        if name not in _INVERSE:
            raise Unreadable(f"an inverse of \\{name}")
        return Call(_INVERSE[name], (inner,))
    else:
        made = Call(name, (inner,))
    return made if power is None else Call("^", (made, power))


def _function_argument(p: Grammar) -> Node:
    if p.is_op("(", "[", "{", "|"):
        inner = p.factor() if not p.is_op("{") else p.primary()
        if isinstance(inner, (Group, Relation, Quantity)):
            raise Unreadable("a function of a list")
        return inner
    if p.is_op("-"):
        p.at += 1
        return Call("neg", (_function_argument(p),))
    value = p.factor()
    while p.starts_factor() and not (p.peek().text in FUNCTIONS or p.is_op("(", "[", "|")):  # type: ignore[union-attr]
        value = Call("*", (value, p.factor()))
    while p.is_op("/") and p.peek(1) is not None and p.peek(1).kind == "num":  # type: ignore[union-attr]
        p.at += 1
        value = Call("/", (value, p.factor()))
    return value


def _environment(p: Grammar) -> Node:
    """\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix} and its relatives."""

    def title() -> str:
        p.want("{")
        letters = ""
        while not p.is_op("}"):
            letters += p.take().text
        p.at += 1
        return letters

    kind = title()
    if kind not in _MATRICES:
        raise Unreadable(f"the environment {kind}")
    if kind == "array" and p.is_op("{"):
        title()
    rows: list[tuple[Node, ...]] = []
    row: list[Node] = []
    bars, p.bars = p.bars, 0
    p.enter()
    while not p.is_op("end"):
        if p.is_op("hline"):
            p.at += 1
            continue
        row.append(p.relation())
        if p.is_op("&"):
            p.at += 1
        elif p.is_op("\\"):
            p.at += 1
            _skip_gap(p)
            rows.append(tuple(row))
            row = []
        elif not p.is_op("end"):
            raise Unreadable("a strange matrix")
    p.at += 1
    if title() != kind:
        raise Unreadable("an environment that is not closed")
    p.depth -= 1
    p.bars = bars
    if row:
        rows.append(tuple(row))
    if not rows or len({len(r) for r in rows}) != 1:
        raise Unreadable("a ragged matrix")
    matrix = Matrix(tuple(rows))
    return Call("det", (matrix,)) if kind == "vmatrix" else matrix


def _skip_gap(p: Grammar) -> None:
    """The optional length of \\\\[2pt]."""
    after = p.peek(2)
    if p.is_op("[") and after is not None and after.kind in ("word", "name", "cmd"):
        while not p.is_op("]"):
            p.take()
        p.at += 1
