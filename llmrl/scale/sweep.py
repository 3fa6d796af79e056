"""Every way to split a cluster between training and sampling, simulated; the best is the one with the shortest step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmrl.errors import ConfigError
from llmrl.scale.costs import Costs
from llmrl.scale.simulate import Layout, Load, Predicted, simulate
from llmrl.scale.workload import Group


def layouts(devices: int, *, prompts_per_step: int, minibatches: int, max_staleness: int) -> list[Layout]:
    """All workers together, and every split into trainers and engines at every staleness of 0, 1 and the largest.

    Trainers must share the prompts of a minibatch equally. Raises ConfigError if no split does.
    """
    able = [n for n in range(1, devices + 1) if prompts_per_step % (n * minibatches) == 0]
    found = [Layout(trainers=devices, engines=devices, shared=True)] if devices in able else []
    for staleness in sorted({0, 1, max_staleness}):
        found += [
            Layout(trainers=count, engines=devices - count, shared=False, staleness=staleness)
            for count in able
            if count < devices
        ]
    if not found:
        raise ConfigError(
            f"rollout.prompts_per_step={prompts_per_step} with train.minibatches={minibatches} cannot be shared by "
            f"{devices} workers, and there is no other split; choose another number of either"
        )
    return found


def on_shared_cores(workers: int, *, cores: int, bound: bool, staleness: int = 0) -> Layout:
    """Workers of one CPU machine, by turns on the same cores, or with `staleness` each side on its own half of them.

    `bound` gives each worker its part of the cores, as `llmrl launch` does; else each wants all of them.
    """
    mine = max(1, cores // workers) if bound else cores
    each = max(1, mine // 2) if staleness else mine
    return Layout(
        trainers=workers, engines=workers, shared=True, staleness=staleness, cores=cores, engine_cores=each,
        trainer_cores=each,
    )  # fmt: skip


def sweep(
    found: Sequence[Layout],
    costs: Costs,
    load: Load,
    groups: Sequence[Group],
    *,
    parameters: int = 0,
    bytes_per_s: float | None = None,
    steps: int = 12,
) -> list[Predicted]:
    """Predictions for each layout, shortest step first. Gradients of `parameters` are exchanged at `bytes_per_s`."""
    results = []
    for layout in found:
        exchange = allreduce_s(parameters, layout.trainers, bytes_per_s=bytes_per_s)
        results.append(simulate(layout, costs, replace(load, allreduce_s=exchange), groups, steps=steps))
    return sorted(results, key=lambda result: result.step_s)


def best_of_each_mode(results: Sequence[Predicted]) -> list[Predicted]:
    """The best split of each mode, best mode first."""
    best: dict[str, Predicted] = {}
    for result in sorted(results, key=lambda result: result.step_s):
        best.setdefault(result.layout.mode, result)
    return list(best.values())


def allreduce_s(parameters: int, trainers: int, *, bytes_per_s: float | None) -> float:
    """Seconds of a ring all-reduce of float32 gradients among `trainers`, 2 (n - 1) / n of them through each link.

    0 if the bandwidth is not known.
    """
    if bytes_per_s is None or trainers == 1:
        return 0.0
    return 4 * parameters * 2 * (trainers - 1) / trainers / bytes_per_s
