"""The networks of controllers: ensembles of small MLPs, squashed Gaussian (or mixture) policies, categorical policies.

Parameters of an ensemble's members lie in one tensor a layer, so that J critics cost one batched product instead of J.
Every random number comes from the generator that is passed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, softplus

from llmrl.control.losses import polyak

LOG_STD_RANGE = (-20.0, 2.0)
STD_FLOOR = 1e-4


class EnsembleMLP(nn.Module):
    """`members` MLPs with ReLU between layers of `sizes`: [B, sizes[0]] -> [members, B, sizes[-1]].

    Weights and biases are uniform in +-1/sqrt(fan-in), as in torch's Linear; `normalize` adds a LayerNorm without
    parameters before each ReLU.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        members: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.normalize = members, normalize

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:
            unit = 2 * torch.rand(*shape, generator=generator, dtype=dtype) - 1
            return nn.Parameter(unit / math.sqrt(fan_in))

        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList([uniform(a, members, a, b) for a, b in pairs])
        self.biases = nn.ParameterList([uniform(a, members, 1, b) for a, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.expand(self.members, *x.shape)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < last:
                hidden = relu(layer_norm(hidden, hidden.shape[-1:]) if self.normalize else hidden)
        return hidden

    @torch.no_grad()
    def zero_output(self) -> None:
        """Set the last layer to 0, so that what is added to this network's output stands alone at first."""
        self.weights[-1].zero_()
        self.biases[-1].zero_()


class SquashedPolicy(nn.Module):
    """obs [B, n] -> (weights [B, K], mean [B, K, d], log_std [B, K, d]) of u; the action is tanh(u). K = 1 is SAC's.

    With a control law ([B, n] -> [B, d], in the unit box) the mean is atanh(law) plus the network, which begins at 0.
    """

    def __init__(self, net: EnsembleMLP, *, experts: int, law: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.experts, self.law = net, experts, law
        if law is not None:
            net.zero_output()

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.net(obs)[0]
        heads = out[:, self.experts :] if self.experts > 1 else out
        mean, log_std = heads.reshape(len(obs), self.experts, 2, -1).unbind(2)
        if self.law is not None:
            inside = 1 - 1e-6  # atanh is infinite at the corners
            mean = mean + torch.atanh(self.law(obs).clamp(-inside, inside))[:, None]
            log_std = log_std - 1.0  # a known law deserves less exploration than none
        weights = out[:, : self.experts].softmax(-1) if self.experts > 1 else torch.ones_like(mean[..., 0])
        return weights, mean, log_std.clamp(*LOG_STD_RANGE)


class CategoricalPolicy(nn.Module):
    """obs [B, n] -> log-probabilities [B, A]."""

    def __init__(self, net: EnsembleMLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs)[0].log_softmax(-1)


class ActionCritics(nn.Module):
    """(obs [B, n], action [B, d]) -> values [J, B], or (mean, std) of the return, both [J, B], if `distributional`.

    A known value ([B, n + d] -> [B]) is added to every member, whose network then begins at 0.
    """

    def __init__(self, net: EnsembleMLP, *, distributional: bool = False, value: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.distributional, self.value = net, distributional, value
        if value is not None:
            net.zero_output()

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.gaussian(obs, action)[0]

    def gaussian(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(mean [J, B], std [J, B]); without `distributional` the standard deviation is 0."""
        both = torch.cat([obs, action], -1)
        out = self.net(both)
        mean = out[..., 0] if self.value is None else out[..., 0] + self.value(both)
        return mean, softplus(out[..., 1]) + STD_FLOOR if self.distributional else torch.zeros_like(mean)


@torch.no_grad()
def follow(targets: nn.Module, online: nn.Module, *, tau: float) -> None:
    """Move the parameters of `targets` by a share `tau` to those of a module of the same shape, in place."""
    for target, other in zip(targets.parameters(), online.parameters(), strict=True):
        target.copy_(polyak(target, other, tau=tau))
