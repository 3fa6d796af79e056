"""The recipe's `privacy` section: what is promised, and how records are clipped, noised and steered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from llmrl.settings.section import Section

MOVED = {  # what was said here once -> where it is said now
    "controller": "controller.name (dsac-t: dsac_t)", "interval": "controller.every", "reward": "privacy.utility",
    "warm_up": "controller.args.warmup", "threshold_low": "controller.knobs.threshold.low",
    "threshold_high": "controller.knobs.threshold.high", "max_change": "controller.knobs.threshold.max_change",
}  # fmt: skip


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
    utility: Literal["linear", "log_ratio"] = Field("linear", description="what pays a controller, see llmrl/privacy")
    state: Literal["released", "raw"] = Field(
        "released", description="what controllers see; raw is heuristic and has no guarantee"
    )
    counts_share: float = Field(
        0.0, ge=0, lt=1, description="of each step's budget, for noised counts; controller.name=quantile needs it"
    )
    canaries: NonNegativeInt = Field(
        0, description="planted sentences for `llmrl privacy audit`, half of them left out"
    )

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, data: Any) -> Any:
        for name in MOVED if isinstance(data, dict) else ():
            if name in data:
                raise ValueError(f"{name}={data[name]} is {MOVED[name]} now; move it there")
        return data

    def check(self, *, counts: bool) -> None:
        """Raise ValueError for settings that contradict each other; `counts`: a controller follows noised counts."""
        if counts and not self.counts_share:
            raise ValueError("controller.name=quantile follows noised counts; set privacy.counts_share, such as 0.01")
        if self.sigma_decay != 1.0 and self.mode == "adaptive":
            raise ValueError("privacy.sigma_decay is planned beforehand; set privacy.mode=fixed")
