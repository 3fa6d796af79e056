import pytest

from llmrl.rewards.format import RegexFormat, ThinkTags
from llmrl.types import Status


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>2 + 2</think>4", 1.0),
        ("  <think>\nlong\n</think>\n\n4 ", 1.0),
        ("<think></think>4", 0.0),
        ("<think>  </think>4", 0.0),
        ("<think>2 + 2</think>", 0.0),
        ("2 + 2</think>4", 0.0),
        ("hm <think>2</think>4", 0.0),
        ("<think>a</think><think>b</think>4", 0.0),
        ("<think>2 + 2", 0.0),
        ("", 0.0),
    ],
)
def test_think_tags_want_one_nonempty_reasoning_and_an_answer(trajectory, text, value):
    assert ThinkTags()(trajectory(text)).value == value


def test_answer_tags_and_an_opened_template(trajectory):
    tags = ThinkTags(answer_tags=True, opened=True)
    assert tags(trajectory("2+2</think> <answer>4</answer>")).value == 1.0
    assert tags(trajectory("2+2</think> <answer>4</answer> so")).value == 0.0
    assert tags(trajectory("2+2</think> <answer> </answer>")).value == 0.0


def test_a_cut_completion_has_no_good_form(trajectory):
    score = ThinkTags()(trajectory("<think>2</think>4", status=Status.truncated()))
    assert (score.value, score.flags) == (0.0, ("truncated",))


def test_empty_reasoning_is_flagged(trajectory):
    assert ThinkTags()(trajectory("<think>\n</think>4")).flags == ("empty_reasoning",)


def test_regex_must_match_the_whole_text(trajectory):
    assert RegexFormat(pattern="[0-9]+", none=-0.5)(trajectory("46 or so")).value == -0.5
    with pytest.raises(ValueError, match="not a regular expression"):
        RegexFormat(pattern="(")
