"""`llmrl train`: a recipe is trained; ends with a summary."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from llmrl.commands.arguments import Fresh, Overrides, RecipeFile, Resume

if TYPE_CHECKING:
    from llmrl.settings.recipe import Recipe

console = Console(soft_wrap=True)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    fresh: Fresh = False,
) -> None:
    """Train by a recipe; ends with a summary and the path of the run folder."""
    from llmrl.errors import ConfigError
    from llmrl.memory import keep_freed_memory
    from llmrl.settings.load import check_same_run, load_recipe
    from llmrl.train.folder import check_name

    if resume and fresh:
        raise ConfigError("--resume and --fresh exclude each other")
    loaded = load_recipe(recipe, overrides)
    if resume:
        check_same_run(loaded)
    keep_freed_memory()
    if os.environ.get("RANK", "0") == "0":  # the first line, before anything that takes time
        check_name(loaded.run_dir, resume=resume, fresh=fresh)
        console.print(
            f"{loaded.name}: {loaded.train.steps} steps of {loaded.algo['name']} on {loaded.model.path}, "
            f"run folder {loaded.run_dir}; loading libraries",
            markup=False, highlight=False,
        )  # fmt: skip
    from llmrl.compose import resolve

    parts = resolve(loaded)
    from llmrl.errors import LimitExceeded
    from llmrl.report.failures import most_frequent
    from llmrl.start import run

    quiet_transformers()
    try:
        outcome = run(loaded, parts, console=console, resume=resume, fresh=fresh)
    except LimitExceeded as error:
        raise LimitExceeded(f"{error}{most_frequent(loaded.run_dir)}") from error
    if outcome.summary:
        _show_end(loaded, outcome.summary)
    if outcome.exit_code:
        if outcome.summary:
            place = f"after step {outcome.summary['completed_steps']}"
            if outcome.stopped_in:
                place = f"in stage {outcome.stopped_in.stage} after step {outcome.stopped_in.step}"
            console.print(
                f"stopped by {outcome.interrupted_by} {place}; continue with\n"
                f"  llmrl train {shlex.join([str(recipe), *(overrides or [])])} --resume"
            )
        raise typer.Exit(outcome.exit_code)


def quiet_transformers() -> None:
    """Bars for loading and writing weights would tear ours apart; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()


def _show_end(recipe: Recipe, summary: dict[str, Any]) -> None:
    from llmrl.report.page import write_report
    from llmrl.report.summary import plot_curves, summary_table

    plot_curves(recipe.run_dir)
    write_report(recipe.run_dir)
    console.print(summary_table(summary, run=recipe.run_dir))
