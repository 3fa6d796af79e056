"""Runs the stages before the rest of a recipe, each from the policy that it names; what is finished is skipped.

    runs/<name>/stages/01-sft/  metrics.jsonl  summary.json  model/      and, until it is finished, checkpoints

`model/` is a plain Hugging Face folder with a manifest of checksums. A stage whose model is there and whole is finished.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llmrl.atomic import write_text
from llmrl.errors import CheckpointError, ConfigError
from llmrl.policy.model import load_tokenizer
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import LoopStage, PairStage, RLStage, SFTStage, Stage
from llmrl.stages.examples import Examples, load_examples
from llmrl.train.checkpoint import damage, seal
from llmrl.train.folder import read_metrics
from llmrl.train.interrupts import Interrupts
from llmrl.train.log import open_trackers
from llmrl.train.world import World

Train = Callable[[str], tuple[int, bool]]  # from a policy's folder -> (steps done, whether these are all)
Prepare = Callable[[LoopStage], Train]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A signal ended the stages early."""

    stage: str
    step: int


def check_stages(recipe: Recipe, world: World) -> None:
    """Raise ConfigError for stages that these processes cannot run."""
    pairs = [(place, stage) for place, stage in enumerate(recipe.before) if stage.kind in ("reward_model", "dpo")]
    for place, stage in pairs:
        for name in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
                raise ConfigError(
                    f"stages.{place}.{stage.kind} trains with a copy of the model in each process, and this job is launched "
                    f"with {name}; launch it without, and set train.backend, which is about sft and rl alone"
                )
        share = world.size * (stage.train.microbatch_size or 1)
        if stage.train.batch_size % share:
            raise ConfigError(
                f"stages.{place}.{stage.kind}.train.batch_size={stage.train.batch_size} cannot be shared equally by "
                f"{world.size} processes; make it a multiple of {share}"
            )


def run_stages(
    recipe: Recipe, source: str, *, world: World, console: Console, interrupts: Interrupts, prepare: Prepare
) -> Stopped | None:
    """Run what is not finished; None once all are. The data of all of them is read first, so that mistakes show early.

    `source` is the recipe's model; `prepare` reads the data of a stage on the training loop and gives what trains it.
    Raises ConfigError, DataError, CheckpointError, LimitExceeded or RankLost.
    """
    check_stages(recipe, world)
    finished = world.on_main(lambda: [_finished(recipe, stage) for stage in recipe.before])
    jobs: list[tuple[Stage, Train]] = []
    for stage, done in zip(recipe.before, finished, strict=True):
        if done and world.main:
            console.print(f"stage {stage.title}: finished before", highlight=False)
        elif not done:
            jobs.append((stage, _job(stage, recipe, source, world, console, interrupts, prepare)))
    for stage, train in jobs:
        if interrupts.requested:
            return Stopped(stage=stage.title, step=0)
        try:
            steps, whole = train(str(recipe.start_of(stage) or source))
        except Exception as error:
            error.add_note(f"in stage {stage.title} of {recipe.run_dir}")
            raise
        _forget()
        if not whole:
            return Stopped(stage=stage.title, step=steps)
    return None


def _job(
    stage: Stage, recipe: Recipe, source: str, world: World, console: Console, interrupts: Interrupts, prepare: Prepare
) -> Train:
    if isinstance(stage, SFTStage | RLStage):
        return prepare(stage)
    examples = load_examples(stage, recipe, load_tokenizer(source))
    return lambda begin: _train_pairs(
        stage, recipe, examples, begin, world=world, console=console, interrupts=interrupts
    )


def _finished(recipe: Recipe, stage: Stage) -> bool:
    """Raises CheckpointError for a finished stage whose model was damaged since."""
    folder = recipe.stage_dir(stage) / "model"
    if not folder.exists():
        return False
    problem = damage(folder)
    if problem:
        raise CheckpointError(
            f"the model of stage {stage.title} is damaged: {folder}: {problem}; remove it, and resume"
        )
    return True


def leave_model(folder: Path, write: Callable[[Path], None], *, drop: str) -> None:
    """Write `folder`/model, whole or not at all; with it the stage is finished, and its checkpoints (`drop`) go."""
    temporary = folder / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    seal(temporary)
    temporary.rename(folder / "model")
    for checkpoint in folder.glob(drop):
        shutil.rmtree(checkpoint)


def _train_pairs(
    stage: PairStage, recipe: Recipe, examples: Examples, source: str, *, world: World, console: Console,
    interrupts: Interrupts,
) -> tuple[int, bool]:  # fmt: skip
    """Train to the end or until interrupted; returns the steps done and whether these are all, after which the model is
    there.
    """
    from llmrl.stages.follow import Follower, newest_whole
    from llmrl.stages.trainers import export, make_trainer

    folder = recipe.stage_dir(stage)
    folder.mkdir(parents=True, exist_ok=True)
    resumed, complaints = world.on_main(lambda: newest_whole(folder))
    if world.main:
        for note in (*examples.notes, *complaints):
            console.print(note, highlight=False)
        where = f", resuming from {resumed.name}" if resumed else ""
        console.print(
            f"stage {stage.title}: {len(examples.train):,} examples, {len(examples.held_out):,} held out, from "
            f"{source}{where}",
            highlight=False,
        )
    follower = Follower(
        stage, folder, world=world, console=console, interrupts=interrupts, resumed=resumed,
        tracker=open_trackers(recipe, folder),
    )  # fmt: skip
    try:
        trainer = make_trainer(stage, recipe, examples, follower, source=source, folder=folder, world=world)
        trainer.args.eval_on_start = not resumed  # evaluate() before train() would leave processes out of step
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        follower.close()
    steps = int(trainer.state.global_step)
    world.on_main(lambda: _end(stage, recipe, folder, source, steps, partial(export, trainer, stage)))
    return steps, steps == stage.train.steps


def _end(
    stage: PairStage, recipe: Recipe, folder: Path, source: str, steps: int, write_model: Callable[[Path], None]
) -> None:
    finished = steps == stage.train.steps
    write_text(folder / "summary.json", json.dumps(_summary(stage, recipe, folder, source, finished), indent=1))
    if not finished:
        return
    leave_model(folder, write_model, drop="checkpoint-*")


def _summary(stage: PairStage, recipe: Recipe, folder: Path, source: str, finished: bool) -> dict[str, Any]:
    rows = read_metrics(folder)
    train, evals = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval"))
    found: dict[str, Any] = {
        "name": stage.title,
        "kind": stage.kind,
        "status": "finished" if finished else "interrupted",
        "steps": stage.train.steps,
        "completed_steps": len(train),
        "started_from": source,
        "train_wall_s": round(sum(row["time/step"] for row in train), 2),
        "seed": recipe.seed,
        "loss_first": train[0]["loss"],
        "loss_last": train[-1]["loss"],
    }
    for when, row in (("before", evals[0]), ("after", evals[-1])):
        found |= {f"{name.replace('/', '_')}_{when}": value for name, value in row.items() if name.startswith("eval/")}
    return found


def _forget() -> None:
    """Give the memory of the trainer's model back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
