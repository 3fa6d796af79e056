"""float32 products of linear layers by oneDNN, on processors where torch's own choice is slow.

`llmrl.hardware.onednn_is_faster` says which those are. The same float32 arithmetic; sums are taken in another order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmrl.hardware import onednn_is_faster

WORTH_IT = 2**22  # operations from which a product is longer than the detour through Python


def float32_products() -> AbstractContextManager[object]:
    """Inside, linear layers in float32 on a CPU compute by oneDNN, forward and backward, if `onednn_is_faster`.

    Every other operation, and those of few numbers, of other types, devices and subclasses of Tensor, stay as they are.
    """
    return _Products() if onednn_is_faster() else nullcontext()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by whichever is faster; without a gradient, for the inside of a function that has its own."""
    chosen = product if onednn_is_faster() and _suits(x, weight, bias) else nn.functional.linear
    return chosen(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN, without a gradient: x [..., I], weight [O, I], contiguous or not, bias [O]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Products(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and not kwargs and _suits(*args):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = all(
        type(one) in (Tensor, nn.Parameter) and one.dtype == torch.float32 and one.is_cpu
        for one in (x, weight, *([] if bias is None else [bias]))
    )
    if not plain or x.dim() < 2 or 2 * x.numel() * weight.shape[0] < WORTH_IT:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x) and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        for_x, for_weight, for_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.T) if for_x else None,
            product(flat.T, x.reshape(-1, x.shape[-1]).T) if for_weight else None,
            flat.sum(0) if for_bias else None,
        )
