"""Which folders or hub ids a `--model` means: a model, a run's checkpoints, or one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmrl.eval.errors import EvalError
from llmrl.policy.catalog import CatalogError, resolve

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`path` is what engines open. `step` is the training step of a run's checkpoint, else None."""

    name: str
    path: str
    step: int | None = None


def find_models(text: str, *, every_checkpoint: bool = False) -> list[Model]:
    """The model that `text` names; of a run folder its newest checkpoint, or each one in order of its step.

    `text` is a folder with config.json, a run folder, one of its checkpoints/step-N, a hub id, or a catalog name.
    EvalError if there is none.
    """
    folder = Path(text).expanduser()
    if (folder / "policy" / "config.json").is_file():
        step = _STEP.fullmatch(folder.name)
        return [Model(name=text.rstrip("/"), path=str(folder / "policy"), step=int(step[1]) if step else None)]
    if (folder / "checkpoints").is_dir():
        found = _checkpoints(folder)
        return found if every_checkpoint else found[-1:]
    if every_checkpoint:
        raise EvalError(f"{text} is no run folder with checkpoints; leave --every-checkpoint out")
    try:
        return [Model(name=text.rstrip("/"), path=str(resolve(text)))]
    except CatalogError as error:
        raise EvalError(str(error)) from error


def _checkpoints(run: Path) -> list[Model]:
    steps = {int(match[1]): item for item in (run / "checkpoints").iterdir() if (match := _STEP.fullmatch(item.name))}
    found = [
        Model(name=f"{run.name}/step-{step}", path=str(steps[step] / "policy"), step=step)
        for step in sorted(steps)
        if (steps[step] / "policy" / "config.json").is_file()
    ]
    if not found:
        raise EvalError(f"{run} has no checkpoint with a model (checkpoints/step-N/policy) yet")
    return found
