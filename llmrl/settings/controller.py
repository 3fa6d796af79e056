"""The recipe's `controller` section: hyper-parameters that follow what training shows.

    controller:
      name: sac
      every: 2
      observes: [progress, approx_kl, length/mean]
      knobs:
        clip_high: {low: 0.15, high: 0.4}
        lr: {low: 1.0e-6, high: 1.0e-4, log: true, max_change: 0.2}

A knob begins at the recipe's own value. Its name is that of a number of `algo`, or `lr` (`train.lr`), or `temperature`
(`rollout.temperature`). Under `privacy` it is `threshold`; there a controller sees released numbers and is paid by
`privacy.utility`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from llmrl.nearest import nearest
from llmrl.settings.section import Section

NAMES = ("constant", "random", "bandit", "sac", "dsac_t", "adaptive_kl", "quantile")
PROGRESS = "progress"  # the share of the run's steps that are made, beside a step's metrics


class KnobConfig(Section):
    """The range of one hyper-parameter."""

    low: float
    high: float
    log: bool = Field(False, description="equal ratios instead of equal steps")
    max_change: float = Field(1.0, gt=0, le=1, description="share of the range that one decision may move it")


class ControllerConfig(Section):
    """What sets hyper-parameters while training runs."""

    name: str = Field(description=f"{', '.join(NAMES)}, or package.module:Class")
    knobs: dict[str, KnobConfig] = Field(
        default_factory=dict, description="what it sets, by name, and within which range"
    )
    observes: list[str] = Field(
        default_factory=list,
        description="metrics that it sees; default: progress (0 to 1); of a private run all it may",
    )
    reward: str = Field("reward/mean", description="the metric that pays; a minus before it: less is better")
    pays: Literal["change", "level"] = Field("change", description="since the last decision, or the metric itself")
    every: PositiveInt = Field(1, description="steps between decisions; it sees their mean metrics")
    args: dict[str, Any] = Field(default_factory=dict, description="settings of its own, such as {updates_per_step: 4}")

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if ":" not in name and name not in NAMES:
            raise ValueError(f"{name!r} is no controller; {nearest(name, NAMES)}, or package.module:Class")
        return name

    def check(self, *, private: bool) -> None:
        """Raise ValueError for settings that do not fit together, or a run of this kind."""
        if self.name == ("adaptive_kl" if private else "quantile"):
            why = "private training has no KL" if private else "it follows the noised counts of private training"
            raise ValueError(f"controller.name={self.name}: {why}; use another")
        if private:
            self._refuse("reward", "pays", why="a private run's controller is paid by privacy.utility")
            for name in self.knobs:
                if name != "threshold":
                    hint = "privacy.mode=adaptive sets it" if name == "sigma" else nearest(name, ["threshold"])
                    raise ValueError(f"controller.knobs.{name}: not a knob of a private run's recipe; {hint}")
        elif self.name == "adaptive_kl":
            why = "adaptive_kl sets kl_coef by kl_ref after every step"
            self._refuse("knobs", "observes", "reward", "pays", "every", why=why)
        elif not self.knobs:
            raise ValueError("controller.knobs is empty: nothing would be set; name one, such as clip_high")

    def _refuse(self, *names: str, why: str) -> None:
        """Only values other than the defaults: a run's record spells those out."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"controller.{name}: {why}; remove it")
