"""The `llmrl` command and the composition root: the one place that turns a recipe's names into objects.

Heavy imports happen inside the commands, so that `llmrl --help` answers at once. Exit codes: 0 done, 1 the run failed,
2 something in the recipe, the data or the command line is wrong, 3 a health limit was passed, 130 and 143 stopped by
Ctrl-C and SIGTERM after saving.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llmrl import checks
from llmrl.commands.launch import launch
from llmrl.commands.plan import plan
from llmrl.errors import LlmrlError
from llmrl.eval.cli import app as eval_app

if TYPE_CHECKING:
    from llmrl.settings.recipe import Recipe, RewardConfig
    from llmrl.train.evaluate import Benchmarks
    from llmrl.train.models import Sources
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
app.add_typer(eval_app, name="eval")
console = Console(soft_wrap=True)
EXIT_MISSING_FILE = 2  # a path on the command line or in the recipe: the user's to mend

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as recipes/arithmetic/grpo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, such as train.steps=50 algo.clip_high=0.28.")]


def _existing_run(run: Path) -> Path:
    if any((run / name).is_file() for name in ("recipe.yaml", "metrics.jsonl", "summary.json")):
        return run
    if run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder: it holds no recipe.yaml and no metrics.jsonl")
    near = get_close_matches(run.name, [path.name for path in run.parent.glob("*/")], n=1)
    raise FileNotFoundError(f"no run folder at {run}" + (f"; did you mean {run.parent / near[0]}?" if near else ""))


RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.", callback=_existing_run)]


def main() -> None:
    """Entry point: errors that are the user's to mend are one message and an exit code, not a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a recipe may name a reward or an algorithm in a file beside it
    try:
        app()
    except (LlmrlError, FileNotFoundError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False)
        sys.exit(error.exit_code if isinstance(error, LlmrlError) else EXIT_MISSING_FILE)
    except KeyboardInterrupt:
        sys.exit(130)


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
    from llmrl.errors import ConfigError
    from llmrl.memory import keep_freed_memory
    from llmrl.settings.load import check_same_run, load_recipe

    if resume and fresh:
        raise ConfigError("--resume and --fresh exclude each other")
    loaded = load_recipe(recipe, overrides)
    if resume:
        check_same_run(loaded)
    keep_freed_memory()
    parts = resolve(loaded)
    from llmrl.errors import LimitExceeded
    from llmrl.report.failures import most_frequent
    from llmrl.train.start import run

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


def resolve(recipe: Recipe) -> Parts:
    """Turn the names in a recipe into objects: algorithm, reward, model folder, interval."""
    from llmrl.algos.build import build_algorithm
    from llmrl.eval.metrics import wilson_interval
    from llmrl.rewards.border import score_all
    from llmrl.rewards.telemetry import Watched
    from llmrl.train.start import Parts

    check_trackers(recipe)
    algo, reward = build_algorithm(recipe.algo), Watched(reward=rewards_of(recipe))
    check_benchmarks(recipe)
    sources = sources_of(recipe)
    return Parts(
        algo=algo,
        score=lambda trajectories: score_all(reward, trajectories),
        interval=wilson_interval,
        sources=sources,
        benchmarks=benchmarks_of(recipe, sources.policy),
    )


def sources_of(recipe: Recipe) -> Sources:
    """The local folders of the models that a recipe names."""
    from llmrl.train.models import Sources

    own = recipe.critic.path if recipe.critic is not None else None
    return Sources(policy=model_folder(recipe.model.path), critic=model_folder(own) if own else "")


def check_benchmarks(recipe: Recipe) -> None:
    """Raise ConfigError for a name in `eval.tasks` that is no benchmark."""
    from llmrl.errors import ConfigError, EvalError
    from llmrl.eval.tasks import find_task

    for task in recipe.eval.tasks:
        try:
            find_task(task.name)
        except EvalError as error:
            raise ConfigError(f"eval.tasks: {error}") from error


def benchmarks_of(recipe: Recipe, source: str) -> Benchmarks | None:
    """The benchmarks that the recipe's `eval.tasks` names, their questions loaded. Raises ConfigError or DataError."""
    from llmrl.errors import ConfigError, EvalError
    from llmrl.eval.hooks import training_benchmarks

    if not recipe.eval.tasks:
        return None
    try:
        return training_benchmarks(recipe, source, say=lambda text: console.print(text, highlight=False))
    except EvalError as error:
        raise ConfigError(f"eval.tasks: {error}") from error


def model_folder(path: str) -> str:
    """The local folder of a recipe's model; one of the catalogue or the hub is fetched if it is not here yet."""
    from llmrl.policy.catalog import resolve as resolve_model
    from llmrl.policy.hub import fetch

    found = resolve_model(path, report=lambda text: console.print(text, highlight=False))
    return str(fetch(found) if isinstance(found, str) else found)


def check_trackers(recipe: Recipe) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    from llmrl.errors import ConfigError

    for name in recipe.tracking.to:
        if find_spec(name) is None:
            raise ConfigError(f"tracking.to={name} needs a package that is missing: pip install 'llmrl[{name}]'")


def rewards_of(recipe: Recipe) -> Any:
    """The recipe's reward: the weighted sum of its parts. A TRL reward function is adapted."""
    from llmrl.errors import ConfigError
    from llmrl.rewards.border import load_reward
    from llmrl.rewards.combine import WeightedSum
    from llmrl.rewards.trl_adapter import TRLReward
    from llmrl.stages.folder import with_models

    parts: dict[str, Any] = {}
    for name, section in recipe.reward.items():
        section = section.model_copy(update={"args": with_models(recipe, section.args)})
        try:
            part = load_reward(section.name, section.args)  # also of an isolated one: mistakes show at once
        except ValueError as error:
            raise ConfigError(f"reward.{name}: {error}") from error
        except TypeError as error:
            raise ConfigError(f"reward.{name}.args: {error}") from error
        except (ImportError, SyntaxError) as error:
            kind = type(error).__name__
            raise ConfigError(f"reward.{name}: {section.name} cannot be imported: {kind}: {error}") from error
        if _is_trl(part):
            part = TRLReward(function=part)
        parts[name] = _isolated(section, part) if section.isolated else part
    return WeightedSum(rewards=parts, weights={name: part.weight for name, part in recipe.reward.items()})


def _isolated(section: RewardConfig, part: Any) -> Any:
    """The reward in killable workers, which build their own from its name; what an adapter wraps is sent as it is."""
    from llmrl.rewards.pool import IsolatedReward, RewardPool
    from llmrl.rewards.trl_adapter import TRLReward

    built, args = (part, None) if isinstance(part, TRLReward) else (section.name, section.args)
    return IsolatedReward(RewardPool(built, args, item_s=section.timeout_s, deadline_s=section.step_timeout_s))


def _is_trl(reward: Any) -> bool:
    """TRL's reward functions take `completions`; ours take one trajectory."""
    return inspect.isfunction(reward) and "completions" in inspect.signature(reward).parameters


def _show_end(recipe: Recipe, summary: dict[str, Any]) -> None:
    from llmrl.report.page import write_report
    from llmrl.report.summary import plot_curves, summary_table

    plot_curves(recipe.run_dir)
    write_report(recipe.run_dir)
    console.print(summary_table(summary, run=recipe.run_dir))


@app.command("hash")
def hash_(run: RunFolder) -> None:
    """Print the digest of a run's newest whole checkpoint: float32 weights and optimizer state."""
    from llmrl.errors import CheckpointError
    from llmrl.train.checkpoint import digest, newest_valid

    folder, complaints = newest_valid(run)
    for complaint in complaints:
        Console(stderr=True).print(f"[yellow]{_escaped(complaint)}[/]")
    if folder is None:
        raise CheckpointError(f"{run} has no whole checkpoint")
    print(f"{digest(folder)}  {folder.name}")


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int, typer.Option(help="Which step; 1 is the first.", min=1)],
    algo: Annotated[Path | None, typer.Option(help="A recipe whose algo section is tried on the same data.")] = None,
) -> None:
    """Repeat a stored step's update without an engine, and compare loss and gradient norm with the recorded ones."""
    from rich.table import Table

    from llmrl.algos.build import build_algorithm
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    quiet_transformers()
    from llmrl.stages.folder import policy_source
    from llmrl.train.replay import COMPARED, algo_section, stored_recipe
    from llmrl.train.replay import replay as run_replay

    recipe = stored_recipe(run)
    sources = sources_of(recipe)
    sources = replace(sources, policy=policy_source(recipe, sources.policy))
    algorithm = build_algorithm(algo_section(algo) if algo else recipe.algo)
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


@app.command()
def recipes() -> None:
    """List the recipes that come with llmrl."""
    import yaml
    from rich.table import Table

    from llmrl.settings.load import recipes_folder

    table = Table("recipe", "what it does")
    for file in sorted(recipes_folder().rglob("*.yaml")):
        name = file.relative_to(recipes_folder().parent)
        table.add_row(str(name), str(yaml.safe_load(file.read_text()).get("description", "")))
    console.print(table)
    console.print(f"(in {recipes_folder().resolve()})", highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmrl.settings.load import recipe_schema

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
    step: Annotated[int | None, typer.Option(help="Which step; default: the last stored.", min=1)] = None,
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 8,
) -> None:
    """Show completions of a step with their rewards, coloured by advantage."""
    from llmrl.report.samples import show_samples

    show_samples(run, step=step, n=n, console=console)


@app.command()
def report(run: RunFolder) -> None:
    """Write a run's report as one self-contained HTML page."""
    from llmrl.report.page import write_report

    print(write_report(run))


app.command()(plan)
app.command()(launch)
app.add_typer(checks.rewards_app, name="rewards")
app.command()(checks.doctor)
app.command()(checks.conformance)


if __name__ == "__main__":
    main()
