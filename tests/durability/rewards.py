"""Rewards for runs of a random model: one that varies, and ones that misbehave."""

from __future__ import annotations

import os
import time

from llmrl.envs.protocol import Turn
from llmrl.types import Completion, Observation, Score, Trajectory


def share_of_letters(trajectory: Trajectory) -> Score:
    """Share of the completion's characters that are ASCII letters or digits: a random model has some, and can learn."""
    text = trajectory.text
    return Score(value=sum(c.isascii() and c.isalnum() for c in text) / max(1, len(text)))


def mostly_letters(trajectory: Trajectory) -> Score:
    """1 or 0, so that groups are often uniform."""
    share = share_of_letters(trajectory).value
    return Score(value=float(share is not None and share > 0.45))


def raises_now_and_then(trajectory: Trajectory) -> Score:
    """Fails on about a quarter of the rows."""
    if trajectory.tokens[len(trajectory.prompt.tokens)] % 4 == 0:
        raise ValueError("this row broke the verifier")
    return share_of_letters(trajectory)


def raises_always(trajectory: Trajectory) -> Score:
    """A verifier whose service is down."""
    raise ConnectionError("the verifier does not answer")


def nan_for_sample_one(trajectory: Trajectory) -> Score:
    """0 / 0 in the second sample of each group."""
    return Score(value=float("nan")) if trajectory.sample == 1 else share_of_letters(trajectory)


def overflows_in_version_two(trajectory: Trajectory) -> Score:
    """Finite, but its group's mean and spread are not in float32: the loss of the third step becomes NaN."""
    good = share_of_letters(trajectory)
    return Score(value=3e38 * (trajectory.sample % 2)) if trajectory.version == (2, 2) else good


def overflows_always(trajectory: Trajectory) -> Score:
    """Every loss becomes NaN."""
    return Score(value=3e38 * (trajectory.sample % 2))


def hangs_on_sample_two(trajectory: Trajectory) -> Score:
    """An endless call, now and then."""
    if trajectory.sample == 2:
        time.sleep(3600)
    return share_of_letters(trajectory)


def raises_on_rank_one_in_version_one(trajectory: Trajectory) -> Score:
    """Leaves the second process without anything to train in the second step."""
    if trajectory.version == (1, 1) and os.environ["RANK"] == "1":
        raise ValueError("every row of this rank")
    return share_of_letters(trajectory)


def outcome_of_letters(trajectory: Trajectory) -> Score:
    """One of four classes by the share of letters and digits, with CodeRL's returns; an answer of digits alone passes."""
    share = share_of_letters(trajectory).value or 0.0
    outcome = 3 if share > 0.9 else 2 if share > 0.6 else 1 if share > 0.3 else 0
    return Score(value=(-1.0, -0.6, -0.3, 1.0)[outcome], parts={"outcome": float(outcome)})


class Slow:
    """An environment that takes its time, so that kills come in the middle of an episode; it pays for letters."""

    def __init__(self, prompt: object, seed: int) -> None:
        self.turns = 0

    def start(self) -> Observation:
        return Observation.of("write letters")

    def act(self, completion: Completion) -> Turn:
        time.sleep(0.01)
        self.turns += 1
        share = sum(c.isascii() and c.isalnum() for c in completion.text) / max(1, len(completion.text))
        return Turn(reward=share, next=Observation.of("more") if share > 0.3 else None, info={"success": share > 0.5})
