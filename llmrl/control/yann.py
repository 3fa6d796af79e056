"""Start from a known control law: YANN-RL (Braniff and Tian 2025, arXiv 2508.16474).

The explicit solution of a linear optimal control problem is piecewise: on the polytope H_i x <= h_i (one of many that
cover the state space)

    u(x) = F_i x + g_i                                            the law, affine
    Q(z) = z' P_i z + q_i' z + c_i,   z = (x, u)                  its value, affine where P_i is 0.

`Piecewise` is a network that is such a function exactly: a row of comparisons finds the region, one affine (or quadratic)
layer a region answers, and its pieces are parameters that training may move. The agent adds a network whose last layer
begins at 0 (`nets.py`), so actor and critic equal the law and its value before the first update.

The paper's networks build the same functions from their own layers and inject further ones; here the choice of the region
is written as what it is, the polytope that x violates least. Only its abstract could be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """On H x <= h the function is x' P x + F x + g; P is None for an affine piece, and needs one output otherwise."""

    H: Tensor  # [c, n]; no rows: everywhere
    h: Tensor  # [c]
    F: Tensor  # [d, n]
    g: Tensor  # [d]
    P: Tensor | None = None  # [n, n]


class Piecewise(nn.Module):
    """x [B, n] -> [B, d], or [B] with `scalar`. Where no polytope holds, the least violated one answers."""

    H: Tensor
    h: Tensor

    def __init__(self, regions: Sequence[Region], *, scalar: bool = False) -> None:
        super().__init__()
        if not regions:
            raise ConfigError("a control law needs at least one region")
        outputs, size = regions[0].F.shape
        for i, region in enumerate(regions):
            shapes = {region.F.shape == (outputs, size), region.g.shape == (outputs,), region.H.shape[1:] == (size,)}
            if shapes != {True} or len(region.H) != len(region.h):
                raise ConfigError(f"region {i} of the control law does not fit the first: F is {tuple(region.F.shape)}")
        if scalar and outputs != 1:
            raise ConfigError(f"a value is one number, but the regions give {outputs}")
        self.scalar = scalar
        rows = max(1, max(len(region.H) for region in regions))
        H, h = torch.zeros(len(regions), rows, size, dtype=regions[0].F.dtype), torch.zeros(len(regions), rows)
        for i, region in enumerate(regions):
            H[i, : len(region.H)], h[i, : len(region.h)] = region.H, region.h
        self.register_buffer("H", H)
        self.register_buffer("h", h.to(H.dtype))
        self.F = nn.Parameter(torch.stack([region.F for region in regions]))
        self.g = nn.Parameter(torch.stack([region.g for region in regions]))
        quadratic = [region.P for region in regions]
        self.P = None
        if any(P is not None for P in quadratic):
            self.P = nn.Parameter(torch.stack([H.new_zeros(size, size) if P is None else P for P in quadratic]))

    def region(self, x: Tensor) -> Tensor:
        """Which piece answers, the first of equals: [B, n] -> [B]."""
        violation = torch.einsum("rcn,bn->brc", self.H, x) - self.h  # [B, regions, rows]
        return violation.clamp_min(0).amax(-1).argmin(-1)

    def forward(self, x: Tensor) -> Tensor:
        at = self.region(x)
        result = torch.einsum("bdn,bn->bd", self.F[at], x) + self.g[at]
        if self.P is not None:
            result = result + torch.einsum("bm,bmn,bn->b", x, self.P[at], x)[:, None]
        return result[:, 0] if self.scalar else result


def saturated_law(gain: Tensor, offset: Tensor | None = None) -> list[Region]:
    """clip(gain x + offset, -1, 1), as regions: 3^d of them. gain: [d, n], offset: [d]."""
    outputs, size = gain.shape
    offset = gain.new_zeros(outputs) if offset is None else offset
    regions = []
    for signs in product((-1, 0, 1), repeat=outputs):
        H, h, F, g = [], [], gain.clone(), offset.clone()
        for i, sign in enumerate(signs):
            row, shift = gain[i], offset[i]
            if sign == 0:  # -1 <= row x + shift <= 1
                H += [row, -row]
                h += [1 - shift, 1 + shift]
            else:  # sign (row x + shift) >= 1
                H += [-sign * row]
                h += [sign * shift - 1]
                F[i], g[i] = torch.zeros(size), float(sign)
        regions.append(Region(H=torch.stack(H), h=torch.stack([x.reshape(()) for x in h]), F=F, g=g))
    return regions
