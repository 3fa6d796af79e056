"""Held-out evaluation during training: one completion a problem, scored by the recipe's own reward; or the loss on given
completions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmrl.atomic import write_text
from llmrl.errors import LimitExceeded
from llmrl.rollout.engine import RolloutEngine, Told
from llmrl.rollout.episodes import Stage, play
from llmrl.rollout.roll import greedy
from llmrl.settings.recipe import LimitsConfig, Recipe
from llmrl.train.models import Models
from llmrl.train.sample import judged
from llmrl.train.world import World
from llmrl.types import Prompt, Sampling, Score, StatusKind, Trajectory, by_episode, total

Interval = Callable[[int, int], tuple[float, float]]
Benchmarks = Callable[[RolloutEngine, World, int], dict[str, float]]  # at a policy version


def held_out(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    score: Callable[[Sequence[Trajectory]], list[Score]],
    recipe: Recipe,
    world: World,
    interval: Interval,
    benchmarks: Benchmarks | None = None,
    stage: Stage | None = None,
    told: Told | None = None,
) -> Callable[[int], dict[str, float]]:
    """A function from the policy version to the metrics of `prompts`, which are shared out over ranks.

    A problem counts as solved from `eval.threshold` on; one whose reward failed counts as unsolved and in eval/errored.
    `interval` gives the confidence interval of (solved, problems). The metrics of `benchmarks` come along.
    `told` hears how many completions are finished.
    """

    def evaluate(version: int) -> dict[str, float]:
        mine = world.share(list(prompts))
        length = recipe.eval.max_tokens or recipe.rollout.max_tokens
        how = Sampling(max_tokens=length, temperature=recipe.eval.temperature, stop=tuple(recipe.rollout.stop))
        settings: dict[str, Any] = {"seed": recipe.seed, "version": version, "sampling": how}
        if stage is None:
            trajectories = greedy(engine, mine, told=told, **settings)
        else:
            trajectories = play(engine, mine, stage, samples=1, step="eval", **settings)
        episodes = by_episode(judged(trajectories, score))
        prompts_of = [one[0].prompt for one in episodes]
        told_of = [
            (prompt.id, prompt.source, measured(one, recipe.eval.threshold), parts_of(one), failure_of(one))
            for prompt, one in zip(prompts_of, episodes, strict=True)
        ]
        names, sources, rows, parts, failures = zip(*world.gather(told_of), strict=True)
        check_rewards(failures, recipe.limits, version)
        if world.main:
            store_outcomes(recipe.run_dir, version, dict(zip(names, (row[0] for row in rows), strict=True)))
        count = len(rows)
        found = benchmarks(engine, world, version) if benchmarks else {}
        for name in sorted({*sources} - {""}):
            own = [row[0] for row, source in zip(rows, sources, strict=True) if source == name]
            found |= accuracy(own, interval, f"eval/source/{name}")
        return (
            found
            | {f"eval/reward/{name}": value for name, value in averages(parts).items()}
            | accuracy([row[0] for row in rows], interval, "eval")
            | {
                "eval/errored": sum(row[1] for row in rows) / count,
                "eval/length_mean": sum(row[2] for row in rows) / count,
                "eval/truncated": sum(row[3] is StatusKind.TRUNCATED for row in rows) / count,
            }
        )

    return evaluate


def accuracy(solved: Sequence[bool], interval: Interval, prefix: str) -> dict[str, float]:
    """The share that was solved, its interval and their number, as metrics."""
    low, high = interval(sum(solved), len(solved))
    found = {"accuracy": sum(solved) / len(solved), "low": low, "high": high, "n": len(solved)}
    return {f"{prefix}/{name}": value for name, value in found.items()}


def store_outcomes(run: Path, step: int, solved: Mapping[str, bool]) -> None:
    """Which problems were solved, in evals/step-000010.jsonl: what runs are compared by, problem by problem."""
    file = run / "evals" / f"step-{step:06d}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps({"id": name, "solved": done}) + "\n" for name, done in solved.items()))


def failure_of(episode: Sequence[Trajectory]) -> str:
    """Why the reward of an episode failed; empty if it did not, or if the episode itself failed."""
    errors = [score.error for score in episode[-1].scores if score.error]
    return errors[0] if errors and episode[-1].status.kind is not StatusKind.ERROR else ""


def check_rewards(failures: Sequence[str], limits: LimitsConfig, step: int) -> None:
    """Raise LimitExceeded if the reward failed on too many problems: before the first step, and not after it."""
    reasons = Counter(filter(None, failures))
    if reasons and reasons.total() > limits.max_reward_error_rate * len(failures):
        reason, count = reasons.most_common(1)[0]
        raise LimitExceeded(
            f"step {step}: the reward failed on {reasons.total()} of {len(failures)} held-out problems, more than "
            f"limits.max_reward_error_rate={limits.max_reward_error_rate:g}; most frequent reason, {count} times: {reason}"
        )


def parts_of(episode: Sequence[Trajectory]) -> dict[str, float]:
    """The parts of an episode's outcome and its flags (1.0 each)."""
    scores = episode[-1].scores[-1:]
    flags = {f"flag/{flag}": 1.0 for score in scores for flag in score.flags}
    return {name: value for score in scores for name, value in score.parts.items()} | flags


def averages(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each name over the rows that have it; of a flag over all rows.

    >>> averages([{"a": 1.0, "flag/x": 1.0}, {}])
    {'a': 1.0, 'flag/x': 0.5}
    """
    names = sorted({name for row in rows for name in row})
    count = {name: len(rows) if name.startswith("flag/") else sum(name in row for row in rows) for name in names}
    return {name: sum(row.get(name, 0.0) for row in rows) / count[name] for name in names}


def held_out_loss(models: Models, rows: Sequence[Trajectory]) -> Callable[[int], dict[str, float]]:
    """A function from the policy version to the loss on given completions: `eval/loss`, nats per token of them; of each
    data source too, where there are several.
    """
    groups = ["", *(f"source/{name}/" for name in sorted({row.prompt.source for row in rows} - {""}))]

    def evaluate(version: int) -> dict[str, float]:
        mine = models.world.share(list(rows))
        batch = models.collate(mine or list(rows[:1]))  # a rank without rows takes part in the others' passes
        wanted = torch.arange(len(mine), device=batch.tokens.device)
        logprobs = models.logprob_model.logprobs(batch, rows=wanted)
        tokens = batch.mask[wanted].sum(1)
        sums = {"rows": float(len(mine))}
        for group in groups:
            own = torch.tensor([not group or group == f"source/{row.prompt.source}/" for row in mine], dtype=torch.bool)
            sums |= {f"{group}loss": -float(logprobs[own].sum()), f"{group}tokens": float(tokens[own].sum())}
        found = models.world.sum_metrics(sums)
        return {f"eval/{group}loss": found[f"{group}loss"] / found[f"{group}tokens"] for group in groups} | {
            "eval/n": found["rows"]
        }

    return evaluate


def measured(episode: Sequence[Trajectory], threshold: float) -> tuple[bool, bool, int, StatusKind]:
    """(solved, without a score, tokens sampled, how the last row ended) of one problem's rows."""
    reward = total(episode)
    solved = reward is not None and reward >= threshold
    return solved, reward is None, sum(row.sampled for row in episode), episode[-1].status.kind
