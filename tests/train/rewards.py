"""A reward that a random byte model gets some of and can learn."""

from __future__ import annotations

from llmrl.types import Score, Trajectory


def share_of_ascii(trajectory: Trajectory) -> Score:
    """Share of the completion's characters that are printable ASCII; 0 for an empty one."""
    text = trajectory.text
    return Score(value=sum(" " <= char <= "~" for char in text) / max(1, len(text)))
