"""MBPP+: 378 MBPP problems, each on about a hundred inputs, judged against the reference. Liu et al. 2023 (2305.01210).

Local rows are EvalPlus' own: inputs as JSON and a reference solution. The hub's copy carries a finished test program
instead. JSON has no tuples or sets; what an argument really is, and whether order counts in the result, is read off the
assert in the problem's text (`assert set(f((3, 4))) == set((4,))`), which is the specification that the model sees.
The tests of one problem are one program that defines the reference and compares on every input.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmrl.eval.task import Question, Source, Task, column, items, text
from llmrl.eval.tasks.mbpp import TASK as MBPP
from llmrl.eval.tasks.mbpp import tested_name

_NUMBER = re.compile(r"\(?[-+0-9.e]*[0-9]j?\)?")
# Their reference alone needs minutes or gigabytes on the added inputs; only the base inputs are used.
TOO_SLOW = frozenset({"Mbpp/170", "Mbpp/255", "Mbpp/392", "Mbpp/599", "Mbpp/603", "Mbpp/630"})
# Their reference lists a set of strings, whose order differs from process to process.
UNORDERED = frozenset({"Mbpp/579", "Mbpp/769"})
ATOL = 1e-6  # of floats, where the row asks for none; EvalPlus' default

_PROGRAM = """
import copy, math, re
from math import inf, nan
_reference_scope = {{}}
exec({reference!r}, _reference_scope)
_reference = _reference_scope[{name!r}]
_inputs = {inputs}

def _view(_result):
    return {view}

def _same(a, b):
    if isinstance(a, re.Match) or isinstance(b, re.Match):
        return bool(a) == bool(b)
    if isinstance(b, float) and isinstance(a, (int, float)) and not isinstance(a, bool):
        return a == b or math.isclose(a, b, rel_tol=1e-7, abs_tol={atol!r}) or (a != a and b != b)
    if isinstance(b, (list, tuple)):
        return isinstance(a, (list, tuple)) and len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in b)
    return a == b

for _arguments in _inputs:
    _wanted = _reference(*copy.deepcopy(_arguments))
    assert _same(_view({name}(*copy.deepcopy(_arguments))), _view(_wanted)), _arguments
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the assert in the problem tells: literal arguments of the example call, and how its result is looked at.

    `view` is an expression of `_result`: "set(_result)" if the assert compares sets, "_result" if it does nothing.
    """

    arguments: tuple[Any, ...]
    view: str


def shape_of(prompt: str, name: str) -> Shape:
    """Read the first assert that calls `name`. Without one, or with arguments that are no literals, nothing is known.

    >>> shape_of('assert set(f((3, 4), [5])) == set((4,))', "f")
    Shape(arguments=((3, 4), [5]), view='set(_result)')
    """
    for line in prompt.splitlines():
        if not line.strip().startswith("assert "):
            continue
        try:
            tree = ast.parse(line.strip()).body[0]
        except SyntaxError:
            continue
        side = tree.test if isinstance(tree, ast.Assert) else None
        if isinstance(side, ast.Compare):
            side = side.left
        calls = [n for n in ast.walk(side) if isinstance(n, ast.Call) and ast.unparse(n.func) == name] if side else []
        if len(calls) != 1:
            continue
        whole, call = ast.unparse(side), ast.unparse(calls[0])  # type: ignore[arg-type]
        view = whole.replace(call, "_result")
        known = view in ("_result", "set(_result)", "sorted(_result)", "tuple(_result)", "list(_result)")
        try:
            arguments = tuple(ast.literal_eval(argument) for argument in calls[0].args)
        except ValueError:
            arguments = ()
        return Shape(arguments, view if known else "_result")
    return Shape((), "_result")


def restore(value: Any, like: Any) -> Any:
    """`value` from JSON with the tuples and sets that `like`, a literal of the same kind, has.

    >>> restore([[1, 2], [3]], [(5, 6)]), restore([1, [2, [3]]], (7, 8, (9,)))
    ([(1, 2), (3,)], (1, (2, (3,))))
    """
    if not isinstance(value, list) or not isinstance(like, (list, tuple, set)):
        return value
    members = list(like)
    same = len(members) == len(value)
    nested = next((member for member in members if isinstance(member, (list, tuple, set))), like)
    inner = []
    for i, item in enumerate(value):
        beside = members[i] if same else None
        inner.append(restore(item, beside if isinstance(beside, (list, tuple, set)) else nested))
    if isinstance(like, tuple):
        return tuple(inner)
    return set(inner) if isinstance(like, set) else inner


def _number(value: Any, like: Any) -> Any:
    """A number that JSON could only hold as text ("(1+2j)", "1e-100"), where the example has a number."""
    if isinstance(value, str) and isinstance(like, (int, float, complex)) and _NUMBER.fullmatch(value):
        return complex(value) if "j" in value else float(value)
    return value


def read(row: Mapping[str, Any], number: int) -> Question:
    """One test program per problem, from inputs and reference, or as the hub has it."""
    prompt, code = text(row, "prompt"), text(row, "canonical_solution", "code")
    if "canonical_solution" in row:
        name = text(row, "entry_point")
        shape = shape_of(prompt, name)
        plus = [] if row["task_id"] in TOO_SLOW else row.get("plus_input") or []
        view = "sorted(_result, key=repr)" if row["task_id"] in UNORDERED else shape.view
        inputs = [
            [_number(restore(item, like), like) for item, like in zip(arguments, shape.arguments)]
            if len(arguments) == len(shape.arguments)
            else arguments
            for arguments in [*items(row, "base_input"), *plus]
        ]
        program = _PROGRAM.format(
            reference=code, name=name, inputs=repr(inputs), view=view, atol=float(column(row, "atol")) or ATOL
        )
    else:
        program = text(row, "test")
        name = tested_name(code, [program])
    task_id = text(row, "task_id").removeprefix("Mbpp/")
    columns = {"problem": prompt.strip().strip('"').strip(), "tests": [program], "code": code, "entry_point": name}
    return Question(id=f"mbppplus/{task_id}", answer=code, columns=columns)


TASK = Task(
    name="mbppplus",
    source=Source(file="mbppplus/test.jsonl", hub="evalplus/mbppplus", split="test"),
    read=read,
    verifier=MBPP.verifier,
    # About a hundred inputs, and the reference runs on each too: Mbpp/592 needs 7 s on an idle core. The hub's test
    # programs import numpy.
    options={"timeout_s": 120.0, "limits": {"packages": ["numpy"]}},
    template="{problem}\n\nAnswer with one Python code block.",
    plain_template='"""\n{problem}\n"""\n',
    plain_stop=('\n"""', "\nassert", "\nprint", "\nif __name__", "\n# "),
    plain_response=MBPP.plain_response,
    max_tokens=1024,
    temperature=0.8,
)
