"""The policy's forward pass: log-probabilities (and entropies, and values) of the sampled tokens of a batch.

Three ways to the same numbers: `packed` shares each group's prompt and pads nothing; `flex` does so with one block-sparse
kernel on a GPU; `plain` gives the model padded rows, exactly as a textbook would. The shift by one between a token and
the position that predicts it lives here and nowhere else. `check_forward` compares each with the model itself, so that
an architecture that packs wrongly, or changes its logits after the output layer, is noticed before training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.attention import UnsupportedModel, registered_attention
from llmrl.policy.flex import BlockMasks, flex_attention
from llmrl.policy.head import OutputScaling, token_logprobs
from llmrl.policy.packing import Packing, block_attention, pack
from llmrl.policy.products import float32_products
from llmrl.policy.vision import seen, text_config

PACKED_ATTENTION = "llmrl_packed"
ForwardMode = Literal["flex", "packed", "plain"]
ValueHead = Callable[[Tensor], Tensor]


def forward(
    model: nn.Module,
    batch: Batch,
    *,
    mode: ForwardMode,
    temperature: float = 1.0,
    entropy: bool = False,
    value_head: ValueHead | None = None,
) -> Output:
    """Log-probabilities of `batch.tokens` where `batch.mask`, under softmax(logits / temperature); 0 elsewhere.

    `batch` may lie in the host's memory; what is returned is on the model's device. `model` is a Hugging Face causal LM.
    `value_head` maps the hidden states that predict the scored tokens, [N, D], to values [N]: index t gets the value of
    the state in which token t was chosen. Gradients flow to all parameters.
    Raises ValueError if a row's first token is to be scored.
    """
    scored = _scored_hidden(model, batch, mode)
    row, column = scored.row, scored.column
    head = model.get_output_embeddings()  # type: ignore[operator]
    logprobs, entropies = token_logprobs(
        scored.hidden,
        head.weight,
        getattr(head, "bias", None),
        scored.target,
        temperature=temperature,
        entropy=entropy,
        scaling=OutputScaling.of(model),
    )
    return Output(
        logprobs=_spread(logprobs, row, column, batch),
        entropy=_spread(entropies, row, column, batch) if entropy else None,
        values=_spread(value_head(scored.hidden), row, column, batch) if value_head is not None else None,
    )


def forward_values(model: nn.Module, batch: Batch, *, mode: ForwardMode, value_head: ValueHead) -> Tensor:
    """What `value_head` makes of `model`'s hidden states, as in `forward`, without any output layer: [B, T], or [B, T, K]
    of a head that gives K numbers a state.
    """
    scored = _scored_hidden(model, batch, mode)
    return _spread(value_head(scored.hidden), scored.row, scored.column, batch)


class _Scored(NamedTuple):
    hidden: Tensor  # [N, D] the state that predicts each scored token
    row: Tensor  # [N]
    column: Tensor  # [N]
    target: Tensor  # [N] the scored token's id


def _scored_hidden(model: nn.Module, batch: Batch, mode: ForwardMode) -> _Scored:
    if bool(batch.mask[:, 0].any()):
        raise ValueError("an empty prompt cannot be scored: its first sampled token has nothing before it")
    if mode != "plain":
        packing = pack(batch).to(_device(model))
        with float32_products():
            hidden = _packed_hidden(model, packing, mode)
        return _Scored(hidden.index_select(0, packing.source), packing.row, packing.column, packing.target)
    batch = batch.to(_device(model))
    row, column = batch.mask.nonzero(as_tuple=True)
    source = row * batch.tokens.shape[1] + column - 1
    with float32_products():
        hidden = _plain_hidden(model, batch)
    return _Scored(hidden.index_select(0, source), row, column, batch.tokens[row, column])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _spread(values: Tensor, row: Tensor, column: Tensor, batch: Batch) -> Tensor:
    return values.new_zeros((*batch.tokens.shape, *values.shape[1:])).index_put((row, column), values)


def _plain_hidden(model: nn.Module, batch: Batch) -> Tensor:
    out = model.base_model(**_padded(model, batch), use_cache=False)  # type: ignore[operator]
    return out.last_hidden_state.flatten(0, 1)


def _padded(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The rows as a textbook would give them to the model."""
    pictures = [picture for row in batch.pictures or () for picture in row]
    return {
        "input_ids": batch.tokens,
        "attention_mask": _present(batch),
        **seen(model, pictures, batch.tokens.device),
    }


def _present(batch: Batch) -> Tensor:
    """[B, T] int64: 1 where there is a token, 0 on padding."""
    return (torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None] < batch.length[:, None]).long()


def _packed_hidden(model: nn.Module, packing: Packing, mode: ForwardMode) -> Tensor:
    blocks = BlockMasks(packing) if mode == "flex" else None
    with registered_attention(text_config(model), PACKED_ATTENTION, _packed_attention):
        out = model.base_model(  # type: ignore[operator]
            input_ids=packing.tokens[None],
            position_ids=packing.positions[None],
            use_cache=False,
            packing=packing,
            blocks=blocks,
            **seen(model, packing.pictures, packing.tokens.device),
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
    blocks: BlockMasks | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention call: query [1, H, L, D], key and value [1, K, L, D] -> [1, L, H, D]."""
    if packing is None:
        raise UnsupportedModel("it does not pass extra arguments on to its attention")
    window = sliding_window if sliding_window is not None and sliding_window < packing.longest else None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if blocks is not None:
        out = flex_attention(query[0], key[0], value[0], blocks.of(window), scale=scale, cap=softcap)
    else:
        out = block_attention(query[0], key[0], value[0], packing, scale=scale, window=window, cap=softcap)
    return out.transpose(0, 1)[None], None


def check_forward(model: nn.Module, batch: Batch, *, mode: ForwardMode, tolerance: float) -> str | None:
    """None if `mode` and the model itself agree on `batch` within `tolerance` nats per token, else what is wrong.

    The judge is the model's own full forward with its own output layer, so that scaled or capped logits are noticed in
    either mode. Where large logits alone round by more than `tolerance`, four such roundings are allowed: a fine-tuned
    model in bfloat16 may have logits of 40, which are multiples of 0.25.
    """
    try:
        with torch.no_grad():
            ours = forward(model, batch, mode=mode).logprobs
    except (UnsupportedModel, AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"the {mode} forward failed: {error}"
    with torch.no_grad():
        logits = model(**_padded(model, batch), use_cache=False).logits
        expected = logits[:, :-1].float().log_softmax(-1).gather(2, batch.tokens[:, 1:, None]).squeeze(2)
        tolerance = max(tolerance, 4 * torch.finfo(logits.dtype).eps * float(logits[batch.mask].abs().max()))
    gap = (ours[:, 1:] - expected).masked_fill(~batch.mask[:, 1:], 0).abs().max()
    return None if float(gap) <= tolerance else f"log-probabilities of {mode} differ by {float(gap):.3g} nats"


def short_window(model: Any, max_length: int) -> str | None:
    """Why rows of `max_length` tokens cannot be packed: the model looks back less far and does not tell its attention.

    None if it looks back that far, or tells it. A probe shorter than the window would not notice.
    """
    config = text_config(model)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and chunk < max_length:
        return f"it attends in chunks of {chunk} tokens, fewer than model.max_length={max_length}"
    window = getattr(config, "sliding_window", None)
    if not window or window >= max_length or window in _windows_told(model):
        return None
    return f"its sliding window of {window} tokens is shorter than model.max_length={max_length}"


def _windows_told(model: Any) -> set[int | None]:
    """The sliding windows that a model's layers give to their attention function."""
    found: set[int | None] = set()
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=_device(model))
    with torch.no_grad(), registered_attention(text_config(model), "llmrl_windows", _note_window):
        model.base_model(input_ids=tokens, use_cache=False, seen=found)
    return found


def _note_window(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    seen: set[int | None] | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    if seen is not None:
        seen.add(sliding_window)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None
