"""Speed of the verifiers: `python tests/bench/rewards.py` prints one JSON line of rates (per second, wall clock)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from llmrl.rewards.math_answer import verify_answer


def rate(work: Callable[[int], object], *, seconds: float = 2.0) -> float:
    """Calls of `work(i)` a second."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for i in range(done, done + 20):
            work(i)
        done += 20
    return round(done / spent, 1)


def main() -> None:
    solution = "She sells 16 - 3 - 4 = 9 eggs a day, for 9 * 2 = 18 dollars. " * 12
    integers = [(f"{solution}So the answer is $\\boxed{{{i}}}$.", str(i if i % 2 else i + 1)) for i in range(100)]
    print(
        json.dumps(
            {
                "math_integer_per_s": rate(lambda i: verify_answer(*integers[i % 100])),
                "math_fraction_per_s": rate(lambda i: verify_answer("\\boxed{\\frac{14}{4}}", "3\\frac12")),
                "math_symbolic_per_s": rate(lambda i: verify_answer("\\boxed{(x-1)(x+1)}", "x^2-1")),
                "math_surd_per_s": rate(lambda i: verify_answer("\\boxed{\\sqrt8}", "2\\sqrt2")),
            }
        )
    )


if __name__ == "__main__":
    main()
