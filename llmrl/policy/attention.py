"""How our own attention functions get into an unmodified Hugging Face model: registered by name, chosen for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


class UnsupportedModel(RuntimeError):
    """This architecture cannot run with another attention function."""


@contextmanager
def registered_attention(config: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The model of `config` attends with `function`, which is called as transformers calls its own and gets no mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if name not in AttentionInterface().valid_keys():
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)
    with _chosen(config, name):
        yield


@contextmanager
def _chosen(config: Any, name: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def same_attention_again(
    config: Any,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For `torch.utils.checkpoint`: a layer that the backward pass runs again uses the attention it ran with."""
    return lambda: (nullcontext(), _chosen(config, config._attn_implementation))


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """What the function was called with says who sees whom."""
    return


def gather_blocks(x: Tensor, index: Tensor) -> Tensor:
    """x [..., L, D] at index [...] (-1 gives any row) -> [..., *index, D]; index_select, because its backward is fast."""
    return x.index_select(-2, index.clamp_min(0).flatten()).unflatten(-2, index.shape)


def beyond(distance: Tensor, window: int | None) -> Tensor:
    """True where a query may not look: ahead of itself, or as far back as its sliding window or further.

    `distance` is the query's position minus the key's. A window of 2 sees the token itself and the one before it.
    """
    ahead = distance < 0
    return ahead if window is None else ahead | (distance >= window)


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(scores / cap), in float32 at least and rounded once (Gemma 2, arXiv:2408.00118); no cap: as they are."""
    if cap is None:
        return scores
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (torch.tanh(wide / cap) * cap).to(scores.dtype)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None, cap: float | None = None
) -> Tensor:
    """query, key and value [..., T, D] -> [..., T, D]; every token sees itself and earlier ones within the window."""
    window = window if window is not None and window < query.shape[-2] else None
    if window is None and cap is None:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    at = torch.arange(query.shape[-2], device=query.device)
    hidden = beyond(at[:, None] - at, window)
    if cap is None:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden, scale=scale)
    scores = capped((query * scale) @ key.transpose(-1, -2), cap)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
