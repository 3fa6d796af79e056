"""Scoring, between the trainer and rewards: `score_one` and `score_all` turn whatever a reward does into a `Score`.

A reward that raises, returns NaN or infinity, a wrong number of scores or something that is no `Score` gives
`Score(value=None, error=...)`: left out of the batch and counted, never a silent 0. This is the only place of the
package that catches every exception.

A reward may offer a second method beside `__call__`:

    score_batch(trajectories: Sequence[Trajectory]) -> list[Score]      # one score each, in order

for work that is cheaper or only possible over many trajectories at once (a TRL reward function, a judge over HTTP, a
reward model). `score_all` uses it where it exists. Run isolated (`RewardPool`), it sees whole groups, all trajectories of
one prompt id together, but perhaps not all groups; a reward with the attribute `whole_batch = True` sees the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from llmrl.importing import load
from llmrl.types import Reward, Score, StatusKind, Trajectory


@runtime_checkable
class BatchedReward(Protocol):
    """A reward that prefers whole batches."""

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]: ...


def failed(reason: str) -> Score:
    """The score of a reward that failed itself."""
    return Score(value=None, error=reason)


def checked(score: object, *, source: str) -> Score:
    """`score` if it is a usable `Score`, else an error naming `source`."""
    if not isinstance(score, Score):
        given = f"{type(score).__name__} {str(score)[:80]!r}"
        return failed(f"{source} returned {given}, not a Score; write Score(value=...) of llmrl.types")
    if score.value is None:
        return score
    if isinstance(score.value, bool) or not isinstance(score.value, (int, float)):
        return failed(f"{source} returned a Score with value {score.value!r}; it must be a float or None")
    if not math.isfinite(score.value):
        return failed(f"{source} returned {score.value}; a reward must be finite")
    return score


def describe(reward: object) -> str:
    """A short name for messages: the class, or the function's own name."""
    return getattr(reward, "__name__", None) or type(reward).__name__


def score_one(reward: Reward, trajectory: Trajectory) -> Score:
    """Score one trajectory; never raises for what the reward does.

    >>> from llmrl.types import Prompt, Status
    >>> t = Trajectory(prompt=Prompt(id="a", tokens=(5,), text="?"), tokens=[5, 6], mask=[0, 1], logprobs=[0, 0],
    ...                step=[-1, 0], text="4", status=Status.done())
    >>> score_one(lambda t: Score(value=float("nan")), t).error
    '<lambda> returned nan; a reward must be finite'
    """
    if trajectory.status.kind is StatusKind.ERROR:
        return failed(f"the rollout failed: {trajectory.status.reason}")
    name = describe(reward)
    try:
        score = reward(trajectory)
    except Exception as error:  # noqa: BLE001 - one of the three borders: a reward call
        return failed(f"{name} raised {type(error).__name__}: {str(error)[:300]}")
    return checked(score, source=name)


def score_all(reward: Reward, trajectories: Sequence[Trajectory]) -> list[Score]:
    """Score many trajectories, in order, through `score_batch` where the reward has it. Never raises for the reward.

    Failed rollouts (status ERROR) are not shown to the reward. One bad element of a batch spoils only itself; a batch
    call that raises or returns the wrong number of scores spoils its whole batch.
    """
    if not isinstance(reward, BatchedReward):
        return [score_one(reward, trajectory) for trajectory in trajectories]
    scores: list[Score] = [failed(f"the rollout failed: {t.status.reason}") for t in trajectories]
    alive = [i for i, t in enumerate(trajectories) if t.status.kind is not StatusKind.ERROR]
    if not alive:
        return scores
    name = describe(reward)
    try:
        got: object = reward.score_batch([trajectories[i] for i in alive])
        results: list[object] = list(cast(Sequence[object], got))
        problem = "" if len(results) == len(alive) else f"{name} returned {len(results)} scores for {len(alive)} rows"
    except Exception as error:  # noqa: BLE001 - one of the three borders: a reward call
        results, problem = [], f"{name} raised {type(error).__name__}: {str(error)[:300]}"
    for place, i in enumerate(alive):
        scores[i] = failed(problem) if problem else checked(results[place], source=name)
    return scores


def load_reward(path: str, options: Mapping[str, Any] | None = None) -> Reward:
    """Build a reward from its import path: a class is called with `options`, a plain function is taken as it is."""
    target = load(path)
    if isinstance(target, type):
        return cast(Reward, target(**(options or {})))
    if options:
        raise ValueError(f"{path!r} is a function, so it takes no options, got {sorted(options)}")
    return cast(Reward, target)
