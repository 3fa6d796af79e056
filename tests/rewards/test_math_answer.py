import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmrl.rewards.math_answer import MathAnswer, verify_answer
from llmrl.rewards.validation import trajectory_of
from llmrl.types import Status

TABLES = sorted(Path(__file__).parent.glob("math_*.txt"))
WANTED = {"=": True, "!": False, "?": None, "~": True}  # ~: right, and known not to be read


def read_cases(file):
    """(line, category, question, gold, response, wanted) for every line of a table."""
    category = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("@ "):
            category = line[2:]
        elif category and line:
            gold, _, answer = line[2:].partition("::")
            question = ""
            if category.startswith("asked"):
                question, _, answer = answer[1:].partition(" ::")
            whole = category.startswith(("raw", "asked"))
            response = answer[1:].replace("\\n", "\n") if whole else f"So it is \\boxed{{{answer[1:]}}}."
            yield line, category, question, gold.strip(), response, WANTED[line[0]]


def marked(question, gold, response, timeout_s=5.0):
    """The reward's verdict: True, False, or None for a gold that cannot be read; and its flags."""
    score = MathAnswer(timeout_s=timeout_s)(trajectory_of(response, gold, question=question))
    return (None if score.value is None else score.value == 1.0), score.flags


TABLE = [(file.stem, *case[1:], case[0][0] == "~") for file in TABLES for case in read_cases(file)]


@pytest.mark.parametrize(("table", "category"), sorted({case[:2] for case in TABLE}))
def test_every_hand_judged_case_of_a_category(table, category):
    wrong = []
    for _, _, question, gold, response, wanted, known in [case for case in TABLE if case[:2] == (table, category)]:
        correct, flags = marked(question, gold, response)
        if wanted and "timeout" in flags:  # the table judges the mathematics, not the machine's load
            correct, flags = marked(question, gold, response, timeout_s=30.0)
        if correct is not (False if known else wanted):
            wrong.append((gold, response, wanted, correct))
    assert not wrong


def test_a_box_behind_an_unequal_sign_is_no_answer():
    assert verify_answer("$x \\neq \\boxed{5}$", "5").correct is False
    assert verify_answer("x \\ne \\boxed{5}", "5").correct is False


def test_the_table_is_large_and_has_more_wrong_answers_than_a_coin_would_need():
    assert len(TABLE) > 3500
    assert sum(wanted is False for *_, wanted, _ in TABLE) > 1000


def test_the_verdict_says_what_was_compared_and_why():
    verdict = verify_answer("It is \\boxed{7}, no wait, \\boxed{\\frac{14}{4}}", "3\\frac12")
    assert (verdict.correct, verdict.extracted, verdict.reason) == (True, "\\frac{14}{4}", "equal")
    assert verdict.flags == ("many_boxes",)
    assert verify_answer("", "7").flags == ("no_answer",)
    assert "answer_stuffing" in verify_answer(" ".join(f"\\boxed{{{i}}}" for i in range(9)), "8").flags


def test_strict_refuses_arithmetic_left_undone():
    for echo in ("12+34", "2^{10}", "5!", "\\sqrt{4}", "6 \\cdot 7", "\\frac{1+2}{3}"):
        value = {"12+34": "46", "2^{10}": "1024", "5!": "120", "\\sqrt{4}": "2", "6 \\cdot 7": "42"}.get(echo, "1")
        assert verify_answer(f"\\boxed{{{echo}}}", value).correct is True
        assert verify_answer(f"\\boxed{{{echo}}}", value, strict=True).correct is False
    for done in ("46", "46.0", "\\frac{92}{2}", "45\\frac{2}{2}"):
        assert verify_answer(f"\\boxed{{{done}}}", "46", strict=True).correct is True
    assert verify_answer("\\boxed{2.5 \\times 10^3}", "2500", strict=True).correct is True
    assert verify_answer("\\boxed{2\\sqrt{3}}", "2\\sqrt3", strict=True).correct is True


def test_it_works_in_any_thread():
    results = {}

    def check(i):
        results[i] = verify_answer(f"\\boxed{{\\sqrt{{{i * i * 2}}}}}", f"{i}\\sqrt2").correct

    threads = [threading.Thread(target=check, args=(i,)) for i in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: True for i in range(1, 13)}


def check_in_child(queue):
    queue.put([verify_answer("\\boxed{\\sqrt8}", "2\\sqrt2").correct, verify_answer("\\boxed{3}", "2\\sqrt2").correct])


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_it_works_in_daemon_children_of_every_start_method(method):
    assert verify_answer("\\boxed{\\sqrt2}", "\\sqrt{2}+0").correct is True  # this process has a worker already
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=check_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == [True, False]
    child.join(30)
    assert verify_answer("\\boxed{\\sqrt{18}}", "3\\sqrt{2}").correct is True


def test_a_comparison_past_its_deadline_is_wrong_counted_and_quick(monkeypatch):
    import llmrl.rewards.math_answer as module
    from llmrl.rewards.workers import WorkerPool

    monkeypatch.setattr(module, "_POOL", WorkerPool("tests_handlers:hang", size=1))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    start = time.monotonic()
    verdict = verify_answer("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", timeout_s=0.5)
    assert (verdict.correct, verdict.reason, verdict.flags) == (False, "timed out", ("timeout",))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("library", "gold", "answer"), [("mpmath", "2\\sqrt2", "\\sqrt8"), ("sympy", "\\frac12", "\\int_0^1 x\\,dx")]
)
def test_a_missing_library_is_an_error_and_never_a_wrong_answer(library, gold, answer, tmp_path, monkeypatch):
    import llmrl.rewards.math_answer as module
    from llmrl.rewards.scoring import score_one
    from llmrl.rewards.workers import WorkerPool

    (tmp_path / f"{library}.py").write_text("raise ImportError('it is not there')\n")
    home = str(Path(module.__file__).absolute().parents[2])
    monkeypatch.setattr("llmrl.rewards.workers.import_paths", lambda: [home, str(tmp_path), *sys.path])
    monkeypatch.setattr(module, "_POOL", WorkerPool("llmrl.rewards.maths.worker:handle", size=1))
    score = score_one(MathAnswer(), trajectory_of(f"\\boxed{{{answer}}}", gold))
    assert score.value is None
    assert "WorkerUnusable" in score.error
    assert "it is not there" in score.error


def test_hostile_answers_cost_little_time():
    start = time.monotonic()
    hostile = [
        "9^{" * 300 + "}" * 300,
        "(" * 5000,
        "\\frac{" * 2000,
        "1+" * 5000 + "1",
        "\\sqrt{" * 200 + "2" + "}" * 200,
    ]
    hostile += ["9" * 100_000, "x" * 5000, "\\boxed{" * 2000, "$" * 10_001, "(1,2)^{" * 30, "a_{" * 500, "|" * 999]
    hostile += [unit * (200_000 // len(unit)) for unit in ("\n", " \n\n", "\nQ:", "$4$is ", "12%so )", "answer", "**")]
    for text in hostile:
        assert verify_answer(f"\\boxed{{{text}}}", "5").correct is False
        assert verify_answer(text, "5").correct is False
        assert verify_answer("so 5 " * 20_000 + text, "7").correct is False
    assert time.monotonic() - start < 20


def test_scores_of_the_reward_and_its_flags(trajectory):
    reward = MathAnswer()
    reward.validate()
    assert reward(trajectory("\\boxed{0.5}", "\\frac12")).value == 1.0
    assert reward(trajectory("\\boxed{0.6}", "\\frac12")).value == 0.0
    none = reward(trajectory("\\boxed{5}", "\\frac{1}{"))
    assert none.value is None
    assert none.flags == ("unparsable_gold",)
    cut = reward(trajectory("the answer is 5", "5", status=Status.truncated()))
    assert (cut.value, cut.flags) == (0.0, ("truncated",))


def test_a_percent_sign_may_be_missing_only_where_the_question_asks_for_a_percentage(trajectory):
    from dataclasses import replace

    row = trajectory("\\boxed{20\\%}", "20")
    assert MathAnswer()(row).value == 0.0
    asked = replace(row, prompt=replace(row.prompt, text="By what percent does it grow?"))
    assert MathAnswer()(asked).value == 1.0
    assert MathAnswer()(replace(asked, text="\\boxed{0.2}")).value == 0.0


def test_importing_the_checker_is_quick_and_brings_no_heavy_library():
    code = (
        "import sys; import llmrl.rewards.math_answer as m; m.verify_answer('\\\\boxed{5}', '5');"
        "print([x for x in ('torch','sympy','mpmath','math_verify') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tolerance_column_widens_numbers_in_order_and_nothing_else(trajectory):
    from dataclasses import replace

    reward = MathAnswer(tolerance="tolerance")

    def value(said, gold, allowed):
        row = trajectory(f"\\boxed{{{said}}}", gold)
        return reward(replace(row, prompt=replace(row.prompt, columns={"tolerance": allowed}))).value

    assert value("1.58", "1.5", 0.1) == 1.0
    assert value("1.61", "1.5", 0.1) == 0.0
    assert value("1.58", "1.5", None) == 0.0
    assert value("2.05, 3", "2, 3", 0.1) == 1.0
    assert value("3, 2.05", "2, 3", 0.1) == 0.0
    assert value("x + 1.58", "1.5", 0.1) == 0.0


def test_another_turn_behind_a_plain_answer_is_not_read_for_a_box():
    text = "The answer is 8.<|im_end|>\n<|im_start|>user\nAnd 9 + 5?<|im_end|>\n<|im_start|>assistant\n\\boxed{14}"
    assert verify_answer(text, "8").correct is True
    assert verify_answer(text, "14").correct is False
