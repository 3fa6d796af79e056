"""Agreement with the hand-judged tables of maths cases: `python -m tests.bench.math_table FILE`.

--checker library is math-verify alone. --half dev prints every disagreement of one half of the cases, chosen by a
hash of the line; held prints only the counts of the other half; all prints the counts of everything.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

from tests.rewards.test_math_answer import read_cases


def ours(question, gold, response):
    from tests.rewards.test_math_answer import marked

    return marked(question, gold, response)[0]


def library(question, gold, response):
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    try:
        return bool(verify(parse(f"${gold}$"), parse(response)))
    except Exception:  # noqa: BLE001 - the library's own failures count as a refusal
        return False


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--checker", choices=["ours", "library"], default="ours")
    arguments.add_argument("--half", choices=["dev", "held", "all"], default="dev")
    given = arguments.parse_args()
    file, checker, half = given.file, given.checker, given.half
    check = {"ours": ours, "library": library}[checker]
    counts: dict[str, Counter] = {"with a box": Counter(), "without a box": Counter()}
    slowest = 0.0
    for line, category, question, gold, response, wanted in read_cases(file):
        held = bool(hashlib.sha256(line.encode()).digest()[0] & 1)
        if half != "all" and held != (half == "held"):
            continue
        start = time.monotonic()
        said = check(question, gold, response)
        slowest = max(slowest, time.monotonic() - start)
        count = counts["with a box" if "boxed" in response else "without a box"]
        kind = "right" if said is wanted else "wrong acceptance" if said else "wrong refusal"
        count[kind] += 1
        if kind != "right" and half == "dev":
            print(f"{kind:16} {category:32} {gold!r} :: {response!r}")
    for name, count in counts.items():
        total = sum(count.values())
        if total:
            print(
                f"{name}: {count['right']} of {total} ({count['right'] / total:.1%}), "
                f"{count['wrong acceptance']} wrong acceptances, {count['wrong refusal']} wrong refusals"
            )
    print(f"slowest {slowest:.2f} s")


if __name__ == "__main__":
    main()
