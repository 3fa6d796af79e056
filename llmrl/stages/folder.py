"""Where stages leave their files, and which model a later stage starts from.

    runs/<name>/stages/01-sft/  metrics.jsonl  checkpoint-50/  model/  summary.json

`model/` is a plain Hugging Face folder with a manifest of checksums. A stage whose model is there and whole is finished,
and its checkpoints are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import REFERENCE, Supervised


def stage_folder(recipe: Recipe, stage: Supervised) -> Path:
    """The folder of one of the recipe's stages in its run folder."""
    place = recipe.supervised.index(stage)
    return recipe.run_dir / "stages" / f"{place + 1:02d}-{stage.title}"


def model_folder(recipe: Recipe, stage: Supervised) -> Path:
    return stage_folder(recipe, stage) / "model"


def policy_source(recipe: Recipe, source: str, before: Supervised | None = None) -> str:
    """The model that stage `before` starts from, or the reinforcement learning: that of the last stage that trained a
    policy, or the recipe's own (`source`).
    """
    stages: Sequence[Supervised] = recipe.supervised
    if before is not None:
        stages = stages[: stages.index(before)]
    for stage in reversed(stages):
        if stage.kind != "reward_model":
            return str(model_folder(recipe, stage))
    return source


def with_models(recipe: Recipe, args: dict[str, Any]) -> dict[str, Any]:
    """A reward's arguments, `stage:name` replaced by the absolute path of that stage's model."""
    folders = {f"{REFERENCE}{stage.title}": str(model_folder(recipe, stage).resolve()) for stage in recipe.supervised}
    return {name: folders.get(value, value) if isinstance(value, str) else value for name, value in args.items()}
