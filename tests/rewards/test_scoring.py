import math

import pytest

from llmrl.rewards.exact_number import ExactNumber
from llmrl.rewards.scoring import load_reward, score_all, score_one
from llmrl.types import Score, Status


def raises(trajectory):
    raise RuntimeError("broken")


class Batched:
    def __init__(self, result):
        self.result = result
        self.seen = 0

    def __call__(self, trajectory):
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories):
        self.seen = len(trajectories)
        return self.result(trajectories)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (raises, "RuntimeError: broken"),
        (lambda t: Score(value=math.nan), "nan"),
        (lambda t: Score(value=-math.inf), "-inf"),
        (lambda t: 1.0, "not a Score"),
        (lambda t: None, "not a Score"),
        (lambda t: Score(value="1"), "must be a float"),
    ],
)
def test_a_reward_that_fails_gives_an_error_and_no_value(trajectory, reward, words):
    score = score_one(reward, trajectory("46", "46"))
    assert score.value is None
    assert words in score.error


def test_a_failed_rollout_is_an_error_and_the_reward_never_sees_it(trajectory):
    reward = Batched(lambda ts: [Score(value=1.0) for _ in ts])
    scores = score_all(reward, [trajectory("46"), trajectory("46", status=Status.error("engine gone"))])
    assert [s.value for s in scores] == [1.0, None]
    assert "engine gone" in scores[1].error
    assert reward.seen == 1


def test_a_batch_of_the_wrong_length_spoils_the_batch_and_a_bad_element_only_itself(trajectory):
    rows = [trajectory("1"), trajectory("2")]
    assert all("1 scores for 2" in s.error for s in score_all(Batched(lambda ts: [Score(value=1.0)]), rows))
    mixed = score_all(Batched(lambda ts: [Score(value=math.nan), Score(value=0.5)]), rows)
    assert mixed[0].error
    assert mixed[1].value == 0.5
    assert all("ZeroDivisionError" in s.error for s in score_all(Batched(lambda ts: 1 / 0), rows))


def test_rewards_are_built_from_import_paths_with_clear_errors():
    assert load_reward("llmrl.rewards.exact_number:ExactNumber", {"mode": "strict"}) == ExactNumber(mode="strict")
    for path, words in (
        ("nothing", "package.module:name"),
        ("llmrl.rewards.absent:X", "cannot be imported"),
        ("llmrl.rewards.scoring:Absent", "has no"),
    ):
        with pytest.raises(ValueError, match=words):
            load_reward(path)
