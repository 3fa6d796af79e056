"""Rewards for runs of a random model: one that varies, and ones that misbehave."""

from __future__ import annotations

from llmrl.types import Score, Trajectory


def share_of_letters(trajectory: Trajectory) -> Score:
    """Share of the completion's characters that are ASCII letters or digits: a random model has some, and can learn."""
    text = trajectory.text
    return Score(value=sum(c.isascii() and c.isalnum() for c in text) / max(1, len(text)))
