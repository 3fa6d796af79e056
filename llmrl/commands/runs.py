"""Commands on a run folder: its digest, an update repeated, completions, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from llmrl.commands.arguments import RunFolder

console = Console(soft_wrap=True)


def hash_(run: RunFolder) -> None:
    """Print the digest of a run's newest whole checkpoint: float32 weights and optimizer state."""
    from llmrl.errors import CheckpointError
    from llmrl.train.checkpoint import digest, newest_valid

    folder, complaints = newest_valid(run)
    for complaint in complaints:
        Console(stderr=True).print(f"[yellow]{escape(complaint)}[/]")
    if folder is None:
        raise CheckpointError(f"{run} has no whole checkpoint")
    print(f"{digest(folder)}  {folder.name}")


def replay(
    run: RunFolder,
    step: Annotated[int, typer.Option(help="Which step; 1 is the first.", min=1)],
    algo: Annotated[Path | None, typer.Option(help="A recipe whose algo section is tried on the same data.")] = None,
) -> None:
    """Repeat a stored step's update without an engine, and compare loss and gradient norm with the recorded ones."""
    from rich.table import Table

    from llmrl.algos.build import build_algorithm
    from llmrl.commands.train import quiet_transformers
    from llmrl.compose import sources_of
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    quiet_transformers()
    from llmrl.settings.load import find_recipe
    from llmrl.train.replay import COMPARED, algo_section, stored_recipe
    from llmrl.train.replay import replay as run_replay

    recipe = stored_recipe(run)
    sources = sources_of(recipe)
    sources = replace(sources, policy=str(recipe.start_of(None) or sources.policy))
    algorithm = build_algorithm(algo_section(find_recipe(algo)) if algo else recipe.algo)
    found = run_replay(run, step=step, recipe=recipe, algo=algorithm, sources=sources)
    table = Table(f"step {step}", "recorded", "replayed")
    shown = [*COMPARED, *sorted(name for name in found.replayed if name not in COMPARED)]
    for name in shown:
        table.add_row(name, *(f"{side[name]:.9g}" if name in side else "" for side in (found.recorded, found.replayed)))
    console.print(table)
    if algo:
        console.print(f"another algorithm on the same data, from the weights after step {found.replayed_from}")
    elif found.reproduced:
        console.print("[green]reproduced:[/] loss and gradient norm are the recorded ones, bit for bit")
    else:
        console.print("[red]not reproduced:[/] loss or gradient norm differ from the recorded ones")
        raise typer.Exit(1)


def programs(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    repairs: Annotated[bool, typer.Option("--repairs", help="Failing programs with their references instead.")] = False,
) -> None:
    """Write a run's programs as JSONL, for offline training (rollout.stored); or pairs for an SFT of a repair model."""
    from llmrl.rollout import programs as stored

    count = stored.write_jsonl(out, stored.repairs(run) if repairs else stored.programs(run))
    print(f"{out}: {count} {'pairs' if repairs else 'programs'}")


def samples(
    run: RunFolder,
    step: Annotated[int | None, typer.Option(help="Which step; default: the last stored.", min=1)] = None,
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 8,
) -> None:
    """Show completions of a step with their rewards, coloured by advantage."""
    from llmrl.report.samples import show_samples

    show_samples(run, step=step, n=n, console=console)


def report(run: RunFolder) -> None:
    """Write a run's report as one self-contained HTML page."""
    from llmrl.report.page import write_report

    print(write_report(run))
