"""`WeightedSum`: several rewards as one, their parts kept for the logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmrl.rewards.scoring import score_all
from llmrl.types import Reward, Score, Trajectory


def no_outcome(trajectory: Trajectory) -> Score:
    """The reward of a recipe that names none: what the environment gave is all there is."""
    return Score(value=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfSources:
    """A reward for the rows of some of the recipe's `data.sources`; to others it does not apply, and does not see them."""

    reward: Reward
    sources: frozenset[str]

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        mine = [t for t in trajectories if t.prompt.source in self.sources]
        scores = iter(score_all(self.reward, mine) if mine else [])
        return [next(scores) if t.prompt.source in self.sources else Score(value=None) for t in trajectories]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSum:
    """Sum of weight * value over the parts that apply.

    rewards: name -> reward; weights: name -> weight, 1.0 where not named. A part with value None does not apply and is
    left out (the other weights stay as they are); if no part applies the sum is None. A part with an error makes the
    whole sum an error, for a sum without it would be a different reward. `Score.parts` holds each part's value before
    weighting under its name, and that part's own parts under "name/part".
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("WeightedSum needs at least one reward")
        unknown = sorted(set(self.weights) - set(self.rewards))
        if unknown:
            raise ValueError(f"weights for unknown rewards {unknown}; there are {sorted(self.rewards)}")

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One combined score a trajectory; every part sees the whole batch, so batched parts stay batched."""
        columns = {name: score_all(reward, trajectories) for name, reward in self.rewards.items()}
        return [self._combine({name: scores[i] for name, scores in columns.items()}) for i in range(len(trajectories))]

    def _combine(self, scores: Mapping[str, Score]) -> Score:
        errors = [f"{name}: {score.error}" for name, score in scores.items() if score.error]
        flags = tuple(dict.fromkeys(flag for score in scores.values() for flag in score.flags))
        parts: dict[str, float] = {}
        for name, score in scores.items():
            if score.value is not None:
                parts[name] = score.value
            parts.update({f"{name}/{key}": value for key, value in score.parts.items()})
        reason = "; ".join(f"{name}: {score.reason}" for name, score in scores.items() if score.reason)
        if errors:
            return Score(value=None, parts=parts, reason=reason, error="; ".join(errors), flags=flags)
        applicable = [name for name, score in scores.items() if score.value is not None]
        value = sum(self.weights.get(name, 1.0) * parts[name] for name in applicable) if applicable else None
        return Score(value=value, parts=parts, reason=reason, flags=flags)
