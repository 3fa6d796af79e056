"""A run's stored rollouts as JSONL: programs for offline training, and failing programs with what repairs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrl.rollout.critic_sampling import problem_of, repair_message
from llmrl.rollout.store import read_rollouts
from llmrl.types import Role, StatusKind, Trajectory


def programs(run: Path) -> Iterator[dict[str, Any]]:
    """Every program that was sampled, as `rollout.stored` reads it, with its reward beside it."""
    for row in _rows(run):
        if row.role is Role.GIVEN or row.status.kind is StatusKind.ERROR:
            continue
        before = len(row.prompt.tokens)
        logprobs = {} if row.logprobs is None else {"logprobs": row.logprobs[before:].tolist()}
        yield {
            "prompt_id": row.prompt.id, "text": row.text, "tokens": row.tokens[before:].tolist(), **logprobs,
            "greedy": row.role is Role.BASELINE, "reward": row.reward,
        }  # fmt: skip


def repairs(run: Path, *, threshold: float = 1.0) -> Iterator[dict[str, Any]]:
    """Pairs for a repair model: a failing program in the repair prompt (`problem`), its reference (`completion`).

    A program fails below `threshold`; the reference is the row's first solution, or its answer. Each pair is there once.
    """
    seen: set[tuple[str, str]] = set()
    for row in _rows(run):
        reward, reference = row.reward, (row.prompt.columns.get("solutions") or [row.prompt.answer])[0]
        fails = row.role is not Role.GIVEN and reward is not None and reward < threshold
        if not fails or not reference or (row.prompt.id, row.text) in seen:
            continue
        seen.add((row.prompt.id, row.text))
        said = row.scores[-1].reason if row.scores else ""
        yield {
            "id": f"{row.prompt.id}/repair/{len(seen)}",
            "problem": repair_message(problem_of(row.prompt), row.text, said),
            "completion": reference,
        }


def write_jsonl(file: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write one object a line; how many there were."""
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
            count += 1
    return count


def _rows(run: Path) -> Iterator[Trajectory]:
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        yield from read_rollouts(file)
