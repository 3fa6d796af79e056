"""Trajectory -> Batch: ragged rows become padded tensors, scores become rewards, unusable rows lose their mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrl.batch import Batch, stacked
from llmrl.data.pictures import PictureReader
from llmrl.types import Ending, Prompt, Role, StatusKind, Trajectory

Reduce = Callable[[Tensor], Tensor]


def usable(trajectory: Trajectory, *, mask_truncated: bool) -> bool:
    """Whether a trajectory trains: it has a score, something was sampled, and it did not fail (or run out of room)."""
    kind = trajectory.status.kind
    if trajectory.role is Role.BASELINE:
        return False
    if kind is StatusKind.ERROR or (mask_truncated and kind is StatusKind.TRUNCATED):
        return False
    return trajectory.reward is not None and trajectory.sampled > 0


def collate(
    trajectories: Sequence[Trajectory],
    *,
    mask_truncated: bool = False,
    privileged: Callable[[Prompt], tuple[int, ...]] | None = None,
    reader: PictureReader | None = None,
) -> Batch:
    """Tensors of all trajectories, in their order; rows that are not `usable` have no mask and score NaN.

    `privileged` gives the tokens of a prompt that a separate value model reads before it, and nobody else; `reader` reads
    the prompts' pictures.

    A truncated row that is masked keeps its score for its siblings' baseline only if it counts: it does not, as in
    DAPO's overlong filtering. Raises ValueError for no trajectories.
    """
    if not trajectories:
        raise ValueError("collate needs at least one trajectory")
    columns = _columns(trajectories, mask_truncated=mask_truncated, reader=reader)
    columns["score"] = _episode_scores(trajectories, columns["score"])
    if not any(t.episode for t in trajectories):
        del columns["thought"]
    sampled = [t.logprobs is not None for t in trajectories]
    tensors: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns.items()}
    batch = Batch(
        length=torch.tensor([t.length for t in trajectories]),
        group=_numbered([t.prompt.id for t in trajectories]),
        prompt_length=torch.tensor([len(t.prompt.tokens) for t in trajectories]),
        tokens_total=torch.zeros(()),
        sequences_total=torch.zeros(()),
        privileged=None if privileged is None else _padded([privileged(t.prompt) for t in trajectories]),
        sampled=None if all(sampled) else torch.tensor(sampled),
        **tensors,
    )
    optional: dict[str, Any] = {
        **_beside(trajectories), **_prefixes(trajectories), **_episodes(trajectories), **_pictures(trajectories, reader)
    }  # fmt: skip
    batch = replace(batch, **optional)
    return with_totals(batch, reduce=lambda total: total)


def _columns(
    trajectories: Sequence[Trajectory], *, mask_truncated: bool, reader: PictureReader | None
) -> dict[str, np.ndarray]:
    """What a batch says of each token, and each row's own score."""
    count, width = len(trajectories), max(t.length for t in trajectories)
    tokens = np.zeros((count, width), dtype=np.int64)
    mask = np.zeros((count, width), dtype=bool)
    logprobs = np.zeros((count, width), dtype=np.float32)
    step = np.full((count, width), -1, dtype=np.int64)
    rewards = np.zeros((count, width), dtype=np.float32)
    thought = np.zeros((count, width), dtype=bool)
    score = np.full(count, np.nan, dtype=np.float32)
    for row, trajectory in enumerate(trajectories):
        length = trajectory.length
        tokens[row, :length] = trajectory.tokens
        if not usable(trajectory, mask_truncated=mask_truncated):
            if reader is not None:  # a placeholder that the policy wrote itself stands for no picture
                own = tokens[row, len(trajectory.prompt.tokens) :]
                own[own == reader.token] = 0
            if _only_passes(trajectory):
                score[row] = rewards[row, length - 1] = trajectory.reward
            continue
        mask[row, :length] = trajectory.mask
        if trajectory.logprobs is not None:
            logprobs[row, :length] = trajectory.logprobs
        step[row, :length] = trajectory.step
        thought[row, :length] = trajectory.mask & (np.cumsum(trajectory.mask) <= trajectory.thought)
        score[row] = trajectory.reward
        for number, one in enumerate(trajectory.scores):
            rewards[row, _place(trajectory, number)] += one.value
    return {
        "tokens": tokens, "mask": mask, "logprobs": logprobs, "step": step, "rewards": rewards, "thought": thought,
        "score": score,
    }  # fmt: skip


def _only_passes(trajectory: Trajectory) -> bool:
    """Whether this is a step of an episode in which the policy chose nothing: no token trains, its reward still counts."""
    return (
        bool(trajectory.episode)
        and trajectory.status.kind is not StatusKind.ERROR
        and trajectory.sampled == 0
        and (trajectory.reward is not None)
    )


def _place(trajectory: Trajectory, number: int) -> int:
    """Where the reward of environment step `number` lies: on its last sampled token, or where it has none on the last one
    sampled before it, or on the first there is.
    """
    steps = trajectory.step
    before = np.flatnonzero((steps >= 0) & (steps <= number))
    return int(before[-1] if len(before) else np.flatnonzero(steps >= 0)[0])


def _episode_scores(trajectories: Sequence[Trajectory], score: np.ndarray) -> np.ndarray:
    """Each row's score, or that of its whole episode; NaN if a row of it does not count."""
    totals: dict[str, float] = defaultdict(float)
    for trajectory, own in zip(trajectories, score, strict=True):
        if trajectory.episode:
            totals[trajectory.episode] += float(own)
    found = [totals[t.episode] if t.episode else own for t, own in zip(trajectories, score, strict=True)]
    return np.array(found, dtype=np.float32)


def _numbered(keys: Sequence[object]) -> Tensor:
    """[B] int64: the same number for the same key, from 0 in order of appearance."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _beside(trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
    """What rows are told about others of their prompt, and what became of each, where anything of the kind is known."""
    found: dict[str, Tensor] = {}
    best = {t.prompt.id: t.reward for t in trajectories if t.role is Role.BASELINE}
    if best:
        known = [best.get(t.prompt.id) for t in trajectories]
        found["baseline"] = torch.tensor([np.nan if x is None else x for x in known], dtype=torch.float32)
    if any(t.role is Role.GIVEN for t in trajectories):
        found["given"] = torch.tensor([t.role is Role.GIVEN for t in trajectories])
    outcomes = [outcome(t) for t in trajectories]
    if any(one >= 0 for one in outcomes):
        found["outcome"] = torch.tensor(outcomes)
    return found


def outcome(trajectory: Trajectory) -> int:
    """The class that a reward gave a trajectory in its part `outcome`, -1 if none did or the trajectory failed."""
    if trajectory.status.kind is StatusKind.ERROR or not trajectory.scores:
        return -1
    parts = trajectory.scores[-1].parts
    return next((int(value) for name, value in parts.items() if name.endswith("/outcome")), -1)


def _prefixes(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Which rows share their prompt's tokens (and images), where that is not simply the group."""
    keys = [(t.prompt.id, t.prompt.tokens, tuple(item.hash for item in t.prompt.media)) for t in trajectories]
    return {} if len(set(keys)) == len({key[0] for key in keys}) else {"prefix": _numbered(keys)}


def _episodes(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """The fields of batches whose rows are environment steps."""
    if not any(t.episode or t.ending is not Ending.TERMINATED for t in trajectories):
        return {}
    endings = [t.ending for t in trajectories]
    found = {
        "episode": _numbered([t.episode or row for row, t in enumerate(trajectories)]),
        "turn": torch.tensor([t.turn for t in trajectories]),
        "terminated": torch.tensor([ending is Ending.TERMINATED for ending in endings]),
        "truncated": torch.tensor([ending is Ending.TRUNCATED for ending in endings]),
    }
    if any(t.final is not None for t in trajectories):
        found["final_tokens"] = _padded([t.final.tokens if t.final is not None else () for t in trajectories])
    return found


def _pictures(trajectories: Sequence[Trajectory], reader: PictureReader | None) -> dict[str, Any]:
    """What is shown in each row."""
    if reader is None:
        return {}
    found = {"pictures": tuple(reader.read(t.prompt.media) for t in trajectories)}
    if any(t.final is not None for t in trajectories):
        finals = (t.final.media if t.final is not None else () for t in trajectories)
        found["final_pictures"] = tuple(reader.read(media) for media in finals)
    return found


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, in order; groups of different batches stay different. Totals are of the whole.

    Raises ValueError if an optional field is in some of them only.
    """
    return with_totals(stacked(batches), reduce=lambda total: total)


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """[B, longest row] int64, -1 behind each row's end."""
    found = torch.full((len(rows), max(len(row) for row in rows)), -1)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def with_totals(batch: Batch, *, reduce: Reduce) -> Batch:
    """The batch as one update of its own: `tokens_total` and `sequences_total` summed over ranks by `reduce`."""
    totals = torch.stack([batch.mask.sum(), batch.mask.any(1).sum()]).to(torch.float32)
    tokens, sequences = reduce(totals).clamp_min(1).unbind()
    return replace(batch, tokens_total=tokens, sequences_total=sequences)
