"""`llmrl compare`: runs side by side, with paired tests on the held-out problems that they share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from llmrl.eval.metrics import PairedDifference


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the others are compared with the first.")],
    plot: Annotated[
        Path | None, typer.Option(help="Where the curves go; default: compare.png in the first run's folder.")
    ] = None,
) -> None:
    """Compare runs: results with intervals, paired tests against the first run, curves, differences of the recipes."""
    from rich.table import Table

    from llmrl.commands.arguments import existing_run
    from llmrl.errors import ConfigError
    from llmrl.eval.metrics import paired_difference
    from llmrl.report.compare import differences, paired, plot_together
    from llmrl.report.read import full_summary, read_run
    from llmrl.report.summary import accuracy_text, duration_text, finite

    if len(runs) < 2:
        raise ConfigError(f"{runs[0]} alone cannot be compared; name two runs or more")
    read = [read_run(existing_run(run)) for run in runs]
    console = Console(soft_wrap=True)
    table = Table("run", "status", "steps", "held-out before", "held-out after", "wall time", f"against {read[0].name}")
    for run in read:
        summary = full_summary(run)
        said = "–" if run is read[0] else ""
        if not said:
            found = paired(runs[0], run.path, paired_difference)
            said = "no shared problems stored" if found is None else _told(*found)
        ends = [accuracy_text(finite(summary.get(f"accuracy_{when}")), summary.get(f"accuracy_{when}_interval"))
                for when in ("before", "after")]  # fmt: skip
        steps = f"{summary.get('completed_steps')}"
        wall = duration_text(finite(summary.get("train_wall_s")))
        table.add_row(run.name, str(summary.get("status", "–")), steps, *ends, wall, said)
    console.print(table)
    found_differences = differences(read)
    if found_differences:
        recipes = Table("recipe", *(run.name for run in read))
        for key, values in found_differences.items():
            recipes.add_row(key, *("–" if value is None else str(value) for value in values))
        console.print(recipes)
    plotted = plot or read[0].path / "compare.png"
    plot_together(read, plotted)
    console.print(f"curves: {plotted}", markup=False, highlight=False)


def _told(problems: int, found: PairedDifference) -> str:
    """One cell: the paired difference in points with its interval and p-value."""
    size, low, high = (100 * share for share in (found.difference, found.low, found.high))
    return f"{size:+.1f} points [{low:+.1f}, {high:+.1f}], p = {found.p_value:.3g}, {problems} problems"
