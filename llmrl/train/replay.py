"""Repeat a stored step's update without an engine: was that jump the data's doing or the code's?

The update starts from the checkpoint that preceded the step, on the rollouts and rewards that the step stored. Another
algorithm can be tried on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from llmrl.batch import Algorithm
from llmrl.errors import ReplayError
from llmrl.rollout.store import read_rollouts, rollouts_file
from llmrl.settings.base import with_base
from llmrl.settings.load import load_recipe, read_recipe
from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import checkpoints, damage, read_state, read_tensors
from llmrl.train.folder import read_metrics
from llmrl.train.job import knobs_of, steered
from llmrl.train.learn import learn
from llmrl.train.models import Sources, build_models
from llmrl.train.world import World

COMPARED = ("loss", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Metrics of the replayed update beside the recorded ones. `replayed_from` is the checkpoint's step."""

    step: int
    replayed_from: int
    recorded: dict[str, float]
    replayed: dict[str, float]

    @property
    def reproduced(self) -> bool:
        """Whether loss and gradient norm are the recorded ones, bit for bit."""
        return all(self.recorded.get(name) == self.replayed.get(name) for name in COMPARED)


def stored_recipe(run: Path) -> Recipe:
    """The recipe a run was started with. Raises ReplayError if `run` is no run folder."""
    if not (run / "recipe.yaml").is_file():
        raise ReplayError(f"{run} is not a run folder: it has no recipe.yaml")
    return load_recipe(run / "recipe.yaml")


def algo_section(file: Path) -> dict[str, Any]:
    """The `algo` section of a recipe, or a file that holds just one. Raises ReplayError."""
    data = yaml.safe_load(file.read_text()) if file.is_file() else None
    if isinstance(data, dict):
        data = with_base(data, file, read_recipe)
    section = data.get("algo", data) if isinstance(data, dict) else None
    if not isinstance(section, dict) or "name" not in section:
        raise ReplayError(f"{file} holds no `algo` section with a name")
    return section


def replay(run: Path, *, step: int, recipe: Recipe, algo: Algorithm, sources: Sources) -> Replay:
    """Re-run the update of `step` (1 is the first), walking up to it from the nearest checkpoint before it.

    Steps between the checkpoint and `step` are replayed too, from their own rollouts. Raises ReplayError if the step
    was never stored.
    """
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    start, folder = _nearest_checkpoint(run, step)
    for number in (step, *range(start + 1, step)):
        if not rollouts_file(run, number).is_file():
            raise ReplayError(f"{run} has no rollouts of step {number}; stored are {_stored(run)}")
    world = World()
    prompts = [t.prompt for t in read_rollouts(rollouts_file(run, step))]
    models = build_models(recipe, algo, sources, prompts, [], world)
    if folder is not None:
        models.load(lambda name: read_tensors(folder, name))
    metrics: dict[str, float] = {}
    for number in range(start + 1, step + 1):
        trajectories = read_rollouts(rollouts_file(run, number))
        batch = models.collate(trajectories)
        _, metrics = learn(*steered(models, algo, knobs_of(_recorded(run, number))), batch, number - 1)
    return Replay(step=step, replayed_from=start, recorded=_recorded(run, step), replayed=metrics)


def _nearest_checkpoint(run: Path, step: int) -> tuple[int, Path | None]:
    for folder in reversed(checkpoints(run)):
        if damage(folder) is None and (found := read_state(folder).step) < step:
            return found, folder
    return 0, None


def _recorded(run: Path, step: int) -> dict[str, float]:
    rows: list[dict[str, Any]] = [row for row in read_metrics(run) if row["kind"] == "train" and row["step"] == step]
    if not rows:
        raise ReplayError(f"{run}/metrics.jsonl has no training step {step}")
    return {name: value for name, value in rows[-1].items() if isinstance(value, float | int)}


def _stored(run: Path) -> str:
    steps = sorted(int(file.stem.removeprefix("step-")) for file in (run / "rollouts").glob("step-*.parquet"))
    return f"steps {steps[0]} to {steps[-1]}" if steps else "none"
