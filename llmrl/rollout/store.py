"""Rollouts on disk: one parquet file a step, one row a trajectory, complete enough to repeat the step's update."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmrl.atomic import replacing
from llmrl.types import Ending, Media, Prompt, Role, Score, Status, StatusKind, Trajectory

MEDIA = "media"  # the folder of pictures beside the files
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
        ("role", pa.string()),
        ("score", pa.float64()),  # the sum over steps; null if there is none
        ("scores", pa.string()),  # JSON list, one object per step
        ("parts", pa.string()),
        ("score_reason", pa.string()),
        ("score_error", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("advantage", pa.float64()),
        ("columns", pa.string()),
        ("source", pa.string()),  # one of several data sources
        ("messages", pa.string()),  # JSON list
        ("media", pa.list_(pa.string())),  # hashes; the files lie in media/ beside this one
        ("episode", pa.string()),
        ("turn", pa.int32()),
        ("thought", pa.int32()),  # sampled tokens before the action
        ("ending", pa.string()),
        ("final", pa.string()),  # JSON: what the policy would have seen after a cut episode; null: nothing
        ("final_media", pa.list_(pa.string())),
        ("info", pa.string()),  # JSON
    ]
)


AS_THEY_ARE = ("text", "tokens", "mask", "logprobs", "step", "sample", "episode", "turn")  # columns that are fields


def rollouts_file(run: Path, step: int) -> Path:
    """Where the rollouts of `step` lie."""
    return run / "rollouts" / f"step-{step:06d}.parquet"


def write_rollouts(file: Path, trajectories: Sequence[Trajectory], advantages: Sequence[float | None]) -> None:
    """Write atomically; `advantages` is the mean advantage of each trajectory's sampled tokens."""
    rows = [_row(trajectory, advantage) for trajectory, advantage in zip(trajectories, advantages, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    for trajectory in trajectories:
        for shown in (trajectory.prompt, trajectory.final):
            _write_media(file.parent / MEDIA, shown.media if shown is not None else ())
    with replacing(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")


def read_rollouts(file: Path) -> list[Trajectory]:
    """The trajectories of a stored step, as they were when the step was trained."""
    return [_trajectory(row, file.parent / MEDIA) for row in pq.read_table(file).to_pylist()]


def _write_media(folder: Path, media: Sequence[Media]) -> None:
    """Each picture once, under its hash."""
    for item in media:
        file = folder / f"{item.hash}.png"
        if not file.is_file():
            folder.mkdir(exist_ok=True)
            with replacing(file) as partial:
                partial.write_bytes(item.data)


def _read_media(folder: Path, hashes: Sequence[str]) -> tuple[Media, ...]:
    return tuple(Media(data=(folder / f"{name}.png").read_bytes(), hash=name) for name in hashes)


def _row(trajectory: Trajectory, advantage: float | None) -> dict[str, Any]:
    last = trajectory.scores[-1] if trajectory.scores else Score(value=None)
    final = trajectory.final
    return {
        **{name: getattr(trajectory, name) for name in AS_THEY_ARE},
        "prompt_id": trajectory.prompt.id,
        "prompt_text": trajectory.prompt.text,
        "prompt_tokens": len(trajectory.prompt.tokens),
        "answer": trajectory.prompt.answer,
        "status": trajectory.status.kind.value,
        "status_reason": trajectory.status.reason,
        "version_oldest": trajectory.version[0],
        "version_newest": trajectory.version[1],
        "role": trajectory.role.value,
        "score": trajectory.reward,
        "scores": json.dumps([asdict(score) for score in trajectory.scores]),
        "parts": json.dumps(dict(last.parts)),
        "score_reason": last.reason,
        "score_error": last.error,
        "flags": list(last.flags),
        "advantage": advantage,
        "columns": json.dumps(dict(trajectory.prompt.columns), default=str),
        "source": trajectory.prompt.source,
        "messages": json.dumps([dict(message) for message in trajectory.prompt.messages], default=str),
        "media": [item.hash for item in trajectory.prompt.media],
        "thought": trajectory.thought,
        "ending": trajectory.ending.value,
        "final": None if final is None else json.dumps({"tokens": final.tokens, "text": final.text}),
        "final_media": [item.hash for item in final.media] if final is not None else [],
        "info": json.dumps(dict(trajectory.info), default=str),
    }


def _trajectory(row: dict[str, Any], media: Path) -> Trajectory:
    scores = [Score(**{**score, "flags": tuple(score["flags"])}) for score in json.loads(row["scores"])]
    return Trajectory(
        prompt=Prompt(
            id=row["prompt_id"],
            tokens=tuple(row["tokens"][: row["prompt_tokens"]]),
            text=row["prompt_text"],
            answer=row["answer"],
            columns=json.loads(row["columns"]),
            messages=tuple(json.loads(row["messages"])),
            media=_read_media(media, row["media"]),
            source=row.get("source") or "",
        ),
        **{name: row[name] for name in AS_THEY_ARE},
        thought=row.get("thought") or 0,
        status=Status(StatusKind(row["status"]), row["status_reason"]),
        version=(row["version_oldest"], row["version_newest"]),
        role=Role(row["role"]),
        scores=tuple(scores),
        ending=Ending(row["ending"]),
        final=_final(row, media),
        info=json.loads(row["info"]),
    )


def _final(row: dict[str, Any], media: Path) -> Prompt | None:
    if row["final"] is None:
        return None
    found = json.loads(row["final"])
    return Prompt(
        id=row["prompt_id"],
        tokens=tuple(found["tokens"]),
        text=found["text"],
        media=_read_media(media, row["final_media"]),
    )
