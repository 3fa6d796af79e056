"""How a check is measured: the worst error of a comparison, and derivatives by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Finding:
    """The worst error that one check of one subject found on one random sample."""

    name: str
    check: str
    error: float


def gap(got: Tensor, expected: Tensor) -> float:
    """The largest |got - expected| / (1 + |expected|); infinite if the shapes differ or anything is NaN."""
    if got.shape != expected.shape:
        return float("inf")
    if got.numel() == 0:
        return 0.0
    error = ((got - expected).abs() / (1 + expected.abs())).max().item()
    return error if error == error else float("inf")


def gradient_gap(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Between autograd's gradient at `x` of a fixed weighting of the function's values, and its difference quotient."""
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * cotangent).sum(), leaf)
    return gap(gradient, difference_quotient(lambda x: (function(x) * cotangent).sum(), leaf.detach()))


def difference_quotient(scalar: Callable[[Tensor], Tensor], x: Tensor, *, width: float = 1e-6) -> Tensor:
    """Central differences of `scalar` at `x` (float64), one element at a time: x.shape."""
    result = torch.zeros_like(x)
    flat = x.reshape(-1)
    for k in range(flat.numel()):
        up, down = flat.clone(), flat.clone()
        up[k] += width
        down[k] -= width
        change = scalar(up.reshape(x.shape)) - scalar(down.reshape(x.shape))
        result.view(-1)[k] = change.item() / (2 * width)
    return result
