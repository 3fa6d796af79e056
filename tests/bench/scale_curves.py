"""The figure of launch/README.md: step time and throughput of every split of 16 workers, from measured runs.

python -m tests.bench.scale_curves launch/scale.svg RUN [RUN ...]

Each worker costs what one core of the measured machine did; workers share nothing and the network is free.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from llmrl.scale.costs import Costs, fit, read_run, slowdown
from llmrl.scale.simulate import Layout, Load, Predicted
from llmrl.scale.sweep import sweep

WORKERS = 16
STALENESS = (0, 1, 4)


def one_core(costs: Costs) -> Costs:
    """`costs` of a worker that has one core."""
    generate, update = (slowdown(1, costs.cores, serial) for serial in (costs.generate_serial, costs.update_serial))
    return replace(
        costs,
        generate_step_s=costs.generate_step_s * generate,
        generate_token_s=costs.generate_token_s * generate,
        update_s=costs.update_s * update,
        update_token_s=costs.update_token_s * update,
        cores=1,
    )


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    runs = [read_run(Path(name)) for name in sys.argv[2:]]
    costs = one_core(fit(runs)[0])
    groups = [group for run in runs for group in run.groups]
    load = Load(prompts_per_step=240, slots=128)  # which every number of trainers below divides
    able = [count for count in range(1, WORKERS) if 240 % count == 0]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    rows: list[Predicted] = []
    for staleness in STALENESS:
        found = [Layout(trainers=count, engines=WORKERS - count, shared=False, staleness=staleness) for count in able]
        results = sorted(sweep(found, costs, load, groups, steps=8), key=lambda result: result.layout.trainers)
        rows += results
        axes.plot(able, [r.step_s for r in results], marker="o", markersize=3, label=results[0].layout.mode)
    (together,) = sweep([Layout(trainers=WORKERS - 1, engines=WORKERS - 1, shared=True)], costs, load, groups, steps=8)
    axes.axhline(together.step_s, color="grey", linestyle="--", linewidth=1, label="15 workers together, in turns")
    axes.set(xlabel=f"trainers of {WORKERS} workers, the others sample", ylabel="step, s", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(sys.argv[1], metadata={"Date": None})
    print("| trainers : engines | " + " | ".join(row.layout.mode for row in rows[:: len(able)]) + " |")
    for index, count in enumerate(able):
        steps = [f"{rows[index + len(able) * number].step_s:.1f}" for number in range(len(STALENESS))]
        print(f"| {count} : {WORKERS - count} | " + " | ".join(steps) + " |")
    print(f"together, in turns ({together.layout.trainers} workers): {together.step_s:.1f} s")


if __name__ == "__main__":
    main()
