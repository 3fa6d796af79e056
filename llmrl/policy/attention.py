"""How our own attention functions get into an unmodified Hugging Face model: registered by name, chosen for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

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
