"""What watches a stage's trainer: metrics.jsonl, the progress bar, checkpoints that are whole, signals, NaN.

Hugging Face's Trainer writes `checkpoint-N/` file by file. Here a checkpoint counts once its manifest of checksums is
written, which comes last; older ones are removed only after that.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrl.errors import LimitExceeded
from llmrl.settings.stages import PairStage
from llmrl.train.checkpoint import damage, seal
from llmrl.train.folder import Metrics
from llmrl.train.interrupts import Interrupts
from llmrl.train.log import progress_bar
from llmrl.train.world import World

POSITION = "position.json"  # in a checkpoint: how long metrics.jsonl was

# Trainer's and TRL's names -> ours; what is not here is not kept.
NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "accuracy": "pairs/accuracy",
    "margin": "pairs/margin",
    "mean_reward": "reward/mean",
    "rewards/accuracies": "pairs/accuracy",
    "rewards/margins": "pairs/margin",
    "rewards/chosen": "pairs/chosen",
    "rewards/rejected": "pairs/rejected",
}


class Follower(TrainerCallback):
    """Use as the Trainer's callback; `close` when it is done. `tracker` is accelerate's Accelerator or None."""

    def __init__(
        self, stage: PairStage, folder: Path, *, world: World, console: Console, interrupts: Interrupts,
        resumed: Path | None, tracker: Any | None,
    ) -> None:  # fmt: skip
        self._stage = stage
        self._folder = folder
        self._world = world
        self._console = console
        self._interrupts = interrupts
        self._tracker = tracker
        kept = json.loads((resumed / POSITION).read_text())["metrics_bytes"] if resumed else 0
        self._metrics = Metrics(folder, keep_bytes=kept) if world.main else None
        self._tokens, self._began, self._resumed = 0.0, time.perf_counter(), resumed is not None
        self._held_out = ""
        self._progress = progress_bar(console, shown=world.main)
        self._task = self._progress.add_task(f"stage {stage.title}", total=stage.train.steps, numbers="starting")
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()
        if self._metrics:
            self._metrics.close()
        if self._tracker is not None:
            self._tracker.end_training()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Say what the Trainer does after this step. After the last the model is written, and no checkpoint: a Trainer
        that is resumed at its end trains one more step.
        """
        last = state.global_step >= self._stage.train.steps
        every = self._stage.eval.every
        stop = self._world.any(self._interrupts.requested)
        control.should_log = True
        control.should_evaluate = last or bool(every and state.global_step % every == 0)
        control.should_save = not last and (stop or state.global_step % self._stage.train.save_every == 0)
        control.should_training_stop = last or stop

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: Mapping[str, float] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        found = dict(logs or {})
        if "loss" in found:
            self._step(state.global_step, found)
        elif "eval_loss" in found:
            self._evaluation(state.global_step, found)

    def _step(self, step: int, logs: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self._began
        tokens, self._tokens = logs.get("num_tokens", 0.0) - self._tokens, logs.get("num_tokens", 0.0)
        metrics = {ours: float(logs[name]) for name, ours in NAMES.items() if name in logs}
        metrics |= {"time/step": seconds, "tokens/trained": tokens, "tokens/per_s": tokens / seconds}
        self._append("train", step, metrics)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise LimitExceeded(
                    f"stage {self._stage.title}, step {step}: {name} is {metrics[name]}; lower the stage's train.lr, or look "
                    "at its data"
                )
        accuracy = f"  pairs {metrics['pairs/accuracy']:.2f}" if "pairs/accuracy" in metrics else ""
        numbers = f"loss {metrics['loss']:.4f}{accuracy}  {seconds:.1f} s/step"
        self._progress.update(self._task, completed=step, numbers=numbers + self._held_out)
        if self._world.main and not self._console.is_terminal:
            total = self._stage.train.steps
            self._console.print(f"stage {self._stage.title}: step {step}/{total}  {numbers}", highlight=False)

    def _evaluation(self, step: int, logs: Mapping[str, float]) -> None:
        known = {f"eval_{name}": f"eval/{ours}" for name, ours in NAMES.items()}
        metrics = {ours: float(logs[name]) for name, ours in known.items() if name in logs}
        self._append("eval", step, metrics)
        self._held_out = f"  held-out {metrics['eval/loss']:.4f}"
        accuracy = f", pairs right {metrics['eval/pairs/accuracy']:.3f}" if "eval/pairs/accuracy" in metrics else ""
        if self._world.main:
            self._console.print(
                f"stage {self._stage.title}: step {step}: held-out loss {metrics['eval/loss']:.4f}{accuracy}",
                highlight=False,
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Make the checkpoint count, then remove those that are no longer kept."""
        if not self._metrics:
            return
        folder = self._folder / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of settings that nobody needs
        (folder / POSITION).write_text(json.dumps({"metrics_bytes": self._metrics.bytes}))
        seal(folder)
        (self._folder / "README.md").unlink(missing_ok=True)  # TRL's draft of a model card
        for old in checkpoints(self._folder)[: -self._stage.train.keep_last]:
            shutil.rmtree(old)

    def _append(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.append(kind, step, metrics)
        if self._tracker is not None:
            self._tracker.log(dict(metrics), step=step)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders of a stage, oldest first, whole or not."""
    return sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.partition("-")[2]))


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that is whole, what was wrong with newer ones, which are removed)."""
    complaints: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint} is not whole ({problem}); it is removed")
        shutil.rmtree(checkpoint)
    return None, complaints
