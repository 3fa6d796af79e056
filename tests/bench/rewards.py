"""The verifiers in numbers: `python tests/bench/rewards.py` prints one JSON line of rates (per second, wall clock), and
`python tests/bench/rewards.py cases` the maths checker's agreement with the hand-judged cases, by category."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.math_answer import verify_answer
from llmrl.rewards.sandbox import Limits, isolation_report


def rate(work: Callable[[int], object], *, seconds: float = 2.0) -> float:
    """Calls of `work(i)` a second."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for i in range(done, done + 20):
            work(i)
        done += 20
    return round(done / spent, 1)


def programs(isolation: str, *, count: int = 60, threads: int = 2) -> float:
    """Trivial programs a second, each in a fresh process, two at a time."""
    limits = Limits(isolation=isolation)  # type: ignore[arg-type]

    def one(i: int) -> str:
        program = "def f(x):\n    return x + 1\n"
        return run_program(program, [[[i], i + 1]], kind="function", entry_point="f", limits=limits).status

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        statuses = list(pool.map(one, range(count)))
    if set(statuses) != {"passed"}:
        raise RuntimeError(f"a trivial program did not pass: {set(statuses)}")
    return round(count / (time.perf_counter() - start), 1)


HOSTILE = (
    "\\sum_{k=1}^{10^{12}} \\frac{1}{k^k}", "\\int_0^{\\infty} e^{-x^{99}}\\sin(x^{77})dx", "9^{9^{9^{9}}}",
    "\\int_0^1 \\frac{1}{1+x^{17}}dx", "\\prod_{k=1}^{10^9} \\sqrt{k}", "\\lim_{x\\to0} x^{x^{x^{x}}}",
    "\\sqrt{" * 100 + "2" + "}" * 100, "(x+y+z)^{999}", "\\binom{10^9}{10^8}", "\\sin(10^{10^{10}})",
)  # fmt: skip


def slowest() -> float:
    """Seconds of the slowest of several answers made to be slow, beside the limit of 5 s; starts of workers included."""
    worst = 0.0
    for answer in HOSTILE * 2:
        start = time.perf_counter()
        verify_answer(f"\\boxed{{{answer}}}", "\\sqrt{2}+x")
        worst = max(worst, time.perf_counter() - start)
    return round(worst, 2)


def case_table() -> None:
    """Category, cases, agreement and false acceptances of the tables in tests/rewards."""
    from tests.rewards.test_math_answer import TABLE, marked

    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    fooled: Counter[str] = Counter()
    for _, category, question, gold, response, wanted, _ in TABLE:
        verdict = marked(question, gold, response)[0]
        for name in (category.removeprefix("second table: "), "all"):
            total[name] += 1
            right[name] += verdict is wanted
            fooled[name] += verdict is True and wanted is not True
    print("| category | cases | agree | wrongly accepted |\n|---|---|---|---|")
    for name in sorted(total, key=lambda n: (n == "all", n)):
        print(f"| {name} | {total[name]} | {right[name] / total[name]:.1%} | {fooled[name]} |")


def main() -> None:
    if sys.argv[1:] == ["cases"]:
        return case_table()
    solution = "She sells 16 - 3 - 4 = 9 eggs a day, for 9 * 2 = 18 dollars. " * 12
    integers = [(f"{solution}So the answer is $\\boxed{{{i}}}$.", str(i if i % 2 else i + 1)) for i in range(100)]
    lines = solution.replace(". ", ".\n")
    sentences = [f"{lines}Therefore, she earns ${i} every day at the market." for i in range(100)]
    print(
        json.dumps(
            {
                "math_sentence_per_s": rate(lambda i: verify_answer(sentences[i % 100], "18")),
                "math_integer_per_s": rate(lambda i: verify_answer(*integers[i % 100])),
                "math_fraction_per_s": rate(lambda i: verify_answer("\\boxed{\\frac{14}{4}}", "3\\frac12")),
                "math_symbolic_per_s": rate(lambda i: verify_answer("\\boxed{(x-1)(x+1)}", "x^2-1")),
                **{f"programs_{r}_per_s": programs(r) for r, why in isolation_report().items() if not why},
                "programs_none_per_s": programs("none"),
                "math_hostile_slowest_s": slowest(),
                "math_surd_per_s": rate(lambda i: verify_answer("\\boxed{\\sqrt8}", "2\\sqrt2")),
            }
        )
    )


if __name__ == "__main__":
    main()
