"""Which folders or hub ids a `--model` means: a model, a run's checkpoints, or one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmrl.errors import CatalogError, EvalError
from llmrl.policy.catalog import resolve

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`path` is what engines open. Of a run's checkpoint `step` is the training step and `series` the run."""

    name: str
    path: str
    series: str | None = None
    step: int | None = None


def find_models(text: str, *, checkpoints: str | None = None) -> list[Model]:
    """The model that `text` names; of a run folder its newest checkpoint, or those that `checkpoints` names, by step.

    `text` is a folder with config.json, a run folder, one of its checkpoints/step-N, a hub id, or a catalog name.
    `checkpoints` is "all" or steps joined by commas. EvalError if there is none.
    """
    folder = Path(text).expanduser()
    if (folder / "policy" / "config.json").is_file():
        step = _STEP.fullmatch(folder.name)
        return [Model(name=text.rstrip("/"), path=str(folder / "policy"), step=int(step[1]) if step else None)]
    if (folder / "checkpoints").is_dir():
        found = _checkpoints(folder)
        return found[-1:] if checkpoints is None else _chosen(folder, found, checkpoints)
    if checkpoints is not None:
        raise EvalError(f"{text} is no run folder with checkpoints; leave --checkpoints out")
    try:
        return [Model(name=text.rstrip("/"), path=str(resolve(text)))]
    except CatalogError as error:
        raise EvalError(str(error)) from error


def find_model(text: str, *, step: int | None = None) -> Model:
    """The one model that `text` names; of a run folder the newest checkpoint, or that of `step`. EvalError as there."""
    return find_models(text, checkpoints=None if step is None else str(step))[0]


def _chosen(run: Path, found: list[Model], wanted: str) -> list[Model]:
    if wanted == "all":
        return found
    by_step = {str(model.step): model for model in found}
    steps = list(dict.fromkeys(part.strip().removeprefix("step-").lstrip("0") or "0" for part in wanted.split(",")))
    for step in steps:
        if step not in by_step:
            raise EvalError(f"{run} has no checkpoint of step {step}; it has {', '.join(by_step)} (or say: all)")
    return [model for step, model in by_step.items() if step in steps]


def _checkpoints(run: Path) -> list[Model]:
    steps = {int(match[1]): item for item in (run / "checkpoints").iterdir() if (match := _STEP.fullmatch(item.name))}
    found = [
        Model(name=f"{run.name}/step-{step}", path=str(steps[step] / "policy"), series=run.name, step=step)
        for step in sorted(steps)
        if (steps[step] / "policy" / "config.json").is_file()
    ]
    if not found:
        raise EvalError(f"{run} has no checkpoint with a model (checkpoints/step-N/policy) yet")
    return found
