"""Numbers about a step's trajectories, by hand, and the limits that act on them."""

import math
from dataclasses import replace

import pytest

from llmrl.errors import LimitExceeded
from llmrl.settings.recipe import LimitsConfig
from llmrl.train.telemetry import WATCHED, check_limits, describe_rollouts
from llmrl.types import Score, Status
from tests.tiny import trajectory


def rows():
    """Two groups: one uniform (1, 1), one of a 0, a failed reward, a reward that does not apply, a failed rollout."""
    right = Score(value=1.0, parts={"exact": 1.0, "format": 0.5})
    wrong = Score(value=0.0, parts={"exact": 0.0, "format": 0.0}, flags=("no_answer",))
    made = [
        ("a", 2, right, Status.done()),
        ("a", 4, right, Status.truncated()),
        ("b", 1, wrong, Status.done()),
        ("b", 3, Score(value=None, error="the checker timed out"), Status.done()),
        ("b", 5, Score(value=None, reason="no gold"), Status.done()),
        ("b", 0, Score(value=None, error="the rollout failed: x"), Status.error("x")),
    ]
    return [
        replace(trajectory((1, 2), [[9] * length], group=group, status=status), scores=(score,))
        for group, length, score, status in made
    ]


def test_every_number_by_hand():
    found = describe_rollouts(rows(), step=0)
    assert found == pytest.approx(
        {
            "reward/mean": 2 / 3,
            "reward/std": math.sqrt(2) / 3,
            "reward/errored": 1 / 6,
            "reward/timed_out": 1 / 6,
            "reward/not_applicable": 1 / 6,
            "reward/exact": 2 / 3,
            "reward/format": 1 / 3,
            "length/mean": 15 / 6,
            "length/max": 5.0,
            "length/p95": 4.75,
            "rollout/staleness": 0.0,
            "rollout/truncated": 1 / 6,
            "rollout/errored": 1 / 6,
            "group/uniform": 0.5,
            "tokens/sampled": 15.0,
            **{f"flag/{name}": 0.0 for name in WATCHED},
            "flag/no_answer": 1 / 6,
        }
    )


def test_two_failed_steps_of_one_trajectory_are_one_failed_reward():
    twice = replace(
        trajectory((1,), [[5], [6], [7]]), scores=(Score(value=None, error="a"), Score(value=None, error="b"))
    )
    found = describe_rollouts([twice, trajectory((1,), [[5]], reward=1.0, sample=1)], step=0)
    assert (found["reward/errored"], found["reward/not_applicable"]) == (0.5, 0.0)


def test_no_usable_reward_is_nan_and_not_zero():
    found = describe_rollouts([replace(row, scores=(Score(value=None),)) for row in rows()], step=0)
    assert math.isnan(found["reward/mean"]) and math.isnan(found["reward/std"])


HEALTHY = {"reward/errored": 0.1, "rollout/errored": 0.1, "mismatch/mean_abs_logprob": 1.0}


@pytest.mark.parametrize(
    ("metric", "limit"),
    [
        ("reward/errored", "max_reward_error_rate=0.1"),
        ("rollout/errored", "max_rollout_error_rate=0.1"),
        ("mismatch/mean_abs_logprob", "max_mismatch=1"),
    ],
)
def test_a_limit_is_passed_only_beyond_it_and_is_named(metric, limit):
    check_limits(HEALTHY, LimitsConfig(), skipped_in_a_row=3, step=5)
    with pytest.raises(LimitExceeded, match=f"step 5: {metric}=.* is above limits.{limit}"):
        check_limits(HEALTHY | {metric: HEALTHY[metric] * 1.01}, LimitsConfig(), skipped_in_a_row=0, step=5)


def test_too_many_skipped_updates_stop_the_run():
    with pytest.raises(LimitExceeded, match=r"4 updates in a row .*limits\.max_skipped_updates=3"):
        check_limits(HEALTHY, LimitsConfig(), skipped_in_a_row=4, step=9)
