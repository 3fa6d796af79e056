"""The KL's weight follows the measured KL: adaptive KL control (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2),   kl_coef <- kl_coef (1 + rate e)        after every step

The KL is the step's `kl_ref`, nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llmrl.errors import ConfigError

ERROR_LIMIT = 0.2


class AdaptiveKL:
    """Steers the KL to `target` nats per token: at most a fifth of `rate` up or down in a step. Raises ConfigError.

    >>> AdaptiveKL(target=0.1, rate=1.0, coef=0.5).observe({"kl_ref": 0.11})
    {'kl_coef': 0.55}
    """

    def __init__(self, *, target: float, rate: float = 1.0, coef: float) -> None:
        if not (target > 0 and 0 < rate <= 5):
            raise ConfigError(
                f"target={target}, rate={rate}: no KL is below 0, and with 0 or a rate above 5 kl_coef stands still or jumps "
                "through 0; set target above 0, and rate above 0 and at most 5"
            )
        self._target, self._rate, self._coef = target, rate, coef

    def observe(self, view: Mapping[str, float]) -> dict[str, float]:
        """The KL's weight for the next step; a step in which no row trained has no KL and changes nothing."""
        measured = view.get("kl_ref", math.nan)
        if math.isfinite(measured):
            error = min(max(measured / self._target - 1.0, -ERROR_LIMIT), ERROR_LIMIT)
            self._coef *= 1.0 + self._rate * error
        return {"kl_coef": self._coef}

    def state(self) -> dict[str, Tensor]:
        return {"kl_coef": torch.tensor(self._coef, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._coef = float(state["kl_coef"])
