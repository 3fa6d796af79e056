"""Held-out evaluation during training: one completion a problem, scored by the recipe's own reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmrl.rollout.engine import RolloutEngine
from llmrl.rollout.roll import greedy
from llmrl.settings.recipe import Recipe
from llmrl.train.world import World
from llmrl.types import Prompt, Score, StatusKind, Trajectory

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
) -> Callable[[int], dict[str, float]]:
    """A function from the policy version to the metrics of `prompts`, which are shared out over ranks.

    A problem counts as solved from `eval.threshold` on; one whose reward failed counts as unsolved and in eval/errored.
    `interval` gives the confidence interval of (solved, problems). The metrics of `benchmarks` come along.
    """

    def evaluate(version: int) -> dict[str, float]:
        mine = world.share(list(prompts))
        trajectories = greedy(
            engine,
            mine,
            temperature=recipe.eval.temperature,
            max_tokens=recipe.eval.max_tokens or recipe.rollout.max_tokens,
            seed=recipe.seed,
            version=version,
        )
        scores = score(trajectories)
        rows = world.gather(
            [
                (s.value is not None and s.value >= recipe.eval.threshold, s.value is None, t.sampled, t.status.kind)
                for t, s in zip(trajectories, scores, strict=True)
            ]
        )
        solved, count = sum(row[0] for row in rows), len(rows)
        low, high = interval(solved, count)
        found = benchmarks(engine, world, version) if benchmarks else {}
        return found | {
            "eval/accuracy": solved / count,
            "eval/low": low,
            "eval/high": high,
            "eval/n": count,
            "eval/errored": sum(row[1] for row in rows) / count,
            "eval/length_mean": sum(row[2] for row in rows) / count,
            "eval/truncated": sum(row[3] is StatusKind.TRUNCATED for row in rows) / count,
        }

    return evaluate
