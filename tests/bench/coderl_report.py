"""The tables of the CodeRL comparison, between the marks of recipes/programs/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llmrl.eval.metrics import clustered_interval, n_at_k, pass_at_k
from llmrl.eval.strategies.choosing import best_of_k

BEGIN, END = "<!-- comparison: written by make compare-coderl -->", "<!-- end of comparison -->"
NAMES = ("compile error", "runtime error", "failed test", "passed")
Counts = Sequence[Sequence[int]]  # the outcomes of each problem's samples


def write_report(recipes: Path, folder: Path, runs: Sequence[tuple[str, int, Path]]) -> None:
    """Write the tables of the finished `runs` (method, seed, folder)."""
    parts = ["", "### Training, equal samples", "", *_training(folder, runs)]
    critics = [folder / f"{run.name}.critic.json" for _, _, run in runs]
    parts += _critics([json.loads(file.read_text()) for file in critics if file.is_file()])
    searches = [folder / f"{run.name}.sampling.json" for _, _, run in runs]
    parts += _sampling([json.loads(file.read_text()) for file in searches if file.is_file()])
    readme = recipes / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text("\n".join([before + BEGIN, *parts, "", END]) + rest.partition(END)[2])


def _training(folder: Path, runs: Sequence[tuple[str, int, Path]]) -> list[str]:
    rows = [["", "seeds", "pass@1", "pass@5", *NAMES, "minutes"]]
    rows.append(["warm start", "", *_shares([json.loads((folder / "base.samples.json").read_text())]), ""])
    for method in dict.fromkeys(method for method, _, _ in runs):
        mine = [run for name, _, run in runs if name == method]
        samples = [json.loads((folder / f"{run.name}.samples.json").read_text()) for run in mine]
        minutes = mean(json.loads((run / "cost.json").read_text()) / 60 for run in mine)
        rows.append([method, str(len(mine)), *_shares(samples), f"{minutes:.0f}"])
    return _table(rows)


def _shares(seeds: Sequence[Counts]) -> list[str]:
    """pass@1 and pass@5 with intervals over problems (a problem's mean over seeds), and the shares of outcomes."""
    problems = list(zip(*seeds, strict=True))
    cells = []
    for k in (1, 5):
        means = [mean(pass_at_k(len(s), sum(o == 3 for o in s), k) for s in problem) for problem in problems]
        cells.append(_with_interval(means))
    flat = [o for seed in seeds for problem in seed for o in problem]
    return [*cells, *(f"{sum(o == k for o in flat) / len(flat):.2f}" for k in range(4))]


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


def _sampling(found: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """One program submitted, or five, from the same number of generated tokens."""
    if not found:
        return []
    rows = [["", "one submitted", "five submitted", "tokens a problem"]]

    def row(name: str, pool: str, choose: Callable[[Mapping[str, Any], int], float]) -> None:
        problems = list(zip(*(seed[pool] for seed in found), strict=True))
        cells = [_with_interval([mean(choose(one, n) for one in problem) for problem in problems]) for n in (1, 5)]
        tokens = mean(one["tokens"] for problem in problems for one in problem)
        rows.append([name, *cells, f"{tokens:.0f}"])

    row("plain", "plain", lambda p, n: pass_at_k(len(p["hidden"]), sum(p["hidden"]), min(n, len(p["hidden"]))))
    row("best of n by critic", "plain", lambda p, n: _top(p, n))
    row("example-test filter", "plain", lambda p, n: n_at_k(p["hidden"], p["examples"], n))
    row("refine, filter", "refine", lambda p, n: n_at_k(p["hidden"], p["examples"], n))
    row("refine + repair, filter", "refine + repair", lambda p, n: n_at_k(p["hidden"], p["examples"], n))
    return ["", "### Sampling, equal tokens", "", *_table(rows)]


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
