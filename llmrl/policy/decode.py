"""The KV cache of a decoding batch and the attention that fills and reads it, for every model that packs.

Prompts are held once a group, own tokens once a row. A layer's keys and values are dense tensors: prompts [G, K, P, D],
own tokens [N, K, C, D], where row n belongs to group `group[n]`. In a step the model sees one new token of every row,
[1, N] tokens in all; everything but attention is per token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.policy.attention import (
    UnsupportedModel,
    beyond,
    capped,
    causal_attention,
    gather_blocks,
    registered_attention,
)
from llmrl.policy.packing import branches, places

DECODING_ATTENTION = "llmrl_decoding"
COLUMNS = 32  # own columns are added so many at a time
Layer = tuple[Tensor, Tensor]  # keys, values


class KVCache:
    """Keys and values of N rows in G groups. Changes while it decodes: one layer after the other adds its tokens."""

    def __init__(self, group: Tensor, prompt_length: Tensor, filled: Tensor) -> None:
        self.group = group  # [N] the group of each row
        self.prompt_length = prompt_length  # [G] tokens
        self.filled = filled  # [N] own tokens in the cache
        self.prompts: list[Layer] = []  # per layer, [G, K, P, D] twice
        self.own: list[Layer] = []  # per layer, [N, K, C, D] twice
        self.index: Tensor | None = None  # [G, P] place of each prompt token in the packed prompts, -1 for padding
        self.first: Tensor | None = None  # [L] where each of those stands first in the index, flattened
        self.slots, self.place = _slots(group, len(prompt_length))
        self.full = self.slots.numel() == len(group) and bool((self.place[1:] > self.place[:-1]).all())

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], rows: Sequence[int], *, device: torch.device, whole: Collection[int] = ()
    ) -> tuple[KVCache, Tensor, Tensor]:
        """An empty cache for `prompts` with `rows` rows each, which the first pass fills: (cache, tokens, positions).

        Tokens and positions [L] are those of the prompts, packed; what prompts begin with alike is there once (see
        `packing.branches`, also for `whole`).
        """
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        cache = cls(
            torch.arange(len(rows)).repeat_interleave(torch.tensor(rows)).to(device),
            sizes.to(device),
            torch.zeros(sum(rows), dtype=torch.int64, device=device),
        )
        index = torch.full((len(prompts), int(sizes.max())), -1)
        tokens: list[int] = []
        positions: list[int] = []
        before = 0
        for place, common in branches(prompts, whole):
            fresh = prompts[place][common:]
            index[place, :common] = index[before, :common]
            index[place, common : common + len(fresh)] = torch.arange(len(tokens), len(tokens) + len(fresh))
            tokens += fresh
            positions += range(common, common + len(fresh))
            before = place
        cache.index, cache.first = index.to(device), places(index.flatten(), len(tokens)).to(device)
        return cache, torch.tensor(tokens, device=device), torch.tensor(positions, device=device)

    def extend(self) -> None:
        """Make room for one more token in every row."""
        self.index = self.first = None
        _, kv_heads, longest, width = self.prompts[0][0].shape
        if not self.own:
            shape = (len(self.group), kv_heads, COLUMNS, width)
            self.own = [(keys.new_zeros(shape), keys.new_zeros(shape)) for keys, _ in self.prompts]
        most, least = int(self.filled.max()), int(self.filled.min())
        self.even = most == least
        columns = self.own[0][0].shape[2]
        if most == columns:
            columns += COLUMNS
            self.own = [(_widened(k, columns), _widened(v, columns)) for k, v in self.own]
        self.rows = torch.arange(len(self.group), device=self.group.device)
        self.last = self.filled
        self.filled = self.filled + 1
        self.column = most
        self.longest = longest + most + 1  # positions that a row may have
        self._hidden: dict[int | None, Tensor] = {}

    def hidden(self, window: int | None) -> Tensor:
        """[N, 1, 1, P + C], True where the newest tokens do not look: padding, and what lies beyond a sliding window."""
        window = window if window is not None and window < self.longest else None
        if window not in self._hidden:
            longest, columns = self.prompts[0][0].shape[2], self.own[0][0].shape[2]
            length = self.prompt_length[self.group][:, None]  # [N, 1]
            at = torch.arange(max(longest, columns), device=self.group.device)
            prompt = (at[:longest] >= length) | beyond(length + self.last[:, None] - at[:longest], window)
            own = beyond(self.last[:, None] - at[:columns], window)
            self._hidden[window] = torch.cat([prompt, own], dim=1)[:, None, None]
        return self._hidden[window]

    def kept(self, rows: Sequence[int]) -> KVCache:
        """The cache of some of its rows, and of the groups that still have any."""
        chosen = torch.tensor(rows, device=self.group.device)
        alive, group = self.group[chosen].unique(return_inverse=True)
        new = KVCache(group, self.prompt_length[alive], self.filled[chosen])
        same = len(alive) == len(self.prompt_length)
        new.prompts = self.prompts if same else [(k[alive], v[alive]) for k, v in self.prompts]
        new.own = [(k[chosen], v[chosen]) for k, v in self.own]
        return new

    def joined(self, other: KVCache) -> KVCache:
        """Both caches as one, the rows of `other` last."""
        new = KVCache(
            torch.cat([self.group, other.group + len(self.prompt_length)]),
            torch.cat([self.prompt_length, other.prompt_length]),
            torch.cat([self.filled, other.filled]),
        )
        new.prompts = [(_stacked(a, c), _stacked(b, d)) for (a, b), (c, d) in zip(self.prompts, other.prompts)]
        if self.own or other.own:
            pairs = zip(self._own_or_none(), other._own_or_none())
            new.own = [(_stacked(a, c), _stacked(b, d)) for (a, b), (c, d) in pairs]
        return new

    def _own_or_none(self) -> list[Layer]:
        if self.own:
            return self.own
        kv_heads, _, width = self.prompts[0][0].shape[1:]
        return [(k.new_zeros(len(self.group), kv_heads, 0, width),) * 2 for k, _ in self.prompts]


def _slots(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """([G, S] the row of each group's s-th member, any row where there is none; [N] where each row lies in that)."""
    order = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=groups)
    first = sizes.cumsum(0) - sizes
    number = torch.empty_like(group)
    number[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    siblings = int(sizes.max())
    place = group * siblings + number
    slots = torch.zeros(groups * siblings, dtype=torch.int64, device=group.device)
    slots[place] = torch.arange(len(group), device=group.device)
    return slots.view(groups, siblings), place


def _widened(x: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, columns - x.shape[2]))


def _stacked(x: Tensor, y: Tensor) -> Tensor:
    columns = max(x.shape[2], y.shape[2])
    return torch.cat([_widened(x, columns), _widened(y, columns)])


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: KVCache,
    layer: int,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """One layer's attention; query [H, L, D], key and value [K, L, D] of L new tokens -> [H, L, D].

    The first pass over a cache has the packed prompts as its tokens and stores them, every later one has one token a row.
    `window` and `cap` as in `block_attention`.
    """
    if cache.index is not None:
        return _prompts(query, key, value, cache, scale=scale, window=window, cap=cap)
    heads, rows, width = query.shape
    kv_heads = key.shape[0]
    own_keys, own_values = cache.own[layer]  # with columns that are still empty: a part of them would be copied
    if cache.even:  # much cheaper than by index
        own_keys[:, :, cache.column], own_values[:, :, cache.column] = key.transpose(0, 1), value.transpose(0, 1)
    else:
        own_keys[cache.rows, :, cache.last] = key.transpose(0, 1)
        own_values[cache.rows, :, cache.last] = value.transpose(0, 1)
    prompt_keys, prompt_values = cache.prompts[layer]
    by_row = (query * scale).view(kv_heads, -1, rows, width).permute(2, 0, 1, 3)  # [N, K, R, D]
    on_prompt = _to_rows(_to_groups(by_row, cache) @ prompt_keys.transpose(-1, -2), cache)
    on_own = by_row @ own_keys.transpose(-1, -2)
    scores = capped(torch.cat([on_prompt, on_own], dim=-1), cap).masked_fill_(cache.hidden(window), float("-inf"))
    weights = scores.softmax(-1)  # torch sums in float32 for bfloat16, and rounds once
    to_prompt, to_own = weights.split([prompt_keys.shape[2], own_keys.shape[2]], dim=-1)
    out = _to_rows(_to_groups(to_prompt, cache) @ prompt_values, cache) + to_own @ own_values
    return out.permute(1, 2, 0, 3).reshape(heads, rows, width)


def _to_groups(x: Tensor, cache: KVCache) -> Tensor:
    """[N, K, R, E] -> [G, K, S * R, E], with anything where a group has fewer than S rows."""
    _, kv_heads, repeat, width = x.shape
    groups, siblings = cache.slots.shape  # if full, rows already lie group by group
    chosen = (x if cache.full else x[cache.slots.flatten()]).view(groups, siblings, kv_heads, repeat, width)
    return chosen.transpose(1, 2).reshape(groups, kv_heads, siblings * repeat, width)


def _to_rows(x: Tensor, cache: KVCache) -> Tensor:
    """[G, K, S * R, E] -> [N, K, R, E]."""
    groups, kv_heads, _, width = x.shape
    siblings = cache.slots.shape[1]
    by_slot = x.view(groups, kv_heads, siblings, -1, width).transpose(1, 2)
    rows = by_slot.reshape(groups * siblings, kv_heads, -1, width)
    return rows if cache.full else rows[cache.place]


def _prompts(query: Tensor, key: Tensor, value: Tensor, cache: KVCache, **how: Any) -> Tensor:
    assert cache.index is not None and cache.first is not None
    keys, values = (gather_blocks(x, cache.index).transpose(0, 1).contiguous() for x in (key, value))  # [G, K, P, D]
    cache.prompts.append((keys, values))
    queries = gather_blocks(query, cache.index).transpose(0, 1)  # [G, H, P, D]
    repeat = query.shape[0] // key.shape[0]
    out = causal_attention(queries, keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1), **how)
    return out.transpose(0, 1).flatten(1, 2).index_select(1, cache.first)


@contextmanager
def decoding_attention(config: Any) -> Iterator[None]:
    """The model attends over the KVCache that it is called with as `decoding`."""
    with registered_attention(config, DECODING_ATTENTION, _attention):
        yield


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    decoding: KVCache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    if decoding is None:
        raise UnsupportedModel("it does not pass extra arguments on to its attention")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = decode(query[0], key[0], value[0], decoding, layer, scale=scale, window=sliding_window, cap=softcap)
    return out.transpose(0, 1)[None], None
