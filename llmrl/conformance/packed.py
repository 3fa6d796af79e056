"""The packed forward pass against the plain one, on a tiny random model in float64: what the policy says, and gradients.

Rows of unequal groups, some with an environment's tokens in the middle, one without any mask. Position encodings are
float32 in transformers, so the two agree to about 1e-6 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Batch, Output
from llmrl.conformance.cases import random_batch
from llmrl.conformance.measure import Finding, gap
from llmrl.policy.critic import ValueHead
from llmrl.policy.forward import ForwardMode, forward

WIDTH = 32


def check_packed(seed: int) -> Iterator[Finding]:
    """Log-probs, entropies and values, and the gradient of all three together, packed against plain."""
    model, head = _tiny_model(seed), ValueHead(WIDTH).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)))
    batch = _shared_prompts(random_batch(seed))
    packed, packed_gradient = _outputs(model, head, batch, "packed")
    plain, plain_gradient = _outputs(model, head, batch, "plain")
    for name in ("logprobs", "entropy", "values"):
        yield Finding(f"forward: {name}", "packing", gap(getattr(packed, name), getattr(plain, name)))
    size = float(plain_gradient.abs().max())
    yield Finding("forward: gradient", "packing", gap(packed_gradient / size, plain_gradient / size))


def _outputs(model: Any, head: ValueHead, batch: Batch, mode: ForwardMode) -> tuple[Output, Tensor]:
    """The output without gradient, and all parameters' gradient of a sum over it, flattened."""
    out = forward(model, batch, mode=mode, entropy=True, value_head=head)
    assert out.entropy is not None and out.values is not None
    weights = torch.arange(out.logprobs.numel(), dtype=torch.float64).view_as(out.logprobs).cos()
    total = (weights * (out.logprobs + out.entropy + out.values)).sum()
    gradients = torch.autograd.grad(total, [*model.parameters(), head.weight, head.bias])
    detached = Output(logprobs=out.logprobs.detach(), entropy=out.entropy.detach(), values=out.values.detach())
    return detached, torch.cat([gradient.flatten() for gradient in gradients])


def _shared_prompts(batch: Batch) -> Batch:
    """The rows of a group start with the same tokens, as rollouts do."""
    tokens = batch.tokens.clone()
    for group in batch.group.unique():
        rows = batch.group == group
        tokens[rows, :2] = tokens[rows][0, :2]
    return replace(batch, tokens=tokens)


def _tiny_model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter) + float(parameter.dim() == 1))
    return model.double()
