"""Agreement with the hand-judged tables of maths cases: `python -m tests.bench.math_table FILE`.

--checker library is math-verify alone. --show prints every disagreement; --categories the counts of each category. An
unseen table is measured without --show first: what has been looked at is no longer unseen.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from pathlib import Path

from tests.rewards.test_math_answer import marked, read_cases


def ours(question, gold, response):
    return marked(question, gold, response)[0]


def library(question, gold, response):
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    try:
        return bool(verify(parse(f"${gold}$"), parse(response)))
    except Exception:  # noqa: BLE001 - the library's own failures count as a refusal
        return False


def report(name: str, count: Counter) -> None:
    total = sum(count.values())
    print(
        f"{name}: {count['right']} of {total} ({count['right'] / total:.1%}), "
        f"{count['wrong acceptance']} wrong acceptances, {count['wrong refusal']} wrong refusals"
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--checker", choices=["ours", "library"], default="ours")
    arguments.add_argument("--show", action="store_true")
    arguments.add_argument("--categories", action="store_true")
    given = arguments.parse_args()
    check = {"ours": ours, "library": library}[given.checker]
    counts: dict[str, Counter] = {}
    slowest = 0.0
    for _, category, question, gold, response, wanted in read_cases(given.file):
        start = time.monotonic()
        said = check(question, gold, response)
        slowest = max(slowest, time.monotonic() - start)
        kind = "right" if said is wanted else "wrong acceptance" if said else "wrong refusal"
        for name in (category, "with a box" if "boxed" in response else "without a box"):
            counts.setdefault(name, Counter())[kind] += 1
        if kind != "right" and given.show:
            print(f"{kind:16} {category:32} {gold!r} :: {response!r}")
    totals = {name: counts.pop(name) for name in ("with a box", "without a box") if name in counts}
    for name, count in {**(counts if given.categories else {}), **totals}.items():
        report(name, count)
    print(f"slowest {slowest:.2f} s")


if __name__ == "__main__":
    main()
