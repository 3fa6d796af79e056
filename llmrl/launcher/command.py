"""The command line that starts every process of one node, and its environment. torchrun does the starting."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmrl.errors import ConfigError
from llmrl.hardware import cores
from llmrl.launcher.topology import Topology

STOP_S = 600  # how long torchrun lets its processes finish their step and save; by itself it gives them 30 s
PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Arguments, and the environment variables that are set beside the caller's own."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def local_command(
    chosen: Topology, arguments: Sequence[str], *, name: str, head: str | None = None, node_rank: int = 0
) -> Command:
    """What one node runs. Several nodes meet at `head` (a host or host:port that all of them reach).

    Raises ConfigError if several nodes have no head.
    """
    if chosen.world == 1:
        return Command(arguments=(sys.executable, "-m", "llmrl", *arguments), environment={})
    program = ("-m", "llmrl.launcher.rank") if chosen.on_cpu else ("-m", "llmrl")
    meeting: tuple[str, ...] = ("--standalone",)
    if chosen.nodes > 1:
        meeting = ("--nnodes", str(chosen.nodes), "--node-rank", str(node_rank), *_rendezvous(head, name))
    launcher = (sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(chosen.ranks_per_node))
    environment = {
        "OMP_NUM_THREADS": str(cores_per_rank(chosen)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_S),
        **network_environment(chosen),
    }
    return Command(arguments=(*launcher, *program, *arguments), environment=environment)


def _rendezvous(head: str | None, name: str) -> tuple[str, ...]:
    if head is None:
        raise ConfigError(
            "several nodes without Slurm or Ray need --head, the name or address of the first node that all others "
            "reach; then run the same command on every node with its own --node-rank 0, 1, ..."
        )
    endpoint = head if ":" in head else f"{head}:{PORT}"
    return ("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", name)


def cores_per_rank(chosen: Topology) -> int:
    """Cores of this machine for each process of a node."""
    return max(1, cores() // chosen.ranks_per_node)


def network_environment(chosen: Topology) -> dict[str, str]:
    """NCCL: errors surface instead of hanging, warnings are shown. CPUs talk over gloo and need nothing."""
    if chosen.on_cpu:
        return {}
    return {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
