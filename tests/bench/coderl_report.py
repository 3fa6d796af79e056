"""The tables and the plot of the CodeRL comparison, between the marks of recipes/programs/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llmrl.eval.metrics import clustered_interval, n_at_k, pass_at_k
from llmrl.eval.strategies.choosing import best_of_k

BEGIN, END = "<!-- comparison: written by make compare-coderl -->", "<!-- end of comparison -->"
PLOT = "compare.png"
NAMES = ("compile error", "runtime error", "failed test", "passed")
Counts = Sequence[Sequence[int]]  # the outcomes of each problem's samples


def write_report(recipes: Path, folder: Path, runs: Sequence[tuple[str, int, Path]]) -> None:
    """Write the tables and the plot of the finished `runs` (method, seed, folder)."""
    parts = ["", "### Training, equal samples", "", *_training(folder, runs)]
    parts += ["", f"![pass@1 by method, and by way of sampling]({PLOT})"]
    critics = [folder / f"{run.name}.critic.json" for _, _, run in runs]
    parts += _critics([json.loads(file.read_text()) for file in critics if file.is_file()])
    searches = [folder / f"{run.name}.sampling.json" for _, _, run in runs]
    searched = [json.loads(file.read_text()) for file in searches if file.is_file()]
    parts += _sampling(searched)
    _plot(recipes / PLOT, _passes(folder, runs), _submitted(searched, 1), _submitted(searched, 5))
    readme = recipes / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text("\n".join([before + BEGIN, *parts, "", END]) + rest.partition(END)[2])


def _training(folder: Path, runs: Sequence[tuple[str, int, Path]]) -> list[str]:
    rows = [["", "seeds", "pass@1", "pass@5", *NAMES, "minutes"]]
    for method, samples in _samples(folder, runs).items():
        costs = [json.loads((run / "cost.json").read_text())["wall_s"] / 60 for name, _, run in runs if name == method]
        cells = [_with_interval(_pass_at(samples, k)) for k in (1, 5)]
        flat = [o for seed in samples for problem in seed for o in problem]
        cells += [f"{sum(o == k for o in flat) / len(flat):.2f}" for k in range(4)]
        rows.append([method, str(len(costs) or ""), *cells, f"{mean(costs):.0f}" if costs else ""])
    return _table(rows)


def _samples(folder: Path, runs: Sequence[tuple[str, int, Path]]) -> dict[str, list[Counts]]:
    """By method, the samples of each seed's policy; the warm start first."""
    found = {"warm start": [json.loads((folder / "base.samples.json").read_text())]}
    for method, _, run in runs:
        found.setdefault(method, []).append(json.loads((folder / f"{run.name}.samples.json").read_text()))
    return found


def _pass_at(seeds: Sequence[Counts], k: int) -> list[float]:
    """pass@k of each problem, its mean over seeds."""
    problems = zip(*seeds, strict=True)
    return [mean(pass_at_k(len(s), sum(o == 3 for o in s), k) for s in problem) for problem in problems]


def _passes(folder: Path, runs: Sequence[tuple[str, int, Path]]) -> dict[str, list[float]]:
    return {method: _pass_at(samples, 1) for method, samples in _samples(folder, runs).items()}


def _critics(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Accuracy of the learned critics on programs they have not seen, whole and as prefixes."""
    if not found:
        return []
    rows = [["critic's answer on", "accuracy", "majority class", "AUC (chance 0.5)"]]
    looks: dict[str, Callable[[Mapping[str, Any]], float]] = {"whole programs": lambda row: row["whole"]}
    for share in ("0.25", "0.5", "0.75"):
        looks[f"the first {float(share):.0%}"] = lambda row, share=share: row["prefix"][share]  # type: ignore[misc]
    for name, look in looks.items():
        right = [mean((look(row) > 0.5) == row["passed"] for row in seed) for seed in found]
        most = [max(mean(row["passed"] for row in seed), 1 - mean(row["passed"] for row in seed)) for seed in found]
        areas = [_auc([look(row) for row in seed], [row["passed"] for row in seed]) for seed in found]
        rows.append([name, *(f"{mean(x):.2f}" for x in (right, most, areas))])
    return ["", "### The critic, on programs that it has not seen", "", *_table(rows)]


def _auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a passing program has a higher score than a failing one; ties count half."""
    good = [s for s, label in zip(scores, labels, strict=True) if label]
    bad = [s for s, label in zip(scores, labels, strict=True) if not label]
    if not good or not bad:
        return 0.5
    return mean((a > b) + 0.5 * (a == b) for a in good for b in bad)


WAYS: dict[str, tuple[str, Callable[[Mapping[str, Any], int], float]]] = {  # title -> pool, worth of n submitted
    "plain": ("plain", lambda p, n: pass_at_k(len(p["hidden"]), sum(p["hidden"]), min(n, len(p["hidden"])))),
    "best of n by critic": ("plain", lambda p, n: _top(p, n)),
    "example-test filter": ("plain", lambda p, n: n_at_k(p["hidden"], p["examples"], n)),
    "refine, filter": ("refine", lambda p, n: n_at_k(p["hidden"], p["examples"], n)),
    "refine + repair, filter": ("refine + repair", lambda p, n: n_at_k(p["hidden"], p["examples"], n)),
}


def _submitted(found: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], n: int) -> dict[str, list[float]]:
    """By way of sampling: of each problem the chance that one of `n` submitted programs passes, mean over seeds."""
    if not found:
        return {}
    problems = {way: zip(*(seed[pool] for seed in found), strict=True) for way, (pool, _) in WAYS.items()}
    return {way: [mean(WAYS[way][1](one, n) for one in problem) for problem in problems[way]] for way in WAYS}


def _sampling(found: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """One program submitted, or five, from the same number of generated tokens."""
    if not found:
        return []
    rows = [["", "one submitted", "five submitted", "tokens a problem"]]
    one, five = _submitted(found, 1), _submitted(found, 5)
    for way, (pool, _) in WAYS.items():
        tokens = mean(problem["tokens"] for seed in found for problem in seed[pool])
        rows.append([way, _with_interval(one[way]), _with_interval(five[way]), f"{tokens:.0f}"])
    return ["", "### Sampling, equal tokens", "", *_table(rows)]


def _plot(file: Path, *panels: Mapping[str, Sequence[float]]) -> None:
    """A panel a mapping, a point with its 95 % interval a row: methods, and ways of sampling with 1 and 5 submitted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = ("pass@1 after training", "one program submitted", "five programs submitted")
    shown = [(label, panel) for label, panel in zip(labels, panels, strict=True) if panel]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4.2 * len(shown), 2.8), squeeze=False)
    for axis, (label, panel) in zip(axes[0], shown, strict=True):
        for at, means in enumerate(panel.values()):
            low, high = clustered_interval(means)
            axis.errorbar(mean(means), -at, xerr=[[mean(means) - low], [high - mean(means)]], fmt="o", color="#0072b2")
        axis.set_yticks([-at for at in range(len(panel))], list(panel))
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _top(problem: Mapping[str, Any], n: int) -> float:
    if n == 1:
        return best_of_k(problem["critic"], problem["hidden"])
    ranked = sorted(range(len(problem["critic"])), key=lambda i: -problem["critic"][i])
    return float(any(problem["hidden"][i] for i in ranked[:n]))


def _with_interval(means: Sequence[float]) -> str:
    low, high = clustered_interval(means)
    return f"{mean(means):.3f} ({low:.2f} to {high:.2f})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]
