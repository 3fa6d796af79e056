"""A run as a Ray job: the job's driver starts torchrun once on every node, and passes its end on.

`ray job submit` brings the driver to the cluster, `python -m llmrl.launcher.ray` is that driver. It asks for one bundle
of a node's GPUs (or CPUs) on each of the nodes, so that nothing starts before everything is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llmrl.errors import ConfigError
from llmrl.launcher.command import PORT, local_command
from llmrl.launcher.topology import Topology, topology

PLACED_S = 600.0  # how long to wait for the nodes' resources


def job_command(
    chosen: Topology, arguments: Sequence[str], *, name: str, address: str | None, cores: int, now: datetime
) -> tuple[str, ...]:
    """The `ray job submit` command line. `arguments` is what follows `llmrl`; a job's id is the run's name and `now`, since
    Ray takes every id once only and a run may be submitted again to resume.
    """
    shape = {
        "backend": chosen.backend,
        "nodes": chosen.nodes,
        "gpus_per_node": chosen.gpus_per_node,
        "processes": chosen.ranks_per_node,
    }
    driver = ("python", "-m", "llmrl.launcher.ray", json.dumps(shape), name, str(cores), str(Path.cwd()), *arguments)
    where = ("--address", address) if address else ()
    settings = json.dumps({"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}})  # on disks that all nodes share
    job = f"{name}-{now:%Y%m%d-%H%M%S}"
    return ("ray", "job", "submit", *where, "--submission-id", job, "--runtime-env-json", settings, "--", *driver)


def submit(command: Sequence[str]) -> int:
    """Hand the job to Ray and follow its log; returns its exit code. Raises ConfigError without Ray."""
    check_installed()
    return subprocess.run(command, check=False).returncode


def check_installed() -> None:
    """Raise ConfigError on a machine without Ray's job client."""
    if shutil.which("ray") is None:
        raise ConfigError(
            "--ray: there is no ray command on this machine; pip install 'ray[default]' and start a cluster"
        )


def drive(chosen: Topology, arguments: Sequence[str], *, name: str, cores: int, folder: str) -> int:
    """Run torchrun on every node of `chosen`, in bundles of its devices; the largest exit code of the nodes."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address="auto", log_to_driver=True)
    bundle = {"CPU": float(cores)} | ({} if chosen.on_cpu else {"GPU": float(chosen.gpus_per_node)})
    group = placement_group([bundle] * chosen.nodes, strategy="STRICT_SPREAD" if chosen.nodes > 1 else "PACK")
    if not group.wait(timeout_seconds=PLACED_S):
        raise ConfigError(
            f"Ray found no room for {chosen.nodes} x {bundle} in {PLACED_S:.0f} s; `ray status` says what there is"
        )

    def on_node(function: Any, node: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=node)
        options = {"num_cpus": cores, "num_gpus": chosen.gpus_per_node, "scheduling_strategy": strategy}
        return ray.remote(function).options(max_retries=0, **options)

    head = ray.get(on_node(ray.util.get_node_ip_address, 0).remote())
    commands = [
        local_command(chosen, arguments, name=name, head=f"{head}:{PORT}", node_rank=node)
        for node in range(chosen.nodes)
    ]
    plain = [(list(command.arguments), dict(command.environment)) for command in commands]
    codes: list[int] = ray.get([on_node(run_node, node).remote(*parts, folder) for node, parts in enumerate(plain)])
    return max(codes)


def run_node(arguments: list[str], environment: dict[str, str], folder: str) -> int:
    """What Ray runs on each node: the command, in the folder that it was submitted from."""
    import os
    import subprocess

    return subprocess.run(arguments, cwd=folder, env={**os.environ, **environment}, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """The driver's own command line, as written by `job_command`."""
    shape, name, cores, folder, *rest = arguments
    return drive(topology(**json.loads(shape)), rest, name=name, cores=int(cores), folder=folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
