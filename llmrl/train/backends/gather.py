"""Whole tensors from row shards, bucket by bucket: nobody holds more than one bucket beyond its own shard.

FSDP2 cuts every parameter along its first dimension into `size` runs of ceil(rows / size) rows; the last ones may be
shorter or empty. A bucket is one all-gather of the shards of several parameters, one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmrl.train.world import World

BUCKET_BYTES = 128 * 2**20  # of whole tensors; a larger tensor is a bucket of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This rank's rows of one tensor: `local` [rows of this rank, ...] of a tensor of shape `whole`."""

    name: str
    local: Tensor
    whole: tuple[int, ...]


def rows_of(rank: int, *, rows: int, size: int) -> slice:
    """The rows that `rank` of `size` holds.

    >>> [rows_of(rank, rows=5, size=4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None)]
    """
    each = -(-rows // size)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def gathered(
    shards: Iterable[Shard], world: World, *, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of every shard, in order. Every rank must iterate to the end, with the same shards."""
    for bucket in buckets(shards, bucket_bytes):
        yield from _gather(bucket, world)


def buckets(shards: Iterable[Shard], limit: int) -> Iterator[list[Shard]]:
    """Runs of shards of one dtype whose whole tensors take at most `limit` bytes together, or single larger ones."""
    bucket: list[Shard] = []
    room = limit
    for shard in shards:
        cost = _elements(shard.whole) * shard.local.element_size()
        if bucket and (cost > room or shard.local.dtype != bucket[0].local.dtype):
            yield bucket
            bucket, room = [], limit
        bucket.append(shard)
        room -= cost
    if bucket:
        yield bucket


def _gather(bucket: list[Shard], world: World) -> Iterator[tuple[str, Tensor]]:
    sizes = [[_part(shard.whole, rank, world.size) for shard in bucket] for rank in range(world.size)]
    length = max(sum(parts) for parts in sizes)  # every rank sends as much as the one with the most
    mine = bucket[0].local.new_zeros(length)
    torch.cat([shard.local.reshape(-1) for shard in bucket], out=mine[: sum(sizes[world.rank])])
    everything = world.gather_tensor(mine).view(world.size, length)
    starts = [0] * world.size
    for number, shard in enumerate(bucket):
        pieces = []
        for rank in range(world.size):
            end = starts[rank] + sizes[rank][number]
            pieces.append(everything[rank, starts[rank] : end])
            starts[rank] = end
        yield shard.name, torch.cat(pieces).view(shard.whole)


def _part(whole: tuple[int, ...], rank: int, size: int) -> int:
    rows = rows_of(rank, rows=whole[0], size=size)
    return (rows.stop - rows.start) * _elements(whole[1:])


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
