"""The body of `llmrl plan --scale`: costs of measured runs, and what a step would take on another cluster."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmrl.algos.build import build_algorithm, check_run
from llmrl.errors import ConfigError
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe
from llmrl.sizing import model_size
from llmrl.step_time import (
    Costs,
    Group,
    Layout,
    Measured,
    Predicted,
    Work,
    accepted,
    fit,
    on_cores,
    on_gpus,
    predict,
    read_run,
)

SHOWN = 24
MEASURE = (
    "measure first: train a few steps (train.steps=8), give the run with --measured runs/NAME, better two that differ in "
    "rollout.prompts_per_step"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `llmrl plan --scale` was asked: a recipe, a cluster, where the costs come from, how far engines may run ahead."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    gpus_per_node: int = 0
    processes: int | None = None
    cores: int | None = None
    measured: tuple[Path, ...] = ()
    check: tuple[Path, ...] = ()  # runs to compare with that costs are not taken from
    given: tuple[str, ...] = ()
    network_gb_s: float | None = None
    max_staleness: int = 4


def plan_scale(question: Question, console: Console) -> list[Predicted]:
    """Print the costs, the measured runs beside their own prediction, and the layouts that `train` accepts; returns these,
    best first.

    Raises ConfigError: nothing measured, unknown costs, or no layout that `train` accepts.
    """
    if not question.measured:
        raise ConfigError(f"--scale needs to know what phases cost: {MEASURE}")
    recipe = load_recipe(question.recipe, list(question.overrides))
    runs, judges = ([read_run(run) for run in folders] for folders in (question.measured, question.check))
    costs, notes = fit(runs)
    costs = costs.with_given(question.given)
    console.print(_cost_table(costs))
    console.print(_check_table(runs, judges, costs, question))
    layouts, refused = accepted(_layouts(recipe, question), lambda layout: _check(layout, question))
    if not layouts:
        raise ConfigError("train would refuse this recipe on every layout of this cluster:\n  " + "\n  ".join(refused))
    groups = _stretched(recipe, runs)
    results = sorted(
        (predict(layout, costs, _work(recipe, question), groups) for layout in layouts), key=lambda one: one.step_s
    )
    console.print(_result_table(results))
    for note in [*notes, *_warnings(recipe, runs, question), *refused]:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print("the best:", command(question, results[0].layout), markup=False, highlight=False)
    return results


def command(question: Question, layout: Layout) -> str:
    """The command line that starts `layout`."""
    words = [*question.overrides, *layout.changes]
    return f"llmrl launch {shlex.quote(str(question.recipe))} {layout.options} {shlex.join(words)}".rstrip()


def _check(layout: Layout, question: Question) -> None:
    changed = load_recipe(question.recipe, [*question.overrides, *layout.changes])
    check_run(changed, build_algorithm(changed.algo), ranks=layout.trainers)


def _layouts(recipe: Recipe, question: Question) -> list[Layout]:
    """Of this cluster; those whose trainers share the prompts equally, if there are any."""
    if question.gpus_per_node:
        found = on_gpus(question.nodes, question.gpus_per_node, question.max_staleness)
    else:
        machine = question.cores or len(os.sched_getaffinity(0))
        counts = [question.processes] if question.processes else range(1, machine + 1)
        found = on_cores(machine, counts, question.max_staleness)
    prompts, minibatches = recipe.rollout.prompts_per_step, recipe.train.minibatches
    return [layout for layout in found if prompts % (layout.trainers * minibatches) == 0] or found


def _work(recipe: Recipe, question: Question) -> Work:
    size, speed = model_size(recipe.model.path), question.network_gb_s
    return Work(
        prompts_per_step=recipe.rollout.prompts_per_step, slots=recipe.rollout.max_sequences,
        updates=recipe.train.updates_per_step, parameters=size.parameters if size else 0,
        bytes_per_s=speed * 1e9 if speed else None,
    )  # fmt: skip


def _stretched(recipe: Recipe, runs: Sequence[Measured]) -> list[Group]:
    """Groups of all runs, their completions made longer if the recipe lets them be longer."""
    longest = recipe.rollout.max_tokens
    return [
        group.scaled(longest / run.recipe.rollout.max_tokens, longest=longest) for run in runs for group in run.groups
    ]


def _cost_table(costs: Costs) -> Table:
    what = f"on {costs.cores} cores" if costs.cores > 1 else "on one core or GPU"
    table = Table("cost of one worker", what, title_justify="left")
    for field in fields(costs):
        if field.name != "cores":
            table.add_row(field.name, f"{getattr(costs, field.name):.6g}")
    return table


def _check_table(runs: Sequence[Measured], judges: Sequence[Measured], costs: Costs, question: Question) -> Table:
    """Every run beside the prediction of that very run; `judges` gave nothing to the costs."""
    table = Table("run", "used for", "workers", "step, s", "predicted, s", "difference")
    for run in [*runs, *judges]:
        result = as_measured(run, costs, question)
        table.add_row(
            run.run.name,
            "comparing" if run in judges else "costs",
            f"{run.workers} with {run.engine_cores:g} cores each",
            f"{run.step_s:.2f}",
            f"{result.step_s:.2f}",
            f"{result.step_s / run.step_s - 1:+.0%}",
        )
    return table


def as_measured(run: Measured, costs: Costs, question: Question) -> Predicted:
    """The prediction of a measured run: its recipe, its workers, its cores."""
    layout = Layout(
        trainers=run.workers, engines=run.workers, staleness=run.recipe.rollout.max_staleness,
        engine_cores=run.engine_cores, trainer_cores=run.trainer_cores,
    )  # fmt: skip
    return predict(layout, costs, _work(run.recipe, question), run.groups)


def _result_table(results: Sequence[Predicted]) -> Table:
    """The best layout of each mode, then the others."""
    best = list({result.layout.mode: result for result in reversed(results)}.values())
    ordered = sorted(results, key=lambda result: (result not in best, result.step_s))
    table = Table("mode", "trainers", "engines", "step, s", "tokens/s", "trainers busy", "engines busy")
    for result in ordered[:SHOWN]:
        layout = result.layout
        table.add_row(
            layout.mode,
            str(layout.trainers),
            str(layout.engines),
            f"{result.step_s:.2f}",
            f"{result.tokens_per_s:,.0f}",
            f"{result.trainers_busy:.0%}",
            f"{result.engines_busy:.0%}",
            style="bold green" if result is results[0] else ("bold" if result in best else None),
        )
    table.caption = "bold: the best split of each mode"
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
