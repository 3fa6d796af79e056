"""The one telemetry call of the loop: metrics.jsonl, trackers, and what people watch in the terminal."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.completions import log_completions
from llmrl.train.folder import Metrics
from llmrl.train.world import World
from llmrl.types import Trajectory

SILENCE_S = 30.0  # longest time without a word
ESTIMATE_AFTER = 2  # steps; the first is slower than the others
ALIKE_FOR = 2  # steps
WIDE = 120  # columns from which the bar has room for every number


def progress_bar(console: Console, *, shown: bool) -> Progress:
    """A bar whose tasks have `numbers` beside the count; nothing outside a terminal."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20 if console.width >= WIDE else 8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown or not console.is_terminal,
    )


def open_trackers(recipe: Recipe, folder: Path, accelerator: Any = None) -> Any:
    """accelerate's Accelerator with the recipe's trackers, None if it names none. Without a given one it has one of its own,
    as stages do: their steps count from 0.
    """
    if not recipe.tracking.to:
        return None
    import torch
    from accelerate import Accelerator

    if accelerator is None:
        on_cpu = not torch.cuda.is_available()
        accelerator = Accelerator(cpu=on_cpu, log_with=recipe.tracking.to, project_dir=str(folder))
    accelerator.init_trackers(recipe.tracking.project)
    return accelerator


def _with_interval(metrics: Mapping[str, float], prefix: str) -> str:
    value, low, high, count = (metrics[f"{prefix}/{name}"] for name in ("accuracy", "low", "high", "n"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}] on {count:.0f} problems"


class Log:
    """Writes on rank 0 only. `tracker` is accelerate's Accelerator if the recipe names trackers, else None."""

    def __init__(
        self, recipe: Recipe, world: World, console: Console, *, state: TrainState, tracker: Any | None = None,
        stage: str = "",
    ) -> None:  # fmt: skip
        self._stage = f"stage {stage}: " if stage else ""
        self._main = world.main
        self._console = console
        self._tracker = tracker
        self._metrics = Metrics(Path(recipe.run_dir), keep_bytes=state.metrics_bytes) if world.main else None
        self._saving_s = 0.0
        self._private = recipe.privacy is not None  # how long a step took tells how many records were drawn
        self._accuracy = ""
        self._wide = console.width >= WIDE
        self._progress = progress_bar(console, shown=world.main)
        self._task = self._progress.add_task(
            self._stage.rstrip(": ") or recipe.name, total=recipe.train.steps, completed=state.step, numbers="starting"
        )
        self._steps = recipe.train.steps
        self._shown = recipe.train.log_completions
        self._first, self._run = state.step, recipe.run_dir
        self._alike = recipe.rollout.group_size > 1
        self._doing, self._since, self._count = "starting", time.monotonic(), ""
        self._evaluation: TaskID | None = None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._progress.start()
        if world.main:
            self._heart.start()

    @property
    def bytes(self) -> int:
        """Length of metrics.jsonl, safely on disk."""
        return self._metrics.bytes if self._metrics else 0

    def saved(self, seconds: float) -> None:
        """A checkpoint took this long; it counts in the next step's row, behind the state that was saved."""
        self._saving_s += seconds

    @property
    def unaccounted_s(self) -> float:
        """Checkpoint time after the last step's row."""
        return self._saving_s

    def step(self, state: TrainState, metrics: dict[str, float], clock: Clock) -> TrainState:
        """Record a finished step; returns the state after it."""
        clock.add("checkpoint", self._saving_s)
        self._saving_s = 0.0
        times = clock.seconds()
        if not self._private:
            metrics |= times
            metrics["tokens/per_s"] = metrics.get("tokens/sampled", metrics["tokens/trained"]) / times["time/step"]
        step = state.step + 1
        self._append("train", step, metrics)
        numbers, shown = self._told(metrics)
        self._progress.update(self._task, completed=step, numbers=f"{shown}{self._accuracy}")
        if self._main and not self._console.is_terminal:
            self._console.print(f"{self._stage}step {step}/{self._steps}  {numbers}", highlight=False)
            if step == self._first + ESTIMATE_AFTER and step < self._steps:
                left = times["time/step"] * (self._steps - step)
                self._console.print(f"about {left / 60:.0f} minutes to the end, without evaluations", highlight=False)
        self._without_contrast(step, metrics)
        self.doing(f"step {step + 1}")
        skipped = state.skipped_in_a_row + 1 if metrics["update/skipped"] else 0
        return replace(state, step=step, skipped_in_a_row=skipped, accuracy=None)

    def _without_contrast(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say once that no completion was better than its siblings since the start."""
        self._alike = self._alike and metrics.get("group/uniform") == 1
        if self._alike and step == self._first + ALIKE_FOR:
            self.say(
                f"every completion got the reward of its siblings in all steps so far (mean {metrics['reward/mean']:.3f}): "
                f"a method that compares them learns nothing; `llmrl samples {self._run} --step {step}` shows why"
            )

    def _told(self, metrics: dict[str, float]) -> tuple[str, str]:
        """A step in a line, and in half of one."""
        if self._private:
            numbers = f"sigma {metrics['privacy/sigma']:.3f}  spent {metrics['privacy/spent']:.1%}"
            return f"{numbers}  grad {metrics['grad_norm']:.2f}", numbers
        first = f"reward {metrics['reward/mean']:.3f}  " if "reward/mean" in metrics else ""
        loss, pace = f"loss {metrics['loss']:+.4f}", f"{metrics['time/step']:.1f} s/step"
        numbers = f"{first}length {metrics['length/mean']:.1f}  {loss}  grad {metrics['grad_norm']:.2f}  {pace}"
        return numbers, numbers if self._wide else f"{first or loss + '  '}{pace}"

    def evaluation(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Record an evaluation of the held-out problems."""
        self._append("eval", state.step, metrics)
        self.doing(f"step {state.step + 1}")
        accuracy, loss = metrics.get("eval/accuracy"), metrics.get("eval/loss")
        told = []
        if accuracy is not None:
            told.append(f"held-out accuracy {_with_interval(metrics, 'eval')}")
        if loss is not None:
            told.append(f"held-out loss {loss:.4f}")
        for name in (key.split("/")[2] for key in metrics if re.fullmatch("eval/source/[^/]+/accuracy", key)):
            told.append(f"  {name}: {_with_interval(metrics, f'eval/source/{name}')}")
        for name in (key.split("/")[1] for key in metrics if key.endswith("/score")):
            told.append(f"{name} {metrics[f'eval/{name}/score']:.3f} on {metrics[f'eval/{name}/n']:.0f} questions")
        self._accuracy = f"  held-out {loss if accuracy is None else accuracy:.3f}"
        if self._main:
            for text in told:
                self._console.print(f"{self._stage}step {state.step}: {text}", highlight=False)

    def doing(self, what: str) -> None:
        """What takes time from now on; while it does, a line now and then says so."""
        self._doing, self._since, self._count = what, time.monotonic(), ""
        if self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    def counted(self, done: int, total: int) -> None:
        """So many completions of an evaluation are finished: a bar of its own in a terminal, else part of the line that
        says what takes time.
        """
        rate = f"{done / max(time.monotonic() - self._since, 1e-3):.1f} a second"
        self._count = f", {done} of {total} completions, {rate}"
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("evaluation", total=total, numbers=rate)
        self._progress.update(self._evaluation, completed=done, total=total, numbers=rate)

    def _beat(self) -> None:
        while not self._ended.wait(SILENCE_S):
            seconds = time.monotonic() - self._since
            if seconds >= SILENCE_S:
                self._console.print(
                    f"{self._doing}: {seconds:.0f} s so far{self._count}", markup=False, highlight=False
                )

    def completions(self, step: int, rows: Sequence[Trajectory], advantages: Sequence[float | None]) -> None:
        """Some of a step's completions for the trackers, as many as `train.log_completions` says."""
        if self._tracker is not None:
            log_completions(self._tracker.trackers, step, rows, advantages, self._shown)

    def say(self, text: str) -> None:
        if self._main:
            self._console.print(text, highlight=False)

    def close(self) -> None:
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join()
        self._progress.stop()
        if self._metrics:
            self._metrics.close()
        if self._tracker is not None:
            self._tracker.end_training()

    def _append(self, kind: str, step: int, metrics: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.append(kind, step, metrics)
        if self._tracker is not None:
            self._tracker.log(metrics, step=step)
