"""How many nodes, devices and processes a run gets, and the rules that a recipe must meet to be shared among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmrl.errors import ConfigError
from llmrl.settings.explain import nearest
from llmrl.settings.recipe import Recipe

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


def check_recipe(recipe: Recipe, chosen: Topology) -> None:
    """Raise ConfigError if `recipe` cannot be shared among the processes of `chosen`; says which numbers would do."""
    unit = chosen.world * recipe.train.minibatches
    prompts = recipe.rollout.prompts_per_step
    if prompts % unit:
        below, above = prompts // unit * unit, -(-prompts // unit) * unit
        fits = [n for n in range(1, chosen.world + 1) if prompts % (n * recipe.train.minibatches) == 0]
        sizes = f"rollout.prompts_per_step={above}" + (f" (or {below})" if below else "")
        raise ConfigError(
            f"rollout.prompts_per_step={prompts} cannot be shared equally by {chosen.world} processes "
            f"({chosen.nodes} nodes x {chosen.ranks_per_node}) and train.minibatches={recipe.train.minibatches}; "
            f"use {sizes}, or {fits[-1]} processes"
        )
