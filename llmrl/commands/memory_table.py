"""The one table of memory, for `llmrl plan` and `llmrl launch`."""

from __future__ import annotations

import os

from rich.table import Table

from llmrl.batch import Needs
from llmrl.launcher.topology import Topology
from llmrl.settings.recipe import Recipe
from llmrl.sizing import GIB, Change, Footprint, advice, footprint, model_size

GPU_GIB = 80.0


def memory_table(recipe: Recipe, chosen: Topology, needs: Needs, *, device_gib: float | None = None) -> Table:
    """What each device holds, whether that fits, and what to change if not. `device_gib`: see `capacity`."""
    who = "process" if chosen.on_cpu else "GPU"
    table = Table(f"memory of each {who}, estimated", "GiB", title_justify="left")
    table.columns[1].justify = "right"
    separate = recipe.critic.path if recipe.critic is not None and needs.values else None
    judge = recipe.outcome_critic.path if recipe.outcome_critic is not None else None
    paths = [recipe.model.path, separate or recipe.model.path, judge or recipe.model.path]
    loaded = [name for name, partner in recipe.engines.items() if partner.loaded]
    paths += [_there(recipe.engines[name].model, recipe) for name in loaded]
    size, critic, outcome_critic, *others = sizes = [model_size(path) for path in paths]
    if size is None or None in sizes:
        path = paths[sizes.index(None)]
        table.add_row(f"unknown: {path} is not here yet, or its config.json has no familiar sizes", "")
        return table
    room = capacity(chosen, device_gib)

    def estimate(changed: Recipe, where: Topology) -> Footprint:
        room = capacity(where, device_gib)
        return footprint(
            changed, size, where, needs, capacity=room, critic=critic, outcome_critic=outcome_critic,
            partners={name: other for name, other in zip(loaded, others, strict=True) if other is not None},
        )  # fmt: skip

    found = estimate(recipe, chosen)
    for name, amount in found.parts.items():
        table.add_row(name, f"{amount / GIB:.2f}")
    table.add_section()
    together = "at most, the engine asleep while the policy trains" if found.sleeps else "together"
    table.add_row(f"{together} ({size.parameters / 1e9:.2f} billion parameters)", f"{found.total / GIB:.1f}")
    table.add_row(f"there is{_whose(chosen, device_gib)}", f"{room / GIB:.1f}" if room else "?")
    table.add_section()
    for text in _verdict(found, advice(recipe, chosen, estimate)):
        table.add_row(text, "")
    return table


def _there(path: str, recipe: Recipe) -> str:
    """The path of a model of that size: the policy of a stage is not there yet, and as large as the recipe's."""
    return recipe.model.path if path.startswith("stage:") or path in recipe.stage_models.values() else path


def _verdict(found: Footprint, changes: list[Change]) -> list[str]:
    cache = f"the engine's cache holds {found.kv_tokens:,} tokens; its requests can need {found.kv_wanted:,}"
    lines = [cache + (": some will wait" if found.kv_tokens < found.kv_wanted else "")] if found.engine else []
    if found.capacity is None:
        return lines
    if found.fits:
        return [*lines, "[green]it fits[/]"]
    if found.engine and found.kv_tokens < found.longest:
        lines.append(f"[red]not even one request of {found.longest:,} tokens fits the engine's cache[/]")
    lines.append("[red]it does not fit[/]; what would help, one on top of the other:")
    lines += [f"  {change.what}: {change.total / GIB:.1f} GiB{', fits' if change.fits else ''}" for change in changes]
    if not changes or not changes[-1].fits:
        lines.append("  nothing here is enough: take larger devices or a smaller model")
    return lines


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
