"""Linear layers on weights that are already in oneDNN's blocked layout: for many small forward passes on a CPU.

`torch.nn.functional.linear` brings a bfloat16 weight into that layout on every call. With few rows that costs as much as
the product itself; done once per rollout it costs a tenth of a second. The numbers are the same, bit for bit. float32
weights are packed where oneDNN multiplies them faster than torch's own choice does (`llmrl.policy.products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from llmrl.hardware import onednn_is_faster


def can_prepack(weight: Tensor) -> bool:
    """Whether this build of torch packs `weight`, and it helps; the operators are those of torch's own inductor."""
    if not weight.is_cpu or not _has_operators():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and onednn_is_faster(packed=True)


@cache
def _has_operators() -> bool:
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
    )


@contextmanager
def prepacked_linears(model: nn.Module) -> Iterator[None]:
    """Inside, every `nn.Linear` of `model` that `can_prepack` runs on a packed copy of the weight it has at the start.

    No gradients. A copy of those weights is held meanwhile.
    """
    swapped: list[nn.Module] = []
    try:
        for module in model.modules():
            if type(module) is nn.Linear and can_prepack(module.weight):
                module.__dict__["forward"] = _packed(module)  # before the class's own
                swapped.append(module)
        yield
    finally:
        for module in swapped:
            del module.__dict__["forward"]


def _packed(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
    bias = None if module.bias is None else module.bias.detach()

    def forward(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out

    return forward
