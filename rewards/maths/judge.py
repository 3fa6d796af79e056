"""Gold text and answer text -> right, wrong or not applicable. The centre of the maths checker, free of processes.

`judge` reads both sides (`readings`) and compares the trees. With `heavy=False` it only uses exact rational arithmetic
and raises `NeedsWorker` where that does not decide.
"""

from __future__ import annotations

import re
from fractions import Fraction

from llmrl.rewards.boxes import boxes_of, closing_braces
from llmrl.rewards.maths.compare import same
from llmrl.rewards.maths.nodes import Call, Group, Name, Node, Num, Quantity, Relation, Words
from llmrl.rewards.maths.parse import Parser
from llmrl.rewards.maths.plain import fractions
from llmrl.rewards.maths.read import Unreadable, clean, thousands_readings, tokenize
from llmrl.rewards.maths.relations import concluded
from llmrl.rewards.maths.scalars import NeedsWorker
from llmrl.rewards.maths.units import NUMBER_WORDS, normal_words
from llmrl.rewards.maths.values import TooLarge, Undefined, children, rational

LONGEST_GOLD = 4_000
LONGEST_PROSE = 6  # words; a longer gold in prose that is not repeated word for word is not applicable
_TEXT = re.compile(
    r"\\(?:text|mathrm|textrm|textbf|textit|mbox|hbox|operatorname|mathsf|mathbf|textnormal)\s*\{([^{}]*)\}"
)
_PHRASES: dict[str, Node] = {
    "all real numbers": Name("bbR"), "all reals": Name("bbR"), "real numbers": Name("bbR"),
    "no solution": Group("{}", ()), "no solutions": Group("{}", ()), "no real solution": Group("{}", ()),
    "no real solutions": Group("{}", ()), "empty set": Group("{}", ()), "none": Group("{}", ()),
    "does not exist": Words("dne"), "dne": Words("dne"), "true": Words("true"), "false": Words("false"),
    "yes": Words("yes"), "no": Words("no"),
}  # fmt: skip
_CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?\s*([A-Z])\s*\)?\s*\}?")
_LABELLED = re.compile(r"\(?([A-E])\)\s*[.:]?\s*(\S.*)", re.DOTALL)
_CHOSEN = re.compile(r"(?:option|choice|answer)?\s*(?:\(([A-Z])\)|([A-Z])\s*[).:])\s*(.*)", re.IGNORECASE | re.DOTALL)
_NAMED_CHOICE = re.compile(r"(?:option|choice|answer)\s+\(?([A-Z])\)?|([a-e])", re.IGNORECASE)
_ALL_REALS = re.compile(r"(?:x is )?(?:all|any|every) reals?(?: numbers?| values?)?(?: of)?(?: [a-z])?")
_REALS_BUT = re.compile(
    r"\s*(?:all|any|every)\s+real(?:\s+numbers?|s)?\s+(?:except|but|other than)(?:\s+for)?\s+(-?[\w\s.,/=\\{}-]{1,60})",
    re.IGNORECASE,
)
_ALL_SUCH = re.compile(
    r"\s*(?:the set of )?(?:all|every|any)(?: real| numbers?| values?| of| reals?"
    r"| integers?)*(?:\s+[a-z]\s+(?:with|such that|where|satisfying))?\s+((?=[^,]*(?:[<>]|\\[lg]e)).{1,80})",
    re.IGNORECASE,
)
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are)|(?:the )?(?:equation|system|inequality|it) has|has|have|is|are) no (?:real "
    r"|such )?(?:solutions?|roots?|\w)"
)
_FRACTION = re.compile(r"\d+/\d+")
_YES_NO = re.compile(r"(yes|no)\s*[,.;:]\s*(?!.*\b(?:yes|maybe|or)\b)[a-z ,']+", re.IGNORECASE)
# 2,74 where the gold is 2.74; three digits after the comma would be thousands, 5,7 two answers.
_NAMED_POINT = re.compile(r"\s*[A-Z]'*\s*(?=\([^()]*,[^()]*\)\s*$)")  # P'(-1, 4)
_DECIMAL = re.compile(r"-?\d*[.]\d+(?:\s*\\?[a-zA-Z%].*)?")
_DECIMAL_COMMA = re.compile(r"(-?\d+)(?:,|\{,\})(\d{2}|\d{4,}|(?<=0,)\d)((?!\d)[^,]*)")
CALCULUS = re.compile(r"\\(?:int|iint|sum|prod|lim)(?![a-zA-Z])")
_CONSTANT = re.compile(r"\+\s*[cC]\s*$")


def bare(text: str) -> str:
    """The text without wrappers and spaces that say nothing, for a first comparison."""
    cleaned = _TEXT.sub(r" \1 ", clean(text))
    return re.sub(r"(?<=\w)\s+(?=\w)", " ", re.sub(r"\s*([^\w\s])\s*", r"\1", cleaned)).strip()


def readings(text: str) -> list[Node]:
    """The trees a text can be read as, likeliest first; [] if it cannot be read."""
    cleaned = clean(text)
    plain = normal_words(re.sub(r"[${}]", "", _TEXT.sub(r" \1 ", cleaned)))
    if said := _YES_NO.fullmatch(_TEXT.sub(r" \1 ", cleaned).strip()):
        plain = said.group(1).lower()
    if _ALL_REALS.fullmatch(plain):
        return [Name("bbR")]
    if but := _REALS_BUT.fullmatch(_TEXT.sub(r" \1 ", cleaned).strip()):
        return readings(
            f"\\mathbb{{R}}\\setminus\\{{{re.sub(r'[a-z] *=| and ', lambda m: ',' if 'and' in m[0] else '', but[1])}\\}}"
        )
    plain = re.sub(r"^(?:on|in|at) (?=[a-z]+$)", "", plain)
    if (part := fractions(plain)) != plain and _FRACTION.fullmatch(part):
        return readings(part)
    if such := _ALL_SUCH.fullmatch(_TEXT.sub(r" \1 ", cleaned).strip()):
        return readings(such[1])
    if _NO_SOLUTION.fullmatch(plain):
        plain = "no solution"
    if plain in _PHRASES:
        return [_PHRASES[plain]]
    word = re.fullmatch(r"[A-Za-z]{5,}|(?![abcdpqrxyz]+$)(?=[a-z]*[aeiou])[A-Za-z]{3,}", plain)  # zyx is a product
    if "\\" not in _TEXT.sub("", cleaned) and word and plain not in ("infinity", "inf"):
        tokens = tokenize(_TEXT.sub(r"\1", cleaned))
        if not (len(tokens) == 1 and tokens[0].kind == "name") and plain not in NUMBER_WORDS:
            return [Words(plain)]
    found: list[Node] = []
    for variant in thousands_readings(cleaned):
        try:
            found.append(Parser(tokenize(variant)).node())
        except (Unreadable, Undefined):
            continue
    if found and (chosen := _binomial(found[0])):
        found.append(chosen)
    if not found and _is_prose(cleaned):
        found.append(Words(plain))
    return found


def _binomial(node: Node) -> Node | None:
    """C(10, 3), which may be a point, as the number of choices."""
    match node:
        case Call("*", (Name("C"), Group(_, (n, k)))):
            return Call("binom", (n, k))
    return None


def _is_prose(cleaned: str) -> bool:
    stripped = _TEXT.sub(r" \1 ", cleaned)
    return re.search(r"[A-Za-z]{2}|\d:\d\d", stripped) is not None and not re.search(r"[\\{}]", stripped)


def gold_text(gold: str) -> str:
    """The gold answer proper: out of a box, or behind GSM8K's ####."""
    boxes = boxes_of(gold) if "box" in gold else []
    if boxes:
        return boxes[-1][2]
    return gold.rpartition("####")[2].strip()


def _well_formed(text: str) -> bool:
    """Braces match and there is something there."""
    return bool(text.strip()) and closing_braces("{" + text + "}").get(0) == len(text) + 1


def unevaluated(node: Node) -> bool:
    """Whether a tree leaves arithmetic between numbers undone: 3 + 4, 5!, 2^10; not 3/4, 3 1/2, 2 * 10^5 or sqrt(2)."""
    match node:
        case Call("*", (Num(), Call("^", (Num(Fraction(numerator=10, denominator=1)), _)))):  # a way to write a number
            return False
        case Call("/", (Num() | Call("neg", (Num(),)), Num() | Call("neg", (Num(),)))):
            return False
        case Call("sqrt" | "root") if all(map(_exact, node.args)):
            return _exact(node)
        case Call(op, args) if op not in ("neg", "mixed", "pct", "deg") and all(map(_exact, args)):
            return True
    return any(unevaluated(child) for child in children(node))


def _exact(node: Node) -> bool:
    try:
        return rational(node) is not None
    except (TooLarge, Undefined):
        return True


def judge(gold: str, answer: str, *, heavy: bool, strict: bool = False) -> tuple[bool | None, str]:
    """(right, reason); None if the gold cannot be read. Raises NeedsWorker only if `heavy` is False.

    >>> judge("\\\\frac{7}{2}", "3\\\\frac12", heavy=False)
    (True, 'equal')
    """
    gold = gold_text(gold)
    if len(gold) > LONGEST_GOLD or not _well_formed(gold):
        return None, "the gold answer cannot be read"
    golds = _readings_or_none(gold)
    repeated = bare(gold) == bare(answer)
    if not golds:
        if repeated and _well_formed(gold):
            return True, "same text"
        if not heavy:
            raise NeedsWorker
        return None, "the gold answer cannot be read"
    if repeated and not strict:
        return True, "same text"
    return _judge_read(golds, gold, answer, heavy, strict)


def _judge_read(golds: list[Node], gold: str, answer: str, heavy: bool, strict: bool) -> tuple[bool | None, str]:
    choice = _CHOICE.fullmatch(gold.strip())
    if not choice and (labelled_gold := _LABELLED.fullmatch(_TEXT.sub(r"\1", clean(gold)))):
        return _judge_labelled(labelled_gold, answer, heavy, strict)
    if _OWN_OPERATOR.match(answer) and not _OWN_OPERATOR.match(f"{gold}="):
        answer = _OWN_OPERATOR.sub("", answer)
    if "equiv" in answer and "equiv" not in gold and (remainder := _REMAINDERS.fullmatch(answer.strip(" $."))):
        answer = remainder[1]
    if _CONSTANT.search(gold) and not re.search(r"C", answer):
        answer = _CONSTANT.sub("+ C", answer)
    if choice and (chosen := _chosen_letter(answer)):
        return chosen == choice.group(1), f"choice {chosen}"
    try:
        answers = readings(answer)
    except Unreadable as error:
        return False, f"the answer cannot be read: {error}"
    except RecursionError:
        if not heavy:
            raise NeedsWorker from None
        return False, "the answer is nested too deeply"
    if _DECIMAL.fullmatch(gold.strip()) and (comma := _DECIMAL_COMMA.fullmatch(answer.strip())):
        answers = [*answers, *readings(f"{comma[1]}.{comma[2]}{comma[3]}")]
    if gold.lstrip(" $").startswith("(") and (point := _NAMED_POINT.match(answer)):
        answers = [*answers, *readings(answer[point.end() :])]
    labelled = _LABELLED.fullmatch(_TEXT.sub(r"\1", clean(answer)))
    if labelled and not choice:
        answers = readings(labelled.group(2))
    if not answers:
        sides = _readable_sides(answer)
        if sides and not strict:
            return _judge_read(golds, gold, sides, heavy, strict)
        if not heavy:
            raise NeedsWorker
        return False, "the answer cannot be read"
    if strict and any(unevaluated(node) for node in answers):
        return False, "the answer is not evaluated"
    try:
        if any(same(g, a, heavy=heavy) for g in golds for a in answers):
            return True, "equal"
    except (TooLarge, Undefined) as error:
        return False, f"not compared: {error}"
    except RecursionError:
        if not heavy:
            raise NeedsWorker from None
        return False, "the answer is nested too deeply"
    if isinstance(golds[0], Words) and len(golds[0].text.split()) > LONGEST_PROSE:
        return None, "the gold answer is prose"
    conclusion = concluded(answers[0]) if isinstance(answers[0], Relation) and not strict else None
    if conclusion is not None and any(same(g, conclusion, heavy=heavy) for g in golds):
        return True, "equal to the last side"
    return False, "different"


# A first side with an operator that is no arithmetic's, and so the problem's own: 3 * 10 = 50 - 24 = 26.
_OWN_OPERATOR = re.compile(
    r"[^=]*\\(?:ast|star|oplus|otimes|odot|ominus|diamond|bigstar|heartsuit|spadesuit|clubsuit|diamondsuit|nabla|bowtie|#)"
    r"(?![a-z])[^=]*="
)
# A chain of remainders without letters: what stands behind its last sign.
_REMAINDERS = re.compile(
    r"(?:\\(?:cdot|times|equiv|quad)(?![a-z])|[^\\a-zA-Z])*\\equiv([^\\=a-zA-Z]+?)\\p?mod\s*\{?\d+\}?\)?"
)


def _readable_sides(answer: str) -> str:
    """The sides of a chain behind those that nobody here can read, "" if there are none or its first can be read: of a sum
    of P(z_i) = 3 - 1 + 4 = 6 the last two.
    """
    sides = re.split(r"(?<![<>!\\])=(?![^{]*\})", answer)
    if CALCULUS.search(answer) and not _CONSTANT.search(answer):  # sympy reads it, in the worker, if it is all of it
        rest = sides[1 + max((place for place, side in enumerate(sides) if CALCULUS.search(side)), default=0) :]
        return "=".join(rest).strip() if len(rest) > 1 else ""
    first = next((place for place, side in enumerate(sides[:-1]) if _readings_or_none(side)), len(sides) - 1)
    return "=".join(sides[first:]).strip() if first else ""


def _readings_or_none(text: str) -> list[Node]:
    try:
        return readings(text)
    except (Unreadable, RecursionError):
        return []


def split_list(text: str) -> list[str]:
    """The parts of a plain list of answers: "1, 2" has two. Commas in brackets do not count.

    >>> split_list("1.2, (3, 4)")
    ['1.2', '(3, 4)']
    """
    return [part.strip() for part in re.split(r",\s+(?![^()\[\]]*[)\]])", text.strip(" $"))]


def approximate(text: str) -> float | None:
    """The value of an answer that is one number, None for anything else. Plain and rational arithmetic only."""
    try:
        found = readings(text)
        node = found[0] if found else None
        if isinstance(node, Relation) and node.ops == ("=",):
            node = node.sides[1]
        value = rational(node.value if isinstance(node, Quantity) else node) if node is not None else None
    except (Unreadable, RecursionError, TooLarge, Undefined):
        return None
    return None if value is None or abs(value) > 10**300 else float(value)


def unit_of(text: str) -> str:
    """The unit of an answer that is one quantity in canonical spelling, "" for anything else."""
    found = _readings_or_none(text)
    return found[0].unit if found and isinstance(found[0], Quantity) else ""


def _judge_labelled(gold: re.Match[str], answer: str, heavy: bool, strict: bool) -> tuple[bool | None, str]:
    """A gold such as "(C) 5": its letter or its content is right, another letter before the content is not."""
    letter, content = gold.groups()
    if chosen := _chosen_letter(answer) or (answer.strip() if re.fullmatch(r"\s*[A-E]\s*", answer) else ""):
        return chosen.strip() == letter, f"choice {chosen.strip()}"
    golds = readings(content)
    return _judge_read(golds, content, answer, heavy, strict) if golds else (False, "different")


def _chosen_letter(answer: str) -> str:
    """The letter of "(B) 45", "B." or "option B" if the answer is that; "" otherwise or if it names several."""
    text = _TEXT.sub(r"\1", answer).strip(" $.*")
    if named := _NAMED_CHOICE.fullmatch(text):
        return (named.group(1) or named.group(2)).upper()
    match = _CHOSEN.fullmatch(text)
    if not match or re.search(r"\([A-Z]\)|\b[B-Z]\s*[).:]|\bor\b|\band\b", match.group(3)):
        return ""
    return (match.group(1) or match.group(2)).upper()
