"""Weights straight from the trainer into a server's workers: broadcasts in buckets through a process group of their own.

Rank 0 is the trainer, ranks 1 and up are the workers of one server. gloo between CPUs and NCCL between GPUs run the same
code; each needs no folder that both see.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["gloo", "nccl"]
BUCKET = 128 * 2**20  # bytes of one broadcast, but for a larger tensor
ALIGNED = 16  # bytes: any dtype may begin there


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where and how the ends of a channel find each other."""

    host: str
    port: int
    size: int
    backend: Backend
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor that will come: its name, dtype (as in torch) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorSpec:
        return cls(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        size: int = torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize
        return size

    def within(self, bucket: Tensor, offset: int) -> Tensor:
        """Its place in a bucket of bytes."""
        return bucket[offset : offset + self.bytes].view(getattr(torch, self.dtype)).view(self.shape)


class WeightChannel:
    """One end of a process group that no other group of the process knows of. Both ends must open it together; the
    trainer's brings the socket on which it listens. RuntimeError if the others do not come within the timeout.
    """

    def __init__(
        self, rendezvous: Rendezvous, *, rank: int, device: torch.device, listener: socket.socket | None = None
    ) -> None:
        from torch import distributed

        self.device = device
        patience = timedelta(seconds=rendezvous.timeout_s)
        self._store = distributed.TCPStore(
            rendezvous.host, rendezvous.port, rendezvous.size, is_master=listener is not None, timeout=patience,
            wait_for_workers=False, master_listen_fd=listener.detach() if listener else None,
        )  # fmt: skip
        self._group: Any
        if rendezvous.backend == "nccl":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = patience
            self._group = distributed.ProcessGroupNCCL(self._store, rank, rendezvous.size, options)
        else:
            own = local_address(rendezvous.host, rendezvous.port)
            # Without these options gloo listens where the host's name points to. The stubs do not know them.
            gloo = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            gloo._devices = [distributed.ProcessGroupGloo.create_device(hostname=own)]
            gloo._timeout = patience
            self._group = distributed.ProcessGroupGloo(self._store, rank, rendezvous.size, gloo)

    def broadcast(self, bucket: Tensor) -> None:
        """Rank 0's bucket, in place, on all; returns when it is there."""
        if not bucket.numel():
            return
        self._group.broadcast(bucket, 0).wait()
        if bucket.is_cuda:
            torch.cuda.synchronize(bucket.device)  # a dead peer is noticed here, and the bucket may be reused

    def close(self) -> None:
        """Cut it; whoever waits at another end gets an error. A broadcast of this end that is stuck ends by its timeout."""
        self._group.abort()
        self._group = None  # gloo's connections close with it


def send(channel: WeightChannel, tensors: Mapping[str, Tensor]) -> None:
    """Broadcast `tensors` in their order; the other ends `receive` by the same specs."""
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    for some, offsets, size in _buckets(specs):
        bucket = torch.empty(size, dtype=torch.uint8, device=channel.device)
        for spec, offset in zip(some, offsets, strict=True):
            spec.within(bucket, offset).copy_(tensors[spec.name])
        channel.broadcast(bucket)


def receive(channel: WeightChannel, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come. Each bucket is new memory: whoever loads the tensors may keep some of it."""
    for some, offsets, size in _buckets(specs):
        bucket = torch.empty(size, dtype=torch.uint8, device=channel.device)
        channel.broadcast(bucket)
        for spec, offset in zip(some, offsets, strict=True):
            yield spec.name, spec.within(bucket, offset)


def _buckets(specs: Sequence[TensorSpec]) -> Iterator[tuple[list[TensorSpec], list[int], int]]:
    """The specs in order, as many as fit (at least one), with their offsets and the bucket's size in bytes."""
    some: list[TensorSpec] = []
    offsets: list[int] = []
    size = 0
    for spec in specs:
        padded = -(-spec.bytes // ALIGNED) * ALIGNED
        if some and size + padded > BUCKET:
            yield some, offsets, size
            some, offsets, size = [], [], 0
        some.append(spec)
        offsets.append(size)
        size += padded
    if some:
        yield some, offsets, size


def listen(host: str) -> socket.socket:
    """A socket on any free port of this machine's address `host`, and on no other of its addresses."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen()
    return listener


def local_address(host: str, port: int) -> str:
    """The address by which this machine reaches `host`; nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
        return found
