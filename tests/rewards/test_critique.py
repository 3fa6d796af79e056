"""Critique rewards by hand and by their properties; slow definitions are judged in tests/test_conformance.py."""

import doctest
import itertools
import math
import time

import pytest

from llmrl.rewards import critique
from llmrl.rewards.critique import (
    credited,
    discrimination_reward,
    graded_discrimination,
    refinement_reward,
    verdict,
)

RIGHT = "Correctness of the final answer: Correct"
WRONG = "Correctness of the final answer: Wrong"


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(critique).failed == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"Step sentence: 2 + 2 = 5\nCorrectness of the step: Wrong\n{WRONG}\nExplanation: it is 4.", "wrong"),
        (f"Correctness of the step: Wrong\n{RIGHT}", "correct"),  # verdicts on steps are not read
        ("correctness OF the final answer : correct.", "correct"),
        ("**Correctness of the final answer:** **Incorrect**", "wrong"),
        ("Correctness of the final answer: [Wrong]", "wrong"),
        ("Correctness of the final answer:\n\n`correct`", "correct"),
        ("Correctness of the final answer: not correct", "wrong"),
        ("Correctness of the final answer: Wrong, the correct answer is 5.", "wrong"),
        (f"{WRONG}\n{WRONG}", "wrong"),
        (f"{RIGHT}\n{WRONG}", None),
        (f"{WRONG}\n{RIGHT}", None),
        ("Correctness of the final answer: Correct|Wrong", None),
        ("Correctness of the final answer: Correct or Wrong", None),
        ("Correctness of the final answer: Correctly solved", None),
        ("Correctness of the final answer: unclear. Correct steps, though.", None),
        ("The final answer is correct.", None),
        ("Correctness of the final answer:", None),
        ("", None),
    ],
)
def test_verdicts_by_hand(text, said):
    assert verdict(text) == said


def test_the_strict_parser_credits_the_true_verdict_alone():
    assert credited(RIGHT, True) and credited(WRONG, False)
    assert not credited(RIGHT, False) and not credited(WRONG, True)
    for text in ("", f"{RIGHT}\n{WRONG}"):
        assert not credited(text, True) and not credited(text, False)


def test_the_released_parser_is_the_authors_with_its_hole():
    def reads(text):
        return credited(text, True, parser="released"), credited(text, False, parser="released")

    assert reads(RIGHT) == (True, False)
    assert reads(WRONG) == (False, True)
    assert reads(f"{WRONG}\n{RIGHT}") == (True, True)  # both verdicts: always right
    assert reads(RIGHT + "ly solved") == (True, False)
    for text in (RIGHT.lower(), "Correctness of the final answer: Incorrect", RIGHT.replace(": ", ":"), ""):
        assert reads(text) == (False, False)


def test_discrimination_reward_by_hand():
    assert [discrimination_reward(c) for c in (True, False)] == [1.0, 0.0]
    assert [discrimination_reward(c, scheme="released") for c in (True, False)] == [1.0, -1.0]


# help: (draft, refinement) -> value, from equations 4 to 6
HELP = {
    "r_refine": {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.0, (1, 1): 1.0},
    "r_delta": {(0, 0): 0.0, (0, 1): 1.0, (1, 0): -1.0, (1, 1): 0.0},
    "r_correction": {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.0, (1, 1): 0.2},
}


@pytest.mark.parametrize("mode", HELP)
def test_refinement_reward_is_its_table(mode):
    for draft, refined in itertools.product((0, 1), repeat=2):
        helped = HELP[mode][draft, refined]
        for beta in (0.2, 0.7):
            options = {"mode": mode, "beta": beta}
            assert refinement_reward(bool(draft), bool(refined), True, **options) == pytest.approx(helped + beta)
            assert refinement_reward(bool(draft), bool(refined), False, **options) == pytest.approx(helped)
            released = options | {"scheme": "released"}
            assert refinement_reward(bool(draft), bool(refined), True, **released) == pytest.approx(helped + beta)
            assert refinement_reward(bool(draft), bool(refined), False, **released) == -1.0


def test_a_right_verdict_is_always_worth_more():
    for draft, refined, mode, scheme in itertools.product((False, True), (False, True), HELP, ("paper", "released")):
        right, wrong = (refinement_reward(draft, refined, c, mode=mode, scheme=scheme) for c in (True, False))
        assert right > wrong


def test_graded_discrimination_by_hand_and_its_symmetry():
    assert graded_discrimination(5, 5, delta=2) == 1.0
    assert graded_discrimination(5, 6, delta=2) == 0.5
    assert graded_discrimination(5, 7, delta=2) == 0.0
    assert graded_discrimination(5, 99, delta=2) == 0.0
    for a, b in ((0.0, 0.3), (-1.5, 2.0)):
        assert graded_discrimination(a, b, delta=4) == graded_discrimination(b, a, delta=4)
        assert graded_discrimination(a + 7, b + 7, delta=4) == pytest.approx(graded_discrimination(a, b, delta=4))
        assert graded_discrimination(10 * a, 10 * b, delta=40) == pytest.approx(graded_discrimination(a, b, delta=4))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: credited(RIGHT, True, parser="lenient"), "parser='lenient'"),
        (lambda: discrimination_reward(True, scheme="code"), "scheme='code'"),
        (lambda: refinement_reward(True, True, True, scheme="code"), "scheme='code'"),
        (lambda: refinement_reward(True, True, True, mode="help"), "mode='help'"),
        (lambda: graded_discrimination(1, 1, delta=0), "delta=0"),
        (lambda: graded_discrimination(1, 1, delta=math.nan), "delta=nan"),
        (lambda: graded_discrimination(math.nan, 1, delta=1), "critic_score=nan"),
    ],
)
def test_unknown_options_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_a_hostile_critique_costs_little():
    start = time.monotonic()
    for piece in ("correctness of the final answer", "correctness ", "* ", RIGHT[:-8] + ": |"):
        assert verdict(piece * 5_000) is None
    assert time.monotonic() - start < 5
