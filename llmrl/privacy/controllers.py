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
from llmrl.control.build import built, knob_controller
from llmrl.errors import ConfigError
from llmrl.privacy.planning import Plan
from llmrl.privacy.terms import private_knobs
from llmrl.settings.controller import ControllerConfig
from llmrl.settings.privacy import PrivacyConfig

Reward = Literal["linear", "log_ratio"]
FIELDS = ("progress", "sigma", "thresholds", "signal_ratio", "update_norm", "cosine", "probe_slope")


def controller_of(
    section: ControllerConfig | None, privacy: PrivacyConfig, thresholds: Sequence[float], plan: Plan, *, seed: int
) -> Controller | None:
    """The controller that a recipe names, held to its bounds and its rate of change; None for constant settings."""
    if section is None or section.name == "constant":
        return None
    knobs = private_knobs(section, privacy, plan)
    if section.name == "quantile":
        return built(Quantile, section.args, thresholds=thresholds, low=knobs[0].low, high=knobs[0].high)
    fields = (*FIELDS, *(("raw_norms",) if privacy.state == "raw" else ()))
    return knob_controller(section, knobs, fields=section.observes or fields, reward="utility", seed=seed)


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
