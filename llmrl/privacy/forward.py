"""The forward pass of private training whose output layer is trained: through the layer itself, whose hooks see nothing
of `policy.forward`'s, which takes only its weight. Positions are given row by row, so that no layer shares them.
"""

from __future__ import annotations

import torch
from torch import nn

from llmrl.batch import Batch, Output
from llmrl.policy.forward import ForwardMode, ValueHead


def through_the_head(
    model: nn.Module,
    batch: Batch,
    *,
    mode: ForwardMode,
    temperature: float = 1.0,
    entropy: bool = False,
    value_head: ValueHead | None = None,
) -> Output:
    """Log-probabilities of `batch.tokens` where `batch.mask`, 0 elsewhere; every row's depend on that row alone."""
    if entropy or value_head is not None:
        raise ValueError("private training has log-probabilities only")
    device = next(model.parameters()).device
    tokens, length, mask = (x.to(device) for x in (batch.tokens, batch.length, batch.mask))
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    present = (positions < length[:, None]).long()
    logits = model(input_ids=tokens, attention_mask=present, position_ids=positions, use_cache=False).logits
    found = (logits[:, :-1].float() / temperature).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return Output(logprobs=torch.nn.functional.pad(found, (1, 0)).where(mask, 0.0))
