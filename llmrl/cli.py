"""The `llmrl` command and the composition root: the one place that turns a recipe's names into objects.

Heavy imports happen inside the commands, so that `llmrl --help` answers at once. Exit codes: 0 done, 1 the run failed,
2 something in the recipe, the data or the command line is wrong, 3 a health limit was passed, 130 and 143 stopped by
Ctrl-C and SIGTERM after saving.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from llmrl.config import Recipe
    from llmrl.train.start import Parts

app = typer.Typer(
    name="llmrl",
    help="Reinforcement-learning post-training of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Pretrained models by name.", no_args_is_help=True)
app.add_typer(models_app, name="models")
console = Console(soft_wrap=True)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as recipes/arithmetic/grpo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, such as train.steps=50 algo.clip_high=0.28.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]


def main() -> None:
    """Entry point: errors that are the user's to mend are one message and an exit code, not a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False)
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error whose message is all a user needs; None for a defect of ours."""
    names = {kind.__name__ for kind in type(error).__mro__}
    for code, known in ((2, USER_ERRORS), (3, {"LimitExceeded"}), (1, RUN_ERRORS)):
        if names & known:
            return code
    return None


USER_ERRORS = {"ConfigError", "DataError", "CatalogError", "RunFolderError", "FileNotFoundError"}
RUN_ERRORS = {"EngineError", "CheckpointError"}


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; an existing run is moved aside.")] = False,
) -> None:
    """Train by a recipe; ends with a summary and the path of the run folder."""
    from llmrl.config import ConfigError, load_recipe

    if resume and fresh:
        raise ConfigError("--resume and --fresh exclude each other")
    loaded = load_recipe(recipe, overrides)
    parts = resolve(loaded)
    from llmrl.train.start import run

    outcome = run(loaded, parts, console=console, resume=resume, fresh=fresh)
    if outcome.summary:
        _show_end(loaded, outcome.summary)
    if outcome.exit_code:
        console.print(
            f"stopped by {outcome.interrupted_by} after step {outcome.summary.get('completed_steps')}; continue with\n"
            f"  llmrl train {' '.join([str(recipe), *(overrides or [])])} --resume"
        )
        raise typer.Exit(outcome.exit_code)


def resolve(recipe: Recipe) -> Parts:
    """Turn the names in a recipe into objects: algorithm, reward, model folder, interval."""
    from llmrl.algos.build import build_algorithm
    from llmrl.config import ConfigError
    from llmrl.eval.metrics import wilson_interval
    from llmrl.policy.catalog import resolve as resolve_model
    from llmrl.rewards.border import load_reward, score_all
    from llmrl.rewards.combine import WeightedSum
    from llmrl.train.start import Parts

    algo = build_algorithm(recipe.algo)
    parts = {}
    for name, section in recipe.reward.items():
        try:
            parts[name] = load_reward(section.name, section.args)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"reward.{name}: {error}") from error
    reward: Any = WeightedSum(rewards=parts, weights={name: part.weight for name, part in recipe.reward.items()})
    return Parts(
        algo=algo,
        score=lambda trajectories: score_all(reward, trajectories),
        interval=wilson_interval,
        source=str(resolve_model(recipe.model.path, report=lambda text: console.print(text, highlight=False))),
    )


def _show_end(recipe: Recipe, summary: dict[str, Any]) -> None:
    from llmrl.report.page import write_report
    from llmrl.report.summary import plot_curves, summary_table

    plot_curves(recipe.run_dir)
    write_report(recipe.run_dir)
    console.print(summary_table(summary, run=recipe.run_dir))


@app.command()
def recipes() -> None:
    """List the recipes that come with llmrl."""
    import yaml
    from rich.table import Table

    from llmrl.config import recipes_folder

    table = Table("recipe", "what it does")
    for file in sorted(recipes_folder().rglob("*.yaml")):
        name = file.relative_to(recipes_folder().parent)
        table.add_row(str(name), str(yaml.safe_load(file.read_text()).get("description", "")))
    console.print(table)
    console.print(f"(in {recipes_folder().resolve()})", highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmrl.config import recipe_schema

    print(recipe_schema())


@models_app.command("list")
def models_list() -> None:
    """List the models that can be pulled by name."""
    from rich.table import Table

    from llmrl.policy.catalog import list_models

    table = Table("name", "download", "licence", "here", "what it is")
    for row in list_models():
        table.add_row(row.name, f"{row.size_mb:.0f} MB", row.licence, "yes" if row.cached else "no", row.description)
    console.print(table)


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A name of `llmrl models list`.")]) -> None:
    """Fetch a model, check it, convert it, and keep it in the cache."""
    from llmrl.policy.catalog import pull

    print(pull(name, report=lambda text: console.print(text, highlight=False)))


@app.command()
def samples(
    run: RunFolder,
    step: Annotated[int | None, typer.Option(help="Which step; default: the last stored.")] = None,
    n: Annotated[int, typer.Option("-n", help="How many.")] = 8,
) -> None:
    """Show completions of a step with their rewards, coloured by advantage."""
    from llmrl.report.samples import show_samples

    show_samples(run, step=step, n=n, console=console)


@app.command()
def report(run: RunFolder) -> None:
    """Write a run's report as one self-contained HTML page."""
    from llmrl.report.page import write_report

    print(write_report(run))


if __name__ == "__main__":
    main()
