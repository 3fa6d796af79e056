"""Rollouts on disk: one parquet file a step, one row a trajectory, complete enough to repeat the step's update."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmrl.types import Prompt, Score, Status, StatusKind, Trajectory

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt_text", pa.string()),
        ("prompt_tokens", pa.int32()),  # how many of `tokens` are the prompt
        ("answer", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("step", pa.list_(pa.int32())),
        ("status", pa.string()),
        ("status_reason", pa.string()),
        ("version_oldest", pa.int32()),
        ("version_newest", pa.int32()),
        ("sample", pa.int32()),
        ("score", pa.float64()),  # the sum over steps; null if there is none
        ("scores", pa.string()),  # JSON list, one object per step
        ("parts", pa.string()),
        ("score_reason", pa.string()),
        ("score_error", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("advantage", pa.float64()),
        ("columns", pa.string()),
    ]
)


def rollouts_file(run: Path, step: int) -> Path:
    """Where the rollouts of `step` lie."""
    return run / "rollouts" / f"step-{step:06d}.parquet"


def write_rollouts(file: Path, trajectories: Sequence[Trajectory], advantages: Sequence[float | None]) -> None:
    """Write atomically; `advantages` is the mean advantage of each trajectory's sampled tokens."""
    rows = [_row(trajectory, advantage) for trajectory, advantage in zip(trajectories, advantages, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")
    partial.replace(file)


def read_rollouts(file: Path) -> list[Trajectory]:
    """The trajectories of a stored step, as they were when the step was trained."""
    return [_trajectory(row) for row in pq.read_table(file).to_pylist()]


def _row(trajectory: Trajectory, advantage: float | None) -> dict[str, Any]:
    first = trajectory.scores[0] if trajectory.scores else Score(value=None)
    return {
        "prompt_id": trajectory.prompt.id,
        "prompt_text": trajectory.prompt.text,
        "prompt_tokens": len(trajectory.prompt.tokens),
        "answer": trajectory.prompt.answer,
        "text": trajectory.text,
        "tokens": trajectory.tokens,
        "mask": trajectory.mask,
        "logprobs": trajectory.logprobs,
        "step": trajectory.step,
        "status": trajectory.status.kind.value,
        "status_reason": trajectory.status.reason,
        "version_oldest": trajectory.version[0],
        "version_newest": trajectory.version[1],
        "sample": trajectory.sample,
        "score": trajectory.reward,
        "scores": json.dumps([_plain(score) for score in trajectory.scores]),
        "parts": json.dumps(dict(first.parts)),
        "score_reason": first.reason,
        "score_error": first.error,
        "flags": list(first.flags),
        "advantage": advantage,
        "columns": json.dumps(dict(trajectory.prompt.columns), default=str),
    }


def _plain(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "parts": dict(score.parts),
        "reason": score.reason,
        "error": score.error,
        "flags": list(score.flags),
    }


def _trajectory(row: dict[str, Any]) -> Trajectory:
    scores = [Score(**{**score, "flags": tuple(score["flags"])}) for score in json.loads(row["scores"])]
    return Trajectory(
        prompt=Prompt(
            id=row["prompt_id"],
            tokens=tuple(row["tokens"][: row["prompt_tokens"]]),
            text=row["prompt_text"],
            answer=row["answer"],
            columns=json.loads(row["columns"]),
        ),
        tokens=row["tokens"],
        mask=row["mask"],
        logprobs=row["logprobs"],
        step=row["step"],
        text=row["text"],
        status=Status(StatusKind(row["status"]), row["status_reason"]),
        version=(row["version_oldest"], row["version_newest"]),
        sample=row["sample"],
        scores=tuple(scores),
    )
