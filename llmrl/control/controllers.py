"""Controllers of a training run: what fits the job's `Controller` slot, `observe(view) -> knobs`, `state`, `load`.

A knob is a hyper-parameter between two bounds, on a linear or a logarithmic scale, that moves by at most `max_change` of
its range a decision. `view` holds a step's public metrics; a controller reads the fields it was told of, and the one that
is its reward. Constant, random, bandit and learning controllers share one shell: range, rate limit, and the rule that a
number that is not finite (in the view, in a network, in an action) leaves the last good knobs where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmrl.control import losses
from llmrl.control.agent import SAC
from llmrl.control.config import Actions, SACConfig
from llmrl.control.state import under
from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One hyper-parameter. `max_change` is in shares of the range, 1 being the whole of it. Raises ConfigError."""

    name: str
    low: float
    high: float
    default: float
    log: bool = False
    max_change: float = 1.0

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.low <= self.default <= self.high and 0 < self.max_change <= 1):
            raise ConfigError(f"{self} needs low < high, low <= default <= high and 0 < max_change <= 1")
        if self.log and self.low <= 0:
            raise ConfigError(f"knob {self.name}: low={self.low} has no logarithm; set it above 0 or log to false")

    def value(self, action: float) -> float:
        """From the unit box [-1, 1] to [low, high]."""
        if self.log:
            found = losses.log_uniform(torch.tensor(action, dtype=torch.float64), low=self.low, high=self.high).item()
        else:
            found = self.low + (action + 1) / 2 * (self.high - self.low)
        return min(max(found, self.low), self.high)

    def action(self, value: float) -> float:
        """The inverse of `value`."""
        if self.log:
            return 2 * math.log(value / self.low) / math.log(self.high / self.low) - 1
        return 2 * (value - self.low) / (self.high - self.low) - 1


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
            raise ConfigError(
                f"the controller reads {', '.join(missing)}, which the view has not: it has {sorted(view)}"
            )
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
        counts = {"decisions": torch.tensor(self.decisions), "frozen": torch.tensor(self.frozen)}
        inner = {f"chooser.{name}": x for name, x in self.chooser.state().items()}
        return {"last": self.last.clone(), **counts, **inner}

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


class Bandit:
    """UCB1 (Auer et al. 2002) over `arms` points a knob, each knob a bandit of its own that ignores the view.

    Plays the arm with the largest mean_k + c s sqrt(2 ln t / n_k), untried arms first; s is the rewards' standard
    deviation, so that c has no unit.
    """

    def __init__(self, *, knobs: int, arms: int = 5, c: float = 0.5, seed: int = 0) -> None:
        if arms < 2:
            raise ConfigError(f"arms={arms} leaves a bandit no choice; set it to 2 or more")
        self.points = torch.linspace(-1, 1, arms, dtype=torch.float64)
        self.c, self.generator = c, torch.Generator().manual_seed(seed)
        self.counts, self.sums = (torch.zeros(knobs, arms, dtype=torch.float64) for _ in range(2))
        self.square = torch.zeros((), dtype=torch.float64)
        self.arm = torch.full((knobs,), -1)

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor:
        rows = torch.arange(len(self.arm))
        if math.isfinite(reward) and int(self.arm[0]) >= 0:
            self.counts[rows, self.arm] += 1
            self.sums[rows, self.arm] += reward
            self.square += reward**2
        plays = self.counts[0].sum()
        spread = (self.square / plays.clamp_min(1) - (self.sums[0].sum() / plays.clamp_min(1)) ** 2).clamp_min(0).sqrt()
        tried = self.counts.clamp_min(1)
        bonus = self.c * spread * torch.sqrt(2 * plays.clamp_min(1).log() / tried)
        score = torch.where(self.counts > 0, self.sums / tried + bonus, torch.inf)
        ties = torch.rand(score.shape, generator=self.generator, dtype=torch.float64)
        best = score == score.amax(1, keepdim=True)
        self.arm = torch.where(best, ties, -1.0).argmax(1)
        return self.points[self.arm]

    def state(self) -> dict[str, Tensor]:
        kept = {"counts": self.counts, "sums": self.sums, "square": self.square, "arm": self.arm}
        return {name: x.clone() for name, x in kept.items()} | {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.counts, self.sums, self.square, self.arm = (
            state[name].clone() for name in ("counts", "sums", "square", "arm")
        )
        self.generator.set_state(state["generator"])


class Learner:
    """A soft actor-critic over standardised views. The action it learns from is the one that was carried out."""

    def __init__(
        self, *, fields: int, knobs: int, config: SACConfig | None = None, seed: int, agent: SAC | None = None
    ):
        self.agent = agent or SAC(obs_size=fields, actions=Actions(size=knobs), config=config or SACConfig(), seed=seed)
        self.count, self.mean, self.square = (torch.zeros(n, dtype=torch.float64) for n in (1, fields, fields))
        self.obs = torch.full((fields,), math.nan, dtype=torch.float64)

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor | None:
        obs, agent = self._standardised(view), self.agent
        if math.isfinite(reward) and bool(self.obs.isfinite().all()):
            inside = 1 - 1e-6
            raw = torch.atanh(last.clamp(-inside, inside))
            agent.remember(obs=self.obs, raw=raw, reward=reward, next_obs=obs, terminated=False)
            if agent.ready:
                for _ in range(agent.config.updates_per_step):
                    agent.update()
        self.obs = obs
        if not agent.finite():
            return None
        raw = agent.act(obs) if agent.ready else agent.random_action()
        return raw.double().tanh()

    def _standardised(self, view: Tensor) -> Tensor:
        """Running mean and variance (Welford), clipped to [-5, 5]."""
        self.count = self.count + 1
        delta = view - self.mean
        self.mean = self.mean + delta / self.count
        self.square = self.square + delta * (view - self.mean)
        std = (self.square / self.count).sqrt()
        return ((view - self.mean) / torch.where(std > 1e-8, std, 1.0)).clamp(-5, 5)

    def state(self) -> dict[str, Tensor]:
        own = {"count": self.count, "mean": self.mean, "square": self.square, "obs": self.obs}
        return {name: x.clone() for name, x in own.items()} | {f"agent.{k}": x for k, x in self.agent.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.count, self.mean, self.square, self.obs = (state[k].clone() for k in ("count", "mean", "square", "obs"))
        self.agent.load(under(state, "agent"))
