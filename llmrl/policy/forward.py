"""The policy's forward pass: log-probabilities (and entropies) of the sampled tokens of a batch.

Two ways to the same numbers: `packed` shares each group's prompt and pads nothing; `plain` gives the model padded rows,
exactly as a textbook would. The shift by one between a token and the position that predicts it lives here and nowhere
else. `check_forward` compares either with the model itself, so that an architecture that packs wrongly, or changes its
logits after the output layer, is noticed before training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.attention import UnsupportedModel, registered_attention
from llmrl.policy.head import token_logprobs
from llmrl.policy.packing import Packing, block_attention, pack

PACKED_ATTENTION = "llmrl_packed"
ForwardMode = Literal["packed", "plain"]


def forward(
    model: nn.Module, batch: Batch, *, mode: ForwardMode, temperature: float = 1.0, entropy: bool = False
) -> Output:
    """Log-probabilities of `batch.tokens` where `batch.mask`, under softmax(logits / temperature); 0 elsewhere.

    `model` is a Hugging Face causal LM. Gradients flow to its parameters. Raises ValueError if a row's first token is to
    be scored.
    """
    if bool(batch.mask[:, 0].any()):
        raise ValueError("an empty prompt cannot be scored: its first sampled token has nothing before it")
    if mode == "packed":
        packing = pack(batch)
        hidden = _packed_hidden(model, packing)
        row, column, source, target = packing.row, packing.column, packing.source, packing.target
    else:
        row, column = batch.mask.nonzero(as_tuple=True)
        hidden = _plain_hidden(model, batch)
        source = row * batch.tokens.shape[1] + column - 1
        target = batch.tokens[row, column]
    head = model.get_output_embeddings()  # type: ignore[operator]
    values, entropies = token_logprobs(
        hidden.index_select(0, source),
        head.weight,
        getattr(head, "bias", None),
        target,
        temperature=temperature,
        entropy=entropy,
    )
    return Output(
        logprobs=_spread(values, row, column, batch),
        entropy=_spread(entropies, row, column, batch) if entropy else None,
    )


def _spread(values: Tensor, row: Tensor, column: Tensor, batch: Batch) -> Tensor:
    return values.new_zeros(batch.tokens.shape).index_put((row, column), values)


def _plain_hidden(model: nn.Module, batch: Batch) -> Tensor:
    out = model.base_model(input_ids=batch.tokens, attention_mask=_present(batch), use_cache=False)  # type: ignore[operator]
    return out.last_hidden_state.flatten(0, 1)


def _present(batch: Batch) -> Tensor:
    """[B, T] int64: 1 where there is a token, 0 on padding."""
    return (torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None] < batch.length[:, None]).long()


def _packed_hidden(model: nn.Module, packing: Packing) -> Tensor:
    with registered_attention(model.config, PACKED_ATTENTION, _packed_attention):
        out = model.base_model(  # type: ignore[operator]
            input_ids=packing.tokens[None], position_ids=packing.positions[None], use_cache=False, packing=packing
        )
    return out.last_hidden_state[0]


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention call: query [1, H, L, D], key and value [1, K, L, D] -> [1, L, H, D]."""
    if packing is None:
        raise UnsupportedModel("it does not pass extra arguments on to its attention")
    if softcap is not None:
        raise UnsupportedModel("it caps attention scores")
    if sliding_window is not None and int(packing.positions.max()) >= sliding_window:
        raise UnsupportedModel(f"its sliding window of {sliding_window} tokens is shorter than a row")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = block_attention(query[0], key[0], value[0], packing, scale=scale)
    return out.transpose(0, 1)[None], None


def check_forward(model: nn.Module, batch: Batch, *, mode: ForwardMode, tolerance: float) -> str | None:
    """None if `mode` and the model itself agree on `batch` within `tolerance` nats per token, else what is wrong.

    The judge is the model's own full forward with its own output layer, so that scaled or capped logits are noticed in
    either mode.
    """
    try:
        with torch.no_grad():
            ours = forward(model, batch, mode=mode).logprobs
    except (UnsupportedModel, TypeError, ValueError, RuntimeError) as error:
        return f"the {mode} forward failed: {error}"
    with torch.no_grad():
        logits = model(input_ids=batch.tokens, attention_mask=_present(batch), use_cache=False).logits
        expected = logits[:, :-1].float().log_softmax(-1).gather(2, batch.tokens[:, 1:, None]).squeeze(2)
    gap = (ours[:, 1:] - expected).masked_fill(~batch.mask[:, 1:], 0).abs().max()
    return None if float(gap) <= tolerance else f"log-probabilities of {mode} differ by {float(gap):.3g} nats"


def window_is_short(model: Any, max_length: int) -> bool:
    """Whether a row of `max_length` tokens is longer than the model's sliding window, which packing does not cut."""
    window = getattr(model.config, "sliding_window", None)
    return window is not None and window < max_length
