"""Controllers of a training run: what fits the job's `Controller` slot, `observe(view) -> knobs`, `state`, `load`.

A knob is a hyper-parameter between two bounds, on a linear or a logarithmic scale, that moves by at most `max_change` of
its range a decision. `view` holds a step's public metrics; a controller reads the fields it was told of, and the one that
is its reward. Constant, random, bandit and learning controllers share one shell: range, rate limit, and the rule that a
number that is not finite (in the view, in a network, in an action) leaves the last good knobs where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmrl.control.knob import Knob
from llmrl.control.state import flat, under
from llmrl.errors import ConfigError
from llmrl.nearest import nearest


class Chooser(Protocol):
    """What differs between controllers: the next point of the unit box, after what the last one brought."""

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor | None:
        """view [n], reward of the last decision (NaN: there was none), last action [d] -> action [d]; None: freeze."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


class KnobController:
    """Reads `fields` and `reward` from the view, lets `chooser` choose, limits the rate, and maps to knobs."""

    def __init__(self, *, knobs: Sequence[Knob], fields: Sequence[str], reward: str, chooser: Chooser) -> None:
        if not knobs:
            raise ConfigError("a controller without knobs controls nothing; name at least one")
        self.knobs, self.fields, self.reward, self.chooser = tuple(knobs), tuple(fields), reward, chooser
        self.last = torch.tensor([knob.action(knob.default) for knob in knobs], dtype=torch.float64)
        self.decisions, self.frozen = 0, 0

    def observe(self, view: Mapping[str, float]) -> Mapping[str, float]:
        """The knobs of the next step. Raises ConfigError where the view lacks a field that was asked for."""
        missing = [name for name in (*self.fields, self.reward) if name not in view]
        if missing:
            raise ConfigError(f"the controller reads {missing[0]}, which the view has not; {nearest(missing[0], view)}")
        seen = torch.tensor([float(view[name]) for name in self.fields], dtype=torch.float64)
        reward = float(view[self.reward])
        action = None
        if bool(seen.isfinite().all()) and math.isfinite(reward):
            action = self.chooser.choose(seen, reward if self.decisions else math.nan, self.last)
        if action is None or not bool(action.isfinite().all()):
            self.frozen += 1
        else:
            limit = torch.tensor([2 * knob.max_change for knob in self.knobs], dtype=torch.float64)
            change = torch.minimum(torch.maximum(action.double() - self.last, -limit), limit)
            self.last = (self.last + change).clamp(-1, 1)
        self.decisions += 1
        return {knob.name: knob.value(a) for knob, a in zip(self.knobs, self.last.tolist(), strict=True)}

    def state(self) -> dict[str, Tensor]:
        """The last action, the counts, and what the chooser holds."""
        own = {"last": self.last, "decisions": torch.tensor(self.decisions), "frozen": torch.tensor(self.frozen)}
        return flat({"chooser": self.chooser.state()}, own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, where `state` was taken."""
        self.last = state["last"].clone()
        self.decisions, self.frozen = int(state["decisions"]), int(state["frozen"])
        self.chooser.load(under(state, "chooser"))


class Constant:
    """Stays at the defaults: the baseline that any other controller has to beat."""

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor:
        return last

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


class Random:
    """Uniform over the box."""

    def __init__(self, *, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor:
        return 2 * torch.rand(len(last), generator=self.generator, dtype=torch.float64) - 1

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
