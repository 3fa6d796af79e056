"""Why a run's last step failed: the most frequent reason among its stored rollouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llmrl.report.samples import visible
from llmrl.report.stored import read_samples, rollout_files

LONGEST = 300  # characters of a reason


def most_frequent(run: Path) -> str:
    """A continuation of an error message about the newest stored step; empty if nothing in it failed."""
    files = rollout_files(run)
    if not files:
        return ""
    step = max(files)
    samples = read_samples(files[step], step=step)
    reasons = Counter(reason for sample in samples if (reason := sample.score_error or sample.status_reason))
    if not reasons:
        return ""
    reason, count = reasons.most_common(1)[0]
    return (
        f"\nmost frequent reason, {count} of {len(samples)}: {visible(reason)[:LONGEST]}"
        f"\n`llmrl samples {run} --step {step}` shows them all"
    )
