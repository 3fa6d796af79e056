"""The private optimizer: clips every record, sums, adds noise once a step, divides by the expected batch, and hands the
result to an ordinary optimizer, whose averages, decay and learning rate are post-processing.

    backward (any number of micro-batches) -> step: ask the ledger, write it, noise, move

It is the training loop's `Optimizer`. What leaves a step is the noised sum and, if paid for, noised counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.privacy.clipping import NoiseRule, noise_std
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.ledger import BudgetSpent, Ledger
from llmrl.privacy.randomness import Source
from llmrl.privacy.thresholds import below_fraction, count_std
from llmrl.train.protocols import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one step made public: statistics of the noised sum, and noised counts if they were paid for."""

    sizes: tuple[int, ...]  # scalars in each group, d_g
    deviations: tuple[float, ...]  # noise of each group, s_g
    squared: tuple[float, ...]  # ||noised sum||^2 of each group
    cosine: float  # between this step's noised sum and the last one's; 0 at first
    below: tuple[float, ...] | None  # noised share of records within each threshold


class PrivateOptimizer:
    """Makes steps that `ledger` pays for, each one Gaussian mechanism of the multiplier that was paid.

    `inner` moves the weights by the noised mean gradient and knows nothing of privacy. `steer` sets thresholds and, in the
    adaptive mode, the noise that is wanted. The ledger is written to `file` before a step's noise is drawn. With
    `counts_share` > 0 each step also releases how many records were within each threshold, and the gradient gets the
    little more noise that this costs. `automatic` scales every record to its threshold (`clip_factors`). `keep_norms`
    keeps records' norms in `norms`, which are private.
    """

    def __init__(
        self,
        inner: Optimizer,
        gradients: RecordGradients,
        parameters: Mapping[str, nn.Parameter],
        *,
        ledger: Ledger,
        file: Path | None,
        thresholds: Sequence[float],
        rule: NoiseRule | Sequence[float],
        expected_batch: float,
        source: Source,
        counts_share: float = 0.0,
        automatic: bool = False,
        keep_norms: bool = False,
    ) -> None:
        if ledger.terms.guarantee and (keep_norms or not source.secure):
            reason = "shows the controller raw statistics" if keep_norms else "draws from a seed that is known"
            raise ConfigError(f"this run {reason}: no guarantee holds; its terms must say guarantee=False")
        self.thresholds = list(thresholds)
        self.sigma = ledger.terms.sigmas[0][0]  # of the last step
        self.steps = 0  # noise is named by it
        self.release: Release | None = None
        self.last: dict[str, Tensor] = {}  # the last noised sums
        self.norms: list[Tensor] = []
        self.ledger, self.expected_batch = ledger, expected_batch
        self._inner, self._gradients, self._parameters = inner, gradients, dict(parameters)
        self._file, self._source, self._counts_share = file, source, counts_share
        self._start, self._wanted, self._rule, self._automatic = tuple(thresholds), self.sigma, rule, automatic
        self._keep_norms = keep_norms
        self._sums: dict[str, Tensor] = {}
        self._below: list[list[float]] = [[] for _ in gradients.groups]

    def steer(self, knobs: Mapping[str, float]) -> None:
        """Set `threshold` (the norm of all), or `threshold/<group>`, and `sigma`, for the next steps."""
        norm = math.hypot(*self._start)
        scale = knobs.get("threshold", norm) / norm
        self.thresholds = [knobs.get(f"threshold/{g}", scale * start) for g, start in enumerate(self._start)]
        self._wanted = knobs.get("sigma", self.ledger.terms.sigmas[0][0])

    def next_sigma(self) -> float | None:
        """The next step's multiplier: as planned, or what is wanted, raised until the filter admits it; None: no step."""
        if self.ledger.terms.mode == "fixed":
            return self.ledger.planned_sigma
        return self.ledger.nearest(self._wanted, self.ledger.terms.q)

    def backward(self, loss: Tensor, group: Tensor | None = None) -> None:
        """Add the clipped gradients of the records of `loss`, a sum of terms, each of one row; see `RecordGradients`."""
        if group is None:
            raise ConfigError("a private step must be told which rows are one record: give backward the batch's group")
        sums, norms = self._gradients.clipped(loss, self.thresholds, group, automatic=self._automatic)
        for name, tensor in sums.items():
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor
        for number, limit in enumerate(self.thresholds):
            self._below[number] += (norms[:, number] <= limit).double().tolist()
        if self._keep_norms:
            self.norms.append(norms)

    def step(self, lr: float) -> tuple[float, bool]:
        """Pay, noise, divide by the expected batch, apply. Returns (norm of the noised mean gradient, True).

        An empty batch is a step like any other: nothing but noise. Raises BudgetSpent if the ledger does not admit it.
        """
        sigma = self.next_sigma()
        if sigma is None or not self.ledger.admit(sigma, self.ledger.terms.q, step=self.steps):
            raise BudgetSpent("the privacy budget admits no more steps")
        if self._file is not None:
            self.ledger.save(self._file)
        self.sigma = sigma
        noised = self._noised()
        surrogate = torch.zeros((), device=next(iter(self._parameters.values())).device)
        for name, tensor in noised.items():  # the gradient of <weights, g> is g: any optimizer takes it so
            surrogate = surrogate + (self._parameters[name] * (tensor / self.expected_batch)).sum()
        self._inner.backward(surrogate)
        self.steps += 1
        self._forget()
        return self._inner.step(lr)

    @torch.no_grad()
    def _noised(self) -> dict[str, Tensor]:
        """Noised sums by parameter; writes the step's release."""
        gradient_sigma, below = self._with_counts()
        deviations = noise_std(self.thresholds, gradient_sigma, rule=self._rule)
        noised: dict[str, Tensor] = {}
        for group, deviation in zip(self._gradients.groups, deviations, strict=True):
            for name in group:
                parameter = self._parameters[name]
                noise = self._source.normal(parameter.numel(), step=self.steps, name=name).to(parameter.device)
                noise = deviation * noise.view(parameter.shape)
                total = self._sums.get(name)
                noised[name] = noise if total is None else total + noise
        self.release = self._describe(noised, deviations, below)
        return noised

    def _with_counts(self) -> tuple[float, tuple[float, ...] | None]:
        """The gradient's own multiplier, and the noised shares within thresholds, so that both together are `sigma`."""
        if not self._counts_share:
            return self.sigma, None
        groups = len(self.thresholds)
        gradient_sigma = self.sigma / math.sqrt(1 - self._counts_share)
        deviation = count_std(gradient_sigma, self.sigma, counts=groups)
        noise = self._source.normal(groups, step=self.steps, name="counts").tolist()
        shares = tuple(
            below_fraction(bits, noise=deviation * z, expected_batch=self.expected_batch)
            for bits, z in zip(self._below, noise, strict=True)
        )
        return gradient_sigma, shares

    def _describe(
        self, noised: dict[str, Tensor], deviations: Sequence[float], below: tuple[float, ...] | None
    ) -> Release:
        groups = self._gradients.groups
        squared = [sum(float(noised[name].double().square().sum()) for name in group) for group in groups]
        sizes = [sum(self._parameters[name].numel() for name in group) for group in groups]
        cosine = 0.0
        if self.last:
            product = sum(float((tensor * self.last[name]).double().sum()) for name, tensor in noised.items())
            lengths = math.sqrt(sum(squared) * sum(float(x.double().square().sum()) for x in self.last.values()))
            cosine = product / lengths if lengths else 0.0
        self.last = noised
        return Release(
            sizes=tuple(sizes), deviations=tuple(deviations), squared=tuple(squared), cosine=cosine, below=below
        )

    def metrics(self) -> dict[str, float]:
        """What the last step may tell beside the norm of its noised gradient: public and accounted numbers."""
        mean = sum(self.thresholds) / len(self.thresholds)
        return {"privacy/sigma": self.sigma, "privacy/spent": self.ledger.share, "privacy/threshold_mean": mean}

    def _forget(self) -> None:
        self._sums = {}
        self._below = [[] for _ in self._gradients.groups]

    def discard(self) -> None:
        """Forget accumulated gradients."""
        self._forget()
        self._gradients.discard()
        self._inner.discard()

    def frozen(self) -> AbstractContextManager[None]:
        """Backward passes inside leave nothing for `step`."""
        return self._inner.frozen()

    def reset(self) -> None:
        """Forget the averages of the optimizer inside."""
        self._inner.reset()
