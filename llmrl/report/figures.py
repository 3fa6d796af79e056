"""The numbers behind the page's charts, as plain JSON-ready structures: metrics by column, phases, distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrl.report.read import Point, columns, finite, spread
from llmrl.report.stored import read_scores_and_lengths, rollout_files

MAX_POINTS = 1500
MAX_DISTRIBUTION_STEPS = 200
MAX_REWARD_LEVELS = 7
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LENGTH_BINS = 24


def metric_columns(points: Sequence[Point], *, limit: int = MAX_POINTS) -> dict[str, Any]:
    """`{"step": [...], "columns": {key: [...]}, "bucket": k}`: all metrics, None where a step lacks one.

    More than `limit` points are averaged over `bucket` neighbouring points each; its step is the last of them.
    """
    bucket = max(1, math.ceil(len(points) / limit))
    chunks = [points[i : i + bucket] for i in range(0, len(points), bucket)]
    return {
        "step": [chunk[-1].step for chunk in chunks],
        "columns": {key: [_mean([point.get(key) for point in chunk]) for chunk in chunks] for key in columns(points)},
        "bucket": bucket,
    }


def distributions(run: Path, notes: list[str], *, limit: int = MAX_DISTRIBUTION_STEPS) -> dict[str, Any]:
    """Reward shares and length quantiles per stored step, and length histograms early, in the middle and late.

    At most `limit` evenly spread steps are read; a file that cannot be read is left out and named in `notes`.
    """
    files = rollout_files(run)
    steps: list[int] = []
    scores: list[list[float | None]] = []
    lengths: list[list[int]] = []
    for step in spread(list(files), limit):
        try:
            step_scores, step_lengths = read_scores_and_lengths(files[step])
        except ValueError as error:
            notes.append(str(error))
            continue
        if step_scores:
            steps.append(step)
            scores.append(step_scores)
            lengths.append(step_lengths)
    if not steps:
        return {"step": []}
    labels, shares = reward_shares(scores)
    return {
        "step": steps,
        "stored": len(files),
        "reward": {"labels": labels, "shares": shares},
        "length": [np.quantile(row, QUANTILES).tolist() for row in lengths],
        "thirds": length_histograms(steps, lengths),
    }


def reward_shares(scores: Sequence[Sequence[float | None]]) -> tuple[list[str], list[list[float]]]:
    """Labels of the reward levels, lowest first, and for every step the share of its rows at each level.

    Few distinct rewards are shown as they are, many in equal bins; rows without a score are the level "none", last.

    >>> reward_shares([[0.0, 1.0, 1.0, None]])
    (['0', '1', 'none'], [[0.25, 0.5, 0.25]])
    """
    values = sorted({round(score, 6) for row in scores for score in row if score is not None})
    if len(values) <= MAX_REWARD_LEVELS:
        labels = [f"{value:.4g}" for value in values]
        place = {value: i for i, value in enumerate(values)}
        index = [[len(values) if s is None else place[round(s, 6)] for s in row] for row in scores]
    else:
        n, low, width = MAX_REWARD_LEVELS, values[0], (values[-1] - values[0]) / MAX_REWARD_LEVELS
        labels = [f"{low + i * width:.3g} to {low + (i + 1) * width:.3g}" for i in range(n)]
        index = [[n if s is None else min(n - 1, int((s - low) / width)) for s in row] for row in scores]
    levels = len(labels)
    if any(level == levels for row in index for level in row):
        labels.append("none")
    shares = [[rounded(row.count(level) / len(row)) or 0.0 for level in range(len(labels))] for row in index]
    return labels, shares


def length_histograms(steps: Sequence[int], lengths: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Shares of the sampled lengths in equal bins, over the first, middle and last third of the steps.

    With fewer than three steps there is one histogram of all of them.
    """
    longest = max((max(row) for row in lengths), default=0)
    width = max(1, math.ceil((longest + 1) / LENGTH_BINS))
    bins = longest // width + 1
    third = len(steps) // 3
    cuts = [(0, third), (third, len(steps) - third), (len(steps) - third, len(steps))] if third else [(0, len(steps))]
    names = ("early", "middle", "late") if third else ("all",)
    groups = []
    for name, (start, stop) in zip(names, cuts):
        found = [length for row in lengths[start:stop] for length in row]
        counts = np.bincount(np.array(found) // width, minlength=bins).tolist()
        label = f"{name}: steps {steps[start]} to {steps[stop - 1]}"
        groups.append({"label": label, "shares": [rounded(count / len(found)) for count in counts]})
    return {"edges": [i * width for i in range(bins)], "width": width, "groups": groups}


def rounded(value: float | None, digits: int = 5) -> float | None:
    """`value` to `digits` significant digits, to keep the page small; None stays None."""
    return None if value is None else finite(float(f"{value:.{digits}g}"))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(sum(known) / len(known)) if known else None
