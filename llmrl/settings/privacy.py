"""The recipe's `privacy` section: what is promised, and how records are clipped, noised and steered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from llmrl.settings.section import Section


class PrivacyConfig(Section):
    """Differential privacy of supervised fine-tuning. Two data sets are neighbours if one has a record more."""

    epsilon: PositiveFloat
    delta: float = Field(gt=0, lt=1, description="well below 1 / records")
    unit: str = Field("row", description="what one record is: row, or a column whose equal values are one record")
    rows_per_unit: PositiveInt = Field(1, description="rows of one unit that count; more of them are left out")
    expected_batch: PositiveFloat = Field(32.0, description="records a step draws on average, each by itself")
    groups: Literal["flat", "pair", "layer", "tensor"] = Field(
        "flat", description="what is clipped together; pair: A and B of each LoRA adapter"
    )
    threshold: PositiveFloat = Field(1.0, description="norm of all groups' thresholds together, at the start")
    automatic: bool = Field(False, description="scale every record to its threshold instead of clipping it")
    noise_rule: Literal["isotropic", "equal_budget"] | list[float] = "isotropic"
    mode: Literal["fixed", "adaptive"] = Field(
        "fixed", description="fixed: noise planned beforehand; adaptive: chosen on the way, held by a filter"
    )
    accountant: Literal["rdp", "prv", "pld"] = Field("rdp", description="of the fixed mode; prv and pld need libraries")
    sigma_decay: float = Field(1.0, gt=0, le=1, description="last multiplier / first, planned beforehand; 1: constant")
    controller: Literal["constant", "random", "bandit", "quantile", "sac", "dsac-t"] = "constant"
    reward: Literal["linear", "log_ratio"] = Field("linear", description="a learning controller's, see llmrl/privacy")
    state: Literal["released", "raw"] = Field(
        "released", description="what controllers see; raw is heuristic and has no guarantee"
    )
    interval: PositiveInt = Field(1, description="steps between a controller's decisions")
    warm_up: NonNegativeInt = Field(8, description="a learning controller's first decisions, which are random")
    threshold_low: PositiveFloat = 1e-3
    threshold_high: PositiveFloat = 1e2
    max_change: PositiveFloat = Field(0.5, description="of a threshold's logarithm in one decision")
    counts_share: float = Field(
        0.0, ge=0, lt=1, description="of each step's budget, for noised counts; quantile needs it"
    )
    canaries: NonNegativeInt = Field(
        0, description="planted sentences for `llmrl privacy audit`, half of them left out"
    )

    def check(self) -> None:
        """Raise ValueError for settings that contradict each other."""
        if self.controller == "quantile" and not self.counts_share:
            raise ValueError(
                "privacy.controller=quantile follows noised counts; set privacy.counts_share, such as 0.01"
            )
        if self.sigma_decay != 1.0 and self.mode == "adaptive":
            raise ValueError("privacy.sigma_decay is planned beforehand; set privacy.mode=fixed")
        if not self.threshold_low <= self.threshold <= self.threshold_high:
            raise ValueError(
                f"privacy.threshold={self.threshold} is outside threshold_low={self.threshold_low} to "
                f"threshold_high={self.threshold_high}"
            )
