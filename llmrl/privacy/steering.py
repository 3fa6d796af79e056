"""What steers a private run: the training job's `Controller`, which sees released numbers only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmrl.batch import Controller
from llmrl.control.state import under
from llmrl.privacy.controllers import Reward, utility
from llmrl.privacy.ledger import LedgerError
from llmrl.privacy.optimizer import PrivateOptimizer
from llmrl.privacy.view import view_of


class Steering:
    """Shows `inner` a view of every `interval`-th step and hands what it sets to the optimizer.

    `inner` is a controller of numbers (those of control/, or `Quantile`), or None to leave all as it is. It sees the
    view's numbers and `utility`, its reward: what the loss of public text, which `probe` measures, has gained. `raw`
    shows it the records' norms too.
    """

    def __init__(
        self,
        optimizer: PrivateOptimizer,
        inner: Controller | None,
        *,
        steps: int,
        interval: int,
        probe: Callable[[], float],
        reward: Reward,
        raw: bool = False,
    ) -> None:
        self._optimizer, self._inner, self._probe, self._reward, self._raw = optimizer, inner, probe, reward, raw
        self._steps, self._interval = steps, interval
        self._knobs: dict[str, float] = {}
        self._loss, self._slope, self._spent = math.nan, 0.0, 0.0

    def observe(self, view: Mapping[str, float]) -> Mapping[str, float]:
        """The knobs of the next steps. A private step's metrics hold nothing that the optimizer's release does not."""
        optimizer = self._optimizer
        if self._inner is not None and optimizer.steps % self._interval == 0:
            before, self._loss = self._loss, self._probe()
            gain = before - self._loss
            self._slope = 0.7 * self._slope + 0.3 * (gain if math.isfinite(gain) else 0.0)
            spent, self._spent = self._spent, optimizer.ledger.share
            # With noise that was planned, an interval costs the same whatever a controller does.
            cost = self._spent - spent if optimizer.ledger.terms.mode == "adaptive" else 0.0
            reward = utility(before, self._loss, cost=cost, form=self._reward)
            self._knobs = dict(self._inner.observe(self._view() | {"utility": reward}))
            optimizer.steer(self._knobs)
        optimizer.norms.clear()
        return self._knobs

    def _view(self) -> dict[str, float]:
        optimizer = self._optimizer
        assert optimizer.release is not None
        norms = None
        if self._raw:
            groups = len(optimizer.thresholds)
            seen = torch.cat(optimizer.norms) if optimizer.norms else torch.full((1, groups), math.nan)
            norms = seen.median(0).values.tolist()
        return view_of(
            optimizer.release, thresholds=optimizer.thresholds, sigma=optimizer.sigma,
            expected_batch=optimizer.expected_batch, progress=optimizer.steps / self._steps,
            spent=optimizer.ledger.share, probe={"probe_loss": self._loss, "probe_slope": self._slope}, raw_norms=norms,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Knobs, what the controller has learnt, and where the noise's numbering stands. The ledger is a file of its own."""
        numbers = {"loss": self._loss, "slope": self._slope, "spent": self._spent}
        plain = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        knobs = {f"knob.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self._knobs.items()}
        last = {f"last.{name}": x for name, x in self._optimizer.last.items()}
        inner = {f"inner.{name}": x for name, x in (self._inner.state() if self._inner else {}).items()}
        return {"steps": torch.tensor(self._optimizer.steps), **plain, **knobs, **last, **inner}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint. Raises LedgerError if the ledger has paid for fewer steps than were made."""
        steps, paid = int(state["steps"]), self._optimizer.ledger.paid
        if paid < steps:
            raise LedgerError(f"the checkpoint is at step {steps}, but only {paid} steps were paid for")
        self._loss, self._slope, self._spent = (float(state[name]) for name in ("loss", "slope", "spent"))
        self._knobs = {name: float(x) for name, x in under(state, "knob").items()}
        if self._inner is not None:
            self._inner.load(under(state, "inner"))
        self._optimizer.steps, self._optimizer.last = steps, dict(under(state, "last"))
        self._optimizer.steer(self._knobs)
