"""Weights over a process group of their own: two ends in one process, over gloo."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from llmrl.rollout import weight_broadcast
from llmrl.rollout.as_json import from_json, to_json
from llmrl.rollout.weight_broadcast import Rendezvous, TensorSpec, WeightChannel

CPU = torch.device("cpu")
HOST = "127.0.0.1"
Beside = Callable[[Callable[[], Any]], Future[Any]]


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "transposed": torch.randn(6, 4, generator=generator).t(),
        "half": torch.randn(3, 3, generator=generator).bfloat16(),
        "bytes": torch.arange(5, dtype=torch.int8),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.empty(0, 4),
        "large": torch.randn(200, generator=generator),
    }


@pytest.fixture
def beside() -> Iterator[Beside]:
    """Run something in a thread of its own."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def ends(timeout_s: float = 20.0, size: int = 2) -> tuple[Rendezvous, socket.socket]:
    listener = weight_broadcast.listen(HOST)
    port = listener.getsockname()[1]
    return Rendezvous(host=HOST, port=port, size=size, backend="gloo", timeout_s=timeout_s), listener


@pytest.mark.parametrize("bucket", [1, 100, 2**20])
def test_tensors_arrive_as_they_were_sent_whatever_the_size_of_a_bucket(
    bucket: int, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    monkeypatch.setattr(weight_broadcast, "BUCKET", bucket)
    sent = tensors()
    specs = from_json(list[TensorSpec], to_json([TensorSpec.of(name, tensor) for name, tensor in sent.items()]))
    rendezvous, listener = ends(size=3)
    others = []
    for rank in (1, 2):

        def other(rank: int = rank) -> list[dict[str, Tensor]]:
            channel = WeightChannel(from_json(Rendezvous, to_json(rendezvous)), rank=rank, device=CPU)
            return [
                dict(weight_broadcast.receive(channel, specs)) for _ in range(2)
            ]  # a channel is used again and again

        others.append(beside(other))
    channel = WeightChannel(rendezvous, rank=0, device=CPU, listener=listener)
    weight_broadcast.send(channel, sent)
    weight_broadcast.send(channel, {name: -tensor for name, tensor in sent.items()})
    for wait in others:
        first, second = wait.result(60)
        assert list(first) == list(sent)
        for name, tensor in sent.items():
            assert first[name].dtype == tensor.dtype
            assert torch.equal(first[name], tensor) and torch.equal(second[name], -tensor)


def test_an_end_that_is_cut_is_an_error_at_the_other(beside: Beside) -> None:
    rendezvous, listener = ends()
    opened = beside(lambda: WeightChannel(rendezvous, rank=1, device=CPU))
    channel = WeightChannel(rendezvous, rank=0, device=CPU, listener=listener)
    other = opened.result(60)
    spec = TensorSpec(name="x", dtype="float32", shape=(4,))
    waiting = beside(lambda: list(weight_broadcast.receive(other, [spec])))
    time.sleep(0.2)
    begin = time.monotonic()
    channel.close()
    with pytest.raises(RuntimeError):
        waiting.result(60)
    assert time.monotonic() - begin < 10


def test_nobody_comes_within_the_deadline() -> None:
    rendezvous, listener = ends(timeout_s=1.0)
    begin = time.monotonic()
    with pytest.raises(RuntimeError):
        WeightChannel(rendezvous, rank=0, device=CPU, listener=listener)
    assert time.monotonic() - begin < 20


def test_the_trainers_socket_is_on_the_address_by_which_the_server_is_reached() -> None:
    assert weight_broadcast.local_address(HOST, 80) == HOST
    listener = weight_broadcast.listen(HOST)
    assert listener.getsockname()[0] == HOST
    listener.close()
