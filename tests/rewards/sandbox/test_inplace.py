"""Which variables of a test may show what a call changed in place and returned."""

import ast

import pytest

from llmrl.rewards.sandbox.inplace import changed_openly


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("x = [2, 1]\nf(x)\nassert x == [1, 2]", True),
        ("x = [2, 1]\nr = f(x)\nassert r == [1, 2]\nassert x == [1, 2]", True),
        ("x = [2, 1]\nr = f(x)\nassert r is x\nassert x == [1, 2]", True),
        ("x = [2, 1]\nfor _ in range(2):\n    f(x)\nassert len(x) == 2", True),
        ("x = [2, 1]\nassert f(x) == sorted(x)", False),
        ("x = [2, 1]\nr = f(x)\nassert r == sorted(x)", False),
        ("x = [2, 1]\ny = sorted(x)\nassert f(x) == y", False),
        ("x = [2, 1]\nr = f(x)\ny = sorted(x)\nassert r == y", False),
        ("x = [2, 1]\nr = f(x)\ns = r[:]\nassert s == sorted(x)", False),
        ("x = [2, 1]\ndef right(r):\n    return r == sorted(x)\nassert right(f(x))", False),
        ("x = [2, 1]\nr = f(x)\nfor a, b in zip(r, sorted(x)):\n    assert a == b", False),
        ("x = [2, 1]\nassert all(a in x for a in f(x))", False),
        ("x = [2, 1]\nr = f(x)\nif r == x:\n    pass", False),
        ("x = [2, 1]\nassert (lambda r: r == sorted(x))(f(x))", False),
    ],
)
def test_a_variable_that_is_related_to_a_result_is_not_shown(source, shown):
    assert ("x" in changed_openly(ast.parse(source), {"f"})) is shown
