"""Tokens -> tree for the maths checker: a recursive-descent reader of LaTeX, ASCII and mixed notation.

Precedence from loose to tight: `or`, `and` / `;` / `,`, relation, set operation, sum, product (juxtaposition included),
power. A bare `2x` is a product, `3\\frac12` and `3 1/2` are mixed numbers, `101_2` is an integer in base two. Raises
`Unreadable` for everything it does not know; the caller then falls back to comparing text.
"""

from __future__ import annotations

from fractions import Fraction

from llmrl.rewards.maths.nodes import Call, Group, Many, Name, Node, Num, Relation
from llmrl.rewards.maths.primary import DECORATED, GREEK, in_base, number, primary
from llmrl.rewards.maths.quantity import quantity
from llmrl.rewards.maths.read import FUNCTIONS, Token, Unreadable
from llmrl.rewards.maths.units import NUMBER_WORDS

DEEPEST = 120
_JOINTS = (",", ";", "or", "and", "lor", "land", "vee", "wedge", "Rightarrow", "implies", "Longrightarrow")
_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "<>": "!=", "le": "<=", "leq": "<=",
    "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=",
    "approx": "~", "simeq": "~", "sim": "~", "in": "in", "coloneqq": "=", "equiv": "=",
}  # fmt: skip
_INFIX = {"*": "*", "cdot": "*", "times": "*", "ast": "*", "/": "/", "div": "/", "bmod": "mod", "mod": "mod",
          "choose": "binom"}  # fmt: skip
_SET_OPS = {"cup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus", "bigcup": "cup"}
_STOPPERS = {
    ",", ";", ")", "]", "}", "&", "\\", "or", "and", "rangle", "rfloor", "rceil", "rbrace", "end", "lor", "land", "vee",
    "wedge", "mid", "rvert", "rVert",
}  # fmt: skip
_PRIMARY_COMMANDS = {
    "frac", "sqrt", "binom", "pi", "infty", "overline", "lfloor", "lceil", "langle", "lbrace", "begin", "mathbb",
    "emptyset", "varnothing", "angle", "triangle", "uroot", "ucbrt", "uqdrt", "boxed", "lvert", "lVert", "vert",
    "imath", "cbrt", "ldots", "dots", "cdots", "measuredangle", "lparen", "lbrack",
} | DECORATED  # fmt: skip


class Parser:
    """One pass over the tokens; `node()` reads everything or raises Unreadable."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.in_set = False

    # -- the token stream ------------------------------------------------------------------------------------------
    def peek(self, ahead: int = 0) -> Token | None:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else None

    def is_op(self, *texts: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token is not None and token.kind in ("op", "cmd") and token.text in texts

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise Unreadable("the text ends too early")
        self.at += 1
        return token

    def want(self, *texts: str) -> Token:
        token = self.take()
        if token.text not in texts or token.kind not in ("op", "cmd"):
            raise Unreadable(f"{token.text!r} where {texts[0]!r} should be")
        return token

    def enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"nested deeper than {DEEPEST}")

    # -- lists -----------------------------------------------------------------------------------------------------
    def node(self) -> Node:
        if not self.tokens:
            raise Unreadable("nothing to read")
        result = self.alternatives()
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.at].text!r} is left over")
        return result

    def alternatives(self) -> Node:
        """Parts joined by or / and / ; / , outside of brackets."""
        items, joints = self.items()
        if len(items) == 1:
            return items[0]
        joint = "or" if "or" in joints else "and" if "and" in joints else ","
        return Many(tuple(items), joint)

    def items(self) -> tuple[list[Node], list[str]]:
        items, joints = [self.relation()], []
        while self.is_op(*_JOINTS) or self._line_break():
            seen = set()
            while self.is_op(*_JOINTS) or self._line_break():
                joiner = self.take().text
                seen.add({"lor": "or", "vee": "or", "land": "and", "wedge": "and"}.get(joiner, joiner))
            if self.peek() is None:
                break
            joints.append("or" if "or" in seen else "and" if "and" in seen else ",")
            items.append(self.relation())
        return items, joints

    def _line_break(self) -> bool:
        return self.depth == 0 and self.is_op("\\", "&")

    def relation(self) -> Node:
        sides, ops = [], []
        if self.is_op("approx", "=", "simeq"):
            self.at += 1
        sides.append(self.set_expression())
        while True:
            token = self.peek()
            if token is None or token.kind not in ("op", "cmd") or token.text not in _RELATIONS:
                break
            self.at += 1
            ops.append(_RELATIONS[token.text])
            sides.append(self.set_expression())
        return Relation(tuple(sides), tuple(ops)) if ops else sides[0]

    def set_expression(self) -> Node:
        left = self.quantity()
        while self.is_op(*_SET_OPS):
            op = _SET_OPS[self.take().text]
            left = Call(op, (left, self.quantity()))
        return left

    def quantity(self) -> Node:
        return quantity(self)

    # -- sums and products -----------------------------------------------------------------------------------------
    def sum(self) -> Node:
        self.enter()
        left = self.signed()
        while self.is_op("+", "-", "pm", "mp"):
            op = self.take().text
            right = self.signed() if self.is_op("+", "-") else self.product()
            left = (
                Call("+", (left, right))
                if op == "+"
                else Call("+", (left, Call("neg", (right,))))
                if op == "-"
                else Call(op, (left, right))
            )
        self.depth -= 1
        return left

    def signed(self) -> Node:
        if self.is_op("+", "-", "pm", "mp"):
            op = self.take().text
            self.enter()
            inner = self.signed() if self.is_op("+", "-") else self.product()
            self.depth -= 1
            if op == "+":
                return inner
            return Call("neg", (inner,)) if op == "-" else Call(op, (Num(Fraction(0)), inner))
        return self.product()

    def product(self) -> Node:
        left = self.factor()
        while True:
            if self.is_op(*_INFIX):
                left = Call(_INFIX[self.take().text], (left, self.signed_factor()))
            elif self.starts_factor():
                left = self.juxtaposed(left)
            else:
                return left

    def juxtaposed(self, left: Node) -> Node:
        before = self.tokens[self.at - 1]
        token = self.peek()
        assert token is not None
        if token.kind == "num" and before.kind == "num":
            nxt = self.peek(1), self.peek(2)
            whole = isinstance(left, Num) and left.places is None
            if whole and nxt[0] is not None and nxt[0].text == "/" and nxt[1] is not None and nxt[1].kind == "num":
                written = self.take(), self.take(), self.take()
                return self._mixed(left, number(written[0].text), number(written[2].text))
            raise Unreadable("two numbers side by side")
        right = self.factor()
        if before.kind == "num" and isinstance(left, Num) and left.places is None and token.text == "frac":
            mark = right.op if isinstance(right, Call) and right.op in ("pct", "deg") else ""
            part = right.args[0] if mark and isinstance(right, Call) else right
            top, bottom = part.args if isinstance(part, Call) and part.op == "/" else (None, None)
            if isinstance(top, Num) and isinstance(bottom, Num):
                mixed = self._mixed(left, top, bottom)
                return Call(mark, (mixed,)) if mark else mixed
        if token.kind == "num" and not isinstance(left, (Num, Call, Name, Group)):
            raise Unreadable("a number in a strange place")
        return Call("*", (left, right))

    @staticmethod
    def _mixed(whole: Node, top: Num, bottom: Num) -> Node:
        if not isinstance(whole, Num) or bottom.value == 0:
            raise Unreadable("a strange mixed number")
        return Call("mixed", (whole, Call("/", (top, bottom))))

    def starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token.kind == "word":
            return False
        if token.kind == "name" and token.text in "CF" and self.tokens[self.at - 1].text == "degree":
            return False  # degrees Celsius, Fahrenheit
        if token.kind in ("num", "name"):
            return True
        if token.kind == "op":
            if token.text == "|":
                return self.bars == 0
            return token.text in ("(", "[", "{")
        if token.text in _STOPPERS or token.text in _RELATIONS or token.text in _SET_OPS:
            return False
        return token.text in _PRIMARY_COMMANDS or token.text in FUNCTIONS or token.text in GREEK

    def signed_factor(self) -> Node:
        if self.is_op("-", "+"):
            minus = self.take().text == "-"
            inner = self.factor()
            return Call("neg", (inner,)) if minus else inner
        return self.factor()

    def factor(self) -> Node:
        self.enter()
        base = self.postfix(self.primary())
        if self.is_op("^", "**"):
            self.at += 1
            if isinstance(base, Name) and (marks := self._primes()):
                self.depth -= 1
                return self.postfix(Name(base.text + marks))
            base = self.postfix(Call("^", (base, self.exponent())))
            if self.is_op("^", "**"):
                raise Unreadable("two powers")
        self.depth -= 1
        return base

    def _primes(self) -> str:
        """The primes of x^\\prime or x^{\\prime\\prime}; "" if the exponent is something else."""
        braced, count = self.is_op("{"), 0
        while self.is_op("prime", ahead=braced + count):
            count += 1
        if not count or (braced and not self.is_op("}", ahead=1 + count)):
            return ""
        self.at += count + 2 * braced
        return "'" * count

    def exponent(self) -> Node:
        if self.is_op("-", "+"):
            minus = self.take().text == "-"
            inner = self.exponent()
            return Call("neg", (inner,)) if minus else inner
        if self.is_op("{"):
            self.at += 1
            inner = self.sum()
            self.want("}")
            return inner
        if self.peek() is not None and self.peek().kind == "num":  # type: ignore[union-attr]
            inner = number(self.take().text)
        else:
            inner = self.postfix(self.primary())
        if self.is_op("^", "**"):
            self.at += 1
            self.enter()
            return Call("^", (inner, self.exponent()))
        return inner

    def postfix(self, base: Node) -> Node:
        while True:
            if self.is_op("!"):
                self.at += 1
                double = self.is_op("!")
                self.at += double
                base = Call("fact2" if double else "fact", (base,))
            elif self.is_op("%", "percent"):
                self.at += 1
                base = Call("pct", (base,))
            elif self.is_op("degree"):
                self.at += 1
                base = Call("deg", (self._minutes(base),))
            elif self.is_op("'") and isinstance(base, Name):
                self.at += 1
                base = Name(base.text + "'")
            elif self.is_op("_"):
                self.at += 1
                base = self.subscript(base)
            else:
                return base

    def _minutes(self, degrees: Node) -> Node:
        """37 degrees 30' 15'' as one number of degrees."""
        for marks, parts in (("'",), 60), (("'", "'"), 3600):
            token = self.peek()
            quotes = all(self.is_op("'", "prime", ahead=1 + i) for i in range(len(marks)))
            if token is None or token.kind != "num" or not quotes:
                break
            self.at += 1 + len(marks)
            degrees = Call("+", (degrees, Call("/", (number(token.text), Num(Fraction(parts))))))
        return degrees

    def subscript(self, base: Node) -> Node:
        if isinstance(base, Name):
            name = base.text.rstrip("'")  # v'_0 is v_0'
            return Name(f"{name}_{self._raw_group()}{base.text[len(name) :]}")
        if not isinstance(base, Num) or base.places is not None:
            raise Unreadable("a strange subscript")
        if self._word_ahead():
            word = self._braced_word()
            if word not in NUMBER_WORDS:
                raise Unreadable(f"base {word!r}")
            return in_base(str(base.value), NUMBER_WORDS[word])
        index = self.argument()
        if not isinstance(index, Num) or index.value.denominator != 1:
            raise Unreadable("a strange subscript")
        return in_base(str(base.value), int(index.value))

    def _raw_group(self) -> str:
        """The text of one subscript, not read any further."""
        if not self.is_op("{"):
            return self.take().text
        self.at += 1
        depth, parts = 1, ""
        while depth:
            text = self.take().text
            depth += {"{": 1, "}": -1}.get(text, 0)
            parts += text if depth else ""
        return parts

    def _word_ahead(self) -> bool:
        token, after = self.peek(), self.peek(1)
        return token is not None and (
            token.kind == "word" or (token.text == "{" and after is not None and after.kind == "word")
        )

    def _braced_word(self) -> str:
        braced = self.is_op("{")
        self.at += braced
        words = self.take().text
        if braced:
            self.want("}")
        return words.lower().strip()

    # -- arguments -------------------------------------------------------------------------------------------------
    def argument(self) -> Node:
        """What a LaTeX command takes: a braced group, or one digit, letter or command."""
        if self.is_op("{"):
            self.at += 1
            inner = self.alternatives()
            self.want("}")
            return inner
        token = self.peek()
        if token is not None and token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at : self.at + 1] = [Token("num", token.text[0]), Token("num", token.text[1:])]
        return self.primary()

    def primary(self) -> Node:
        self.enter()
        result = primary(self)
        self.depth -= 1
        return result
