import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmrl.rewards.exact_number import ExactNumber
from llmrl.rewards.pool import RewardPool
from llmrl.rewards.trl_adapter import TRLReward

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _handlers_importable(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def test_scores_come_back_in_order_with_parts_and_flags(trajectory):
    rows = [trajectory("0.05" if i % 3 == 0 else "0", str(i)) for i in range(12)]
    with RewardPool("tests_handlers:slow_reward", workers=2, deadline_s=60) as pool:
        scores = pool(rows)
        assert [score.value for score in scores] == [float(i) for i in range(12)]
        assert all(score.flags == ("seen",) for score in scores)
        assert pool.counters["scored"] == 12
        assert pool([]) == []


def test_it_agrees_with_the_reward_called_directly(trajectory):
    rows = [trajectory(text, "46") for text in ("46", "45", "", "45, 46")] + [trajectory("46", "no number")]
    with RewardPool(ExactNumber(), workers=1) as pool:
        assert pool(rows) == [ExactNumber()(row) for row in rows]
        assert pool.counters["not_applicable"] == 1


@pytest.mark.parametrize("hang", ["60", "spin"])
def test_a_hanging_reward_costs_its_own_row_and_at_most_the_deadline(trajectory, hang):
    with RewardPool("tests_handlers:slow_reward", workers=2, deadline_s=12, item_s=1.0) as pool:
        pool([trajectory("0", "1")])
        start = time.monotonic()
        scores = pool([trajectory("0", "1"), trajectory(hang, "2"), trajectory("0", "3"), trajectory("0", "4")])
        assert time.monotonic() - start < 10
        assert [score.value for score in scores] == [1.0, None, 3.0, 4.0]
        assert "timed out" in scores[1].error
        assert (pool.counters["timeouts"], pool.counters["errors"]) == (1, 1)
        assert pool([trajectory("0", "5")])[0].value == 5.0


def test_when_all_rows_hang_the_step_still_ends_at_the_deadline(trajectory):
    with RewardPool("tests_handlers:slow_reward", workers=1, deadline_s=1.5, item_s=1.0) as pool:
        pool([trajectory("0", "1")])
        start = time.monotonic()
        scores = pool([trajectory("60")] * 6)
        assert time.monotonic() - start < 6
        assert all(score.value is None and "timed out" in score.error for score in scores)
        assert pool.counters["timeouts"] == 6


def test_a_worker_that_dies_is_replaced_and_its_row_tried_once_more(trajectory, tmp_path):
    with RewardPool("tests_handlers:slow_reward", workers=1, deadline_s=60) as pool:
        scores = pool([trajectory(f"once {tmp_path / 'marker'}", "7"), trajectory("die"), trajectory("0", "8")])
        assert [score.value for score in scores] == [7.0, None, 8.0]
        assert "died twice" in scores[1].error
        assert (pool.counters["retries"], pool.counters["died"]) == (2, 1)


def test_a_reward_that_raises_is_an_error_of_its_row(trajectory):
    with RewardPool("tests_handlers:slow_reward", workers=1) as pool:
        scores = pool([trajectory("raise"), trajectory("0", "2")])
        assert "RuntimeError: broken" in scores[0].error
        assert scores[1].value == 2.0


def test_trl_functions_get_batches(trajectory):
    with RewardPool("llmrl.rewards.trl_adapter:TRLReward", {"function": "tests_handlers:lengths"}, workers=2) as pool:
        assert [s.value for s in pool([trajectory("a" * n) for n in range(5)])] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_rewards_that_cannot_be_built_are_named_at_once(trajectory):
    with RewardPool("tests_handlers:absent") as pool, pytest.raises(ValueError, match="no 'absent'"):
        pool([trajectory("1")])
    with pytest.raises(ValueError, match="import path"):
        RewardPool(lambda t: None)
    with pytest.raises(ValueError, match="object already"):
        RewardPool(TRLReward(function=len), {"a": 1})


def test_a_batched_reward_sees_whole_groups_and_all_of_them_if_it_asks(trajectory):
    rows = [trajectory("a", str(i)) for i in range(12)]
    rows = [replace(row, prompt=replace(row.prompt, id=f"p{i % 4}")) for i, row in enumerate(rows)]
    with RewardPool("tests_handlers:Siblings", workers=3) as pool:
        scores = pool(rows)
    assert [score.value for score in scores] == [3.0] * 12
    assert {score.parts["all"] for score in scores} == {3.0, 6.0}
    with RewardPool("tests_handlers:Siblings", {"whole_batch": True}, workers=3) as pool:
        assert {score.parts["all"] for score in pool(rows)} == {12.0}
