"""One did-you-mean: what it suggests, and what it does not."""

import pytest

from llmrl.nearest import closest, nearest


@pytest.mark.parametrize(
    ("typed", "known", "expected"),
    [
        ("gpro", ["gspo", "grpo"], "grpo"),  # letters swapped, though gspo is as near by difflib's ratio
        ("stepz", ["steps", "save_every"], "steps"),
        ("GSM8K", ["gsm8k", "math500"], "gsm8k"),
        ("math-500", ["gsm8k", "MATH500"], "MATH500"),
        ("sleep", ["grpo", "gspo"], None),
        ("grpo", ["grpo"], None),
        ("grpo", ["grpo", "grpo2"], "grpo2"),
        ("x", [], None),
    ],
)
def test_the_nearest_known_name(typed, known, expected):
    assert closest(typed, known) == expected


def test_without_a_near_name_everything_known_is_listed():
    assert nearest("sleep", ["grpo", "gspo"]) == "known: grpo, gspo"
    assert nearest("grop", ["grpo", "gspo"]) == "did you mean 'grpo'?"
