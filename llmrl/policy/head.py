"""Log-probabilities and entropies at scored positions, without ever holding [tokens, vocabulary] for a whole batch.

What some models do to their logits after the output layer, scale or cap them, is part of it. The output layer runs in
chunks of positions; softmax is in float32. The backward pass computes each chunk's logits again instead of keeping them,
so that peak memory is one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.memory import CHUNK_ELEMENTS
from llmrl.policy.products import linear

SLICE_ELEMENTS = 1024 * 1024  # float32 logits handled at once on a CPU: they stay in its cache
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
MULTIPLIED_BY_IT = ("hyperclovax",)  # where logits_scaling is a factor and no divisor
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputScaling:
    """What a model does to its logits after the output layer: cap * tanh(factor * logits / cap)."""

    factor: float = 1.0  # Granite divides by logits_scaling, Cohere multiplies by logit_scale
    cap: float | None = None  # Gemma 2's final soft-capping

    @classmethod
    def of(cls, model: nn.Module) -> OutputScaling:
        """As the configuration of a causal LM says. `check_forward` compares the outcome with the model itself."""
        config = model.config.get_text_config()  # type: ignore[union-attr, operator]
        factor = 1.0
        for name in MULTIPLIERS:
            factor *= float(getattr(config, name, None) or 1.0)
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)
        factor = factor * divisor if config.model_type in MULTIPLIED_BY_IT else factor / divisor
        caps = (getattr(config, name, None) for name in CAPS)
        return cls(factor=factor, cap=next((float(cap) for cap in caps if cap), None))

    @property
    def plain(self) -> bool:
        return self.factor == 1.0 and self.cap is None

    def __call__(self, wide: Tensor) -> Tensor:
        """Overwrites `wide`, which is float32 or float64."""
        if self.factor != 1.0:
            wide.mul_(self.factor)
        return wide if self.cap is None else wide.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, scaled: Tensor) -> Tensor | float:
        """The derivative at what `__call__` gave."""
        return self.factor if self.cap is None else (scaled / self.cap).square_().neg_().add_(1).mul_(self.factor)


UNSCALED = OutputScaling()


def output_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """The logits [N, V] of a causal LM for its hidden states [N, D], scaled and capped as the model itself does it."""
    logits: Tensor = model.get_output_embeddings()(hidden)  # type: ignore[operator]
    scaling = OutputScaling.of(model)
    return logits if scaling.plain else scaling(_wide(logits))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = True,
    scaling: OutputScaling = UNSCALED,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of softmax(scaling(hidden @ weight.T + bias) / temperature) at each position.

    hidden [N, D], weight [V, D], bias [V] or None, targets [N] int64 -> (logprobs [N], entropy [N]), float32 (float64
    for float64 input), nats. Both carry gradients to hidden, weight and bias. Without `entropy` the second is all 0.
    """
    found = _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, entropy, scaling)
    return found


def _chunks(rows: int, vocabulary: int, elements: int) -> list[slice]:
    size = max(1, elements // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _slices(logits: Tensor) -> list[slice]:
    """A GPU takes a chunk at once; a CPU in portions, because every pass over float32 logits would go to memory."""
    return _chunks(logits.shape[0], logits.shape[1], SLICE_ELEMENTS if logits.is_cpu else logits.numel())


def _wide(logits: Tensor) -> Tensor:
    """A float32 (or float64) copy."""
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32, copy=True)


def _tempered(wide: Tensor, temperature: float) -> Tensor:
    return wide if temperature == 1.0 else wide.div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        scaling: OutputScaling,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        normaliser = torch.empty_like(logprobs)
        entropy = torch.zeros_like(logprobs)
        for rows in _chunks(len(targets), weight.shape[0], CHUNK_ELEMENTS):
            logits = linear(hidden[rows], weight, bias)
            for part in _slices(logits):
                here = slice(rows.start + part.start, rows.start + part.stop)
                wide = _tempered(scaling(_wide(logits[part])), temperature)
                total = wide.logsumexp(-1)
                normaliser[here] = total
                logprobs[here] = wide.gather(1, targets[here, None]).squeeze(1) - total
                if with_entropy:
                    entropy[here] = total - (wide.softmax(-1) * wide).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.temperature, ctx.with_entropy, ctx.scaling = temperature, with_entropy, scaling
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, _, normaliser, _ = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if bias is not None else None
        for rows in _chunks(len(hidden), weight.shape[0], CHUNK_ELEMENTS):
            logits = linear(hidden[rows], weight, bias)
            for part in _slices(logits):
                here = slice(rows.start + part.start, rows.start + part.stop)
                scaled = ctx.scaling(_wide(logits[part]))
                slope = ctx.scaling.slope(scaled)
                grad_logits = _grad_logits(ctx, _tempered(scaled, ctx.temperature), here, *grads)
                grad_logits = grad_logits if ctx.scaling.plain else grad_logits.mul_(slope)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                logits[part] = grad_logits
            grad_hidden[rows] = linear(logits, weight.T)
            if grad_weight is not None:
                grad_weight += linear(logits.T, hidden[rows].T)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _grad_logits(ctx: Any, wide: Tensor, here: slice, grad_logprobs: Tensor, grad_entropy: Tensor) -> Tensor:
    """The gradient of the scaled, undivided logits at the positions `here`; `wide` is overwritten."""
    _, _, _, targets, normaliser, entropy = ctx.saved_tensors
    shifted = wide.sub_(normaliser[here, None])
    outer = grad_logprobs[here, None]
    if ctx.with_entropy:  # dH/dz = -p (log p + H)
        probabilities = shifted.exp()
        grad = shifted.add_(entropy[here, None]).mul_(grad_entropy[here, None]).add_(outer).mul_(probabilities).neg_()
    else:
        grad = shifted.exp_().mul_(-outer)
    grad.scatter_add_(1, targets[here, None], outer)
    return grad if ctx.temperature == 1.0 else grad.div_(ctx.temperature)
