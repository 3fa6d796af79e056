"""A trajectory from a text, as the reward tests need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmrl.types import Prompt, Status, Trajectory


def make_trajectory(
    text: str, answer: str = "", *, status: Status | None = None, tokens: int = 3, **columns: Any
) -> Trajectory:
    messages = columns.pop("messages", ())
    prompt = Prompt(
        id="row/0", tokens=(1, 2), text="What is 12 + 34?", answer=answer, messages=messages, columns=columns
    )
    return Trajectory(
        prompt=prompt,
        tokens=[1, 2, *range(10, 10 + tokens)],
        mask=[0, 0] + [1] * tokens,
        logprobs=[0.0] * (2 + tokens),
        step=[-1, -1] + [0] * tokens,
        text=text,
        status=status or Status.done(),
    )


@pytest.fixture
def trajectory() -> Callable[..., Trajectory]:
    return make_trajectory
