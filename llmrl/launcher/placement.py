"""Which process trains and samples where, in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from llmrl.launcher.topology import BACKENDS, Topology
from llmrl.settings.recipe import Recipe


def placement_table(recipe: Recipe, chosen: Topology) -> Table:
    """Where the processes go."""
    table = Table(title="placement", title_justify="left", show_header=False)
    for what, how in placement(recipe, chosen):
        table.add_row(what, how)
    return table


def placement(recipe: Recipe, chosen: Topology) -> list[tuple[str, str]]:
    """(what, how) rows about where the processes of a run go and what each one does of a step."""
    rollout, world = recipe.rollout, chosen.world
    prompts = rollout.prompts_per_step // world
    device = "CPU cores" if chosen.on_cpu else "one GPU"
    rows = [
        ("processes", f"{world}: {_count(chosen.nodes, 'node')} x {chosen.ranks_per_node}, each on {device}"),
        ("back-end", f"{chosen.backend}: {BACKENDS[chosen.backend]}" if world > 1 else "none: one process"),
    ]
    for node in range(chosen.nodes):
        first, last = node * chosen.ranks_per_node, (node + 1) * chosen.ranks_per_node - 1
        ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
        writes = ", rank 0 writes the run folder" if node == 0 and world > 1 else ""
        engine = ""
        if rollout.placement == "colocated":
            own = rollout.engine == "native"
            engine = " and samples with its own model" if own else f" and has a {rollout.engine} engine of its own"
        rows.append((f"node {node}", f"{ranks}, each trains{engine}{writes}"))
    if rollout.placement == "server":
        where = f"at {', '.join(rollout.servers.urls)}" if rollout.servers.urls else "beside rank 0, started by it"
        rows.append(("engines", f"{_count(len(rollout.servers.urls) or rollout.servers.start, 'vLLM server')} {where}"))
    if rollout.placement == "ray":
        rows.append(("engines", f"{_count(rollout.ray.actors, 'vLLM actor')} on Ray, {rollout.ray.gpus:g} GPUs each"))
    samples = prompts * rollout.group_size
    waves = -(-samples // rollout.max_sequences)
    at_once = "" if waves == 1 else f", {rollout.max_sequences} at once in {waves} waves"
    rows.append(
        ("each process, a step", f"{_count(prompts, 'prompt')} x {rollout.group_size} = {samples} samples{at_once}")
    )
    return rows


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


def hints(recipe: Recipe, chosen: Topology) -> Sequence[str]:
    """What a run on several nodes trips over, and how to prevent it."""
    found = []
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    if chosen.nodes > 1 and "/" in recipe.model.path and not Path(recipe.model.path).exists() and not offline:
        found.append(
            f"fetch {recipe.model.path} before (hf download {recipe.model.path}) to a HF_HOME that all nodes see, and set "
            "HF_HUB_OFFLINE=1: otherwise every process asks the hub at once"
        )
    if chosen.nodes > 1:
        found.append(f"{recipe.run_dir} must be on a file system that all nodes share")
    return found
