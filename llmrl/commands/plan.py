"""`llmrl plan`: what a recipe will do, from arithmetic alone; no weights are loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llmrl.commands.arguments import Overrides, RecipeFile

if TYPE_CHECKING:
    from llmrl.batch import Algorithm
    from llmrl.settings.recipe import Recipe

_scale = partial(typer.Option, rich_help_panel="With --scale")


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    scale: Annotated[bool, typer.Option("--scale", help="Predict step time and the best split on a cluster.")] = False,
    measured: Annotated[list[Path] | None, _scale(help="A run folder to take costs from; several are better.")] = None,
    check: Annotated[list[Path] | None, _scale(help="A run to compare with the simulation of it.")] = None,
    cost: Annotated[list[str] | None, _scale(help="A cost of your own: --cost update_token_s=2e-5.")] = None,
    nodes: Annotated[int, _scale(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, _scale(min=0, help="GPUs of each; 0: CPUs.")] = 0,
    processes: Annotated[int | None, _scale(min=1, help="Workers on CPUs.")] = None,
    cores: Annotated[int | None, _scale(min=1, help="CPU cores. Default: this machine's.")] = None,
    network_gb_s: Annotated[float | None, _scale(min=0.001, help="GB/s of each trainer's link.")] = None,
    max_staleness: Annotated[int, _scale(min=1, help="Versions that engines may be behind.")] = 4,
) -> None:
    """Say what a recipe will do, without loading a model: samples, tokens, updates, memory.

    With --scale: what a step would take on another cluster, simulated from what measured runs cost here.
    """
    from llmrl.errors import ConfigError
    from llmrl.settings.load import load_recipe

    loaded = load_recipe(recipe, overrides)  # its errors come before torch is imported
    from llmrl.algos.build import build_algorithm, check_run
    from llmrl.compose import rewards_of

    if loaded.privacy is not None:
        from llmrl.commands.privacy import show_plan

        show_plan(loaded)
        return
    algo = build_algorithm(loaded.algo)
    check_run(loaded, algo, ranks=1)
    rewards_of(loaded)
    console = Console()
    if scale:
        from llmrl.commands.plan_scale import Question, plan_scale

        question = Question(
            recipe=recipe, overrides=tuple(overrides or ()), nodes=nodes, gpus_per_node=gpus_per_node,
            processes=processes, cores=cores, measured=tuple(measured or ()), check=tuple(check or ()),
            given=tuple(cost or ()), network_gb_s=network_gb_s, max_staleness=max_staleness,
        )  # fmt: skip
        plan_scale(question, console)
        return
    if measured or cost or gpus_per_node or nodes > 1:
        raise ConfigError("--measured, --cost, --nodes and --gpus-per-node belong to --scale; add it")
    _show(loaded, algo, console)


def _show(recipe: Recipe, algo: Algorithm, console: Console) -> None:
    from rich.table import Table

    from llmrl.automatic import settle
    from llmrl.commands.memory_table import memory_table
    from llmrl.commands.plan_rows import rows_of
    from llmrl.compose import check_models
    from llmrl.hardware import gpus
    from llmrl.launcher.topology import Topology

    check_models(recipe)
    table = Table(show_header=False)
    for what, how_much in rows_of(recipe, algo):
        table.add_row(what, how_much)
    console.print(table)
    one = Topology(gpus_per_node=min(1, gpus()))
    recipe = settle(recipe).recipe
    console.print(memory_table(recipe, one, algo.needs))
