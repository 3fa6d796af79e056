"""Controllers: `observe(view) -> Knobs`, and a state that is saved with the run. The simple ones, and the limits around any.

A controller is post-processing: whatever it does with a view, the guarantee stands as long as the ledger admits each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from llmrl.batch import Controller as NumbersController
from llmrl.privacy.view import ControllerView, Value
from llmrl.seeding import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a controller sets for the next steps."""

    thresholds: tuple[float, ...]
    sigma: float | None = None  # adaptive mode only; None is the planned one
    weights: tuple[float, ...] | None = None  # noise weights of the groups; None is the recipe's rule
    lr_scale: float = 1.0


class Controller(Protocol):
    """Anything that steers a private run."""

    def observe(self, view: ControllerView) -> Knobs:
        """The knobs of the next interval."""
        ...

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on as if never stopped: plain JSON."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...


class Constant:
    """The same knobs at every step: plain DP-AdamW."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs

    def observe(self, view: ControllerView) -> Knobs:
        return self._knobs

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class Random:
    """Thresholds drawn log-uniformly between bounds at every interval: what a learnt controller has to beat."""

    def __init__(self, start: Knobs, *, low: float, high: float, seed: int) -> None:
        self._start, self._low, self._high, self._seed, self._count = start, low, high, seed, 0

    def observe(self, view: ControllerView) -> Knobs:
        draw = generator(self._seed, "random controller", self._count)
        self._count += 1
        span = math.log(self._high / self._low)
        return replace(
            self._start,
            thresholds=tuple(self._low * math.exp(span * draw.random()) for _ in self._start.thresholds),
        )

    def state(self) -> dict[str, Any]:
        return {"count": self._count}

    def load(self, state: Mapping[str, Any]) -> None:
        self._count = int(state["count"])


class Quantile:
    """Every threshold follows a quantile of the records' norms, by the noised counts in the view (Andrew et al. 2021)."""

    def __init__(self, start: Knobs, *, quantile: float = 0.5, lr: float = 0.2) -> None:
        self._knobs, self._quantile, self._lr = start, quantile, lr

    def observe(self, view: ControllerView) -> Knobs:
        """Raises ValueError if no counts are released."""
        below = view.groups("below")
        if len(below) != len(self._knobs.thresholds):
            raise ValueError("quantile clipping needs the noised counts; set privacy.counts_share, such as 0.01")
        moved = (
            limit * math.exp(-self._lr * (share - self._quantile))
            for limit, share in zip(self._knobs.thresholds, below, strict=True)
        )
        self._knobs = replace(self._knobs, thresholds=tuple(moved))
        return self._knobs

    def state(self) -> dict[str, Any]:
        return {"thresholds": list(self._knobs.thresholds)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._knobs = replace(self._knobs, thresholds=tuple(state["thresholds"]))


class Bandit:
    """UCB1 over factors on the starting thresholds; the reward is the drop of the public probe's loss in the interval."""

    def __init__(
        self, start: Knobs, *, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), exploration: float = 0.5
    ) -> None:
        self._start, self._factors, self._exploration = start, tuple(factors), exploration
        self._counts, self._sums = [0] * len(factors), [0.0] * len(factors)
        self._arm: int | None = None
        self._before = math.nan

    def observe(self, view: ControllerView) -> Knobs:
        loss = view.number("probe_loss")
        if self._arm is not None and math.isfinite(loss) and math.isfinite(self._before):
            self._counts[self._arm] += 1
            self._sums[self._arm] += max(-1.0, min(1.0, self._before - loss))
        self._before, self._arm = loss, self._next()
        factor = self._factors[self._arm]
        return replace(self._start, thresholds=tuple(factor * limit for limit in self._start.thresholds))

    def _next(self) -> int:
        untried = [arm for arm, count in enumerate(self._counts) if count == 0]
        if untried:
            return untried[0]
        total = sum(self._counts)
        scale = max(abs(s / n) for s, n in zip(self._sums, self._counts, strict=True)) or 1.0

        def bound(arm: int) -> float:
            count = self._counts[arm]
            return self._sums[arm] / count / scale + self._exploration * math.sqrt(2 * math.log(total) / count)

        return max(range(len(self._factors)), key=bound)

    def state(self) -> dict[str, Any]:
        before = self._before if math.isfinite(self._before) else None
        return {"counts": self._counts, "sums": self._sums, "arm": self._arm, "before": before}

    def load(self, state: Mapping[str, Any]) -> None:
        self._counts, self._sums, self._arm = list(state["counts"]), list(state["sums"]), state["arm"]
        self._before = math.nan if state["before"] is None else float(state["before"])


class Limited:
    """Any controller held to bounds: its first `warm_up` intervals keep the starting knobs, and no threshold changes by
    more than a factor exp(`rate`) in an interval, or leaves [low, high]. Sigma stays above `lowest_sigma`.
    """

    def __init__(
        self,
        inner: Controller,
        start: Knobs,
        *,
        low: float,
        high: float,
        rate: float = 0.5,
        warm_up: int = 0,
        lowest_sigma: float = 0.0,
    ) -> None:
        self._inner, self._knobs, self._count = inner, start, 0
        self._low, self._high, self._rate, self._warm_up, self._lowest = low, high, rate, warm_up, lowest_sigma

    def observe(self, view: ControllerView) -> Knobs:
        wanted = self._inner.observe(view)
        self._count += 1
        if self._count <= self._warm_up:
            return self._knobs
        limits = zip(wanted.thresholds, self._knobs.thresholds, strict=True)
        thresholds = tuple(self._held(new, old) for new, old in limits)
        sigma = None if wanted.sigma is None else max(wanted.sigma, self._lowest)
        self._knobs = replace(wanted, thresholds=thresholds, sigma=sigma)
        return self._knobs

    def _held(self, new: float, old: float) -> float:
        near = min(max(new, old * math.exp(-self._rate)), old * math.exp(self._rate))
        return min(max(near, self._low), self._high)

    def state(self) -> dict[str, Any]:
        knobs = self._knobs
        return {
            "count": self._count, "thresholds": list(knobs.thresholds), "sigma": knobs.sigma,
            "weights": None if knobs.weights is None else list(knobs.weights), "lr_scale": knobs.lr_scale,
            "inner": self._inner.state(),
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        weights = state["weights"]
        self._count = int(state["count"])
        self._knobs = Knobs(
            thresholds=tuple(state["thresholds"]), sigma=state["sigma"], lr_scale=state["lr_scale"],
            weights=None if weights is None else tuple(weights),
        )  # fmt: skip
        self._inner.load(state["inner"])


def decayed_sigmas(sigma: float, steps: int, *, ratio: float, pieces: int = 8) -> tuple[tuple[float, int], ...]:
    """A schedule (sigma, steps) that falls geometrically by `ratio` overall around `sigma`: noisy first, exact later.

    It is fixed before training, so that it needs no filter; `terms_of` refuses it if it costs more than the target.
    """
    lengths = [steps // pieces + (piece < steps % pieces) for piece in range(pieces)]
    exponents = [piece / max(1, pieces - 1) - 0.5 for piece in range(pieces)]
    return tuple((sigma * ratio**exponent, n) for exponent, n in zip(exponents, lengths, strict=True) if n)


def utility_reward(before: float, after: float, *, cost: float = 0.0, weight: float = 1.0, scale: float = 1.0) -> float:
    """(drop of the public probe's loss) / scale - weight * (share of the budget spent), clipped to [-5, 5].

    In the fixed mode the cost of an interval is the same whatever a controller does: leave it 0.
    """
    gain = (before - after) / scale if math.isfinite(before) and math.isfinite(after) else 0.0
    return max(-5.0, min(5.0, gain - weight * cost))


def log_ratio_reward(before: float, after: float, *, cost: float, floor: float = 1e-3) -> float:
    """log((max(drop, 0) + floor) / (cost + floor)), clipped to [-5, 5]: utility per privacy spent, and noisy."""
    gain = max(before - after, 0.0) if math.isfinite(before) and math.isfinite(after) else 0.0
    return max(-5.0, min(5.0, math.log((gain + floor) / (cost + floor))))


class Steered:
    """Any controller of the training job's kind (names to numbers, as those of control/), on a private run.

    It sees `features`' scalars by name, with means over groups, and `utility`: the probe's drop in the interval. Its knobs
    may be `threshold_scale`, which multiplies the starting thresholds, `sigma` and `lr_scale`.
    """

    def __init__(self, inner: NumbersController, start: Knobs, *, weight: float = 0.0) -> None:
        self._inner, self._start, self._weight = inner, start, weight
        self._before, self._spent = math.nan, 0.0

    def observe(self, view: ControllerView) -> Knobs:
        numbers = {name: _mean(signal.value) for name, signal in view.signals().items()}
        loss, spent = numbers.get("probe_loss", math.nan), numbers.get("spent", 0.0)
        cost = spent - self._spent
        numbers["utility"] = utility_reward(self._before, loss, cost=cost, weight=self._weight)
        self._before, self._spent = loss, spent
        knobs = self._inner.observe({name: x for name, x in numbers.items() if math.isfinite(x)})
        scale = float(knobs.get("threshold_scale", 1.0))
        return replace(
            self._start,
            thresholds=tuple(scale * limit for limit in self._start.thresholds),
            sigma=knobs.get("sigma", self._start.sigma),
            lr_scale=float(knobs.get("lr_scale", self._start.lr_scale)),
        )

    def state(self) -> dict[str, Any]:
        before = self._before if math.isfinite(self._before) else None
        inner = {
            name: {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape), "flat": x.flatten().tolist()}
            for name, x in self._inner.state().items()
        }
        return {"before": before, "spent": self._spent, "inner": inner}

    def load(self, state: Mapping[str, Any]) -> None:
        self._before = math.nan if state["before"] is None else float(state["before"])
        self._spent = float(state["spent"])
        self._inner.load(
            {
                name: torch.tensor(x["flat"], dtype=getattr(torch, x["dtype"])).view(x["shape"])
                for name, x in state["inner"].items()
            }
        )


def soft_actor_critic(
    start: Knobs, *, low: float, high: float, change: float, seed: int, config: Any = None
) -> Steered:
    """SAC that scales all thresholds by one factor, so that their norm stays within [low, high]; it sees released numbers."""
    from llmrl.control.config import SACConfig
    from llmrl.control.controllers import Knob, KnobController, Learner

    size = math.hypot(*start.thresholds)
    span = math.log(high / low)
    knob = Knob(
        name="threshold_scale", low=low / size, high=high / size, default=min(max(1.0, low / size), high / size), log=True,
        max_change=min(1.0, change / span),
    )  # fmt: skip
    fields = ("progress", "sigma", "thresholds", "signal_ratio", "update_norm", "cosine", "probe_slope")
    learner = Learner(
        fields=len(fields), knobs=1, seed=seed,
        config=config or SACConfig(),
    )  # fmt: skip
    return Steered(KnobController(knobs=[knob], fields=fields, reward="utility", chooser=learner), start)


def _mean(value: Value) -> float:
    return math.fsum(value) / len(value) if isinstance(value, tuple) else float(value)
