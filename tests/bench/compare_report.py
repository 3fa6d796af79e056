"""The comparison's table and plot: what every method reached, with intervals, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from llmrl.eval.metrics import clustered_interval, pass_at_k
from llmrl.train.folder import read_metrics

if TYPE_CHECKING:
    from tests.bench.compare import Run

BEGIN, END = "<!-- comparison: written by make compare -->", "<!-- end of comparison -->"
PLOT = "compare.png"
KS = (1, 4, 8)


def write_report(recipes: Path, folder: Path, runs: Sequence[Run], titles: Mapping[str, str], *, samples: int) -> None:
    """Put tables of `runs` between the marks of `recipes`/README.md, and the plot beside it."""
    parts = []
    for task, title in titles.items():
        of_task = [run for run in runs if run.task == task]
        if of_task:
            parts += [f"### {title}", "", *_table(of_task, folder / f"base-{task}.json", samples), ""]
    plot(recipes / PLOT, runs, titles)
    readme = recipes / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n".join([BEGIN, "", *parts, f"![held-out accuracy by step]({PLOT})", "", END])
    readme.write_text(before + body + after)


def _table(runs: Sequence[Run], base: Path, samples: int) -> list[str]:
    ks = [k for k in KS if k <= samples]
    heads = ["", "seeds", "greedy", *(f"pass@{k}" for k in ks), "diversity", "wall", "step", "peak memory"]
    rows = [heads, ["---"] * len(heads)]
    if base.is_file():
        rows.append(["before training", "", "", *_sampled_cells([json.loads(base.read_text())], samples), "", "", ""])
    for method in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == method]
        sampled = [json.loads((run.folder / "sampled.json").read_text()) for run in mine]
        greedy = [json.loads((run.folder / "summary.json").read_text())["accuracy_after"] for run in mine]
        costs = [json.loads((run.folder / "cost.json").read_text()) for run in mine]
        steps = [row["time/step"] for run in mine for row in _train_rows(run)]
        rows.append(
            [
                method,
                str(len(mine)),
                f"{mean(greedy):.3f} ({min(greedy):.2f} to {max(greedy):.2f})",
                *_sampled_cells(sampled, samples),
                f"{mean(cost['wall_s'] for cost in costs) / 60:.1f} min",
                f"{median(steps):.1f} s",
                f"{max(cost['peak_gib'] for cost in costs):.1f} GiB",
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in rows]


def _sampled_cells(by_seed: Sequence[list[dict[str, int]]], samples: int) -> list[str]:
    """pass@k with its interval over problems (seeds pooled by problem), and the diversity of right answers."""
    cells = []
    for k in (k for k in KS if k <= samples):
        per_problem = [[pass_at_k(samples, row["right"], k) for row in rows] for rows in zip(*by_seed, strict=True)]
        low, high = clustered_interval(per_problem)
        cells.append(f"{mean(map(mean, per_problem)):.3f} [{low:.3f}, {high:.3f}]")
    spread = diversity([row for rows in by_seed for row in rows])
    return [*cells, "" if spread is None else f"{spread:.2f}"]


def diversity(rows: Sequence[Mapping[str, int]]) -> float | None:
    """How different a problem's right answers are: 0 all the same text, 1 no two the same; mean over problems.

    Problems with fewer than two right answers say nothing; None if there are no others.

    >>> diversity([{"right": 3, "distinct": 2}, {"right": 1, "distinct": 1}])
    0.5
    """
    shares = [(row["distinct"] - 1) / (row["right"] - 1) for row in rows if row["right"] > 1]
    return mean(shares) if shares else None


def _train_rows(run: Run) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.folder) if row["kind"] == "train"]


def plot(file: Path, runs: Sequence[Run], titles: Mapping[str, str]) -> None:
    """Held-out greedy accuracy by step: the mean over seeds, the band from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in titles if any(run.task == task for run in runs)]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for method in dict.fromkeys(run.method for run in runs):
            curves = [_curve(run) for run in runs if (run.task, run.method) == (task, method)]
            steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
            if not steps:
                continue
            values = [[curve[step] for curve in curves] for step in steps]
            (line,) = axis.plot(steps, [mean(seeds) for seeds in values], marker="o", markersize=3, label=method)
            axis.fill_between(
                steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color()
            )
        axis.set_title(titles[task])
        axis.set_xlabel("step")
        axis.set_ylabel("held-out accuracy, greedy")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _curve(run: Run) -> dict[int, float]:
    return {row["step"]: row["eval/accuracy"] for row in read_metrics(run.folder) if row["kind"] == "eval"}
