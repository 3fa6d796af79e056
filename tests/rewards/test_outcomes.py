import itertools

import pytest

from llmrl.rewards.code_outcome import CodeOutcome
from llmrl.rewards.outcomes import Outcome, outcome_of, outcome_return

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, -2) == -3"]


def test_the_first_test_that_is_not_passed_decides():
    for codes in itertools.product([-2, -1, False, True], repeat=3):
        first = next((code for code in codes if code is not True), True)
        assert outcome_of(codes) == {-2: 0, -1: 1, False: 2, True: 3}[first]
    assert outcome_of([]) is None
    assert outcome_of([0, 1]) is Outcome.FAILED_TEST
    for bad in (2, -3, 1.0, None, "True"):
        with pytest.raises(ValueError, match="no result of a test"):
            outcome_of([True, bad])


def test_returns_are_the_paper_s_and_a_share_of_passed_tests_interpolates():
    assert [outcome_return(outcome) for outcome in Outcome] == [-1.0, -0.6, -0.3, 1.0]
    assert [outcome_return(Outcome.FAILED_TEST, passed=p) for p in (0.0, 0.5, 1.0)] == pytest.approx([-0.3, 0.35, 1.0])
    assert outcome_return(Outcome.RUNTIME_ERROR, passed=0.9) == -0.6
    assert outcome_return(Outcome.PASSED_TEST, passed=0.0, passed_test=2.0) == 2.0
    with pytest.raises(ValueError, match="share of tests"):
        outcome_return(Outcome.FAILED_TEST, passed=1.5)


def test_programs_get_the_return_and_the_parts_of_their_outcome(trajectory):
    reward = CodeOutcome(timeout_s=20)
    reward.validate()
    CodeOutcome(kind="stdio", timeout_s=20, passed_test=0.5).validate()
    rows = {
        ADD: (1.0, {"outcome": 3.0, "tests_passed": 1.0}, "passed_test"),
        "```python\ndef add(a, b):\n    return abs(a) + abs(b)\n```": (
            -0.3, {"outcome": 2.0, "tests_passed": 0.5}, "failed_test",
        ),
        "```python\ndef add(a, b):\n    return a / 0\n```": (
            -0.6, {"outcome": 1.0, "tests_passed": 0.0}, "runtime_error",
        ),
        "```python\ndef add(a, b)\n```": (-1.0, {"outcome": 0.0, "tests_passed": 0.0}, "compile_error"),
        "```python\ndef add(": (-1.0, {"outcome": 0.0, "tests_passed": 0.0}, "compile_error"),
    }  # fmt: skip
    for text, (value, parts, flag) in rows.items():
        score = reward(trajectory(text, tests=TESTS))
        assert (score.value, score.parts) == (value, parts), text
        assert score.flags[-1] == flag
    slow = CodeOutcome(timeout_s=0.5)(trajectory("```python\nwhile True: pass\n```", tests=TESTS))
    assert (slow.value, slow.flags) == (-0.6, ("timeout", "runtime_error"))
    half = "```python\ndef add(a, b):\n    return abs(a) + abs(b)\n```"
    assert CodeOutcome(timeout_s=20, partial=True)(trajectory(half, tests=TESTS)).value == pytest.approx(0.35)


def test_hidden_tests_decide_and_example_tests_are_only_reported(trajectory):
    lazy = "```python\ndef add(a, b):\n    return 3\n```"
    score = CodeOutcome(timeout_s=20)(trajectory(lazy, tests=TESTS[1:], example_tests=TESTS[:1]))
    assert score.value == -0.3
    assert score.parts == {"outcome": 2.0, "tests_passed": 0.0, "example_outcome": 3.0, "examples_passed": 1.0}
    bad_example = CodeOutcome(timeout_s=20)(trajectory(ADD, tests=TESTS, example_tests=["assert ("]))
    assert (bad_example.value, bad_example.parts) == (1.0, {"outcome": 3.0, "tests_passed": 1.0})
    with pytest.raises(ValueError, match="hidden tests need"):
        CodeOutcome(examples="tests")


def test_no_verdict_is_never_a_pass(trajectory):
    assert CodeOutcome()(trajectory(ADD)).value is None
    assert CodeOutcome()(trajectory(ADD, tests=[])).value is None
    broken = CodeOutcome()(trajectory(ADD, tests=["assert ("]))
    assert broken.value is None
    assert "cannot be parsed" in broken.error
