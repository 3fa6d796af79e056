"""What goes between the harness and its isolated processes."""

import json
import os
import time

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.sandbox import Limits
from llmrl.rewards.sandbox.box import choose_rung, open_box


def test_two_messages_that_come_at_once_are_two_messages():
    test = {"source": "assert 1 == 1", "stubs": [], "library": {}, "open": []}
    with open_box("tester", Limits(), choose_rung(Limits()), 10.0) as box:
        lines = [json.dumps(message) + "\n" for message in ({}, test, test)]
        os.write(box.requests, "".join(lines).encode())
        for _ in range(2):
            assert box.receive(time.monotonic() + 30)["verdict"] == "passed"


def test_a_result_that_cannot_be_compared_or_written_is_a_wrong_one():
    tests = [[[1], 1], "assert f(2) == 2"]
    for program in (
        "from decimal import Decimal\ndef f(x): return Decimal('sNaN')\n",
        "from decimal import Decimal\ndef f(x): return [Decimal('sNaN')]\n",
        "def f(x): return chr(0xD800)\n",
    ):
        outcome = run_program(program, tests, kind="function", entry_point="f", timeout_s=20)
        assert (outcome.status, outcome.passed) == ("failed", 0), outcome
    outcome = run_program(
        "def f(x): raise ValueError(chr(0xD800) + chr(27))\n", tests, kind="function", entry_point="f"
    )
    assert outcome.detail.startswith("ValueError: \\ud800\\x1b")


def test_an_empty_array_is_close_to_nothing_but_an_empty_one():
    tests = [
        f"import numpy as np\nassert np.{test}" for test in ("allclose(f(1), 2.5)", "isclose(f(1), [2.5, 1]).all()")
    ]
    limits = Limits(packages=("numpy",))
    for value in ("[]", "()", "''", "{}"):
        assert (
            run_program(f"def f(x): return {value}\n", tests, kind="function", timeout_s=20, limits=limits).passed == 0
        )
    empty = ["import numpy as np\nassert np.allclose(f(1), np.array([])) and np.isclose(2.5, 2.5)"]
    assert run_program("def f(x): return []\n", empty, kind="function", timeout_s=20, limits=limits).passed == 1


def test_tests_that_die_before_the_program_answers_say_nothing_of_it_and_afterwards_fail_it():
    program = "def f(): return 1\n"
    alone = run_program(program, ["import os\nos._exit(1)"], kind="function", entry_point="f", timeout_s=20)
    assert alone.status == "harness_error" and "tests died" in alone.detail
    tests = ["import os\nif f(): os._exit(1)", "assert f() == 1"]
    asked = run_program(program, tests, kind="function", entry_point="f", timeout_s=20)
    assert asked.per_test == ("runtime_error", "not_run") and "of what the program answered" in asked.detail
