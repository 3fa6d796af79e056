"""Where each token goes when a batch is packed: one copy of what prompts begin with alike, no padding, one sequence.

A batch row is its group's prompt followed by its own continuation. Packed, a group becomes its prompt once and then the
continuations one after another; positions restart after the prompt for each of them. Prompts are a tree: what several
begin with, a system prompt or the earlier turns of an episode, is there once too:

    rows        P0 P1 a b        packed tokens     P0 P1 a b c Q1 d
                P0 P1 c          packed positions   0  1 2 3 2  1 2
                P0 Q1 d

Attention works on padded blocks (prompts [G, P], continuations [G, S, C]) that are gathered from the packed sequence:
a continuation sees its group's prompt and itself, nothing else. Everything else in the model is per token and runs on
the packed sequence without padding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Batch, Picture, moved
from llmrl.policy.attention import beyond, capped, causal_attention, gather_blocks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packing:
    """Index tensors of one micro-batch: G groups of at most S rows, L packed tokens, N scored ones.

    `prompt` and `continuation` point into the packed sequence; -1 marks padding of the attention blocks.
    """

    tokens: Tensor  # [L] token ids
    positions: Tensor  # [L]
    prompt: Tensor  # [G, P] packed index of each group's prompt tokens; groups share what they begin with
    continuation: Tensor  # [G, S, C] packed index of each row's own tokens
    place: Tensor  # [L] where each packed token lies in the blocks, prompts first, then continuations, flattened
    group: Tensor  # [L] the first group that has each packed token, counted from 0
    until: Tensor  # [L] the last one; those between have it too
    owner: Tensor  # [L] its batch row, -1 in a prompt
    source: Tensor  # [N] packed index whose hidden state predicts the scored token
    target: Tensor  # [N] the scored token's id
    row: Tensor  # [N] its batch row
    column: Tensor  # [N] its batch column
    longest: int  # tokens of the longest row, prompt and continuation
    pictures: tuple[Picture, ...] = ()  # of the groups' prompts, in packed order

    @property
    def length(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device) -> Packing:
        """The same layout on another device."""
        held = ((field.name, getattr(self, field.name)) for field in fields(self))
        there: dict[str, Any] = {name: moved(value, device) for name, value in held if isinstance(value, Tensor)}
        return replace(self, **there)


def branches(prompts: Sequence[Sequence[int]], whole: Collection[int] = ()) -> list[tuple[int, int]]:
    """Prompts in an order in which those that begin alike are neighbours: (place in `prompts`, common tokens).

    `common` is how many tokens a prompt has in common with the one before it. Those `whole` share none: what their
    tokens stand for, pictures, is not in the tokens. What is left of each without its common tokens makes a tree in
    which nothing is there twice. O(tokens log prompts).
    """
    found: list[tuple[int, int]] = []
    before: Sequence[int] = ()
    for place in sorted(range(len(prompts)), key=lambda at: (list(prompts[at]), at)):
        prompt = () if place in whole else prompts[place]
        pairs = enumerate(zip(before, prompt))
        found.append((place, next((at for at, (a, b) in pairs if a != b), min(len(before), len(prompt)))))
        before = prompt
    return found


def prompt_tree(batch: Batch) -> list[tuple[list[int], int]]:
    """The rows of each group in packed order, with how many tokens of their prompt the group before has alike."""
    sizes, rows_of = batch.prompt_length.tolist(), dict[int, list[int]]()
    for row, prefix in enumerate(batch.prefixes.tolist()):
        rows_of.setdefault(prefix, []).append(row)
    members = list(rows_of.values())
    prompts = [batch.tokens[rows[0], : sizes[rows[0]]].tolist() for rows in members]
    shown = () if batch.pictures is None else batch.pictures
    whole = [place for place, rows in enumerate(members) if shown and shown[rows[0]]]
    return [(members[place], common) for place, common in branches(prompts, whole)]


def packed_tokens(batch: Batch) -> int:
    """Tokens of the packed forward: what prompts begin with alike once, and every row's own."""
    lengths, prompts = batch.length.tolist(), batch.prompt_length.tolist()
    own = sum(lengths) - sum(prompts)
    return own + sum(prompts[rows[0]] - common for rows, common in prompt_tree(batch))


def pack(batch: Batch) -> Packing:
    """Lay out `batch` in the host's memory; rows of one prefix must agree in their first `prompt_length` tokens. O(tokens).

    Raises ValueError if a sampled token has nothing before it.
    """
    lengths, prompts = batch.length.tolist(), batch.prompt_length.tolist()
    tree = prompt_tree(batch)
    members = [rows for rows, _ in tree]
    prompt_sizes = [prompts[rows[0]] for rows in members]
    if min(prompt_sizes) < 1:
        raise ValueError("an empty prompt cannot be scored: its first sampled token has nothing before it")
    siblings = max(len(rows) for rows in members)
    longest = max(1, *(lengths[row] - prompts[row] for row in range(batch.rows)))
    prompt_index = torch.full((len(members), max(prompt_sizes)), -1, dtype=torch.int64)
    own_index = torch.full((len(members), siblings, longest), -1, dtype=torch.int64)
    where = torch.full(batch.tokens.shape, -1, dtype=torch.int64)  # packed index of every batch token
    owners: list[tuple[int, int, int]] = []  # group, row, tokens
    end = 0
    for g, (siblings_of, common) in enumerate(tree):
        size = prompt_sizes[g]
        prompt_index[g, :common] = prompt_index[g - 1, :common]
        prompt_index[g, common:size] = torch.arange(end, end + size - common)
        owners.append((g, -1, size - common))
        where[siblings_of, :size] = prompt_index[g, :size]
        end += size - common
        for s, member in enumerate(siblings_of):
            own = lengths[member] - size
            own_index[g, s, :own] = torch.arange(end, end + own)
            where[member, size : size + own] = own_index[g, s, :own]
            owners.append((g, member, own))
            end += own
    valid = where >= 0
    tokens = torch.zeros(end, dtype=torch.int64)
    positions = torch.zeros(end, dtype=torch.int64)
    tokens[where[valid]] = batch.tokens[valid].cpu()
    positions[where[valid]] = torch.arange(batch.tokens.shape[1]).expand_as(where)[valid]
    group, owner, count = torch.tensor(owners).unbind(1)
    group = group.repeat_interleave(count)
    until = group.clone()
    for g, size in enumerate(prompt_sizes):
        until[prompt_index[g, :size]] = g
    scored_row, scored_column = (batch.mask.cpu() & valid).nonzero(as_tuple=True)
    return Packing(
        tokens=tokens,
        positions=positions,
        prompt=prompt_index,
        continuation=own_index,
        place=places(torch.cat([prompt_index.flatten(), own_index.flatten()]), end),
        group=group,
        until=until,
        owner=owner.repeat_interleave(count),
        source=where[scored_row, scored_column - 1],
        target=batch.tokens.cpu()[scored_row, scored_column],
        row=scored_row,
        column=scored_column,
        pictures=() if batch.pictures is None else tuple(p for rows in members for p in batch.pictures[rows[0]]),
        longest=max(lengths),
    )


def places(blocks: Tensor, tokens: int) -> Tensor:
    """[tokens] where in `blocks`, packed indices with -1 for padding, each of them stands first."""
    filled = (blocks >= 0).nonzero().squeeze(1)
    found = torch.empty(tokens, dtype=torch.int64)
    return found.scatter_reduce_(0, blocks[filled], filled, "amin", include_self=False)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
) -> Tensor:
    """Exact attention over the packed sequence, computed block by block.

    query [H, L, D], key and value [K, L, D] with H a multiple of K -> [H, L, D]. Prompts attend causally to themselves;
    a continuation attends to its prompt and causally to itself, all of them no further back than `window` tokens.
    Scores are accumulated in float32 (or float64); `cap` bounds them as in Gemma 2.
    """
    heads, length, width = query.shape
    kv_heads = key.shape[0]
    query = query.view(kv_heads, heads // kv_heads, length, width)
    prompt_key, prompt_value = gather_blocks(key, packing.prompt), gather_blocks(value, packing.prompt)  # [K, G, P, D]
    own_key, own_value = (
        gather_blocks(key, packing.continuation),
        gather_blocks(value, packing.continuation),
    )  # [K, G, S, C, D]
    # Padding of prompts is on the right, so causal is enough.
    at_prompt = gather_blocks(query, packing.prompt)  # [K, R, G, P, D]
    repeated = (part[:, None].expand_as(at_prompt) for part in (prompt_key, prompt_value))
    from_prompt = causal_attention(at_prompt, *repeated, scale=scale, window=window, cap=cap)
    from_own = _attend_own(
        gather_blocks(query, packing.continuation) * scale,
        (prompt_key, prompt_value),
        (own_key, own_value),
        packing.prompt >= 0,
        window,
        cap,
    )
    blocks = torch.cat([from_prompt.flatten(2, -2), from_own.flatten(2, -2)], dim=2)
    return blocks.index_select(2, packing.place).view(heads, length, width)


def _attend_own(
    query: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    prompt_there: Tensor,
    window: int | None,
    cap: float | None,
) -> Tensor:
    """query [K, R, G, S, C, D] against keys and values of the prompts [K, G, P, D] and its own [K, G, S, C, D]."""
    kv_heads, repeat, groups, siblings, columns, width = query.shape
    by_row = query.permute(0, 2, 3, 1, 4, 5).reshape(kv_heads, groups, siblings, repeat * columns, width)
    by_group = by_row.reshape(kv_heads, groups, siblings * repeat * columns, width)  # a view unless columns is 1
    on_prompt = capped(by_group @ prompt[0].transpose(-1, -2), cap)  # [K, G, S*R*C, P]
    on_prompt = on_prompt.masked_fill_(~prompt_there[None, :, None, :], float("-inf"))
    on_prompt = on_prompt.view(kv_heads, groups, siblings, repeat, columns, -1)
    on_own = (by_row @ own[0].transpose(-1, -2)).view(kv_heads, groups, siblings, repeat, columns, columns)
    at = torch.arange(columns, device=query.device)
    on_own = capped(on_own, cap).masked_fill_(beyond(at[:, None] - at, window), float("-inf"))
    if window is not None:
        position = prompt_there.sum(1)[:, None] + at  # [G, C]
        distance = position[:, :, None] - torch.arange(prompt_there.shape[1], device=query.device)
        on_prompt = on_prompt.masked_fill(beyond(distance, window)[None, :, None, None], float("-inf"))
    weights = torch.cat([on_prompt, on_own], dim=-1).softmax(-1)  # torch sums in float32 for bfloat16, and rounds once
    to_prompt, to_own = weights.split([prompt[0].shape[2], columns], dim=-1)
    from_prompt = to_prompt.reshape(kv_heads, groups, siblings * repeat * columns, -1) @ prompt[1]
    from_own = to_own.reshape(kv_heads, groups, siblings, repeat * columns, columns) @ own[1]
    out = from_prompt.view(from_own.shape) + from_own
    return out.view(kv_heads, groups, siblings, repeat, columns, width).permute(0, 3, 1, 2, 4, 5)
