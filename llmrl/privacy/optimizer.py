"""The private optimizer: clips every record, sums, adds noise once a step, divides by the expected batch, and hands the
result to an ordinary optimizer, whose averages, decay and learning rate are post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.privacy.clipping import NoiseRule, noise_std
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.randomness import Source
from llmrl.privacy.thresholds import below_fraction, count_std
from llmrl.train.protocols import ShardedOptimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one step made public: statistics of the noised sum, and noised counts if they were paid for."""

    sizes: tuple[int, ...]  # scalars in each group, d_g
    deviations: tuple[float, ...]  # noise of each group, s_g
    squared: tuple[float, ...]  # ||noised sum||^2 of each group
    cosine: float  # between this step's noised sum and the last one's; 0 at first
    below: tuple[float, ...] | None  # noised share of records within each threshold


class PrivateOptimizer:
    """Makes steps of one Gaussian mechanism: `sigma` is the multiplier of all that a step releases.

    `inner` moves the weights by the noised mean gradient and knows nothing of privacy. Thresholds, the noise rule and
    sigma may be set between steps; the caller asks the ledger before `step`. With `counts_share` > 0 each step also
    releases how many records were within each threshold, and the gradient gets the little more noise that this costs.
    `automatic` scales every record to its threshold (`clip_factors`).
    """

    def __init__(
        self,
        inner: ShardedOptimizer,
        gradients: RecordGradients,
        parameters: Mapping[str, nn.Parameter],
        *,
        thresholds: Sequence[float],
        sigma: float,
        rule: NoiseRule | Sequence[float],
        expected_batch: float,
        source: Source,
        counts_share: float = 0.0,
        automatic: bool = False,
    ) -> None:
        self.thresholds = list(thresholds)
        self.sigma = sigma
        self.rule = rule
        self.automatic = automatic
        self.steps = 0  # noise is named by it
        self.release: Release | None = None
        self._inner, self._gradients, self._parameters = inner, gradients, dict(parameters)
        self._expected, self._source, self._counts_share = expected_batch, source, counts_share
        self._sums: dict[str, Tensor] = {}
        self._below: list[list[float]] = [[] for _ in gradients.groups]
        self._last: dict[str, Tensor] | None = None

    def backward(self, losses: Tensor) -> Tensor:
        """Add the clipped gradients of `losses`, one a row; returns the records' norms [N, G], which are private."""
        if losses.dim() != 1:
            raise ConfigError(
                f"a private step needs one loss a record, not a tensor of shape {tuple(losses.shape)}: what couples "
                "records (group baselines, whitening, means over the batch) cannot be trained privately"
            )
        sums, norms = self._gradients.clipped(losses, self.thresholds, automatic=self.automatic)
        for name, tensor in sums.items():
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor
        for number, limit in enumerate(self.thresholds):
            self._below[number] += (norms[:, number] <= limit).double().tolist()
        return norms

    @torch.no_grad()
    def _noised(self) -> dict[str, Tensor]:
        """Noised sums by parameter; writes the step's release."""
        gradient_sigma, below = self._with_counts()
        deviations = noise_std(self.thresholds, gradient_sigma, rule=self.rule)
        noised: dict[str, Tensor] = {}
        for group, deviation in zip(self._gradients.groups, deviations, strict=True):
            for name in group:
                parameter = self._parameters[name]
                noise = self._source.normal(parameter.numel(), step=self.steps, name=name).to(parameter.device)
                total = self._sums.get(name)
                noise = deviation * noise.view(parameter.shape)
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
            below_fraction(bits, noise=deviation * z, expected_batch=self._expected)
            for bits, z in zip(self._below, noise, strict=True)
        )
        return gradient_sigma, shares

    def _describe(
        self, noised: dict[str, Tensor], deviations: Sequence[float], below: tuple[float, ...] | None
    ) -> Release:
        squared = [
            sum(float(noised[name].double().square().sum()) for name in group) for group in self._gradients.groups
        ]
        sizes = [sum(self._parameters[name].numel() for name in group) for group in self._gradients.groups]
        cosine = 0.0
        if self._last is not None:
            product = sum(float((tensor * self._last[name]).double().sum()) for name, tensor in noised.items())
            lengths = math.sqrt(sum(squared) * sum(float(x.double().square().sum()) for x in self._last.values()))
            cosine = product / lengths if lengths else 0.0
        self._last = noised
        return Release(
            sizes=tuple(sizes), deviations=tuple(deviations), squared=tuple(squared), cosine=cosine, below=below
        )

    def step(self, lr: float) -> tuple[float, bool]:
        """Noise, divide by the expected batch, apply. Returns (norm of the noised mean gradient, True).

        An empty batch is a step like any other: nothing but noise.
        """
        noised = self._noised()
        surrogate = torch.zeros((), device=next(iter(self._parameters.values())).device)
        for name, tensor in noised.items():  # the gradient of <weights, g> is g: any optimizer takes it so
            surrogate = surrogate + (self._parameters[name] * (tensor / self._expected)).sum()
        self._inner.backward(surrogate)
        self.steps += 1
        self._forget()
        return self._inner.step(lr)

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

    def state(self) -> dict[str, Tensor]:
        """Weights and averages: released values and their post-processing. Gradients and norms are never in it."""
        return (
            self._inner.state()
            | {"private_step": torch.tensor(self.steps)}
            | {f"last_release/{name}": tensor for name, tensor in (self._last or {}).items()}
        )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave. Raises ValueError if it is of other weights."""
        prefix = "last_release/"
        self.steps = int(state["private_step"])
        self._last = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} or None
        self._inner.load({k: v for k, v in state.items() if k != "private_step" and not k.startswith(prefix)})
