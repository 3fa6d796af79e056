"""From a run's metrics, step by step, to decisions: what a controller sees, how often it decides, and what it is paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmrl.batch import Controller
from llmrl.control.knob import Knob
from llmrl.control.state import flat, under
from llmrl.errors import ConfigError
from llmrl.nearest import nearest

PAID = "reward"  # in the view that an inner controller gets


class Paced:
    """Shows `inner` the mean of `fields` over `every` steps, and as `reward` that of the metric `reward` (a minus before it:
    less is better), or its `change` since the last decision. Between decisions the knobs stay.

    A metric that a step lacks, or that is not a number, is left out of the mean; without any it is NaN.
    """

    def __init__(
        self, inner: Controller, knobs: Sequence[Knob], *, fields: Sequence[str], reward: str, change: bool, every: int
    ) -> None:
        self._inner, self._fields, self._reward = inner, tuple(fields), reward.removeprefix("-")
        self._sign, self._change, self._every = -1.0 if reward.startswith("-") else 1.0, change, every
        self._names = tuple(dict.fromkeys((*fields, self._reward)))
        self._knobs = {knob.name: knob.default for knob in knobs}
        self._sums, self._counts = (torch.zeros(len(self._names), dtype=torch.float64) for _ in range(2))
        self._steps, self._known, self._before = 0, False, math.nan

    def observe(self, view: Mapping[str, float]) -> dict[str, float]:
        """The knobs of the next step. Raises ConfigError for a name that the first step that trained any row has not."""
        if not self._known and view.get("tokens/trained", 1.0):
            self._check(view)
        for place, name in enumerate(self._names):
            value = float(view.get(name, math.nan))
            if math.isfinite(value):
                self._sums[place] += value
                self._counts[place] += 1
        self._steps += 1
        if self._steps % self._every == 0:
            means = dict(zip(self._names, (self._sums / self._counts).tolist(), strict=True))
            self._knobs |= self._inner.observe({name: means[name] for name in self._fields} | self._paid(means))
            self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        return dict(self._knobs)

    def _check(self, view: Mapping[str, float]) -> None:
        for name in self._names:
            if name not in view:
                raise ConfigError(f"controller: {name!r} is no metric of this run; {nearest(name, view)}")
        self._known = True

    def _paid(self, means: Mapping[str, float]) -> dict[str, float]:
        level, before = self._sign * means[self._reward], self._before
        if math.isfinite(level):
            self._before = level
        if not self._change:
            return {PAID: level}
        return {PAID: level - before if math.isfinite(before) else 0.0 * level}

    def state(self) -> dict[str, Tensor]:
        """Means in the making, knobs, and what the inner controller holds."""
        own = {"sums": self._sums, "counts": self._counts, "steps": torch.tensor(self._steps)}
        own |= {"known": torch.tensor(self._known), "before": torch.tensor(self._before, dtype=torch.float64)}
        knobs = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._knobs.items()}
        return flat({"knob": knobs, "inner": self._inner.state()}, own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, where `state` was taken."""
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()
        self._steps, self._known, self._before = int(state["steps"]), bool(state["known"]), float(state["before"])
        self._knobs = {name: float(x) for name, x in under(state, "knob").items()}
        self._inner.load(under(state, "inner"))


class Checked:
    """A controller of the user's, held to the knobs that the recipe names and to their ranges."""

    def __init__(self, inner: Controller, knobs: Sequence[Knob]) -> None:
        self._inner, self._known = inner, {knob.name: knob for knob in knobs}
        self.state, self.load = inner.state, inner.load

    def observe(self, view: Mapping[str, float]) -> Mapping[str, float]:
        """What it sets. Raises ConfigError for an unknown knob, or a value out of its range."""
        found = self._inner.observe(view)
        for name, value in found.items():
            knob = self._known.get(name)
            if knob is None:
                raise ConfigError(f"the controller sets {name!r}, which is no knob; {nearest(name, self._known)}")
            if not knob.low <= value <= knob.high:
                raise ConfigError(f"the controller sets {name}={value}, outside {knob.low} to {knob.high}")
        return found
