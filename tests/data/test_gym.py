"""reasoning-gym as a source. Tests that need the package are skipped where the extra is not installed."""

import random
import sys

import pytest

from llmrl.data.source import load_rows, load_train_eval
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig, EvalDataConfig

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"missing \(reasoning_gym\): pip install 'llmrl\[gym\]'"):
        load_rows(DataConfig(source="reasoning_gym:chain_sum"), seed=0)


def test_rows_carry_what_the_scorer_needs(gym):
    rows = load_rows(DataConfig(source="reasoning_gym:chain_sum", args=SMALL, limit=20), seed=0)
    assert len({row.prompt for row in rows}) == 20
    for row in rows:
        scorer = gym.create_dataset(row.columns["task"], **row.columns["args"])
        assert scorer.score_answer(row.answer, row.columns["entry"]) == 1.0
        assert scorer.score_answer("no number", row.columns["entry"]) < 0.5
        assert row.columns["entry"]["question"] == row.prompt


@pytest.mark.parametrize("task", ["chain_sum", "acre", "list_functions", "pool_matrix"])
def test_a_gym_row_depends_on_seed_and_index_alone(gym, task):
    source = f"reasoning_gym:{task}"
    few = load_rows(DataConfig(source=source, limit=10), seed=3)
    more = load_rows(DataConfig(source=source, limit=25), seed=3)
    assert [(row.id, row.prompt) for row in few] == [(row.id, row.prompt) for row in more[:10]]
    state = random.getstate()
    neighbour = load_rows(DataConfig(source=source, limit=25), seed=4)
    assert len({row.prompt for row in more} & {row.prompt for row in neighbour}) < 5
    assert random.getstate() == state, "the global random state was touched"


def test_a_task_that_follows_the_hash_seed_asks_for_one(gym, monkeypatch):
    config = DataConfig(source="reasoning_gym:ransom_note", limit=2)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(DataError, match="start with PYTHONHASHSEED=0"):
        load_rows(config, seed=0)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load_rows(config, seed=0)) == 2


def test_gym_data_splits_without_leaks(gym):
    train, held = load_train_eval(
        DataConfig(source="reasoning_gym:chain_sum", args=SMALL, limit=1500), EvalDataConfig(n=100), seed=0
    )
    assert (len(train), len(held)) == (1500, 100)
    assert len({row.id for row in train}) == 1500


@pytest.mark.parametrize(
    ("source", "args", "words"),
    [
        ("reasoning_gym:chain_sun", {}, "no task 'chain_sun'; did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum", {"max_term": 3}, "no knob 'max_term'; did you mean 'max_terms'"),
        ("reasoning_gym:chain_sum", {"seed": 3}, "no knob 'seed'"),
        ("reasoning_gym:chain_sum", {"min_terms": 5, "max_terms": 2}, "refuses .*max_terms must be >= min_terms"),
        ("reasoning_gym:chain_sum", {"max_terms": "a"}, "refuses"),
    ],
)
def test_wrong_gym_settings_are_named(gym, source, args, words):
    with pytest.raises(DataError, match=words):
        load_rows(DataConfig(source=source, args=args, limit=3), seed=0)
