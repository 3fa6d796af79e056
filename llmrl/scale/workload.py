"""The groups of a measured run: how long prompts and completions were, and which of them trained.

Lengths are drawn from here as they were, whole groups at a time, so the long tail and what siblings have in common stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt of a step: tokens of the prompt, of each completion, and of what its update ran (prompt included)."""

    prompt: int
    lengths: tuple[int, ...]
    trained: int


def read_groups(run: Path) -> dict[int, list[Group]]:
    """The groups of every stored step of a run, in order. Raises ConfigError if none is stored."""
    import pyarrow.parquet as pq

    found: dict[int, list[Group]] = {}
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        rows = pq.read_table(file, columns=["prompt_id", "prompt_tokens", "mask", "advantage"]).to_pylist()
        groups: dict[str, list[tuple[int, int, bool]]] = {}
        for row in rows:
            trains = row["advantage"] is None or row["advantage"] != 0
            groups.setdefault(row["prompt_id"], []).append((row["prompt_tokens"], sum(row["mask"]), trains))
        found[int(file.stem.rpartition("-")[2])] = [_group(members) for members in groups.values()]
    if not found:
        raise ConfigError(f"--measured {run}: no rollouts are stored there, so completion lengths are not known")
    return found


def _group(members: Sequence[tuple[int, int, bool]]) -> Group:
    prompt = members[0][0]
    own = sum(length for _, length, trains in members if trains)
    return Group(prompt=prompt, lengths=tuple(length for _, length, _ in members), trained=prompt + own if own else 0)


def scaled(groups: Sequence[Group], factor: float, *, longest: int) -> list[Group]:
    """Groups whose completions are `factor` times as long, at most `longest` tokens."""
    return [
        replace(
            group,
            lengths=tuple(min(longest, max(1, round(length * factor))) for length in group.lengths),
            trained=round(group.prompt + (group.trained - group.prompt) * factor) if group.trained else 0,
        )
        for group in groups
    ]


def decode_steps(lengths: Sequence[int], slots: int) -> int:
    """Steps of an engine that runs `slots` requests at once and starts the next as one ends.

    >>> decode_steps([4, 1, 2, 2], slots=2)
    5
    """
    import heapq

    ends: list[int] = []
    for length in lengths:
        begin = heapq.heappop(ends) if len(ends) == slots else 0
        heapq.heappush(ends, begin + length)
    return max(ends, default=0)
