"""Log-probabilities and entropies at scored positions, without ever holding [tokens, vocabulary] for a whole batch.

The output layer runs in chunks of positions; softmax is in float32. The backward pass computes each chunk's logits
again instead of keeping them, so that peak memory is one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 32 * 1024 * 1024  # logits held at once: 128 MiB in float32


def token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of softmax((hidden @ weight.T + bias) / temperature) at each position.

    hidden [N, D], weight [V, D], bias [V] or None, targets [N] int64 -> (logprobs [N], entropy [N]), float32 (float64
    for float64 input), nats. Both carry gradients to hidden, weight and bias.
    """
    return _TokenLogprobs.apply(hidden, weight, bias, targets, temperature)  # type: ignore[no-any-return]


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], weight, bias, temperature)
            normaliser[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normaliser[rows]
            probabilities = (logits - normaliser[rows, None]).exp_()
            entropy[rows] = normaliser[rows] - (probabilities * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if bias is not None else None
        through_entropy = bool(grad_entropy.any())
        for rows in _chunks(len(targets), weight.shape[0]):
            shifted = _logits(hidden[rows], weight, bias, ctx.temperature).sub_(normaliser[rows, None])
            probabilities = shifted.exp()
            if through_entropy:  # dH/dz = -p (log p + H)
                shifted.add_(entropy[rows, None]).mul_(probabilities).mul_(-grad_entropy[rows, None])
            else:
                shifted.zero_()
            shifted.sub_(probabilities.mul_(grad_logprobs[rows, None]))
            shifted.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            if ctx.temperature != 1.0:
                shifted.div_(ctx.temperature)
            grad_logits = shifted.to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += shifted.sum(0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None
