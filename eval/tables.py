"""Results as Markdown tables: for a terminal, a README or a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmrl.eval.compare import TaskComparison
from llmrl.eval.contamination import TaskContamination
from llmrl.eval.results import Metric, Results, TaskResult
from llmrl.eval.task import Generated
from llmrl.eval.tasks import TASKS, find_task


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def with_interval(metric: Metric) -> str:
    """ "45.2 [42.5, 47.9]", in percent."""
    if metric.low is None or metric.high is None:
        return percent(metric.value)
    return f"{percent(metric.value)} [{percent(metric.low)}, {percent(metric.high)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def summary_table(many: Sequence[Results]) -> str:
    """One row per model and task: score with its interval, the best pass@k and maj@k, truncation, length."""
    head = ["model", "task", "questions × samples", "score [95 %]", "pass@k", "maj@k", "truncated", "tokens"]
    rows = [
        [
            results.model,
            task.task,
            f"{task.questions} × {task.samples}",
            with_interval(task.score),
            _largest(task, "pass@"),
            _largest(task, "maj@"),
            f"{percent(task.health.truncated)} %",
            f"{task.tokens.mean:.0f}",
        ]
        for results in many
        for task in results.tasks
    ]
    return table(head, rows)


def _largest(task: TaskResult, prefix: str) -> str:
    """The metric with the largest k > 1: "@8 61.0"."""
    found = {int(name[len(prefix) :]): metric for name, metric in task.metrics.items() if name.startswith(prefix)}
    k = max(found, default=1)
    return f"@{k} {percent(found[k].value)}" if k > 1 else "–"


def breakdown_tables(task: TaskResult) -> str:
    """One table per breakdown column; empty if the task has none."""
    return "\n\n".join(
        table(
            [column, "questions", "score [95 %]"],
            [[value, str(metric.questions), with_interval(metric)] for value, metric in parts.items()],
        )
        for column, parts in task.breakdown.items()
    )


def strategies_table(task: TaskResult) -> str:
    """What strategies give for what they cost, and their own numbers; empty if none was run."""
    rows = [
        [
            one.strategy,
            one.scorer or "–",
            str(one.budget.samples),
            with_interval(one.score),
            f"{one.budget.tokens:.0f}",
            f"{one.budget.scored_tokens:.0f}",
        ]
        for one in task.strategies
    ]
    head = ["strategy", "scorer", "samples", "score [95 %]", "tokens generated a question", "tokens scored"]
    found = [table(head, rows)] if rows else []
    for name, metrics in task.rewritten.items():
        shown = [["–" if value is None else f"{value:.4g}" for value in metrics.values()]]
        found += [f"{name}:", table(list(metrics), shown)]
    return "\n\n".join(found)


def learning_table(many: Sequence[Results]) -> str:
    """Score by training step, a row per checkpoint and a column per task; empty unless a run has several checkpoints."""
    steps = [results for results in many if results.series is not None and results.step is not None]
    if len({(results.series, results.step) for results in steps}) < 2:
        return ""
    names = list(dict.fromkeys(task.task for results in steps for task in results.tasks))
    rows = []
    for results in sorted(steps, key=lambda results: (results.series or "", results.step or 0)):
        scores = {task.task: with_interval(task.score) for task in results.tasks}
        rows.append([str(results.series), str(results.step), *(scores.get(name, "–") for name in names)])
    return table(["run", "step", *names], rows)


def markdown(many: Sequence[Results]) -> str:
    """The whole report in Markdown: the summary, then per task its settings, warnings, metrics and breakdown."""
    parts = ["# Evaluation", summary_table(many), learning_table(many)]
    for results in many:
        for task in results.tasks:
            sampling, prompt = task.settings["sampling"], task.settings["prompt"]
            parts += [
                f"## {results.model} on {task.task}",
                f"{prompt['mode']} mode, {prompt['shots']} worked examples, temperature {sampling['temperature']:g}, "
                f"top-p {sampling['top_p']:g}, at most {sampling['max_tokens']} tokens, seed {sampling['seed']}; "
                f"{task.interval} intervals; data sha256 `{task.settings['data']['sha256'][:12]}`. "
                f"Template: `{prompt['template']!r}`",
                *(f"* {warning}" for warning in warnings(task)),
                table(["metric", "value [95 %]"], [[name, with_interval(m)] for name, m in task.metrics.items()]),
                strategies_table(task),
                breakdown_tables(task),
            ]
    return "\n\n".join(part for part in parts if part) + "\n"


def warnings(task: TaskResult) -> list[str]:
    """What a reader must know before using the number."""
    found, health = [], task.health
    if health.truncated > 0.05:
        found.append(
            f"{percent(health.truncated)} % of the answers were cut off at max_tokens; the score may be too low"
        )
    if health.unscored_questions:
        found.append(f"{health.unscored_questions} questions could not be scored and are left out")
    if health.verifier_errors:
        found.append(f"the verifier failed on {health.verifier_errors} samples, which are left out")
    if health.failed:
        found.append(f"the engine failed on {health.failed} samples, which are left out")
    for flag, count in health.flags.items():
        if flag.startswith("scorer_failed:"):
            found.append(f"scorer {flag.partition(':')[2]} failed on {count} samples; its strategies are left out")
    if health.answered is not None and health.answered < 0.8:
        found.append(f"an answer was found in only {percent(health.answered)} % of the samples: does the prompt fit?")
    return found


def comparison_table(found: Sequence[TaskComparison], name_a: str, name_b: str) -> str:
    """A against B, task by task, with the verdict in words."""
    head = ["task", "questions", f"A: {name_a}", f"B: {name_b}", "A − B [95 %]", "A wins / B wins", "verdict"]
    rows = [
        [
            item.task,
            str(item.result.questions),
            percent(item.score_a),
            percent(item.score_b),
            f"{100 * item.result.difference:+.1f} [{100 * item.result.low:+.1f}, {100 * item.result.high:+.1f}]",
            f"{item.result.a_better} / {item.result.b_better}",
            f"{item.verdict}, {item.result.test}",
        ]
        for item in found
    ]
    return table(head, rows)


def contamination_table(found: Sequence[TaskContamination], *, shown: int = 20) -> str:
    """Counts per task, then the worst overlaps."""
    head = ["task", "questions", "training texts", "flagged", "share"]
    rows = [
        [
            item.task,
            str(item.questions),
            str(item.training),
            str(len(item.overlaps)),
            f"{percent(len(item.overlaps) / item.questions, 2)} %",
        ]
        for item in found
    ]
    worst = [(item.task, overlap) for item in found for overlap in item.overlaps]
    worst.sort(key=lambda pair: -pair[1].share)
    parts = [table(head, rows)]
    if worst:
        cells = [[task, o.question, f"{percent(o.share, 0)} %", o.training] for task, o in worst[:shown]]
        parts.append(table(["task", "question", "n-grams found", "training text"], cells))
    if len(worst) > shown:
        parts.append(f"... and {len(worst) - shown} more")
    return "\n\n".join(parts)


def tasks_table(data_dir: Path | None) -> str:
    """All benchmarks with their defaults, and whether `data_dir` holds them."""
    head = ["task", "source", "local file", "verifier", "samples", "max tokens"]
    rows = []
    for name in TASKS:
        task = find_task(name)
        if isinstance(task.source, Generated):
            source, local = f"generator {task.source.generator}", "–"
        else:
            parts = (task.source.hub, task.source.config, task.source.split) if task.source.hub else ()
            source = "/".join(filter(None, parts)) or "–"
            there = data_dir is not None and (data_dir / task.source.file).is_file()
            local = f"{task.source.file}{' (there)' if there else ''}"
        rows.append([name, source, local, task.verifier.rpartition(":")[2], str(task.samples), str(task.max_tokens)])
    return table(head, rows)
