import pytest

from llmrl.rewards.exact_number import ExactNumber, parse_number
from llmrl.types import Status

RIGHT = [
    "46", "46.", " 46\n", "12 + 34 = 46", "12+34=46.", "The answer is **46**.", "$46$", "\\boxed{46}", "so 46 apples",
    "12 + 34 = 46\n46", "12 and 34 give 46", "1. 46", "46.0", "46, 46", "<think>45 or 47</think>46", "(46)", "92/2",
]  # fmt: skip
WRONG = [
    "", "no idea", "47", "-46", "45, 46", "44,45,46", "45 or 46", "45\n46", "1. 45\n2. 46", "12 + 46", "50-46", "46th",
    "x46", "3 46", "12 + 34 = 46, 47", "46.5", "4 6", "46e1", "46/", "1,46", "<think>the answer is 46", "45 / 46",
    "45; 46", "- 45\n- 46", "46 apples, 3 pears",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_a_completion_that_ends_in_the_gold_number_scores_one(trajectory, text):
    assert ExactNumber()(trajectory(text, "46")).value == 1.0


@pytest.mark.parametrize("text", WRONG)
def test_wrong_glued_listed_or_unfinished_numbers_score_zero(trajectory, text):
    score = ExactNumber()(trajectory(text, "46"))
    assert score.value == 0.0
    assert score.reason


def test_numbers_are_compared_exactly_and_never_as_floats(trajectory):
    assert ExactNumber()(trajectory("10000000000000001", "10000000000000000")).value == 0.0
    assert ExactNumber()(trajectory("10,000,000,000,000,001", "10000000000000001")).value == 1.0
    assert ExactNumber()(trajectory("0.1", "0.10")).value == 1.0
    assert ExactNumber()(trajectory("0.1000000000000000001", "0.1")).value == 0.0


def test_strict_mode_takes_nothing_but_the_number(trajectory):
    strict = ExactNumber(mode="strict")
    assert strict(trajectory("46.", "46")).value == 1.0
    assert strict(trajectory("12 + 34 = 46", "46")).value == 0.0
    assert strict(trajectory("1,234", "1234")).value == 1.0


def test_a_marker_restricts_where_the_number_is_read(trajectory):
    marked = ExactNumber(after="####")
    assert marked(trajectory("9 * 2 = 18\n#### 18", "so it is #### 18")).value == 1.0
    assert marked(trajectory("9 * 2 = 18", "18")).value == 0.0


def test_a_gold_that_is_no_number_is_not_applicable(trajectory):
    score = ExactNumber()(trajectory("46", "forty-six"))
    assert score.value is None
    assert "forty-six" in score.reason


def test_a_number_at_the_cut_of_a_truncated_completion_does_not_count(trajectory):
    score = ExactNumber()(trajectory("12 + 34 = 4", "4", status=Status.truncated()))
    assert (score.value, "truncated" in score.flags) == (0.0, True)
    assert ExactNumber()(trajectory("it is 4, becau", "4", status=Status.truncated())).value == 1.0


def test_lists_are_flagged_as_stuffing(trajectory):
    for text in ("45, 46", "44,45,46", "45\n46"):
        assert "answer_stuffing" in ExactNumber()(trajectory(text, "46")).flags


def test_huge_texts_and_numbers_are_refused_quickly(trajectory):
    assert ExactNumber()(trajectory("9" * 100_000, "9")).value == 0.0
    assert ExactNumber()(trajectory("1 " * 50_000, "1")).value == 1.0
    assert parse_number("1" * 201) is None


def test_validate_passes_in_every_mode_and_unknown_modes_are_named():
    for reward in (ExactNumber(), ExactNumber(mode="strict"), ExactNumber(after="####")):
        reward.validate()
    with pytest.raises(ValueError, match="mode='first'"):
        ExactNumber(mode="first")
