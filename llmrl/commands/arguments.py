"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmrl.nearest import closest

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as recipes/arithmetic/grpo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes, such as train.steps=50 algo.clip_high=0.28.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; an existing run is moved aside.")]
AnyModel = Annotated[str, typer.Argument(help="A run folder, a checkpoint, a model folder or a name.")]
Step = Annotated[int | None, typer.Option(min=1, help="A checkpoint's step; default: the newest.")]


def existing_run(run: Path) -> Path:
    """`run` if it is a run folder. Raises FileNotFoundError that names the nearest one."""
    if any((run / name).is_file() for name in ("recipe.yaml", "metrics.jsonl", "summary.json")):
        return run
    if run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder: it holds no recipe.yaml and no metrics.jsonl")
    known = {path.name: path for folder in (Path("runs"), run.parent) for path in folder.glob("*/")}
    close = known.get(run.name) or known.get(closest(run.name, known) or "")
    raise FileNotFoundError(f"no run folder at {run}" + (f"; did you mean {close}?" if close else ""))


RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.", callback=existing_run)]
