import asyncio
import math

import pytest

from llmrl.rewards.scoring import score_all
from llmrl.rewards.trl_adapter import TRLReward

TALK = ({"role": "user", "content": "What is 12 + 34?"},)


def by_answer(completions, answer, **kwargs):
    """As in TRL's own documentation."""
    return [1.0 if text == gold else 0.0 for text, gold in zip(completions, answer)]


async def later(prompts, completions, completion_ids, difficulty, **kwargs):
    await asyncio.sleep(0)
    return [float(d) if d is not None else None for d in difficulty]


def test_plain_completions_and_the_answer_column(trajectory):
    rows = [trajectory("46", "46"), trajectory("45", "46")]
    assert [s.value for s in score_all(TRLReward(function=by_answer), rows)] == [1.0, 0.0]


def test_conversational_rows_arrive_as_messages_with_the_sampled_ids(trajectory):
    seen = {}

    def look(prompts, completions, completion_ids, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, kwargs=kwargs)
        return [0.0]

    score_all(TRLReward(function=look), [trajectory("46", "46", messages=TALK, difficulty=3)])
    assert seen["prompts"] == [[{"role": "user", "content": "What is 12 + 34?"}]]
    assert seen["completions"] == [[{"role": "assistant", "content": "46"}]]
    assert seen["ids"] == [[10, 11, 12]]
    assert seen["kwargs"]["difficulty"] == [3]
    seen["kwargs"]["log_metric"]("name", 1.0)


def test_async_functions_work_with_and_without_a_running_loop_and_none_means_not_applicable(trajectory):
    rows = [trajectory("1", difficulty=2), trajectory("1")]
    reward = TRLReward(function=later)
    assert [s.value for s in score_all(reward, rows)] == [2.0, None]

    async def inside():
        return score_all(reward, rows)

    assert [s.value for s in asyncio.run(inside())] == [2.0, None]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda completions: [1.0], "1 rewards for 2"),
        (lambda completions: None, "not a list"),
        (lambda completions: 1 / 0, "ZeroDivisionError"),
        (lambda completions: [math.nan, math.inf], "finite"),
        (lambda completions: ["a", "b"], "not a number"),
    ],
)
def test_what_a_function_does_wrong_is_an_error_never_a_zero(trajectory, function, words):
    scores = score_all(TRLReward(function=function), [trajectory("1"), trajectory("2")])
    assert all(s.value is None and words in s.error for s in scores)


def test_trl_s_own_reward_functions_run_unchanged(trajectory):
    rewards = pytest.importorskip("trl.rewards")
    row = trajectory("<think>\n12 and 34\n</think>\n\\boxed{46}", "46", messages=TALK, solution="\\boxed{46}")
    assert TRLReward(function=rewards.think_format_reward)(row).value == 1.0
    assert TRLReward(function="trl.rewards:accuracy_reward")(row).value == 1.0
