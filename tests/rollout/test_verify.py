"""Weights that did not arrive are noticed: by the columns that were looked at, or by all of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmrl.errors import EngineError
from llmrl.rollout.engine import ChecksumRequest, EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.process import ProcessEngine
from llmrl.rollout.verify import checksum, sync
from tests.tiny import random_model


def weights(seed: int = 1) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in random_model(seed=seed).named_parameters()}


@pytest.fixture
def settings(tiny_model: Path) -> EngineSettings:
    return EngineSettings(kind="hf", model=str(tiny_model), dtype="float32", max_length=64)


class Losing(HFEngine):
    """An engine that drops, of each transfer, whatever `lost` changes back."""

    lost = ""
    column: int | None = None

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        own = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        super().load(weights, version=version)
        kept = dict(self._model.named_parameters())[self.lost] if self.lost else None
        if kept is not None:
            columns = slice(None) if self.column is None else self.column
            kept.data[..., columns] = own[self.lost][..., columns]


@pytest.mark.parametrize("verify", ["sampled", "full"])
@pytest.mark.parametrize("lost", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_weight_that_did_not_arrive_is_an_error_that_names_it(
    settings: EngineSettings, verify: str, lost: str
) -> None:
    engine = Losing(settings)
    assert sync(engine, weights(1).items(), version=1, verify=verify) == 1.0  # type: ignore[arg-type]
    engine.lost = lost
    with pytest.raises(EngineError, match=f"version 2: 1 of 21 differ, such as {lost}"):
        sync(engine, weights(2).items(), version=2, verify=verify)  # type: ignore[arg-type]
    assert sync(engine, weights(3).items(), version=3, verify="off") == 0.0


def test_one_lost_column_is_found_by_a_full_look_and_in_the_end_by_sampled_ones(settings: EngineSettings) -> None:
    engine = Losing(settings)
    engine.lost, engine.column = "model.layers.0.self_attn.o_proj.weight", 5
    with pytest.raises(EngineError, match="1 of 21 differ"):
        sync(engine, weights(1).items(), version=0, verify="full")
    found = 0
    for version in range(64):
        try:
            sync(engine, weights(2 + version % 2).items(), version=version, verify="sampled")
        except EngineError:
            found += 1
    assert found == 2  # two columns of 64 are looked at each time, others for every version


def test_weights_reach_a_child_process_as_they_come_and_are_checked_there(
    settings: EngineSettings, tmp_path: Path
) -> None:
    engine = ProcessEngine(settings, log=tmp_path / "engine.log")
    held = 0

    def streamed(seed: int) -> Iterable[tuple[str, Tensor]]:
        nonlocal held
        for name, tensor in weights(seed).items():
            mine = tensor.clone()
            yield name, mine
            mine.fill_(float("nan"))  # the receiver has taken its copy by now
            held += 1

    try:
        for seed in (1, 2):
            assert sync(engine, streamed(seed), version=seed, verify="full") == 1.0
        shapes = {name: tuple(tensor.shape) for name, tensor in weights().items()}
        request = ChecksumRequest(shapes=shapes, dtypes=dict.fromkeys(shapes, "float32"), version=2, full=True)
        found = engine.checksums(request)
        expected = {name: checksum(tensor) for name, tensor in weights(2).items()}
        assert found == expected and held == 2 * len(expected)
        other = {name: checksum(tensor) for name, tensor in weights(1).items()}
        assert all(found[name] != other[name] for name in other)
    finally:
        engine.close()


def test_minus_zero_is_zero() -> None:
    assert (
        checksum(torch.tensor([0.0, 1.0])) == checksum(torch.tensor([-0.0, 1.0])) != checksum(torch.tensor([1.0, 0.0]))
    )
