"""The end of a run: a table for the terminal and the learning curves as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from llmrl.atomic import replacing
from llmrl.report.read import NOT_PHASES, Run, finite, full_summary, phases, read_run, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PHASE_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", VERMILION, "#f0e442", "#7f7f7f")


def summary_table(summary: Mapping[str, Any], *, run: Path | None = None) -> Table:
    """The run's `summary.json` as a rich table; rows whose numbers are missing say so with a dash.

    With `run` (the run folder), more rows name it and, if they exist, its plot and its report.
    """
    table = Table(show_header=False, min_width=48)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    before, after = finite(summary.get("accuracy_before")), finite(summary.get("accuracy_after"))
    for stage in summary.get("stages") or []:
        table.add_row(Text(f"stage {stage.get('name', '–')}"), Text(stage_text(stage)))
    losses = [finite(summary.get(f"eval_loss_{when}")) for when in ("before", "after")]
    if losses[0] is not None and losses[1] is not None:
        table.add_row("held-out loss", f"{losses[0]:.3f} → {losses[1]:.3f}")
    table.add_row("held-out accuracy before", accuracy_text(before, summary.get("accuracy_before_interval")))
    after_text = Text(accuracy_text(after, summary.get("accuracy_after_interval")))
    if before is not None and after is not None:
        after_text.append(
            f"  ({100 * (after - before):+.1f} points)", style="bold green" if after > before else "bold red"
        )
    table.add_row("held-out accuracy after", after_text)
    for name, source in (summary.get("sources") or {}).items():
        table.add_row(Text(f"  {name}", style="dim"), Text(", ".join(_changes(source))))
    table.add_row("held-out problems", count_text(summary.get("n_eval")))
    table.add_row("steps", steps_text(summary))
    table.add_row("training wall time", duration_text(finite(summary.get("train_wall_s"))))
    for name, seconds, share in phase_shares(summary):
        table.add_row(Text(f"  {name}", style="dim"), f"{seconds:,.1f} s   {share:.1%}")
    table.add_row("tokens/s", count_text(summary.get("tokens_per_s")))
    if "privacy_status" in summary:
        table.add_row("privacy", privacy_text(summary))
    table.add_row("seed", Text(str(summary.get("seed", "–"))))
    table.add_row("status", Text(str(summary.get("status", "–"))))
    if run is not None:
        table.add_row("run folder", Text(str(run)))
        for name, file in (("plot", run / "curves.png"), ("report", run / "report.html")):
            if file.is_file():
                table.add_row(name, Text(str(file)))
    return table


def privacy_text(summary: Mapping[str, Any]) -> str:
    """What may be claimed of a private run, in a line."""
    if summary["epsilon"] is None:
        return f"{summary['privacy_status']}: no guarantee holds"
    promise = f"({summary['epsilon']:g}, {summary['delta']:g})-DP of a {summary['unit']}"
    return f"{summary['privacy_status']}: {promise}, {summary['paid']} steps paid"


def stage_text(stage: Mapping[str, Any]) -> str:
    """A stage in one line: steps, held-out loss or accuracy before and after, share of pairs put right in the end.

    >>> stage_text({"steps": 5, "completed_steps": 5, "eval_loss_before": 2.0, "eval_loss_after": 0.5})
    '5 steps, held-out loss 2.000 → 0.500'
    """
    parts = [f"{steps_text(stage)} steps", *_changes(stage)]
    if (pairs := finite(stage.get("eval_pairs_accuracy_after"))) is not None:
        parts.append(f"{pairs:.1%} of pairs right")
    if (wall := finite(stage.get("train_wall_s"))) is not None:
        parts.append(duration_text(wall))
    return ", ".join(parts)


def _changes(summary: Mapping[str, Any]) -> list[str]:
    """Held-out loss and accuracy before and after, of a stage or of a data source."""
    found = []
    for name, what, form in (("eval_loss", "loss", ".3f"), ("accuracy", "accuracy", ".1%")):
        before, after = (finite(summary.get(f"{name}_{when}")) for when in ("before", "after"))
        if before is not None and after is not None:
            found.append(f"held-out {what} {before:{form}} → {after:{form}}")
    return found


def accuracy_text(value: float | None, interval: Any) -> str:
    """An accuracy with its interval, in percent.

    >>> accuracy_text(0.62, [0.551, 0.6843]), accuracy_text(None, None)
    ('62.0%  [55.1%, 68.4%]', '–')
    """
    if value is None:
        return "–"
    bounds = interval_of(interval)
    return f"{value:.1%}" + (f"  [{bounds[0]:.1%}, {bounds[1]:.1%}]" if bounds else "")


def interval_of(interval: Any) -> tuple[float, float] | None:
    """`[low, high]` as two finite floats, or None if it is anything else."""
    if not isinstance(interval, Sequence) or isinstance(interval, str) or len(interval) != 2:
        return None
    low, high = finite(interval[0]), finite(interval[1])
    return None if low is None or high is None else (low, high)


def duration_text(seconds: float | None) -> str:
    """Seconds as a person says them.

    >>> duration_text(42.31), duration_text(773.4), duration_text(7512)
    ('42.3 s', '12 min 53 s', '2 h 5 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count_text(value: Any) -> str:
    """A number with thousands separators, a dash for none.

    >>> count_text(12345), count_text(160.27), count_text(9.5), count_text(None)
    ('12,345', '160', '9.5', '–')
    """
    number = finite(value)
    if number is None:
        return "–"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:,.1f}"


def steps_text(summary: Mapping[str, Any]) -> str:
    """Completed steps, and of how many if the run ended or stands before its end."""
    done, planned = finite(summary.get("completed_steps")), finite(summary.get("steps"))
    if done is None or planned is None or done == planned:
        return count_text(planned if done is None else done)
    return f"{count_text(done)} of {count_text(planned)}"


def phase_shares(summary: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(phase, seconds, share of the summed phases), longest first."""
    given = summary.get("seconds")
    found = {str(k): s for k, v in given.items() if (s := finite(v)) is not None} if isinstance(given, Mapping) else {}
    kept = {name: seconds for name, seconds in found.items() if name not in NOT_PHASES}
    total = sum(kept.values())
    return [(name, s, s / total if total else 0.0) for name, s in sorted(kept.items(), key=lambda item: -item[1])]


def plot_curves(run: Path) -> Path:
    """Write `run/curves.png` (held-out accuracy with its interval, reward, phase times, all against steps); its path.

    Raises as read_run. A run without steps gives an empty plot that says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = read_run(run)
    figure = Figure(figsize=(12.5, 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    learning, times = figure.subplots(1, 2)
    figure.suptitle(f"{data.name}   {_headline(data)}", fontsize=11, parse_math=False)
    _draw_learning(learning, data)
    _draw_times(times, data)
    file = run / "curves.png"
    with replacing(file) as part:
        figure.savefig(part, format="png")
    return file


def _headline(run: Run) -> str:
    summary = full_summary(run)
    before = accuracy_text(finite(summary.get("accuracy_before")), None)
    after = accuracy_text(finite(summary.get("accuracy_after")), summary.get("accuracy_after_interval"))
    wall = duration_text(finite(summary.get("train_wall_s")))
    return f"held-out accuracy {before} → {after}   {steps_text(summary)} steps, {wall}"


def _draw_learning(axes: Axes, run: Run) -> None:
    steps, reward = series(run.train, "reward/mean")
    axes.plot(steps, reward, color=ORANGE, linewidth=1.2, alpha=0.8, label="mean reward (training)")
    banded = [
        (point.step, value, finite(point.get("eval/low")), finite(point.get("eval/high")))
        for point in run.evals
        if (value := point.get("eval/accuracy")) is not None
    ]
    at, accuracy = [row[0] for row in banded], [row[1] for row in banded]
    low = [value if lo is None else lo for _, value, lo, _ in banded]
    high = [value if hi is None else hi for _, value, _, hi in banded]
    axes.plot(at, accuracy, color=BLUE, marker="o", markersize=4, linewidth=1.8, label="held-out accuracy")
    axes.fill_between(at, low, high, color=BLUE, alpha=0.18, linewidth=0, label="its interval")
    if len(at) == 1:
        axes.errorbar(at, accuracy, [[accuracy[0] - low[0]], [high[0] - accuracy[0]]], color=BLUE, capsize=3)
    _finish(axes, "reward, accuracy", empty=not steps and not at)


def _draw_times(axes: Axes, run: Run) -> None:
    names = [name for name in phases(run) if series(run.train, f"time/{name}")[0]]
    steps = [point.step for point in run.train]
    base = [0.0] * len(steps)
    for i, name in enumerate(names):
        seconds = [point.get(f"time/{name}") or 0.0 for point in run.train]
        colour = PHASE_COLOURS[i % len(PHASE_COLOURS)]
        axes.bar(steps, seconds, bottom=base, width=1.0, color=colour, label=name, linewidth=0)
        base = [b + s for b, s in zip(base, seconds)]
    _finish(axes, "seconds per step", empty=not names)


def _finish(axes: Axes, label: str, *, empty: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if empty:
        axes.text(0.5, 0.5, "no steps yet", transform=axes.transAxes, ha="center", va="center", color="#777777")
    else:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
