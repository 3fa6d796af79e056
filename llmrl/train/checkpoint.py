"""Checkpoints that are whole or not there: temporary folder, fsync, rename, and a manifest of checksums.

    checkpoints/step-000050/  policy/  optimizer.safetensors  state.json  manifest.json
                              critic/  critic.safetensors  reference.safetensors  controller.safetensors
                              outcome_critic/  outcome_critic.safetensors                                   if there are any

`policy/` is a plain Hugging Face folder; so are `outcome_critic/` and, beside its value head, the `critic/` of a value
model of its own. A folder without a manifest, or whose files do not match it, is not used: resume names it and takes the
one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmrl.atomic import sync
from llmrl.errors import CheckpointError
from llmrl.rollout.store import read_rollouts, rollouts_file, write_rollouts
from llmrl.types import Trajectory

MANIFEST = "manifest.json"
WRITE_ERRORS = (OSError, SafetensorError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stands after `step` steps. With the weights and the optimizer this is all that resume needs: every
    random draw and the data order are keyed by the step. `metrics_bytes` is the length of metrics.jsonl then.
    """

    step: int
    metrics_bytes: int
    skipped_in_a_row: int = 0
    accuracy: float | None = None  # on the held-out problems, or what train.best names, if measured at this step
    best: float | None = None  # the highest of them among saved steps
    best_step: int | None = None
    knobs: dict[str, float] = field(default_factory=dict)  # hyper-parameters that a controller has set
    ended: str = ""  # why the run ended before its last step, if it did by its own rules


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first."""
    found = (run / "checkpoints").glob("step-[0-9]*")
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))


class Writer:
    """Writes checkpoints behind the training: weights are copied at once, the disk is written by one thread.

    An error of an earlier save is raised by the next `save` or by `finish`.
    """

    def __init__(self, run: Path, *, keep_last: int, keep_best: bool) -> None:
        self._run = run
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        for leftover in (run / "checkpoints").glob(".*-step-*"):
            shutil.rmtree(leftover)

    def save(
        self,
        exports: Mapping[str, Callable[[Path], None]],
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: TrainState,
        pending: Mapping[int, Sequence[Trajectory]] | None = None,
    ) -> None:
        """`exports` write a folder each, by name: "policy", and those of critics. `tensors` by file: "optimizer", and
        "critic", "outcome_critic", "reference", "controller" if there are any.

        `pending` are batches that are sampled and not trained yet, by step.
        """
        self.finish()
        temporary = self._run / "checkpoints" / f".tmp-step-{state.step:06d}"
        try:
            temporary.mkdir(parents=True)
            for name, export in exports.items():
                export(temporary / name)
            for step, rows in (pending or {}).items():
                write_rollouts(rollouts_file(temporary, step), rows, [None] * len(rows))
        except WRITE_ERRORS as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _failed(self._run, state.step, error) from error
        copied = {
            file: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}
            for file, named in tensors.items()
        }
        self._pending = self._pool.submit(self._write, temporary, copied, state)

    def finish(self) -> None:
        """Wait for the save under way. Raises CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.finish()
        finally:
            self._pool.shutdown()

    def _write(self, temporary: Path, tensors: dict[str, dict[str, Tensor]], state: TrainState) -> None:
        try:
            for name, named in tensors.items():
                save_file(named, temporary / f"{name}.safetensors")
            (temporary / "state.json").write_text(json.dumps(asdict(state)))
            seal(temporary)
            final = folder_of(self._run, state.step)
            temporary.rename(final)
            sync(final.parent)
            self._prune(state)
        except WRITE_ERRORS as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _failed(self._run, state.step, error) from error

    def _prune(self, state: TrainState) -> None:
        found = checkpoints(self._run)
        kept = set(found[-self._keep_last :])
        if self._keep_best and state.best_step is not None:
            kept.add(folder_of(self._run, state.best_step))
        for folder in found:
            if folder not in kept:  # renamed first, so that none is ever half there under its name
                shutil.rmtree(folder.rename(folder.with_name(f".old-{folder.name}")))


def _failed(run: Path, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of step {step} could not be written to {run / 'checkpoints'}: {error}; earlier checkpoints are "
        "intact. Make room (or fix the disk) and continue with --resume"
    )


def seal(folder: Path) -> None:
    """Flush every file to disk, then write the manifest that makes the folder a checkpoint."""
    sums = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(file)
        sums[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": 1, "files": sums}, indent=1))
    for path in (manifest, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(path)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        files: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that is whole, what was wrong with newer ones)."""
    complaints: list[str] = []
    for folder in reversed(checkpoints(run)):
        problem = damage(folder)
        if problem is None:
            return folder, complaints
        complaints.append(f"{folder} is damaged: {problem}")
    return None, complaints


def set_aside(run: Path) -> tuple[Path | None, list[str]]:
    """`newest_valid`, after renaming damaged newer checkpoints so that they neither count as kept nor stand in the way.

    For the one process that writes in the run folder.
    """
    folder, complaints = newest_valid(run)
    for damaged in reversed(checkpoints(run)):
        if damaged == folder:
            break
        aside = damaged.with_name(f"damaged-{damaged.name}")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
    return folder, complaints


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state.json").read_text()))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for: a rank that keeps a part never holds them all."""

    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, framework="pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_tensors(folder: Path, name: str) -> StoredTensors:
    """The tensors of `name`.safetensors: optimizer, critic or reference."""
    return StoredTensors(folder / f"{name}.safetensors")


def read_pending(folder: Path) -> dict[int, list[Trajectory]]:
    """Batches that were sampled and not trained yet, of all ranks, by step."""
    return {
        int(file.stem.removeprefix("step-")): read_rollouts(file) for file in sorted((folder / "rollouts").glob("*"))
    }


def digest(folder: Path) -> str:
    """sha256 over a checkpoint's step, float32 weights and optimizer state, tensor by tensor in name order.

    The value model's, the reference and what a controller has learnt and set count too, if they are there.
    """
    state = read_state(folder)
    total = hashlib.sha256(str(state.step).encode())
    if state.knobs:
        total.update(json.dumps(state.knobs, sort_keys=True).encode())
    for file in ("optimizer", "critic", "outcome_critic", "reference", "controller"):
        if file != "optimizer" and not (folder / f"{file}.safetensors").is_file():
            continue
        for name, tensor in sorted(read_tensors(folder, file).items()):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
