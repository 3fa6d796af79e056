"""Numbers about a step's trajectories: what people watch and what supervision acts on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from llmrl.errors import LimitExceeded
from llmrl.settings.recipe import LimitsConfig
from llmrl.types import Ending, Role, StatusKind, Trajectory, by_episode, total

# Marks in completions that mean somebody may be fooling a reward; always in the metrics, so that a zero is seen too.
WATCHED = ("answer_stuffing", "empty_reasoning", "instructs_judge", "many_boxes", "test_tampering", "truncated")
ADVICE = {
    "mismatch/mean_abs_logprob": " nats per token: the sampler draws from another distribution than the trainer learns; "
    "top_p, top_k and min_p do that by their nature (raise the limit), a wrong dtype or chat template by mistake",
}


def describe_rollouts(trajectories: Sequence[Trajectory], *, step: int) -> dict[str, float]:
    """Rewards, lengths, group spread and health of the sampled trajectories of `step` (0, 1, ...), all ranks together; of
    baselines and given completions the mean reward of the ones, and the share of the others that failed their own reward.

    `flag/<name>` is the share of trajectories with a flag of their scores; those of `WATCHED` are always there.
    """
    if all(t.role is Role.GIVEN for t in trajectories):  # nothing was sampled, nothing is rewarded
        return _lengths(trajectories)
    beside = _beside(trajectories)
    trajectories = [t for t in trajectories if t.role is Role.SAMPLED] or trajectories
    count = len(trajectories)
    episodes = by_episode(trajectories)
    kinds = Counter(t.status.kind for t in trajectories)
    totals = [total(episode) for episode in episodes]
    scored = np.array([reward for reward in totals if reward is not None] or [np.nan])
    # A failed rollout has no reward either, but that is not the reward's fault.
    alive = [t for t in trajectories if t.status.kind is not StatusKind.ERROR]
    errors = [" ".join(score.error for score in t.scores if score.error) for t in alive]
    errored = sum(bool(error) for error in errors)
    flags = Counter(dict.fromkeys(WATCHED, 0))
    flags.update(flag for t in trajectories for flag in {flag for score in t.scores for flag in score.flags})
    parts: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, set[float | None]] = defaultdict(set)
    for episode, reward in zip(episodes, totals, strict=True):
        groups[episode[0].prompt.id].add(reward)
    for trajectory in trajectories:
        for score in trajectory.scores:
            for name, value in score.parts.items():
                parts[name].append(value)
    return {
        **_by_source(episodes, totals),
        "reward/mean": float(scored.mean()),
        "reward/std": float(scored.std()),
        "reward/errored": errored / count,
        "reward/timed_out": sum("timed out" in error for error in errors) / count,
        "reward/not_applicable": (sum(t.reward is None for t in alive) - errored) / count,
        **_lengths(trajectories),
        "rollout/staleness": step - float(np.mean([t.version[0] for t in trajectories])),
        "rollout/truncated": kinds[StatusKind.TRUNCATED] / count,
        "rollout/errored": kinds[StatusKind.ERROR] / count,
        "group/uniform": sum(len(values) == 1 for values in groups.values()) / len(groups),
        "tokens/sampled": float(sum(t.sampled for t in trajectories)),
        **beside,
        **(_episode_metrics(episodes) if len(episodes) < count or any(t.episode for t in trajectories) else {}),
        **{f"reward/{name}": float(np.mean(values)) for name, values in sorted(parts.items())},
        **{f"flag/{name}": number / count for name, number in sorted(flags.items())},
    }


def _by_source(episodes: Sequence[Sequence[Trajectory]], totals: Sequence[float | None]) -> dict[str, float]:
    """Mean reward of each data source, and its share of the samples; nothing where there is one source."""
    rewards: dict[str, list[float | None]] = defaultdict(list)
    for episode, reward in zip(episodes, totals, strict=True):
        rewards[episode[0].prompt.source].append(reward)
    found = {}
    for name, values in sorted(rewards.items()):
        if name:
            known = [value for value in values if value is not None]
            found[f"source/{name}/reward"] = float(np.mean(known)) if known else float("nan")
            found[f"source/{name}/share"] = len(values) / len(totals)
    return found


def _lengths(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    lengths = np.array([t.sampled for t in trajectories])
    return {
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/p95": float(np.quantile(lengths, 0.95)),
    }


def _beside(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """About rows that were not sampled to learn from."""
    greedy = [t.reward for t in trajectories if t.role is Role.BASELINE and t.reward is not None]
    given = [t.status.kind is StatusKind.ERROR for t in trajectories if t.role is Role.GIVEN]
    found = {"reward/greedy": float(np.mean(greedy))} if greedy else {}
    return found | ({"reference/failed": float(np.mean(given))} if given else {})


def _episode_metrics(episodes: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Length and end of episodes of several turns."""
    wins = [bool(rows[-1].info["success"]) for rows in episodes if "success" in rows[-1].info]
    return {
        "episode/turns": float(np.mean([len(rows) for rows in episodes])),
        "episode/truncated": float(np.mean([rows[-1].ending is Ending.TRUNCATED for rows in episodes])),
        "episode/errored": float(np.mean([rows[-1].status.kind is StatusKind.ERROR for rows in episodes])),
        **({"episode/success": float(np.mean(wins))} if wins else {}),
    }


def check_limits(metrics: dict[str, float], limits: LimitsConfig, *, skipped_in_a_row: int, step: int) -> None:
    """Raise LimitExceeded if a step's health is beyond what the recipe allows."""
    bounds = {
        "reward/errored": ("max_reward_error_rate", limits.max_reward_error_rate),
        "reward/not_applicable": ("max_unscored_rate", limits.max_unscored_rate),
        "rollout/errored": ("max_rollout_error_rate", limits.max_rollout_error_rate),
        "mismatch/mean_abs_logprob": ("max_mismatch", limits.max_mismatch),
    }
    for name, (key, bound) in bounds.items():
        value = metrics.get(name, 0.0)
        if not value <= bound:  # NaN is beyond any
            raise LimitExceeded(
                f"step {step}: {name}={value:.3g} is above limits.{key}={bound:g}{ADVICE.get(name, '')}"
            )
    if skipped_in_a_row > limits.max_skipped_updates:
        raise LimitExceeded(
            f"step {step}: {skipped_in_a_row} updates in a row had a non-finite loss or gradient, more than "
            f"limits.max_skipped_updates={limits.max_skipped_updates}; lower train.lr or look at the rollouts"
        )
