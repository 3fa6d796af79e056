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


def sees(packing: Packing, window: int | None = None) -> Any:
    """FlexAttention's `mask_mod`: whether the token at packed index `q` attends to the one at `k`.

    A token sees earlier ones of its group that belong to the prompt or to its own row, no further back than `window`.
    """
    group, until, owner, positions = packing.group, packing.until, packing.owner, packing.positions

    def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = (group[k] <= group[q]) & (group[q] <= until[k])
        seen = shared & (q >= k) & ((owner[k] < 0) | (owner[k] == owner[q]))
        return seen if window is None else seen & (positions[q] - positions[k] < window)

    return mask


class BlockMasks:
    """Which blocks of scores are computed: once for all layers of a window."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._made: dict[int | None, Any] = {}

    def of(self, window: int | None = None) -> Any:
        if window not in self._made:
            self._made[window] = block_mask(self._packing, window)
        return self._made[window]


def block_mask(packing: Packing, window: int | None = None) -> Any:
    """Which blocks of scores are computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    length, device = packing.length, packing.tokens.device
    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(sees(packing, window), None, None, length, length, device=device)


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: Any, *, scale: float, cap: float | None = None
) -> Tensor:
    """query [H, L, D], key and value [K, L, D] with H a multiple of K -> [H, L, D]; `blocks` from `block_mask`."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    def bounded(score: Tensor, *where: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    run = _compiled(attend) if query.is_cuda else attend
    grouped = query.shape[0] != key.shape[0]
    how = {"score_mod": None if cap is None else bounded, "block_mask": blocks, "scale": scale}
    out: Tensor = run(query[None], key[None], value[None], enable_gqa=grouped, **how)[0]
    return out


@cache
def _compiled(function: Any) -> Any:
    """Without compilation FlexAttention stores all scores. Lengths differ from pass to pass, hence `dynamic`."""
    return torch.compile(function, dynamic=True)
