"""The maths verifier on real texts: `python -m tests.bench.math_texts`, with LLMRL_DATA or --data-dir.

Worked solutions of MATH's test set, with their boxes and with the boxes' contents in plain sight, against their golds; and
attempts at GSM8K by models, without their last line ("A: 18"), against labels of people. --show prints
the texts judged wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.rewards.test_math_answer import marked

Case = tuple[str, str, str, bool]  # question, gold, response, whether it is right
BOXES = ("\\boxed", "\\fbox")


def unboxed(text: str) -> str:
    """`text` with the contents of its boxes in their places.

    >>> unboxed(r"so $\\boxed{\\frac{1}{2}}$.")
    'so $\\\\frac{1}{2}$.'
    """
    for name in BOXES:
        while (at := text.find(name + "{")) >= 0:
            end = start = at + len(name) + 1
            depth = 1
            while depth and end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            text = text[:at] + text[start : end - 1] + text[end:]
    return text


def solutions(folder: Path, change: Callable[[str], str]) -> Iterator[Case]:
    for line in (folder / "math" / "test.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        yield row["problem"], row["answer"], change(row["solution"]), True


def attempts(folder: Path) -> Iterator[Case]:
    for line in (folder / "gsm8k_model_solutions" / "test.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        said, _, _ = row["attempt"].rpartition("\nA:")
        if said:
            yield row["problem"], row["gold_solution"].rpartition("A:")[2].strip(), said, row["correct"]


def judge(name: str, cases: Iterable[Case], show: bool) -> None:
    counts: Counter[tuple[bool, bool]] = Counter()
    begin = time.monotonic()
    for question, gold, response, wanted in cases:
        said = marked(question, gold, response)[0] is True
        counts[wanted, said] += 1
        if show and said is not wanted:
            print(f"{'wrong acceptance' if said else 'wrong refusal':16} {gold!r} :: {response[-300:]!r}")
    right, wrong = (counts[kind, False] + counts[kind, True] for kind in (True, False))
    accepted = f"{counts[True, True]} of {right} right ones accepted ({counts[True, True] / right:.1%})"
    passed = f", {counts[False, True]} of {wrong} wrong ones" if wrong else ""
    print(f"{name}: {accepted}{passed}; {time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("LLMRL_DATA", "data")))
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    judge("MATH, solutions with boxes", solutions(given.data_dir, str), given.show)
    judge("MATH, solutions without boxes", solutions(given.data_dir, unboxed), given.show)
    judge("GSM8K, attempts without their last line", attempts(given.data_dir), given.show)


if __name__ == "__main__":
    main()
