"""Small programming tasks: a chain of operations on a list or a text, with tests, reference programs and near misses.

Expected values come from the operations themselves, as Python functions beside their source text; nothing is evaluated
here. Hidden tests are drawn until every near miss (one operation of the chain a little wrong) fails at least one of
them, so that a program which passes has all operations right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from llmrl.errors import DataError
from llmrl.seeding import generator

Kind = Literal["list", "text", "number"]
TYPES: dict[Kind, str] = {"list": "list[int]", "text": "str", "number": "int"}
ARGUMENTS: dict[Kind, str] = {"list": "numbers", "text": "text", "number": "number"}
WORDS = ("apple", "river", "Stone", "cloud", "Tree", "ink", "Moss", "oak", "under", "echo")
EXAMPLES = 2
MOST_TESTS = 12
TRIES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of a task: what it says, two ways to write it (`x` is the input), what it does, and what nearly does."""

    says: str
    written: tuple[str, str]
    does: Callable[[Any], Any]
    gives: Kind
    near: tuple[tuple[str, Callable[[Any], Any]], ...]


def programs(
    seed: int, index: int, *, operations: int = 3, texts: int = 0, hidden: int = 6, high: int = 20
) -> dict[str, Any]:
    """A function to write: `operations` steps on a list of whole numbers in -high..high, or on a text.

    texts: the share of tasks on texts, in percent. hidden: hidden tests at least (more where a near miss needs them).
    Columns: statement, signature, entry_point, example_tests (shown in `problem`), tests (hidden), answer (a reference
    program), solutions (all of them), completion (one of them, drawn: SFT meets every way of writing that CodeRL's
    cross-entropy draws from), near_misses (programs that fail a hidden test). Raises DataError for a knob out of range.

    >>> row = programs(0, 0, operations=1)
    >>> row["signature"], len(row["example_tests"]), len(set(row["solutions"])) >= 2
    ('def solve(numbers: list[int]) -> int:', 2, True)
    """
    for name, value, low, top in (
        ("operations", operations, 1, 6), ("texts", texts, 0, 100), ("hidden", hidden, 2, MOST_TESTS), ("high", high, 5, 999)
    ):  # fmt: skip
        if not low <= value <= top:
            raise DataError(f"{name}={value} must be in {low}..{top}")
    rng = generator(seed, "programs", index)
    takes: Kind = "text" if rng.randrange(100) < texts else "list"
    for _ in range(TRIES):
        row = _task(takes, _chain(rng, takes, operations), hidden, high)
        if row is not None:
            return {**row, "completion": rng.choice(row["solutions"])}
    raise DataError(f"programs(operations={operations}) found no task with a result of its own in {TRIES} tries")


@cache  # a small family of tasks is drawn from many times before it counts as exhausted
def _task(takes: Kind, chain: tuple[Operation, ...], hidden: int, high: int) -> dict[str, Any] | None:
    """The row of one chain; None if it is no task. Its inputs are keyed by the chain: one id is one problem, whatever
    the seed.
    """
    inputs = _inputs(generator(0, "programs", _named(takes, chain)), takes, chain, hidden, high)
    return None if inputs is None else _row(takes, chain, inputs)


def _chain(rng: random.Random, takes: Kind, length: int) -> tuple[Operation, ...]:
    """Operations that follow each other; only the last may give a number. No operation twice in a row."""
    chain: list[Operation] = []
    while len(chain) < length:
        found = _list_operation(rng) if takes == "list" else _text_operation(rng)
        last = len(chain) == length - 1
        if (found.gives == "number" and not last) or (chain and chain[-1].says == found.says):
            continue
        chain.append(found)
    return tuple(chain)


def _inputs(rng: random.Random, takes: Kind, chain: tuple[Operation, ...], hidden: int, high: int) -> list[Any] | None:
    """Different inputs, examples first; None if the task is no task: one answer fits all, or the input itself does."""
    found: list[Any] = []
    results: list[Any] = []
    doubtful = [[does for _, does in near] for near in _near_chains(chain)]
    exact = [operation.does for operation in chain]
    for _ in range(TRIES):
        drawn = _input(rng, takes, high)
        if drawn in found:
            continue
        found.append(drawn)
        if len(found) > EXAMPLES:
            results.append(_run(exact, drawn))
            doubtful = [near for near in doubtful if _run(near, drawn) == results[-1]]
        if len(found) >= EXAMPLES + hidden and (not doubtful or len(found) == EXAMPLES + MOST_TESTS):
            break
    constant = all(result == results[0] for result in results)
    unchanged = all(result == x for result, x in zip(results, found[EXAMPLES:]))
    return None if doubtful or constant or unchanged else found


def _near_chains(chain: tuple[Operation, ...]) -> list[list[tuple[str, Callable[[Any], Any]]]]:
    """The chain with one operation replaced by each of its near misses, as (source, function) pairs."""
    exact = [(operation.written[0], operation.does) for operation in chain]
    return [[*exact[:at], near, *exact[at + 1 :]] for at, operation in enumerate(chain) for near in operation.near]


def _run(steps: Sequence[Callable[[Any], Any]], x: Any) -> Any:
    for does in steps:
        x = does(x)
    return x


def _row(takes: Kind, chain: tuple[Operation, ...], inputs: list[Any]) -> dict[str, Any]:
    name, gives = ARGUMENTS[takes], chain[-1].gives
    signature = f"def solve({name}: {TYPES[takes]}) -> {TYPES[gives]}:"
    exact = [operation.does for operation in chain]
    tests = [f"assert solve({x!r}) == {_run(exact, x)!r}" for x in inputs]
    what = "a list of whole numbers" if takes == "list" else "a text"
    steps = "; then ".join(operation.says for operation in chain)
    statement = f"Write a Python function solve that takes {what} and returns the result of these steps: {steps}."
    solutions = [
        _nested(signature, name, [operation.written[0] for operation in chain]),
        _step_by_step(signature, name, [operation.written[0] for operation in chain]),
        _step_by_step(signature, name, [operation.written[1] for operation in chain]),
        _nested(signature, name, [operation.written[1] for operation in chain]),
    ]
    near = [_step_by_step(signature, name, [source for source, _ in steps]) for steps in _near_chains(chain)]
    shown = "\n".join(tests[:EXAMPLES])
    return {
        "id": f"programs/{_named(takes, chain)}",
        "problem": f"{statement}\n{signature}\nExamples:\n{shown}",
        "statement": statement,
        "signature": signature,
        "entry_point": "solve",
        "example_tests": tests[:EXAMPLES],
        "tests": tests[EXAMPLES:],
        "answer": solutions[0],
        "solutions": list(dict.fromkeys(solutions)),
        "near_misses": list(dict.fromkeys(near)),
        "identity": f"programs {_named(takes, chain)}",
    }


def _named(takes: Kind, chain: tuple[Operation, ...]) -> str:
    return f"{takes}: {' > '.join(operation.says for operation in chain)}"


def _nested(signature: str, name: str, sources: list[str]) -> str:
    expression = name
    for source in sources:
        expression = source.replace("{x}", expression)
    return f"{signature}\n    return {expression}\n"


def _step_by_step(signature: str, name: str, sources: list[str]) -> str:
    lines = [f"    {name} = {source.replace('{x}', name)}" for source in sources[:-1]]
    return "\n".join([signature, *lines, f"    return {sources[-1].replace('{x}', name)}", ""])


def _input(rng: random.Random, takes: Kind, high: int) -> Any:
    if takes == "text":
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
    # Few different values, so that repeated numbers and ties happen.
    return [rng.randint(-high, high) if rng.random() < 0.7 else rng.randint(0, 3) for _ in range(rng.randint(3, 8))]


def _list_operation(rng: random.Random) -> Operation:
    return rng.choice(_list_operations(rng.randint(2, 9)))


@cache
def _list_operations(k: int) -> tuple[Operation, ...]:
    return (
        Operation(
            says=f"add {k} to every number", gives="list", does=lambda x: [v + k for v in x],
            written=(f"[v + {k} for v in {{x}}]", f"list(map(lambda v: v + {k}, {{x}}))"),
            near=((f"[v + {k + 1} for v in {{x}}]", lambda x: [v + k + 1 for v in x]),
                  (f"[v - {k} for v in {{x}}]", lambda x: [v - k for v in x])),
        ),
        Operation(
            says=f"multiply every number by {k}", gives="list", does=lambda x: [v * k for v in x],
            written=(f"[v * {k} for v in {{x}}]", f"list(map(lambda v: {k} * v, {{x}}))"),
            near=((f"[v + {k} for v in {{x}}]", lambda x: [v + k for v in x]),
                  ("[v * v for v in {x}]", lambda x: [v * v for v in x])),
        ),
        Operation(
            says="keep only the even numbers", gives="list", does=lambda x: [v for v in x if v % 2 == 0],
            written=("[v for v in {x} if v % 2 == 0]", "list(filter(lambda v: v % 2 == 0, {x}))"),
            near=(("[v for v in {x} if v % 2 == 1]", lambda x: [v for v in x if v % 2 == 1]),),
        ),
        Operation(
            says=f"keep only the numbers greater than {k}", gives="list", does=lambda x: [v for v in x if v > k],
            written=(f"[v for v in {{x}} if v > {k}]", f"list(filter(lambda v: v > {k}, {{x}}))"),
            near=((f"[v for v in {{x}} if v < {k}]", lambda x: [v for v in x if v < k]),
                  (f"[v for v in {{x}} if v > -{k}]", lambda x: [v for v in x if v > -k])),
        ),
        Operation(
            says="reverse the order", gives="list", does=lambda x: x[::-1],
            written=("{x}[::-1]", "list(reversed({x}))"),
            near=(("sorted({x})", sorted), ("{x}[::1]", list)),
        ),
        Operation(
            says="sort them from smallest to largest", gives="list", does=sorted,
            written=("sorted({x})", "sorted({x}, reverse=False)"),
            near=(("sorted({x}, reverse=True)", lambda x: sorted(x, reverse=True)), ("{x}[:]", list)),
        ),
        Operation(
            says="leave out the first number", gives="list", does=lambda x: x[1:],
            written=("{x}[1:]", "[v for i, v in enumerate({x}) if i > 0]"),
            near=(("{x}[:-1]", lambda x: x[:-1]), ("{x}[2:]", lambda x: x[2:])),
        ),
        Operation(
            says="square every number", gives="list", does=lambda x: [v * v for v in x],
            written=("[v * v for v in {x}]", "[v ** 2 for v in {x}]"),
            near=(("[v + v for v in {x}]", lambda x: [v + v for v in x]),),
        ),
        Operation(
            says="leave out repeated numbers, keeping the first of each", gives="list",
            does=lambda x: list(dict.fromkeys(x)),
            written=("list(dict.fromkeys({x}))", "list({v: None for v in {x}})"),
            near=(("{x}[:]", list),),
        ),
        Operation(
            says="return their sum", gives="number", does=sum,
            written=("sum({x})", "sum(v for v in {x})"),
            near=(("len({x})", len), ("sum({x}[1:])", lambda x: sum(x[1:]))),
        ),
        Operation(
            says="return how many there are", gives="number", does=len,
            written=("len({x})", "sum(1 for v in {x})"),
            near=(("sum({x})", sum), ("len({x}) - 1", lambda x: len(x) - 1)),
        ),
        Operation(
            says="return the largest, or 0 if there is none", gives="number", does=lambda x: max(x, default=0),
            written=("max({x}, default=0)", "max(list({x}), default=0)"),
            near=(("min({x}, default=0)", lambda x: min(x, default=0)),
                  ("len({x})", len)),
        ),
    )  # fmt: skip


def _text_operation(rng: random.Random) -> Operation:
    return rng.choice(_text_operations())


@cache
def _text_operations() -> tuple[Operation, ...]:
    vowels = "aeiouAEIOU"
    return (
        Operation(
            says="make every letter a capital", gives="text", does=str.upper,
            written=("{x}.upper()", "''.join(c.upper() for c in {x})"),
            near=(("{x}.lower()", str.lower), ("{x}.title()", str.title)),
        ),
        Operation(
            says="reverse the text", gives="text", does=lambda x: x[::-1],
            written=("{x}[::-1]", "''.join(reversed({x}))"),
            near=(("' '.join(reversed({x}.split(' ')))", lambda x: " ".join(reversed(x.split(" ")))),
                  ("{x}[::1]", str)),
        ),
        Operation(
            says="leave out the vowels", gives="text", does=lambda x: "".join(c for c in x if c not in vowels),
            written=(f"''.join(c for c in {{x}} if c not in '{vowels}')",
                     f"''.join(filter(lambda c: c not in '{vowels}', {{x}}))"),
            near=((f"''.join(c for c in {{x}} if c in '{vowels}')", lambda x: "".join(c for c in x if c in vowels)),),
        ),
        Operation(
            says="write every character twice", gives="text", does=lambda x: "".join(c + c for c in x),
            written=("''.join(c + c for c in {x})", "''.join(c * 2 for c in {x})"),
            near=(("{x} + {x}", lambda x: x + x), ("''.join(c * 3 for c in {x})", lambda x: "".join(c * 3 for c in x))),
        ),
        Operation(
            says="leave out the first character", gives="text", does=lambda x: x[1:],
            written=("{x}[1:]", "''.join(c for i, c in enumerate({x}) if i > 0)"),
            near=(("{x}[:-1]", lambda x: x[:-1]), ("{x}[2:]", lambda x: x[2:])),
        ),
        Operation(
            says="return its length", gives="number", does=len,
            written=("len({x})", "sum(1 for c in {x})"),
            near=(("len({x}) - 1", lambda x: len(x) - 1), ("len({x}.split())", lambda x: len(x.split()))),
        ),
        Operation(
            says="return how many vowels it has", gives="number", does=lambda x: sum(c in vowels for c in x),
            written=(f"sum(c in '{vowels}' for c in {{x}})", f"len([c for c in {{x}} if c in '{vowels}'])"),
            near=((f"sum(c not in '{vowels}' for c in {{x}})", lambda x: sum(c not in vowels for c in x)),
                  (f"len(set({{x}}) & set('{vowels}'))", lambda x: len(set(x) & set(vowels)))),
        ),
    )  # fmt: skip
