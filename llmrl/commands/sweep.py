"""`llmrl sweep`: a recipe over values and seeds, one run after the other or over Ray, resumable, with a table."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llmrl.commands.arguments import RecipeFile

WARNING = (
    "the best of several settings is chosen on the problems that it is measured on, so its accuracy is too good: measure "
    "the chosen one on others (eval.data.seed=1, or llmrl eval) before you report it"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str
    setting: tuple[str, ...]  # overrides whose values vary
    seed: int

    @property
    def overrides(self) -> list[str]:
        return [*self.setting, f"seed={self.seed}", f"name={self.name}"]


def sweep(
    recipe: RecipeFile,
    values: Annotated[
        list[str] | None, typer.Argument(help="Such as algo.clip_high=0.2,0.28 train.lr=1e-5,2e-5.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting: seeds 0, 1, ...")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Runs are Ray tasks, as many at once as there is room.")] = False,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs of a Ray task.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a Ray task.")] = 0.0,
) -> None:
    """Train every combination of the values, `seeds` times each. Called again, it goes on where it stopped."""
    from llmrl.settings.load import load_recipe

    base = load_recipe(recipe)
    trials = list(combinations(base.name, values or [], seeds))
    for trial in trials:
        load_recipe(recipe, trial.overrides)  # mistakes show before the first run
    folder = Path(base.runs_dir)
    console = Console(soft_wrap=True)
    commands = {trial: command(recipe, trial, folder) for trial in trials}
    waiting = {trial: made for trial, made in commands.items() if made is not None}
    console.print(f"{len(trials)} runs, {len(trials) - len(waiting)} of them finished before", highlight=False)
    codes = _over_ray(waiting, cpus=cpus, gpus=gpus) if ray else _in_turn(waiting, console)
    console.print(table(trials, folder))
    if len({trial.setting for trial in trials}) > 1:
        console.print(WARNING, markup=False, highlight=False)
    if failed := [name for name, code in codes.items() if code]:
        console.print(f"failed: {', '.join(failed)}; the same command tries them again", markup=False, highlight=False)
        raise typer.Exit(1)


def combinations(name: str, values: Sequence[str], seeds: int) -> Iterator[Trial]:
    """Every combination of the comma-separated values, with every seed.

    >>> [t.name for t in combinations("x", ["train.lr=1e-5,2e-5", "train.steps=3"], 2)]
    ['x-lr1e-5-s0', 'x-lr1e-5-s1', 'x-lr2e-5-s0', 'x-lr2e-5-s1']
    """
    from llmrl.errors import ConfigError

    choices = []
    for text in values:
        key, equals, listed = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{text!r} is not of the form section.key=value,value")
        if key in ("name", "seed"):
            raise ConfigError(f"{text!r}: a sweep sets {key} itself; use --seeds")
        choices.append([(key, value) for value in split_values(listed)])
    varying = [len(options) > 1 for options in choices]
    for setting in itertools.product(*choices):
        marks = [f"{key.rpartition('.')[2]}{value}" for (key, value), varies in zip(setting, varying) if varies]
        tag = "-".join([name, *("".join(c if c.isalnum() or c in "._-" else "_" for c in mark) for mark in marks)])
        for seed in range(seeds):
            yield Trial(f"{tag}-s{seed}", tuple(f"{key}={value}" for key, value in setting), seed)


def split_values(text: str) -> list[str]:
    """Values at commas that are in no bracket and no quotes.

    >>> split_values("0.2,[1, 2],'a,b'")
    ['0.2', '[1, 2]', "'a,b'"]
    """
    found, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        depth += (char in "[{") - (char in "]}") if not quote else 0
        if char == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += char
    return [value.strip() for value in found]


def command(recipe: Path, trial: Trial, runs: Path) -> list[str] | None:
    """What trains a trial, or continues it; None if it is finished."""
    summary = runs / trial.name / "summary.json"
    if summary.is_file() and json.loads(summary.read_text()).get("status") == "finished":
        return None
    begun = (runs / trial.name / "recipe.yaml").is_file()
    resume = ["--resume"] if begun and any((runs / trial.name / "checkpoints").glob("step-*")) else []
    fresh = ["--fresh"] if begun and not resume else []
    return [sys.executable, "-m", "llmrl", "train", str(recipe), *trial.overrides, *resume, *fresh]


def _in_turn(waiting: dict[Trial, list[str]], console: Console) -> dict[str, int]:
    codes = {}
    for trial, made in waiting.items():
        console.print(f"[bold]{trial.name}[/]", highlight=False)
        codes[trial.name] = code = subprocess.run(made, check=False).returncode
        if code in (130, 143):  # stopped by the user: the sweep stops too
            raise typer.Exit(code)
    return codes


def _over_ray(waiting: dict[Trial, list[str]], *, cpus: float, gpus: float) -> dict[str, int]:
    from llmrl.errors import ConfigError

    try:
        import ray
    except ImportError as error:
        raise ConfigError("sweep --ray needs Ray: pip install 'llmrl[ray]'") from error
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=True)
    here = Path.cwd()

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    def train(made: list[str]) -> int:
        return subprocess.run(made, check=False, cwd=here).returncode

    started = {trial.name: train.remote(made) for trial, made in waiting.items()}
    return dict(zip(started, ray.get(list(started.values())), strict=True))


def table(trials: Iterable[Trial], runs: Path) -> Any:
    """Held-out accuracy of each setting: one seed with its run's interval, several with that of their mean."""
    from rich.table import Table

    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for trial in trials:
        file = runs / trial.name / "summary.json"
        groups[trial.setting].append(json.loads(file.read_text()) if file.is_file() else {})
    made = Table("setting", "runs", "held-out accuracy", "each seed")
    for setting, summaries in groups.items():
        ends = [
            (s["accuracy_after"], s.get("accuracy_after_interval"))
            for s in summaries
            if s.get("accuracy_after") is not None
        ]
        each = ", ".join(f"{value:.3f}" for value, _ in ends)
        made.add_row(" ".join(setting) or "–", f"{len(ends)} of {len(summaries)}", over_seeds(ends), each)
    return made


def over_seeds(ends: Sequence[tuple[float, Sequence[float] | None]]) -> str:
    """The mean accuracy with a 95 % interval: Student's t over seeds, and never narrower than the runs' own on average."""
    from statistics import mean, stdev

    from llmrl.report.summary import accuracy_text

    if len(ends) < 2:
        return accuracy_text(*ends[0]) if ends else "–"
    from scipy.stats import t

    values = [value for value, _ in ends]
    own = [(high - low) / 2 for _, (low, high) in ((v, i) for v, i in ends if i)]
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    half = max([half, *([mean(own)] if own else [])])
    return accuracy_text(mean(values), [max(0.0, mean(values) - half), min(1.0, mean(values) + half)])
