"""The tables that `llmrl launch` prints before it starts anything."""

from __future__ import annotations

import os
from functools import partial

from rich.table import Table

from llmrl.launching.footprint import Footprint, advice, footprint
from llmrl.launching.placement import placement
from llmrl.launching.sizes import find_size
from llmrl.launching.topology import Topology
from llmrl.plan import GIB
from llmrl.settings.recipe import Recipe

GPU_GIB = 80.0


def placement_table(recipe: Recipe, chosen: Topology) -> Table:
    """Where the processes go."""
    table = Table(title="placement", title_justify="left", show_header=False)
    for what, how in placement(recipe, chosen):
        table.add_row(what, how)
    return table


def memory_table(recipe: Recipe, chosen: Topology, needs: frozenset[str], *, device_gib: float | None) -> Table:
    """What each device holds, whether that fits, and what to change if not. `device_gib`: see `capacity`."""
    who = "process" if chosen.on_cpu else "GPU"
    table = Table(f"memory of each {who}, estimated", "GiB", title_justify="left")
    table.columns[1].justify = "right"
    path = recipe.model.path
    size = find_size(path)
    if size is None:
        table.add_row(f"unknown: {path} is not here yet, or its config.json has no familiar sizes", "")
        return table
    room = capacity(chosen, device_gib)
    estimate = partial(_estimate, size=size, needs=needs, device_gib=device_gib)
    found = estimate(recipe, chosen)
    for name, amount in [*found.trainer.items(), *found.engine.items()]:
        table.add_row(name, f"{amount / GIB:.2f}")
    table.add_section()
    table.add_row(f"together ({size.parameters / 1e9:.2f} billion parameters)", f"{found.total / GIB:.1f}")
    table.add_row(f"there is{_whose(chosen, device_gib)}", f"{room / GIB:.1f}" if room else "?")
    table.add_section()
    for text in _verdict(found, recipe, chosen, estimate):
        table.add_row(text, "")
    return table


def _verdict(found: Footprint, recipe: Recipe, chosen: Topology, estimate: partial[Footprint]) -> list[str]:
    cache = f"the engine's cache holds {found.kv_tokens:,} tokens; its requests can need {found.kv_wanted:,}"
    lines = [cache + (": some will wait" if found.kv_tokens < found.kv_wanted else "")] if found.engine else []
    if found.capacity is None:
        return lines
    if found.fits:
        return [*lines, "[green]it fits[/]"]
    if found.engine and found.kv_tokens < found.longest:
        lines.append(f"[red]not even one request of {found.longest:,} tokens fits the engine's cache[/]")
    lines.append("[red]it does not fit[/]; what would help, one on top of the other:")
    changes = advice(recipe, chosen, estimate)
    lines += [f"  {change.what}: {change.total / GIB:.1f} GiB{', fits' if change.fits else ''}" for change in changes]
    if not changes or not changes[-1].fits:
        lines.append("  nothing here is enough: take larger devices or a smaller model")
    return lines


def _estimate(
    recipe: Recipe, chosen: Topology, *, size: object, needs: frozenset[str], device_gib: float | None
) -> Footprint:
    return footprint(recipe, size, chosen, needs, capacity=capacity(chosen, device_gib))  # type: ignore[arg-type]


def capacity(chosen: Topology, device_gib: float | None) -> int | None:
    """Bytes of each GPU (80 GiB unless told), or of each process's share of this machine (or of one with `device_gib`)."""
    if not chosen.on_cpu:
        return int((device_gib or GPU_GIB) * GIB)
    machine = int(device_gib * GIB) if device_gib else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // chosen.ranks_per_node


def _whose(chosen: Topology, device_gib: float | None) -> str:
    if chosen.on_cpu:
        return f", of {'the machine' if device_gib else 'this machine'} for each of {chosen.ranks_per_node}"
    return "" if device_gib else " (assumed; --device-gib says otherwise)"
