"""The table, plot and examples of `compare_critique`: the paper's columns, over problems, drafts and seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from llmrl.eval.metrics import clustered_interval, critique_metrics, maj_at_k
from llmrl.eval.records import Record, read_records
from llmrl.eval.results import right
from llmrl.train.folder import read_metrics

if TYPE_CHECKING:
    from tests.bench.compare_critique import Run

BEGIN, END = "<!-- comparison: written by make compare-critique -->", "<!-- end of comparison -->"
PLOT = "compare.png"
COLOURS = {"stage_one": "#56b4e9", "stage_two": "#0072b2", "indirect": "#d55e00"}
Row = tuple[bool, bool, str | None]  # draft right, refinement right, verdict
HEADS = (
    "critic",
    "seeds",
    "Acc",
    "Δ",
    "Δ i→c",
    "Δ c→i",
    "Acc@Dis",
    "of right drafts",
    "of wrong ones",
    "malformed",
    "tokens",
)


def write_report(
    recipes: Path, folder: Path, runs: Sequence[Run], titles: Mapping[str, str], *, write: bool
) -> list[str]:
    """The lines of the report, put between the marks of `recipes`/README.md and printed; with `write` only."""
    lines = [*table(folder, runs, titles), ""]
    if runs:
        file = (recipes if write else folder) / PLOT
        plot(file, runs, titles)
        lines += [f"![discrimination and refined accuracy by step]({PLOT})", "", *examples(runs[-1])]
    print("\n".join(lines))
    if write:
        readme = recipes / "README.md"
        before, _, rest = readme.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        readme.write_text(before + "\n".join([BEGIN, "", *lines, "", END]) + after)
    return lines


def table(folder: Path, runs: Sequence[Run], titles: Mapping[str, str]) -> list[str]:
    """One row a critic; drafts, votes and what the actor does with an oracle's and with empty critiques before them."""
    _, drafts = read_records(folder / "eval-sft" / "chains.jsonl")
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    first = [[float(right(sample)) for sample in record.samples] for record in drafts]
    tokens = mean(sample.tokens for record in drafts for sample in record.samples)
    lines.append(plain("drafts, no critic", first, tokens))
    most = min(len(record.samples) for record in drafts)
    for k in (k for k in (2, 4, 8) if k <= most):
        votes = [[maj_at_k([s.answer for s in r.samples], [right(s) for s in r.samples], k)] for r in drafts]
        lines.append(plain(f"majority of {k} drafts", votes, k * tokens))
    for name in ("none", "oracle"):
        rows = json.loads((folder / f"{name}.json").read_text())
        size = len(rows) // len(drafts)
        grouped = [[tuple(row) for row in rows[at : at + size]] for at in range(0, len(rows), size)]
        lines.append(line(titles[name], 0, grouped, None))  # type: ignore[arg-type]
    groups: dict[str, list[Path]] = {"sft": [folder / "eval-sft"]}
    for run in runs:
        groups.setdefault(run.method, []).append(run.folder / "eval")
    for name, outs in groups.items():
        found = [read_records(out / "chains.critique.jsonl")[1] for out in outs]
        spent = mean(sample.tokens for records in found for record in records for sample in record.samples)
        lines.append(line(titles[name], len(outs), pooled(found), spent))
    return lines


def rows_of(record: Record) -> list[Row]:
    """The judged samples of a question as `critique_metrics` takes them."""
    verdicts = {"verdict_correct": "correct", "verdict_wrong": "wrong"}
    found: list[Row] = []
    for sample in record.samples:
        if "draft_right" in sample.parts:
            said = next((verdicts[flag] for flag in sample.flags if flag in verdicts), None)
            found.append((sample.parts["draft_right"] >= 1, right(sample), said))
    return found


def pooled(by_seed: Sequence[Sequence[Record]]) -> list[list[Row]]:
    """Per question the rows of all seeds."""
    rows: dict[str, list[Row]] = {}
    for records in by_seed:
        for record in records:
            rows.setdefault(record.question, []).extend(rows_of(record))
    return list(rows.values())


def line(title: str, seeds: int, questions: Sequence[Sequence[Row]], tokens: float | None) -> str:
    """A critic's row: shares in percent; intervals are clustered by question."""
    metrics = critique_metrics([row for rows in questions for row in rows])
    acc = interval([[float(row[1]) for row in rows] for rows in questions])
    delta = interval([[float(row[1]) - float(row[0]) for row in rows] for rows in questions], bounds=(-1.0, 1.0))
    judged = [[float(row[2] == ("correct" if row[0] else "wrong")) for row in rows] for rows in questions]
    dis = interval(judged) if seeds else "–"
    shares = [percent(metrics[name]) for name in ("wrong_to_correct", "correct_to_wrong")]
    judgement = [metrics[name] for name in ("acc_dis_on_correct", "acc_dis_on_wrong", "malformed")]
    *classes, malformed = [percent(value) if seeds else "–" for value in judgement]
    cells = [
        title,
        str(seeds or "–"),
        acc,
        delta,
        *shares,
        dis,
        *classes,
        malformed,
        f"{tokens:.0f}" if tokens else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def percent(share: float) -> str:
    """One decimal; a dash where nothing was counted."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def plain(title: str, questions: Sequence[Sequence[float]], tokens: float) -> str:
    """A row without a critic."""
    return "| " + " | ".join([title, "–", interval(questions), *["–"] * 7, f"{tokens:.0f}"]) + " |"


def interval(questions: Sequence[Sequence[float]], bounds: tuple[float, float] = (0.0, 1.0)) -> str:
    """Mean over questions with its 95 % interval, in percent."""
    kept = [values for values in questions if values]
    low, high = clustered_interval(kept, bounds=bounds)
    return f"{100 * mean(map(mean, kept)):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def curve(run: Run, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a held-out metric."""
    rows = [row for row in read_metrics(run.folder) if row["kind"] == "eval"]
    return [row["step"] for row in rows], [row.get(f"eval/reward/critique/{name}", float("nan")) for row in rows]


def plot(file: Path, runs: Sequence[Run], titles: Mapping[str, str]) -> None:
    """Discrimination and refined accuracy by step: a line a seed; stage II goes on where stage I ended."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6))
    panels = (("verdict_right", "Acc@Dis, held out"), ("refined_right", "Acc after refinement, held out"))
    for axis, (name, label) in zip(axes, panels, strict=True):
        seen: set[str] = set()
        for run in runs:
            steps, values = curve(run, name)
            shift = run.size.steps if run.method == "stage_two" else 0
            legend = titles[run.method] if run.method not in seen else None
            axis.plot([step + shift for step in steps], values, color=COLOURS[run.method], alpha=0.8, label=legend)
            seen.add(run.method)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def examples(run: Run) -> list[str]:
    """One good and one bad critique of `run`, with draft and refinement."""
    _, records = read_records(run.folder / "eval" / "chains.critique.jsonl")
    samples = [(record, sample) for record in records for sample in record.samples if "draft_right" in sample.parts]
    good = [pair for pair in samples if not pair[1].parts["draft_right"] and right(pair[1])]
    bad = [pair for pair in samples if pair[1].parts["draft_right"] and not right(pair[1])]
    bad = bad or [pair for pair in samples if not right(pair[1])]
    lines: list[str] = []
    for title, found in (("A critique that helped", good), ("A critique that did not", bad)):
        for record, sample in found[:1]:
            texts = {"draft": sample.info["draft"], "critique": sample.info["critique"], "refinement": sample.text}
            body = [f"{name}:\n{text}" for name, text in texts.items()]
            lines += [f"{title} ({run.folder.name}, right answer {record.gold}):", "", "```", *body, "```", ""]
    return lines
