"""report.md and report.html over one or more evaluations: tables, pass@k curves, a browser of questions and samples.

The page is one file that loads nothing; `llmrl.report.html` says how text of models and data enters it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmrl.atomic import write_text
from llmrl.errors import EvalError
from llmrl.eval.records import Record, Sample, read_records
from llmrl.eval.results import Metric, Results, TaskResult, read_results, right
from llmrl.eval.tables import markdown, percent, warnings, with_interval
from llmrl.report.html import clipped, document
from llmrl.report.read import spread

MAX_QUESTIONS = 400  # on the page, of one model and task
MAX_SAMPLES = 8  # of a question
MAX_TEXT = 8_000  # characters of a prompt or sample
LENGTH_BINS = 8
SECTIONS = {
    "summary": "Summary",
    "learning": "Training",
    "curves": "Curves",
    "categories": "Categories",
    "questions": "Questions",
    "settings": "Settings",
}


def write_reports(folders: Sequence[Path], *, out: Path | None = None) -> list[Path]:
    """Write report.md and report.html into `out` (default: the first folder); their paths."""
    if not folders:
        raise EvalError("no folder of an evaluation")
    many = [read_results(folder) for folder in folders]
    target = out or folders[0]
    paths = []
    for name, content in (("report.md", markdown(many)), ("report.html", page(folders, many))):
        path = target / name
        write_text(path, content, errors="backslashreplace")
        paths.append(path)
    return paths


def page(folders: Sequence[Path], many: Sequence[Results]) -> str:
    """The whole HTML page."""
    title = _title(many)
    payload = [_task_payload(folder, results, task) for folder, results in zip(folders, many) for task in results.tasks]
    notes = [f"{r.model} on {t.task}: {text}" for r in many for t in r.tasks for text in warnings(t)]
    return document(
        title=title,
        kind="eval",
        sections=SECTIONS,
        body=("llmrl.eval", "report.html"),
        values={
            "title": escape(title),
            "summary": _summary(many) + _rewritten(many),
            "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
            "notes_hidden": "" if notes else "hidden",
            "settings": "".join(_settings(results, task) for results in many for task in results.tasks),
        },
        styles=[("llmrl.report", "page.css"), ("llmrl.eval", "report.css")],
        scripts=[("llmrl.report", "charts.js"), ("llmrl.eval", "report.js")],
        data=payload,
        footer="A sample is right if its verifier gave full marks.",
    )


def _title(many: Sequence[Results]) -> str:
    """The models; checkpoints of one run together."""
    steps: dict[str, list[int]] = {}
    for results in many:
        steps.setdefault(results.series or results.model, []).extend([] if results.step is None else [results.step])
    return ", ".join(
        f"{name}, steps {min(of)} to {max(of)}"
        if len(set(of)) > 1
        else next(r.model for r in many if name in (r.series, r.model))
        for name, of in steps.items()
    )


def _summary(many: Sequence[Results]) -> str:
    rows = []
    for results in many:
        for task in results.tasks:
            health = task.health
            rows.append(
                [
                    escape(results.model),
                    escape(task.task),
                    f"{task.questions} × {task.samples}",
                    f"<b>{with_interval(task.score)}</b>",
                    f"{percent(health.truncated)}",
                    percent(health.answered),
                    f"{task.tokens.mean:.0f}",
                    str(health.verifier_errors + health.failed),
                ]
            )
    head = ("model", "task", "questions × samples", "score, 95 %", "truncated %", "answered %", "tokens", "failures")
    return _html_table(head, rows)


def _rewritten(many: Sequence[Results]) -> str:
    """What strategies that ask again did to each task, in their own numbers."""
    parts = []
    for results in many:
        for task in results.tasks:
            for name, metrics in task.rewritten.items():
                cells = ["–" if value is None else f"{value:.4g}" for value in metrics.values()]
                title = f"{escape(results.model)} on {escape(task.task)}: {escape(name)}"
                parts.append(f"<h3>{title}</h3>{_html_table([escape(metric) for metric in metrics], [cells])}")
    return "".join(parts)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    cells = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(cells)}</tbody></table>"


def _settings(results: Results, task: TaskResult) -> str:
    lines = [f"{key}: {value}" for key, value in task.settings.items()]
    text = "\n".join([*lines, "", "first prompt as the model saw it:", task.example_prompt])
    title = f"{escape(results.model)} on {escape(task.task)}"
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"


def _task_payload(folder: Path, results: Results, task: TaskResult) -> dict[str, Any]:
    _, records = read_records(folder / f"{task.task}.jsonl")
    return {
        "model": results.model,
        "task": task.task,
        "series": results.series,
        "step": results.step,
        "score": _point(task.score),
        "curves": {name: _curve(task, name) for name in ("pass@", "maj@", "pass^") if len(_ks(task, name)) > 1},
        "strategies": _strategies(task),
        "breakdown": {
            column: [{"value": value, **_point(metric)} for value, metric in parts.items()]
            for column, parts in task.breakdown.items()
        },
        "lengths": length_bins(records),
        "asked": len(records),
        "questions": [_question(record) for record in spread(records, MAX_QUESTIONS)],
    }


def _point(metric: Metric) -> dict[str, Any]:
    return {"y": metric.value, "low": metric.low, "high": metric.high, "n": metric.questions}


def _ks(task: TaskResult, prefix: str) -> list[int]:
    return sorted(int(name[len(prefix) :]) for name in task.metrics if name.startswith(prefix))


def _curve(task: TaskResult, prefix: str) -> list[dict[str, Any]]:
    return [{"k": k, **_point(task.metrics[f"{prefix}{k}"])} for k in _ks(task, prefix)]


def _strategies(task: TaskResult) -> list[dict[str, Any]]:
    """Every strategy with its scorer as a curve over samples spent."""
    found: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for one in task.strategies:
        point = {"k": one.budget.samples, "tokens": one.budget.tokens, **_point(one.score)}
        found.setdefault((one.strategy, one.scorer), []).append(point)
    return [{"strategy": name, "scorer": scorer, "points": points} for (name, scorer), points in found.items()]


def length_bins(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Share right by completion length, in bins of equally many samples: mean tokens, share, samples."""
    samples = sorted(
        (sample for record in records for sample in record.samples if sample.value is not None), key=lambda s: s.tokens
    )
    bins = min(LENGTH_BINS, len(samples))
    found = []
    for i in range(bins):
        part = samples[len(samples) * i // bins : len(samples) * (i + 1) // bins]
        tokens = sum(sample.tokens for sample in part) / len(part)
        found.append({"tokens": round(tokens, 1), "right": sum(map(right, part)) / len(part), "samples": len(part)})
    return found


def kind_of(sample: Sample) -> str:
    """right, wrong, truncated (and not right), or error (no verdict)."""
    if sample.value is None:
        return "error"
    if right(sample):
        return "right"
    return "truncated" if sample.status == "truncated" else "wrong"


def _question(record: Record) -> dict[str, Any]:
    return {
        "id": record.question,
        "prompt": clipped(record.prompt, MAX_TEXT),
        "gold": clipped(record.gold, MAX_TEXT),
        "columns": dict(record.columns),
        "of": len(record.samples),
        "samples": [
            {
                "kind": kind_of(sample),
                "text": clipped(sample.text, MAX_TEXT),
                "tokens": sample.tokens,
                "answer": sample.answer,
                "why": sample.error or sample.status_reason or sample.reason,
                "flags": list(sample.flags),
                "cut": sample.status == "truncated",
            }
            for sample in record.samples[:MAX_SAMPLES]
        ],
    }
