"""The body of `llmrl plan --scale`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from llmrl.scale.costs import Costs, Measured
    from llmrl.scale.simulate import Predicted
    from llmrl.scale.workload import Group
    from llmrl.settings.recipe import Recipe

MEASURE = (
    "measure first: train a few steps (train.steps=8), give the run with --measured runs/NAME, better two that differ in "
    "rollout.prompts_per_step"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `llmrl plan --scale` was asked: a cluster, where the costs come from, how far engines may run ahead."""

    nodes: int
    gpus_per_node: int
    processes: int | None
    cores: int | None
    bound: bool
    measured: tuple[Path, ...]
    check: tuple[Path, ...]  # runs to compare with that costs are not taken from
    given: tuple[str, ...]
    network_gb_s: float | None
    max_staleness: int


def plan_scale(recipe: Recipe, question: Question, console: Console) -> list[Predicted]:
    """Print the costs, the measured runs against their own simulation, and the predictions; returns these, best first.

    Raises ConfigError: nothing measured, unknown costs, or prompts that cannot be shared.
    """
    from llmrl.errors import ConfigError
    from llmrl.scale.costs import fit, read_run

    if not question.measured:
        raise ConfigError(f"--scale needs to know what phases cost: {MEASURE}")
    runs = [read_run(run) for run in question.measured]
    judges = [read_run(run) for run in question.check]
    costs, notes = fit(runs)
    costs = costs.with_given(question.given)
    console.print(_cost_table(costs))
    console.print(_check_table(runs, judges, costs, question))
    results = _predict(recipe, runs, costs, question)
    console.print(_result_table(results))
    for note in [*notes, *_warnings(recipe, runs, question)]:
        console.print(f"note: {note}", markup=False, highlight=False)
    return results


def _groups(recipe: Recipe, runs: Sequence[Measured]) -> list[Group]:
    """Groups of all runs, their completions made longer if the recipe lets them be longer."""
    from llmrl.scale.workload import scaled

    longest = recipe.rollout.max_tokens
    return [
        group for run in runs for group in scaled(run.groups, longest / run.recipe.rollout.max_tokens, longest=longest)
    ]


def _predict(recipe: Recipe, runs: Sequence[Measured], costs: Costs, question: Question) -> list[Predicted]:
    from llmrl.errors import ConfigError
    from llmrl.scale.simulate import Load
    from llmrl.scale.sweep import layouts, on_shared_cores, sweep

    prompts, minibatches = recipe.rollout.prompts_per_step, recipe.train.minibatches
    load = Load(prompts_per_step=prompts, slots=recipe.rollout.max_sequences, updates=recipe.updates_per_step)
    if question.gpus_per_node:
        found = layouts(
            question.nodes * question.gpus_per_node,
            prompts_per_step=prompts,
            minibatches=minibatches,
            max_staleness=question.max_staleness,
        )
    else:
        machine = question.cores or len(os.sched_getaffinity(0))
        counts = [question.processes] if question.processes else range(1, machine + 1)
        able = [count for count in counts if prompts % (count * minibatches) == 0]
        if not able:
            raise ConfigError(f"rollout.prompts_per_step={prompts} cannot be shared by {question.processes} processes")
        found = [
            on_shared_cores(count, cores=machine, bound=question.bound, staleness=staleness)
            for count in able
            for staleness in sorted({0, 1, question.max_staleness})
        ]
    parameters, speed = _exchange(recipe, question)
    return sweep(found, costs, load, _groups(recipe, runs), parameters=parameters, bytes_per_s=speed)


def _exchange(recipe: Recipe, question: Question) -> tuple[int, float | None]:
    """(parameters whose gradients are exchanged, bytes a second of each link)."""
    from llmrl.launching.sizes import find_size

    size = find_size(recipe.model.path)
    speed = question.network_gb_s
    return size.parameters if size else 0, speed * 1e9 if speed else None


def _cost_table(costs: Costs) -> Table:
    from dataclasses import fields

    what = f"on {costs.cores} cores" if costs.cores > 1 else "on one core or GPU"
    table = Table("cost of one worker", what, title_justify="left")
    for field in fields(costs):
        if field.name != "cores":
            table.add_row(field.name, f"{getattr(costs, field.name):.6g}")
    return table


def _check_table(runs: Sequence[Measured], judges: Sequence[Measured], costs: Costs, question: Question) -> Table:
    """Every run beside the simulation of that very run; `judges` gave nothing to the costs."""
    table = Table("run", "used for", "workers", "step, s", "simulated, s", "difference")
    for run in [*runs, *judges]:
        result = simulated(run, costs, question)
        table.add_row(
            run.run.name,
            "comparing" if run in judges else "costs",
            f"{run.workers} on {run.machine} cores",
            f"{run.step_s:.2f}",
            f"{result.step_s:.2f}",
            f"{result.step_s / run.step_s - 1:+.0%}",
        )
    return table


def simulated(run: Measured, costs: Costs, question: Question) -> Predicted:
    """The simulation of a measured run: its recipe, its workers, its cores."""
    from llmrl.scale.simulate import Layout, Load
    from llmrl.scale.sweep import sweep

    rollout = run.recipe.rollout
    load = Load(
        prompts_per_step=rollout.prompts_per_step, slots=rollout.max_sequences, updates=run.recipe.updates_per_step
    )
    layout = Layout(
        trainers=run.workers,
        engines=run.workers,
        shared=True,
        staleness=run.recipe.rollout.max_staleness,
        cores=run.machine,
        engine_cores=run.engine_threads,
        trainer_cores=run.trainer_threads,
    )
    parameters, speed = _exchange(run.recipe, question)
    return sweep([layout], costs, load, run.groups, steps=40, parameters=parameters, bytes_per_s=speed)[0]


def _result_table(results: Sequence[Predicted]) -> Table:
    from llmrl.scale.sweep import best_of_each_mode

    table = Table("mode", "trainers", "engines", "step, s", "tokens/s", "trainers busy", "engines busy", "behind")
    best = best_of_each_mode(results)
    for result in [*best, *(other for other in results if other not in best)][:24]:
        layout = result.layout
        style = "bold green" if result is results[0] else ("bold" if result in best else None)
        table.add_row(
            layout.mode,
            str(layout.trainers),
            str(layout.engines),
            f"{result.step_s:.2f}",
            f"{result.tokens_per_s:,.0f}",
            f"{result.trainers_busy:.0%}",
            f"{result.engines_busy:.0%}",
            f"{result.behind:.1f}",
            style=style,
        )
    table.caption = "bold: the best split of each mode; behind: how many versions old the weights of a token are"
    return table


def _warnings(recipe: Recipe, runs: Sequence[Measured], question: Question) -> list[str]:
    found = []
    if question.gpus_per_node and not question.given:
        found.append(
            "the costs are those of the machine that was measured; if it had no such GPUs, give theirs with --cost"
        )
    if question.network_gb_s is None:
        found.append("gradients are exchanged at no cost; give the network with --network-gb-s")
    models = {run.recipe.model.path for run in runs} - {recipe.model.path}
    if models:
        found.append(
            f"measured with {', '.join(sorted(models))}, planned for {recipe.model.path}: costs are not scaled"
        )
    longer = [run for run in runs if run.recipe.rollout.max_tokens != recipe.rollout.max_tokens]
    if longer:
        found.append(
            f"completions are stretched from at most {longer[0].recipe.rollout.max_tokens} tokens to "
            f"{recipe.rollout.max_tokens}"
        )
    return found
