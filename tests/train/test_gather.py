"""Whole tensors come back from their shards, in buckets that are no larger than asked for."""

from __future__ import annotations

import pytest
import torch

from llmrl.errors import ConfigError
from llmrl.settings.recipe import TrainConfig
from llmrl.train.backends.build import choose
from llmrl.train.backends.gather import Shard, buckets, gathered, rows_of
from llmrl.train.world import World


def test_every_row_has_one_owner_whatever_the_sizes() -> None:
    for rows in range(9):
        for size in range(1, 6):
            parts = [rows_of(rank, rows=rows, size=size) for rank in range(size)]
            assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
            whole = torch.arange(rows)
            expected = [len(piece) for piece in whole.chunk(size)]
            assert [part.stop - part.start for part in parts][: len(expected)] == expected or rows == 0


def test_buckets_keep_their_limit_and_their_precision() -> None:
    sizes = [(10, 4), (3, 4), (100, 4), (1,), (2, 2)]
    shards = [Shard(name=str(n), local=torch.zeros(shape), whole=shape) for n, shape in enumerate(sizes)]
    shards.append(Shard(name="low", local=torch.zeros(2, dtype=torch.bfloat16), whole=(2,)))
    found = [[shard.name for shard in bucket] for bucket in buckets(shards, limit=4 * 60)]
    assert found == [["0", "1"], ["2"], ["3", "4"], ["low"]]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_uneven_and_empty_shards_make_the_tensors_they_were_cut_from(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    wholes = {str(shape): torch.randn(shape, generator=draw) for shape in [(7, 3), (1,), (4, 2, 2), (6,)]}

    def shards(rank: int) -> list[Shard]:
        return [
            Shard(name=name, local=whole[rows_of(rank, rows=len(whole), size=size)], whole=tuple(whole.shape))
            for name, whole in wholes.items()
        ]

    sent: list[torch.Tensor] = []

    class Rank(World):
        """One rank after another: the last one sees what all of them sent."""

        def gather_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
            sent.append(tensor.clone())
            return torch.cat([*sent, *[torch.zeros_like(tensor)] * (size - len(sent))])

    for rank in range(size):
        found = dict(gathered(shards(rank), Rank(rank=rank, size=size)))
    assert found.keys() == wholes.keys()
    for name, whole in wholes.items():
        assert torch.equal(found[name], whole)


def test_the_back_end_follows_the_launcher_unless_the_recipe_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    two, train = World(size=2), TrainConfig(steps=1)
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"):
        monkeypatch.delenv(name, raising=False)
    assert choose(train, two) == "ddp"
    assert choose(TrainConfig(steps=1, backend="fsdp2"), two) == "fsdp2"
    assert choose(TrainConfig(steps=1, backend="fsdp2"), World()) == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert choose(train, two) == "fsdp2"
    with pytest.raises(ConfigError, match=r"train\.backend=zero3, but accelerate was configured for fsdp2"):
        choose(TrainConfig(steps=1, backend="zero3"), two)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert choose(train, two) == "zero3"
