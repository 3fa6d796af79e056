"""Which controller a recipe names: those of control/ on the thresholds' scale (and the noise, in the adaptive mode), or
quantile clipping. Rewards, and noise that falls on a schedule.

A controller is post-processing: whatever it does with a view, the guarantee stands as long as the ledger admits each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from llmrl.batch import Controller
from llmrl.control.config import SACConfig
from llmrl.control.controllers import Chooser, KnobController, Random
from llmrl.control.knob import Knob
from llmrl.control.learner import Learner
from llmrl.control.ucb1 import Bandit
from llmrl.errors import ConfigError
from llmrl.privacy.planning import Plan
from llmrl.settings.privacy import PrivacyConfig

Reward = Literal["linear", "log_ratio"]
FIELDS = ("progress", "sigma", "thresholds", "signal_ratio", "update_norm", "cosine", "probe_slope")


def controller_of(section: PrivacyConfig, thresholds: Sequence[float], plan: Plan, *, seed: int) -> Controller | None:
    """The controller that a recipe names, held to its bounds and its rate of change; None for constant settings."""
    low, high = section.threshold_low, section.threshold_high
    if section.controller == "constant":
        return None
    if section.controller == "quantile":
        return Quantile(thresholds, low=low, high=high)
    size = math.hypot(*thresholds)  # one knob: the scale of all thresholds, so that their norm stays within bounds
    knobs = [
        Knob(
            name="threshold_scale", low=low / size, high=high / size, default=1.0, log=True,
            max_change=min(1.0, section.max_change / math.log(high / low)),
        )
    ]  # fmt: skip
    if section.mode == "adaptive":
        knobs.append(Knob(name="sigma", low=plan.lowest_sigma, high=4 * plan.sigma, default=plan.sigma, log=True))
    fields = (*FIELDS, *(("raw_norms",) if section.state == "raw" else ()))
    form: Literal["released_2024"] | None = "released_2024" if section.controller == "dsac-t" else None
    # A run is over after some dozens of decisions: many updates for each (llmrl/control/README.md has the figures).
    config = SACConfig(distributional=form, updates_per_step=16, warmup=section.warm_up)
    choosers: dict[str, Chooser] = {
        "random": Random(seed=seed),
        "bandit": Bandit(knobs=len(knobs), seed=seed),
    }
    chooser = choosers.get(section.controller) or Learner(
        fields=len(fields), knobs=len(knobs), config=config, seed=seed
    )
    return KnobController(knobs=knobs, fields=fields, reward="utility", chooser=chooser)


class Quantile:
    """Every threshold follows a quantile of the records' norms, by the noised counts in the view (Andrew et al. 2021)."""

    def __init__(
        self, thresholds: Sequence[float], *, low: float, high: float, quantile: float = 0.5, lr: float = 0.2
    ) -> None:
        self._thresholds, self._low, self._high = list(thresholds), low, high
        self._quantile, self._lr = quantile, lr

    def observe(self, view: Mapping[str, float]) -> Mapping[str, float]:
        """C <- C exp(-lr (share below - quantile)), as `next_threshold`. Raises ConfigError if no counts are released."""
        if "below/0" not in view:
            raise ConfigError("quantile clipping needs the noised counts; set privacy.counts_share, such as 0.01")
        for number, limit in enumerate(self._thresholds):
            moved = limit * math.exp(-self._lr * (view[f"below/{number}"] - self._quantile))
            self._thresholds[number] = min(max(moved, self._low), self._high)
        return {f"threshold/{number}": limit for number, limit in enumerate(self._thresholds)}

    def state(self) -> dict[str, Tensor]:
        return {"thresholds": torch.tensor(self._thresholds, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._thresholds = state["thresholds"].tolist()


def utility(before: float, after: float, *, cost: float, form: Reward = "linear", floor: float = 1e-3) -> float:
    """What a controller is paid for an interval: the drop of the public probe's loss against the share of budget spent.

    linear is drop - cost; log_ratio is log((max(drop, 0) + floor) / (cost + floor)), utility per privacy spent, and noisy.
    Clipped to [-5, 5]; a drop that is not known counts as 0, and is NaN if `after` is not.
    """
    if math.isnan(after):
        return math.nan
    drop = before - after if math.isfinite(before) else 0.0
    found = drop - cost if form == "linear" else math.log((max(drop, 0.0) + floor) / (cost + floor))
    return max(-5.0, min(5.0, found))
