"""How many nodes, devices and processes a run gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmrl.errors import ConfigError
from llmrl.nearest import nearest

# Name -> what it keeps whole on every device, and what it shares out.
BACKENDS: Mapping[str, str] = {
    "ddp": "every process holds weights, gradients and optimizer",
    "fsdp2": "weights, gradients and optimizer are shared out (PyTorch FSDP2)",
    "zero2": "weights on every process; gradients and optimizer are shared out (DeepSpeed ZeRO-2)",
    "zero3": "weights, gradients and optimizer are shared out (DeepSpeed ZeRO-3)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where the processes of one run live. One process drives one GPU; with `gpus_per_node` 0 they share the CPUs.

    >>> Topology(nodes=2, gpus_per_node=8).world
    16
    """

    backend: str = "ddp"
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int = 1

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.processes_per_node

    @property
    def world(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def on_cpu(self) -> bool:
        return self.gpus_per_node == 0


def topology(*, backend: str, nodes: int, gpus_per_node: int, processes: int | None) -> Topology:
    """A checked topology. Raises ConfigError: unknown back-end, or processes and GPUs that contradict each other."""
    if backend not in BACKENDS:
        raise ConfigError(f"--backend {backend}: there is no such back-end; {nearest(backend, list(BACKENDS))}")
    if gpus_per_node and processes not in (None, gpus_per_node):
        raise ConfigError(
            f"--processes {processes} with --gpus-per-node {gpus_per_node}: each GPU is driven by one process; leave "
            "--processes out, or set --gpus-per-node 0 for processes on CPUs"
        )
    return Topology(
        backend=backend, nodes=nodes, gpus_per_node=gpus_per_node, processes_per_node=processes or gpus_per_node or 1
    )
