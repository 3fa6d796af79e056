"""Several runs side by side: paired tests on held-out problems, curves over each other, what their recipes differ in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmrl.report.read import Run, series
from llmrl.settings.load import flat

CURVES = {"eval/accuracy": "held-out accuracy", "eval/loss": "held-out loss", "reward/mean": "reward"}
ALWAYS_DIFFERENT = ("name", "runs_dir", "description")


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What the recipes differ in: dotted key -> its value in each run, None where it is not set."""
    recipes = [dict(flat(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for one in recipes for key in one))
    found = {key: [one.get(key) for one in recipes] for key in keys if key not in ALWAYS_DIFFERENT}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def solved(run: Path) -> tuple[int, dict[str, bool]] | None:
    """(step, problem id -> whether it was solved) of a run's last stored evaluation; None if none is stored."""
    files = sorted((run / "evals").glob("step-*.jsonl"))
    if not files:
        return None
    rows = [json.loads(line) for line in files[-1].read_text().splitlines()]
    return int(files[-1].stem.removeprefix("step-")), {row["id"]: bool(row["solved"]) for row in rows}


def paired(a: Path, b: Path, test: Callable[[Sequence[float], Sequence[float]], Any]) -> tuple[int, Any] | None:
    """(problems that both were asked, `test` of b against a on them); None without any."""
    first, second = solved(a), solved(b)
    if first is None or second is None:
        return None
    both = [name for name in first[1] if name in second[1]]
    if not both:
        return None
    return len(both), test(*([float(side[1][name]) for name in both] for side in (second, first)))


def plot_together(runs: Sequence[Run], file: Path) -> None:
    """The learning curves of `runs` over each other, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = {key: title for key, title in CURVES.items() if any(series(_points(run, key), key)[0] for run in runs)}
    figure, axes = pyplot.subplots(1, max(1, len(shown)), figsize=(6 * max(1, len(shown)), 4), squeeze=False)
    for axis, (key, title) in zip(axes[0], shown.items(), strict=False):
        for run in runs:
            steps, values = series(_points(run, key), key)
            axis.plot(steps, values, label=run.name, marker="o" if key.startswith("eval/") else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _points(run: Run, key: str) -> Any:
    return run.evals if key.startswith("eval/") else run.train
