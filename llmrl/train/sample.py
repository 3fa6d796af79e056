"""One step's batch before training: prompts, completions, scores; and how batches are shared out over ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import cast

from llmrl.data.stream import Stream
from llmrl.rollout.engine import RolloutEngine, SleepingEngine
from llmrl.rollout.episodes import Stage, play
from llmrl.rollout.roll import roll, sampling
from llmrl.seeding import generator
from llmrl.settings.recipe import Recipe
from llmrl.settings.rollout import RolloutConfig
from llmrl.train.clock import Clock
from llmrl.train.world import World
from llmrl.types import Ending, Prompt, Role, Score, Status, Trajectory, by_episode, total

ScoreAll = Callable[[Sequence[Trajectory]], list[Score]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Makes this rank's scored trajectories of a step."""

    recipe: Recipe
    world: World
    engine: RolloutEngine
    score: ScoreAll
    stream: Stream
    spare: Stream  # an order of its own, for prompts that replace uniform groups
    stage: Stage | None = None  # where episodes of several turns are played
    gold: Mapping[str, Trajectory] | None = None  # given completions by prompt id: nothing is sampled
    references: Mapping[str, Sequence[Trajectory]] | None = None  # the same, one of them beside what is sampled
    greedy: bool = False  # a greedy completion of each prompt, too
    stored: Mapping[str, Sequence[Trajectory]] | None = (
        None  # programs written before, by prompt id, instead of new ones
    )

    def __call__(self, step: int, version: int, clock: Clock, knobs: Mapping[str, float]) -> list[Trajectory]:
        """The batch of `step`, sampled by the policy of `version`, which the engine holds, at the `temperature` of `knobs`,
        if a controller has set it. With `rollout.sleep` the engine rests afterwards.

        With dynamic sampling, groups whose scores are all equal are replaced by groups of spare prompts, for at most
        `max_rounds` rounds; what is still uniform then stays.
        """
        config = self.recipe.rollout
        config = config.model_copy(update={"temperature": knobs.get("temperature", config.temperature)})
        found = self._sampled(self.world.share(self.stream.at(step)), config, step, version, clock)
        rounds = config.dynamic_sampling.max_rounds if config.dynamic_sampling else 0
        for number in range(rounds):
            groups = by_prompt(found)
            dull = [prompt for prompt, rows in groups.items() if is_uniform(rows)]
            if not dull:
                break
            spare = self.world.share(self.spare.at(step * rounds + number))
            new = [prompt for prompt in spare if prompt.id not in groups][: len(dull)]
            fresh = by_prompt(self._sampled(new, config, step, version, clock))
            useful = [rows for rows in fresh.values() if not is_uniform(rows)]
            for prompt, rows in zip(dull, useful, strict=False):
                del groups[prompt]
                groups[rows[0].prompt.id] = rows
            found = [trajectory for rows in groups.values() for trajectory in rows]
        if config.sleep:
            with clock("sync"):
                cast(SleepingEngine, self.engine).sleep()
        return found

    def _sampled(
        self, prompts: list[Prompt], config: RolloutConfig, step: int, version: int, clock: Clock
    ) -> list[Trajectory]:
        recipe = self.recipe
        if self.gold is not None:
            return [replace(self.gold[prompt.id], version=(version, version)) for prompt in prompts] or [nobody()]
        with clock("generate"):
            if self.stored is not None:
                trajectories = self._stored(self.stored, prompts, step, version)
            elif self.stage is None:
                trajectories = roll(
                    self.engine, prompts, config, seed=recipe.seed, step=step, version=version, baseline=self.greedy
                )
            else:
                trajectories = play(
                    self.engine, prompts, self.stage, sampling=sampling(config, 0), seed=recipe.seed,
                    samples=config.group_size, step=step, version=version,
                )  # fmt: skip
        with clock("reward"):
            scored = judged([*trajectories, *self._references(prompts, step, version)], self.score)
            return [checked(trajectory, recipe.eval.threshold) for trajectory in scored]

    def _stored(
        self, stored: Mapping[str, Sequence[Trajectory]], prompts: Sequence[Prompt], step: int, version: int
    ) -> list[Trajectory]:
        """As many stored programs of each prompt as a group has, or all there are; its baseline if one is asked for."""
        found: list[Trajectory] = []
        for prompt in prompts:
            mine = [row for row in stored[prompt.id] if row.role is Role.SAMPLED]
            draw = generator(self.recipe.seed, step, "stored", prompt.id)
            found += draw.sample(mine, min(len(mine), self.recipe.rollout.group_size))
            baselines = [row for row in stored[prompt.id] if row.role is Role.BASELINE]
            found += baselines[:1] if self.greedy else []
        return [replace(row, version=(version, version)) for row in found]

    def _references(self, prompts: Sequence[Prompt], step: int, version: int) -> list[Trajectory]:
        """One given completion of each prompt that has any."""
        known = self.references or {}
        draws = [(known[p.id], generator(self.recipe.seed, step, "reference", p.id)) for p in prompts if p.id in known]
        return [replace(draw.choice(rows), version=(version, version)) for rows, draw in draws]


def checked(trajectory: Trajectory, threshold: float) -> Trajectory:
    """The trajectory; a given completion that its own reward does not count as solved is an error, and trains nothing."""
    if trajectory.role is not Role.GIVEN or (trajectory.reward is not None and trajectory.reward >= threshold):
        return trajectory
    said = "; ".join(score.reason or score.error for score in trajectory.scores)
    return replace(trajectory, status=Status.error(f"the reference scores {trajectory.reward}: {said}"))


def nobody() -> Trajectory:
    """The one row of a step for which nobody was drawn: public, and it teaches nothing."""
    prompt = Prompt(id="nobody", tokens=(0,), text="")
    return Trajectory(
        prompt=prompt, tokens=[0, 0], mask=[False, False], logprobs=None, step=[-1, -1], text="",
        status=Status.done(), scores=(Score(value=0.0),),
    )  # fmt: skip


def judged(trajectories: Sequence[Trajectory], score: ScoreAll) -> list[Trajectory]:
    """Trajectories with the outcome that `score` gives; of an episode only the last row is judged, for the whole of it."""
    ends = [t for t in trajectories if t.ending is not Ending.CONTINUES]
    outcomes = iter(score(ends))
    nothing = Score(value=0.0)
    return [t.with_outcome(nothing if t.ending is Ending.CONTINUES else next(outcomes)) for t in trajectories]


def by_prompt(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories by prompt id, in order of first appearance."""
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.prompt.id].append(trajectory)
    return dict(groups)


def is_uniform(rows: Sequence[Trajectory]) -> bool:
    """Whether a group's rewards (its baseline's too) are all the same, so that it teaches nothing."""
    return len({total(episode) for episode in by_episode([row for row in rows if row.role is not Role.GIVEN])}) == 1


def all_ranks(batches: Mapping[int, list[Trajectory]], world: World) -> dict[int, list[Trajectory]]:
    """Every rank's batches by step, groups dealt so that `this_rank` gives each rank its own again."""
    everyone = world.gather([dict(batches)])
    found: dict[int, list[Trajectory]] = {}
    for step in batches:
        ranks = [list(by_prompt(part[step]).values()) for part in everyone]
        rounds = zip_longest(*ranks, fillvalue=[])
        found[step] = [trajectory for groups in rounds for group in groups for trajectory in group]
    return found


def this_rank(batches: Mapping[int, list[Trajectory]], world: World) -> dict[int, list[Trajectory]]:
    """This rank's groups of batches of all ranks."""
    return {
        step: [trajectory for group in world.share(list(by_prompt(rows).values())) for trajectory in group]
        for step, rows in batches.items()
    }
