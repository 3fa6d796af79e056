"""Procedural tasks: right answers, keyed randomness, identity."""

import ast
import operator
import random
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.data.generators import GENERATORS, addition, arithmetic, countdown
from llmrl.data.source import load_rows
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig

KNOBS = {"demonstrations": {"env": "numberline"}}  # those that a generator cannot do without
# Demonstrations of a game show the same state again and again, in variants: tests/envs/test_demos.py.
POSING = [name for name in GENERATORS if name != "demonstrations"]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(text: str) -> Fraction:
    """A second, independent evaluator: Python's own parser, exact arithmetic."""

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        assert type(node.value) is int
        return Fraction(node.value)

    return walk(ast.parse(text, mode="eval").body)


def numbers_in(text: str) -> list[int]:
    return sorted(node.value for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Constant))


seeds = st.integers(0, 2**40)
indices = st.integers(0, 10**9)


def test_addition_asks_the_exact_question():
    row = addition(0, 0)
    a, b = row["terms"]
    assert row["problem"] == f"What is {a} + {b}? Answer with the number only."


@given(seeds, indices, st.integers(-50, 50), st.integers(0, 200), st.integers(2, 5))
def test_addition_is_right_and_within_its_range(seed, index, low, width, terms):
    row = addition(seed, index, low=low, high=low + width, terms=terms)
    assert int(row["answer"]) == sum(row["terms"])
    assert len(row["terms"]) == terms
    assert all(low <= number <= low + width for number in row["terms"])


@given(seeds, indices, st.integers(1, 6), st.integers(1, 4))
def test_arithmetic_answers_agree_with_pythons_parser(seed, index, steps, digits):
    row = arithmetic(seed, index, steps=steps, digits=digits)
    text = row["problem"].removeprefix("What is ").removesuffix("? Answer with the number only.")
    assert evaluate(text) == int(row["answer"])
    assert len(numbers_in(text)) == steps + 1
    assert all(1 <= number < 10**digits for number in numbers_in(text))


@given(seeds, indices, st.integers(2, 5), st.integers(5, 60))
def test_countdown_is_solved_by_its_own_answer(seed, index, count, high):
    row = countdown(seed, index, count=count, high=high)
    assert evaluate(row["answer"]) == row["target"]
    assert numbers_in(row["answer"]) == sorted(row["numbers"])
    assert 1 <= row["target"] <= 100
    assert row["target"] not in row["numbers"]
    assert str(row["numbers"]) in row["problem"]
    assert f"equals {row['target']}." in row["problem"]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_row_depends_on_seed_and_index_alone(name):
    make = partial(GENERATORS[name], **KNOBS.get(name, {}))
    forwards = [make(7, index) for index in range(50)]
    random.seed(123)
    state = random.getstate()
    backwards = [make(7, index) for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert random.getstate() == state, "the global random state was touched"
    assert forwards != [make(8, index) for index in range(50)]


@pytest.mark.parametrize("name", POSING)
def test_identity_and_id_tell_problems_apart(name):
    def posed(row):
        return row.get("problem") or f"{row['prompt']} {row['identity']}"  # of pictures the identity is all there is

    rows = [GENERATORS[name](0, index) for index in range(2000)]
    by_id = {row["id"]: posed(row) for row in rows}
    by_problem = {posed(row): row["identity"] for row in rows}
    assert all(by_id[row["id"]] == posed(row) for row in rows)
    assert all(by_problem[posed(row)] == row["identity"] for row in rows)
    answers = {}
    for row in rows:
        assert answers.setdefault(row["identity"], row.get("target", row["answer"])) == row.get("target", row["answer"])


def test_commuted_sums_and_products_are_one_problem():
    found: dict[str, set[str]] = {}
    for index in range(3000):
        row = arithmetic(0, index, steps=2)
        found.setdefault(row["identity"], set()).add(row["id"])
    merged = [ids for ids in found.values() if len(ids) > 1]
    assert any({"arithmetic/1+2*3", "arithmetic/3*2+1"} & ids for ids in merged) or len(merged) > 100
    for ids in merged:
        texts = [name.removeprefix("arithmetic/") for name in ids]
        assert len({(evaluate(text), tuple(numbers_in(text))) for text in texts}) == 1


def test_addition_draws_every_pair_about_equally():
    counts = {}
    for index in range(9000):
        a, b = addition(3, index, low=1, high=3)["terms"]
        counts[a, b] = counts.get((a, b), 0) + 1
    assert set(counts) == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize(
    ("source", "args", "words"),
    [
        ("addition", {"hihg": 9}, "did you mean 'high'"),
        ("addition", {"high": "9"}, "whole number"),
        ("addition", {"high": True}, "whole number"),
        ("addition", {"low": 5, "high": 4}, "low=5 is above high=4"),
        ("addition", {"terms": 1}, "terms=1"),
        ("arithmetic", {"steps": 0}, "steps=0"),
        ("arithmetic", {"digits": 0}, "digits=0"),
        ("countdown", {"count": 1}, "count=1"),
        ("countdown", {"high": 1}, "high=1"),
        ("countdown", {"count": 2, "target_high": 0}, "target_high=0"),
        ("additon", {}, "did you mean 'addition'"),
    ],
)
def test_wrong_knobs_are_named(source, args, words):
    with pytest.raises(DataError, match=words):
        load_rows(DataConfig(source=source, args=args, limit=5), seed=0)


def test_too_few_different_problems_is_an_error_only_if_a_number_was_asked_for():
    small = {"low": 1, "high": 4}  # 10 problems up to order
    rows = load_rows(DataConfig(source="addition", args=small), seed=0)
    held = [
        row
        for row in (addition(0, i, **small) for i in range(1000))
        if row["identity"] not in {r.identity for r in rows}
    ]
    assert len(rows) + len({row["identity"] for row in held}) == 10
    with pytest.raises(DataError, match=r"has only \d+ different train problems, 11 were asked for"):
        load_rows(DataConfig(source="addition", args=small, limit=11), seed=0)


@settings(max_examples=20, deadline=None)
@given(seeds, seeds, st.sampled_from(POSING))
def test_parts_of_any_two_seeds_never_meet(train_seed, eval_seed, name):
    train = load_rows(DataConfig(source=name, limit=300), seed=train_seed)
    held = load_rows(DataConfig(source=name, limit=60, split="held_out"), seed=eval_seed)
    assert not {row.identity for row in train} & {row.identity for row in held}
    assert len({row.identity for row in train}) == 300
