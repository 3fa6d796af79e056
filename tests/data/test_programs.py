"""Programming tasks: every reference passes and every near miss fails, in the real sandbox."""

import doctest
import inspect

import pytest

from llmrl.data import programs as module
from llmrl.data.programs import programs
from llmrl.data.source import load_train_eval
from llmrl.errors import DataError
from llmrl.rewards.sandbox import run_program
from llmrl.settings.data import DataConfig, EvalDataConfig


def status(program, tests):
    return run_program(program, tests, kind="function", entry_point="solve").status


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("knobs", [{"operations": 1}, {"operations": 2, "texts": 50}, {"operations": 3, "texts": 30}])
def test_references_pass_and_near_misses_fail_in_the_sandbox(knobs):
    for index in range(4):
        row = programs(5, index, **knobs)
        tests = row["example_tests"] + row["tests"]
        assert len(row["solutions"]) >= 2
        for solution in row["solutions"]:
            assert status(solution, tests) == "passed", solution
        for program in row["near_misses"]:
            assert status(program, row["tests"]) == "failed", (program, row["tests"])


def test_near_misses_and_constants_fail_by_the_operations_own_functions():
    """Many more tasks, without a process each: what the sandbox test shows for some holds for all."""
    for index in range(300):
        row = programs(1, index, operations=1 + index % 4, texts=40)
        expected = [test.rpartition(" == ")[2] for test in row["tests"]]
        assert len(set(expected)) > 1
        assert row["near_misses"] and not set(row["near_misses"]) & set(row["solutions"])
        assert not set(row["example_tests"]) & set(row["tests"])
        assert all(shown in row["problem"] for shown in (row["signature"], *row["example_tests"]))
        assert not any(hidden in row["problem"] for hidden in row["tests"])


def test_a_row_depends_on_seed_index_and_knobs_alone():
    rows = [programs(3, index, operations=2) for index in range(20)]
    assert rows == [programs(3, index, operations=2) for index in reversed(range(20))][::-1]
    assert rows != [programs(4, index, operations=2) for index in range(20)]
    assert len({row["identity"] for row in rows}) > 15


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"operations": 0}, "operations=0"),
        ({"texts": 101}, "texts=101"),
        ({"hidden": 1}, "hidden=1"),
        ({"high": 2}, "high=2"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, reason):
    with pytest.raises(DataError, match=reason):
        programs(0, 0, **knobs)


def test_training_and_held_out_tasks_are_different_chains():
    train = DataConfig(source="programs", args={"operations": 2}, limit=60)
    rows, held_out = load_train_eval(train, EvalDataConfig(n=20), seed=0)
    assert len(rows) == 60 and len(held_out) == 20
    assert not {row.identity for row in rows} & {row.identity for row in held_out}
    assert rows[0].answer.startswith("def solve(") and len(rows[0].columns["tests"]) >= 6


def test_every_knob_is_a_whole_number_that_a_recipe_can_set():
    knobs = [item for item in inspect.signature(programs).parameters.values() if item.kind is item.KEYWORD_ONLY]
    assert {item.name for item in knobs} == {"operations", "texts", "hidden", "high"}
    assert all(type(item.default) is int for item in knobs)
