"""Are two evaluations different? Paired on the questions that both asked, task by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.errors import EvalError
from llmrl.eval.metrics import PairedDifference, paired_difference
from llmrl.eval.records import read_records
from llmrl.eval.results import question_scores

NAMED = ("prompt", "sampling", "verifier", "data")  # settings whose difference makes a comparison doubtful


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskComparison:
    """`result.difference` is A minus B. `only_a`, `only_b`: scored questions that the other lacks; they are left out.

    `warnings` say which settings differ besides the model.
    """

    task: str
    score_a: float
    score_b: float
    result: PairedDifference
    only_a: int
    only_b: int
    warnings: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence: which is better, or that the data cannot tell."""
        found = self.result
        if not found.significant:
            return f"no significant difference (p = {found.p_value:.3g})"
        return f"{'A' if found.difference > 0 else 'B'} is better (p = {found.p_value:.3g})"

    def sentence(self, name_a: str, name_b: str) -> str:
        """Whether the difference is real, with its size, interval and test."""
        found = self.result
        size, low, high = (100 * x for x in (found.difference, found.low, found.high))
        shown = f"A - B = {size:+.1f} points, 95 % [{low:+.1f}, {high:+.1f}], p = {found.p_value:.3g} ({found.test}, "
        shown += f"{found.questions} questions)"
        if not found.significant:
            return f"{self.task}: no real difference is shown between A ({name_a}) and B ({name_b}): {shown}"
        better, worse = (f"A ({name_a})", f"B ({name_b})")[:: 1 if found.difference > 0 else -1]
        return f"{self.task}: {better} is really better than {worse}: {shown}"


def compare(a: Path, b: Path, *, seed: int = 0) -> list[TaskComparison]:
    """Compare two --out folders on every task that both hold. EvalError if there is none or nothing to pair up."""
    files_a, files_b = ({path.stem: path for path in sorted(folder.glob("*.jsonl"))} for folder in (a, b))
    shared = [task for task in files_a if task in files_b]
    if not shared:
        raise EvalError(
            f"{a} ({', '.join(files_a) or 'no task'}) and {b} ({', '.join(files_b) or 'no task'}) share no task"
        )
    return [_compare_files(task, files_a[task], files_b[task], seed) for task in shared]


def _compare_files(task: str, a: Path, b: Path, seed: int) -> TaskComparison:
    (settings_a, records_a), (settings_b, records_b) = read_records(a), read_records(b)
    scores_a, scores_b = question_scores(records_a), question_scores(records_b)
    both = [question for question in scores_a if question in scores_b]
    if not both:
        raise EvalError(f"task {task}: {a} and {b} have no scored question in common")
    paired_a, paired_b = [scores_a[question] for question in both], [scores_b[question] for question in both]
    return TaskComparison(
        task=task,
        score_a=sum(paired_a) / len(both),
        score_b=sum(paired_b) / len(both),
        result=paired_difference(paired_a, paired_b, seed=seed),
        only_a=len(scores_a) - len(both),
        only_b=len(scores_b) - len(both),
        warnings=_warnings(settings_a, settings_b),
    )


def _warnings(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    for name in NAMED:
        parts_a, parts_b = a.get(name, {}), b.get(name, {})
        for part in sorted({*parts_a, *parts_b}):
            if parts_a.get(part) != parts_b.get(part) and part not in ("origin", "available"):
                found.append(f"{name}.{part} differs: {parts_a.get(part)!r:.60} and {parts_b.get(part)!r:.60}")
    return tuple(found)
