"""The body of `llmrl launch`: check, plan, show, and run unless it is a dry run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llmrl.commands.arguments import Fresh, Overrides, RecipeFile, Resume

if TYPE_CHECKING:
    from llmrl.launcher.slurm import SlurmSettings
    from llmrl.launcher.topology import Topology
    from llmrl.settings.recipe import Recipe

_run = partial(typer.Option, rich_help_panel="What runs")
_cluster = partial(typer.Option, rich_help_panel="Slurm and Ray")
_memory = partial(typer.Option, rich_help_panel="Memory plan")


def launch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    backend: Annotated[str, _run(help="ddp, fsdp2, zero2 or zero3.")] = "ddp",
    nodes: Annotated[int, _run(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int | None, _run(min=0, help="GPUs, one process each; 0: CPUs. Default: what is here.")
    ] = None,
    processes: Annotated[int | None, _run(min=1, help="Processes of each node on CPUs.")] = None,
    head: Annotated[str | None, _run(help="First node's address, without Slurm or Ray.")] = None,
    node_rank: Annotated[int, _run(min=0, help="Which node this is.")] = 0,
    resume: Resume = False,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and the plan; run nothing.")
    ] = False,
    slurm: Annotated[bool, _cluster("--slurm", help="Submit a batch job.")] = False,
    ray: Annotated[bool, _cluster("--ray", help="Submit a Ray job.")] = False,
    time: Annotated[str, _cluster(help="Slurm's time limit.")] = "24:00:00",
    grace_s: Annotated[int, _cluster(min=10, help="Seconds before it, to finish a step and save.")] = 120,
    cores: Annotated[int | None, _cluster(min=1, help="Cores of each process. Default: 8.")] = None,
    partition: Annotated[str | None, _cluster(help="Slurm's partition.")] = None,
    account: Annotated[str | None, _cluster(help="Slurm's account.")] = None,
    sbatch: Annotated[list[str] | None, _cluster(help="More for sbatch: --sbatch=--constraint=h100.")] = None,
    ray_address: Annotated[str | None, _cluster(help="Ray's dashboard.")] = None,
    device_gib: Annotated[
        float | None, _memory(min=1, help="Memory of a GPU (default 80), or of a CPU machine.")
    ] = None,
) -> None:
    """Start a recipe on several processes: this machine's, a Slurm or Ray cluster's, or by hand on several nodes.

    Prints where everything goes, what memory it needs, and the exact command or batch script; then runs it, unless
    --dry-run. The first Ctrl-C or SIGTERM saves and stops, and --resume goes on.

      llmrl launch recipes/arithmetic/grpo.yaml --gpus-per-node 0 --processes 2

      llmrl launch recipes/math_large/grpo.yaml --backend fsdp2 --nodes 2 --gpus-per-node 8 --slurm --dry-run
    """
    from llmrl.errors import ConfigError
    from llmrl.launcher.slurm import SlurmSettings
    from llmrl.settings.load import find_recipe, load_recipe

    for one, other, names in ((slurm, ray, "--slurm and --ray"), (resume, fresh, "--resume and --fresh")):
        if one and other:
            raise ConfigError(f"{names} exclude each other")
    chosen = _topology(backend, nodes, gpus_per_node, processes)
    if node_rank >= nodes:
        raise ConfigError(f"--node-rank {node_rank}: with --nodes {nodes} the last one is {nodes - 1}")
    # the back-end is a part of the recipe, so that every process knows it without a launcher's help
    changes = [*(overrides or []), *([] if backend == "ddp" else [f"train.backend={chosen.backend}"])]
    changes = _with_threads(recipe, changes, chosen, elsewhere=slurm or ray, cores=cores)
    loaded = load_recipe(recipe, changes)
    console = Console(soft_wrap=True)
    _show_plan(loaded, chosen, device_gib, console)
    job = _Job(
        recipe=loaded,
        topology=chosen,
        arguments=("train", str(find_recipe(recipe).absolute() if slurm or ray else recipe), *changes),
        options=("--resume",) * resume + ("--fresh",) * fresh,
        slurm=SlurmSettings(
            time=time, grace_s=grace_s, cores_per_process=cores or 8, partition=partition, account=account,
            extra=tuple(sbatch or ()),
        ),
    )  # fmt: skip
    if slurm:
        code = _by_slurm(job, console, dry_run=dry_run)
    elif ray:
        code = _by_ray(job, console, address=ray_address, cores=cores, dry_run=dry_run)
    else:
        code = _here(job, console, head=head, node_rank=node_rank, dry_run=dry_run)
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    recipe: Recipe
    topology: Topology
    arguments: tuple[str, ...]  # after `llmrl`
    options: tuple[str, ...]  # for the first start
    slurm: SlurmSettings


def _topology(backend: str, nodes: int, gpus_per_node: int | None, processes: int | None) -> Topology:
    from llmrl.hardware import gpus
    from llmrl.launcher.topology import topology

    if gpus_per_node is None:
        gpus_per_node = 0 if processes else gpus()
    return topology(backend=backend, nodes=nodes, gpus_per_node=gpus_per_node, processes=processes)


def _with_threads(
    recipe: Path, overrides: list[str], chosen: Topology, *, elsewhere: bool, cores: int | None
) -> list[str]:
    """On CPUs the trainer is told how many cores are its own, unless the recipe says it."""
    from llmrl.launcher.command import cores_per_rank
    from llmrl.settings.load import load_recipe

    if not chosen.on_cpu or chosen.ranks_per_node == 1 or load_recipe(recipe, overrides).train.threads:
        return overrides
    return [*overrides, f"train.threads={(cores or 8) if elsewhere else cores_per_rank(chosen)}"]


def _show_plan(recipe: Recipe, chosen: Topology, device_gib: float | None, console: Console) -> None:
    from llmrl.algos.build import build_algorithm, check_run
    from llmrl.automatic import settle
    from llmrl.commands.memory_table import memory_table
    from llmrl.control.build import knobs_of
    from llmrl.launcher.placement import hints, placement_table

    recipe = settle(recipe, on_gpu=None if chosen.on_cpu else True).recipe
    algo = build_algorithm(recipe.algo)
    check_run(recipe, algo, ranks=chosen.world)
    knobs_of(recipe, algo)
    console.print(placement_table(recipe, chosen))
    console.print(memory_table(recipe, chosen, algo.needs, device_gib=device_gib))
    for hint in hints(recipe, chosen):
        console.print(f"note: {hint}", markup=False, highlight=False)


def _by_slurm(job: _Job, console: Console, *, dry_run: bool) -> int:
    from llmrl.launcher.slurm import batch_script, check_installed, submit

    script = batch_script(job.recipe, job.topology, job.arguments, job.options, job.slurm)
    file = job.recipe.run_dir.parent / f"{job.recipe.name}.sbatch"
    _print_exact(console, f"sbatch {file}   # this script:", script)
    if dry_run:
        return 0
    check_installed()
    return submit(script, file)


def _by_ray(job: _Job, console: Console, *, address: str | None, cores: int | None, dry_run: bool) -> int:
    from llmrl.launcher.ray import job_command, submit

    whole = (cores or 8) * job.topology.ranks_per_node
    arguments = (*job.arguments, *job.options)
    command = job_command(
        job.topology, arguments, name=job.recipe.name, address=address, cores=whole, now=datetime.now()
    )
    _print_exact(console, "the Ray job:", shlex.join(command))
    return 0 if dry_run else submit(command)


def _here(job: _Job, console: Console, *, head: str | None, node_rank: int, dry_run: bool) -> int:
    from llmrl.launcher.command import local_command
    from llmrl.launcher.run import run

    ranks = range(job.topology.nodes) if dry_run else [node_rank]
    for number in ranks:
        arguments = (*job.arguments, *job.options)
        reached = head or ("HEAD_NODE" if dry_run else None)  # several nodes start with a real one only
        command = local_command(job.topology, arguments, name=job.recipe.name, head=reached, node_rank=number)
        settings = [f"{key}={shlex.quote(value)}" for key, value in command.environment.items()]
        where = f"on node {number}:" if job.topology.nodes > 1 else "the command:"
        _print_exact(console, where, " ".join([*settings, shlex.join(command.arguments)]))
    if dry_run and head is None and job.topology.nodes > 1:
        note = "HEAD_NODE stands for the first node's name or address; to start, give it with --head"
        console.print(f"note: {note}", markup=False, highlight=False)
    return 0 if dry_run else run(command)


def _print_exact(console: Console, title: str, text: str) -> None:
    """`text` as it is, so that it can be pasted."""
    console.print(f"[bold]{title}[/]", highlight=False)
    console.print(text, markup=False, highlight=False)
