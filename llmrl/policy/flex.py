"""Attention over the packed sequence as one block-sparse kernel, for GPUs: PyTorch's FlexAttention.

Blocks of 128 x 128 scores that no row needs are skipped, nothing is gathered or padded, and no score is ever stored. On
a CPU FlexAttention has no backward pass; there it serves to test what it is given.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmrl.policy.packing import Packing


def sees(packing: Packing) -> Any:
    """FlexAttention's `mask_mod`: whether the token at packed index `q` attends to the one at `k`.

    A token sees earlier ones of its group that belong to the prompt or to its own row.
    """
    group, owner = packing.group, packing.owner

    def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (group[q] == group[k]) & (q >= k) & ((owner[k] < 0) | (owner[k] == owner[q]))

    return mask


def block_mask(packing: Packing) -> Any:
    """Which blocks of scores are computed; once for all layers."""
    from torch.nn.attention.flex_attention import create_block_mask

    length, device = packing.length, packing.tokens.device
    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(sees(packing), None, None, length, length, device=device)


def flex_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Any, *, scale: float) -> Tensor:
    """query [H, L, D], key and value [K, L, D] with H a multiple of K -> [H, L, D]; `blocks` from `block_mask`."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    run = _compiled(attend) if query.is_cuda else attend
    grouped = query.shape[0] != key.shape[0]
    out: Tensor = run(query[None], key[None], value[None], block_mask=blocks, scale=scale, enable_gqa=grouped)[0]
    return out


@cache
def _compiled(function: Any) -> Any:
    """Without compilation FlexAttention stores all scores. Lengths differ from pass to pass, hence `dynamic`."""
    return torch.compile(function, dynamic=True)
