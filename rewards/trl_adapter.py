"""Takes a TRL reward function as it is: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.

Sync or async. TRL's conventions (trl 1.16, `GRPOTrainer._calculate_rewards`): all arguments are keyword arguments and
lists of one length; for conversational data a prompt is its list of messages and a completion is
`[{"role": "assistant", "content": text}]`, else both are strings; every data column arrives under its own name;
`None` in the result means "not applicable". `trainer_state` is None, `log_extra` and `log_metric` accept anything and
do nothing.

A wrong length raises (so that `scoring.score_all` records it for the batch); NaN and infinity spoil their own row.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrl.importing import load
from llmrl.rewards.scoring import describe, failed
from llmrl.types import Score, Trajectory

_RESERVED = ("prompt", "completion", "completion_ids", "prompts", "completions")


def _ignore(*args: object, **kwargs: object) -> None:
    """Stands in for TRL's `log_extra` and `log_metric`."""


def _last_turn_ids(trajectory: Trajectory) -> list[int]:
    last = int(trajectory.step.max(initial=-1))
    sampled = (trajectory.step == last) & trajectory.mask
    return [int(token) for token in np.asarray(trajectory.tokens)[sampled]]


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result, also when this thread already runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    box: dict[str, Any] = {}

    def target() -> None:
        try:
            box["result"] = asyncio.run(coroutine)
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread and raised there
            box["error"] = error

    thread = threading.Thread(target=target, name="trl-reward")
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call with the arguments the function names, or with all if it takes **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters}
        arguments = {key: value for key, value in arguments.items() if key in names}
    result = function(**arguments)
    return _run(result) if inspect.iscoroutine(result) else result


@dataclass(frozen=True, slots=True, kw_only=True)
class TRLReward:
    """A reward from a TRL reward function, unchanged.

    function: the callable, or its import path "package.module:name". conversational: whether prompts and completions
    are message lists; None takes it from whether the prompts have messages. Columns are those of `prompt.columns`
    (None in rows that lack one), and "answer" is always there.
    """

    function: Callable[..., Any] | str
    conversational: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.function, str):
            object.__setattr__(self, "function", load(self.function, key="function"))
        if not callable(self.function):
            raise ValueError(f"function={self.function!r} cannot be called")

    @property
    def __name__(self) -> str:
        """The function's, for messages."""
        return describe(self.function)

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def arguments(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """The keyword arguments TRL would pass for these rows."""
        talk = self.conversational
        if talk is None:
            talk = all(bool(t.prompt.messages) for t in trajectories)
        names = dict.fromkeys(name for t in trajectories for name in t.prompt.columns if name not in _RESERVED)
        columns: dict[str, Any] = {"answer": [t.prompt.answer for t in trajectories]}
        columns |= {name: [t.prompt.columns.get(name) for t in trajectories] for name in names}
        columns |= {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        return columns | {
            "prompts": [[dict(m) for m in t.prompt.messages] if talk else t.prompt.text for t in trajectories],
            "completions": [[{"role": "assistant", "content": t.text}] if talk else t.text for t in trajectories],
            "completion_ids": [_last_turn_ids(t) for t in trajectories],
        }

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One function call for the whole batch. Raises what the function raises, and ValueError for a wrong length."""
        if not trajectories:
            return []
        assert callable(self.function)
        name = describe(self.function)
        result = _call(self.function, self.arguments(trajectories))
        if not isinstance(result, (list, tuple)) and not hasattr(result, "__len__"):
            raise TypeError(f"{name} returned {type(result).__name__}, not a list of one reward per completion")
        if len(result) != len(trajectories):
            raise ValueError(f"{name} returned {len(result)} rewards for {len(trajectories)} completions")
        return [self._score(value, name) for value in result]

    @staticmethod
    def _score(value: Any, name: str) -> Score:
        if value is None:
            return Score(value=None, reason=f"{name}: not applicable")
        try:
            number = float(value)
        except (TypeError, ValueError):
            return failed(f"{name} returned {value!r}, not a number")
        if not math.isfinite(number):
            return failed(f"{name} returned {number}; a reward must be finite")
        return Score(value=number)
