import pytest

from llmrl.rewards.combine import WeightedSum
from llmrl.rewards.exact_number import ExactNumber
from llmrl.rewards.format import RegexFormat
from llmrl.types import Score


def test_the_sum_is_weighted_and_the_parts_are_kept_unweighted(trajectory):
    reward = WeightedSum(
        rewards={"exact": ExactNumber(), "format": RegexFormat(pattern="[0-9]+")}, weights={"format": 0.25}
    )
    assert reward(trajectory("46", "46")) == Score(
        value=1.25, parts={"exact": 1.0, "format": 1.0}, reason="exact: read 46"
    )
    assert reward(trajectory("It is 46", "46")).value == 1.0
    assert reward(trajectory("47", "46")).value == 0.25


def test_parts_that_do_not_apply_are_left_out_and_none_applying_gives_none(trajectory):
    some = WeightedSum(rewards={"a": lambda t: Score(value=None), "b": lambda t: Score(value=0.5, parts={"x": 2.0})})
    assert some(trajectory("1")).value == 0.5
    assert some(trajectory("1")).parts == {"b": 0.5, "b/x": 2.0}
    assert WeightedSum(rewards={"a": lambda t: Score(value=None)})(trajectory("1")).value is None


def test_an_error_in_a_part_is_an_error_of_the_sum(trajectory):
    def broken(t):
        raise KeyError("column")

    score = WeightedSum(rewards={"good": lambda t: Score(value=1.0, flags=("seen",)), "bad": broken})(trajectory("1"))
    assert score.value is None
    assert "bad:" in score.error
    assert "KeyError" in score.error
    assert score.parts == {"good": 1.0}
    assert score.flags == ("seen",)


def test_weights_must_name_known_rewards():
    with pytest.raises(ValueError, match="typo"):
        WeightedSum(rewards={"a": ExactNumber()}, weights={"typo": 1.0})
