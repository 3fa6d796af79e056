import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmrl.rewards.code_tests import CodeTests, extract_program, run_program
from llmrl.rewards.sandbox import Limits, isolation_report
from llmrl.rewards.sandbox.stdio import equal_apps, equal_strict
from llmrl.types import Status

DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))
ADD = "def add(a, b):\n    return a + b\n"


def run(program, tests, **more):
    return run_program(program, tests, kind="function", **{"timeout_s": 20, **more})


def test_outcomes_of_honest_programs_that_are_right_wrong_or_broken():
    tests = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert 5 == add(2, 3)"]
    assert run(ADD, tests).per_test == ("passed",) * 3
    wrong = run("def add(a, b):\n    return abs(a) + b\n", tests)
    assert (wrong.status, wrong.passed, wrong.per_test) == ("failed", 2, ("passed", "failed", "passed"))
    assert run("def add(a, b)\n    return", tests).status == "compile_error"
    assert run("import nothing_like_this", tests).status == "runtime_error"
    broken = run("def add(a, b):\n    return a / 0\n", tests)
    assert (broken.status, broken.per_test) == ("runtime_error", ("runtime_error",) * 3)
    assert "ZeroDivisionError" in broken.detail
    assert run("def sub(a, b):\n    return a\n", tests).status == "runtime_error"
    assert run("while True: pass", tests, timeout_s=0.5).status == "timeout"
    slow = run("def add(a, b):\n    while a == -1: pass\n    return a + b\n", tests, timeout_s=0.5)
    assert (slow.status, slow.per_test) == ("timeout", ("passed", "timeout", "not_run"))


def test_tests_that_cannot_be_run_are_harness_errors_never_passes():
    for tests in ([], ["assert add(1"], [[1]], [[[1, 2], 3]], [5]):
        assert run(ADD, tests).status == "harness_error"
    assert run_program(ADD, [{"input": ""}], kind="stdio").status == "harness_error"
    assert run_program(ADD, ["assert add(1, 2) == 3"], kind="other").status == "harness_error"
    assert run(ADD, ["assert add(1, 2) == 3"], limits=Limits(isolation="unheard of")).status == "harness_error"


def test_argument_result_pairs_keep_types_apart_and_arguments_fresh():
    program = "def f(x):\n    if isinstance(x, list): x.append(1)\n    return x\n"
    pairs = [[[[1]], [1, 1]], [[[1]], [1, 1]], [[(1, 2)], (1, 2)], [[{1: "a"}], {1: "a"}], [[None], None]]
    pairs += [[[{1, 2}], {2, 1}], [[1.5], 1.5], [["é\n"], "é\n"], [[b"x"], b"x"], [[2**200], 2**200], [[1j], 1j]]
    assert run(program, pairs, entry_point="f").status == "passed"
    assert run(program, [[[(1, 2)], [1, 2]]], entry_point="f").status == "failed"
    assert run(program, [[["1"], 1]], entry_point="f").status == "failed"


def test_other_test_code_runs_away_from_the_program():
    program = (
        ADD
        + "class P:\n    def __init__(self, a):\n        self.a = a\n    def twice(self):\n        return self.a * 2\n"
    )
    program += "def fails():\n    raise KeyError('k')\ndef value(p):\n    return p.a\n"
    tests = [
        "assert abs(add(0.1, 0.2) - 0.3) < 1e-9",
        "import math\nassert math.isclose(add(1.0, 2.0), 3.0)",
        "for i in range(5):\n    assert add(i, i) == 2 * i",
        "assert set(add([1], [2])) == {1, 2}",
        "try:\n    fails()\n    assert False\nexcept KeyError:\n    pass",
        "assert P(4).twice() == 8",
        "p = P(1)\np.a = 7\nassert value(p) == 7",
        "def check(candidate):\n    assert candidate(1, 1) == 2\ncheck(add)",
    ]
    outcome = run(program, tests)
    assert outcome.status == "passed", outcome
    assert run(program.replace("a + b", "a - b"), tests[:1]).status == "failed"
    assert run(program, ["assert add(1, 1) == limit"], setup="limit = 2").status == "passed"


def test_a_shadowed_builtin_does_not_reach_the_tests():
    program = (
        "class Yes:\n    def __eq__(self, o): return True\nset = sorted = lambda x: Yes()\ndef f(x):\n    return [0]\n"
    )
    assert run(program, ["assert set(f(1)) == {1}", "assert sorted(f(1)) == [1]"]).passed == 0
    assert run("def sum(a, b):\n    return a + b\n", ["assert sum(1, 2) == 3"]).status == "passed"


def test_stdio_programs_run_once_a_test_with_their_own_input():
    program = "n = int(input())\nprint(sum(map(int, input().split()[:n])))\n"
    tests = [{"input": "2\n1 2\n", "output": "3\n"}, {"input": "1\n5 9\n", "output": "5"}, {"input": "", "output": ""}]
    outcome = run_program(program, tests, kind="stdio", timeout_s=20)
    assert outcome.per_test == ("passed", "passed", "runtime_error")
    assert run_program("print('3')\nraise SystemExit", tests[:1], kind="stdio", timeout_s=20).status == "passed"
    assert run_program("import sys; print('3'); sys.exit(2)", tests[:1], kind="stdio").status == "runtime_error"
    assert run_program("import os; os._exit(0)", tests[:1], kind="stdio").status == "failed"
    assert run_program("print(", tests[:1], kind="stdio").status == "compile_error"
    assert run_program("while True: pass", tests[:1], kind="stdio", timeout_s=0.5).status == "timeout"
    assert run_program("if __name__ == '__main__': print(3)", tests[:1], kind="stdio", timeout_s=20).status == "passed"


def test_the_two_comparisons_of_output():
    assert equal_strict("a\r\nb  \n\n", "a\nb")
    assert not equal_strict("a b", "a  b")
    assert equal_apps("0.1000000001 007", "0.1 7")
    assert not equal_apps("1000000001.0", "1000000000")
    assert not equal_apps("\u0661", "1")
    assert not equal_apps("1_0", "10")
    assert not equal_apps("inf", "1e999")
    assert not equal_strict("1.0", "1")
    assert equal_apps("1.0\nYes", "1 Yes")
    assert equal_apps("0.3333333", "0.33333331")
    assert not equal_apps("0.334", "0.333")
    assert not equal_apps("nan", "nan0")
    assert not equal_apps("1 2 3", "1 2")
    assert not equal_apps("10000000000000001", "10000000000000000")
    case = [{"input": "", "output": "1 2"}]
    assert run_program("print(1.0)\nprint(2)", case, kind="stdio").status == "failed"
    assert run_program("print(1.0)\nprint(2)", case, kind="stdio", comparison="apps").status == "passed"


def test_it_runs_from_many_threads_at_once():
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda i: run(ADD, [f"assert add({i}, 1) == {i + 1}"]).status, range(12)))
    assert outcomes == ["passed"] * 12
    assert threading.active_count() < 20


def test_nothing_is_left_open_or_lying_about(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    run(ADD, ["assert add(1, 2) == 3"])
    before = sorted(os.listdir("/proc/self/fd"))
    for rung, problem in isolation_report().items():
        if not problem:
            run(ADD, ["assert add(1, 2) == 3", "assert not add(0, 0)"], limits=Limits(isolation=rung))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert list(tmp_path.iterdir()) == []


def test_the_program_is_the_last_python_block():
    assert extract_program("```python\na = 1\n```\nand\n```python\nb = 2\n```\n```text\nout\n```") == "b = 2\n"
    assert extract_program("```\na = 1\n```") == "a = 1\n"
    assert extract_program("a = 1") == "a = 1"
    assert extract_program("```python\na = 1") is None
    assert extract_program("<think>```python\na\n```") is None
    assert extract_program("<think>```python\na\n```</think>") is None
    assert extract_program("") is None


def test_the_program_is_the_last_block_that_defines_what_is_tested():
    answer = "```python\ndef f(x):\n    return 1\n```\nUse it:\n```python\nprint(f(3))\n```\n"
    assert extract_program(answer, "f") == "def f(x):\n    return 1\n"
    assert extract_program(answer, None, ["assert f(3) == 1"]) == "def f(x):\n    return 1\n"
    assert extract_program(answer, "g") == "print(f(3))\n"
    assert extract_program(answer + "```python\nf = lambda x: 2\n```", "f") == "f = lambda x: 2\n"
    broken = "```python\ndef f(x)\n    return 1\n```\nand\n```python\nprint(1)\n```"
    assert extract_program(broken, "f") == "def f(x)\n    return 1\n"


@pytest.mark.parametrize("indent", ["", "    "])
def test_a_fence_inside_a_docstring_does_not_close_the_block(indent):
    doc = f'{indent}"""\n{indent}```python\n{indent}f(1)\n{indent}```\n{indent}"""\n'
    code = doc + "def f(x):\n    return x\n" if not indent else "def f(x):\n" + doc + "    return x\n"
    assert extract_program(f"So:\n```python\n{code}```\nDone.\n```text\n2\n```") == code
    assert extract_program("```python\nx = (\n```\nOh no") == "x = (\n"


def test_rewards_of_the_three_gradings_and_their_flags(trajectory):
    CodeTests(timeout_s=20).validate()
    CodeTests(kind="stdio", timeout_s=20).validate()
    CodeTests(grade="coderl", timeout_s=20).validate()
    tests = ["assert add(1, 2) == 3", "assert add(1, -2) == -1"]
    half = trajectory("```python\ndef add(a, b):\n    return a + abs(b)\n```", tests=tests)
    assert CodeTests(timeout_s=20)(half).value == 0.0
    assert CodeTests(timeout_s=20, grade="share")(half).value == 0.5
    coded = CodeTests(timeout_s=20, grade="coderl")(half)
    assert (coded.value, coded.flags, coded.parts) == (-0.3, ("failed",), {"tests_passed": 0.5})
    assert CodeTests(grade="coderl")(trajectory("```python\nx =\n```", tests=tests)).value == -1.0
    hack = CodeTests(timeout_s=20)(trajectory("```python\nimport os\nos._exit(0)\n```", tests=tests))
    assert "test_tampering" in hack.flags
    assert CodeTests()(trajectory("x = 1")).value is None
    assert CodeTests()(trajectory("```python\nx", tests=tests, status=Status.truncated())).flags == (
        "truncated",
        "no_program",
    )
    assert CodeTests()(trajectory("x = 1", tests=["assert ("])).error


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text().splitlines()]


# Their tests call a helper of the prompt. A row hands it over as `setup` (tests/eval/test_gold_code.py); without it the
# program's own would be called, and the tests refuse to trust that.
HELPED = ["HumanEval/32", "HumanEval/38", "HumanEval/50"]


@pytest.mark.slow
def test_all_humaneval_solutions_pass_but_those_whose_tests_lack_a_helper():
    def solve(row):
        tests = [f"{row['test']}\ncheck({row['entry_point']})"]
        program = row["prompt"] + row["canonical_solution"]
        return row["task_id"], run(program, tests, entry_point=row["entry_point"], timeout_s=60).status

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(solve, rows("humaneval/test.jsonl")))
    assert [outcome for outcome in outcomes if outcome[1] != "passed"] == [(name, "harness_error") for name in HELPED]
    assert len(outcomes) == 164


@pytest.mark.slow
def test_all_mbpp_references_pass():
    def solve(row):
        tests = row["test_list"] + (row.get("challenge_test_list") or [])
        return row["task_id"], run(row["code"], tests, setup=row.get("test_setup_code") or "", timeout_s=60).status

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(solve, rows("mbpp/mbpp.jsonl")))
    assert [outcome for outcome in outcomes if outcome[1] != "passed"] == []
    assert len(outcomes) > 900
