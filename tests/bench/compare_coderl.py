"""CodeRL's parts under one sample budget: `python -m tests.bench.compare_coderl` trains, samples, and writes the table.

Every run is recipes/programs/coderl.yaml with a few changes, from one warm start, through the real command line: the
learned critic, uniform and linear weights, no baseline, SFT continued, and GRPO, three seeds each. A greedy completion
counts as a sample, so methods that ask for one draw one sample a prompt less. Finished runs are skipped and stopped ones
resumed. Afterwards one engine samples every last policy (pass@1, pass@5), the learned critics are asked about programs of
a policy that they have not seen, whole and as prefixes, and critic sampling spends equal numbers of tokens in five ways.
recipes/programs/README.md gets the tables. With --only one run is made; with --report nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.coderl_report import write_report
from tests.bench.coderl_sampling import measure
from tests.bench.compare import train_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "programs" / "coderl.yaml"
SEEDS = (0, 1, 2)
GROUP = 8  # completions of a prompt, the greedy one included
COMMON = (
    "train.steps=10", "train.lr=2e-5", "train.save_every=5", "train.keep_last=1", "train.keep_best=false",
    "eval.every=10", "eval.data.n=48", "rollout.prompts_per_step=6",
)  # fmt: skip
# Two operations, few steps of SFT: there must be something left to learn. After 18 steps a third of greedy programs pass.
SFT_STEPS = 18
WARM = f"{{kind: sft, train: {{steps: {SFT_STEPS}, lr: 2.0e-5, batch_size: 8}}, eval: {{data: {{n: 50}}}}}}"
BASE = (f"stages=[{WARM}, {{kind: rl}}]", "train.steps=1", "eval.data.n=20", "algo={name: sft}", "outcome_critic=null")
GREEDY = f"rollout.group_size={GROUP - 1}"
METHODS: dict[str, tuple[str, ...]] = {
    "critic": (GREEDY,),
    "uniform": (GREEDY, "algo={name: coderl, weights: uniform}", "outcome_critic=null"),
    "grpo": (f"rollout.group_size={GROUP}", "algo={name: grpo}", "outcome_critic=null"),
    "linear": (GREEDY, "algo={name: coderl, weights: linear}", "outcome_critic=null"),
    "no baseline": (f"rollout.group_size={GROUP}", "algo={name: coderl, baseline: none}"),
    "sft": ("algo={name: sft}", "outcome_critic=null"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cell of the comparison; `changes` are the overrides of its recipe."""

    method: str
    seed: int
    folder: Path
    changes: tuple[str, ...]


def warm_start(folder: Path, model: str) -> Run:
    """The supervised run that all others start from."""
    more = (f"model.path={model}", f"runs_dir={folder}", "name=base", *BASE)
    return Run(method="warm start", seed=0, folder=folder / "base", changes=more)


def base_policy(folder: Path) -> Path:
    """The policy of the warm start."""
    return folder / "base" / "stages" / "01-sft" / "model"


def runs(folder: Path) -> Iterator[Run]:
    """All runs, the first seed of every method first, so that a comparison that is stopped early is still one."""
    for seed in SEEDS:
        for method, changes in METHODS.items():
            name = f"{method.replace(' ', '-')}-{seed}"
            own = (
                "stages=[]",
                f"model.path={base_policy(folder)}",
                f"runs_dir={folder}",
                f"name={name}",
                f"seed={seed}",
            )
            yield Run(method=method, seed=seed, folder=folder / name, changes=(*COMMON, *changes, *own))


def trained(run: Run, more: tuple[str, ...]) -> bool:
    """Start, resume or skip `run`; True if it is finished then."""
    return train_recipe(RECIPE, run.folder, (*run.changes, *more))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare-coderl", help="where the runs lie")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="at most so many seeds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a training; 0: all")
    parser.add_argument("--only", help="one run, such as critic-0")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no training outlives it
    folder: Path = arguments.runs.resolve()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads or os.cpu_count())
    more = (f"train.threads={arguments.threads}",)
    if not arguments.report and not trained(warm_start(folder, arguments.model), more):
        raise SystemExit(f"the warm start failed; {folder}/base.log says why")
    wanted = [run for run in runs(folder) if run.seed < arguments.seeds and arguments.only in (None, run.folder.name)]
    if arguments.report:
        finished = [run for run in wanted if (run.folder / "summary.json").is_file()]
    else:
        finished = [run for run in wanted if trained(run, more)]
    if finished and arguments.only is None:
        runs_by_name = {run.folder.name: run.folder for run in finished}
        measure(RECIPE, COMMON, base_policy(folder), runs_by_name)
        write_report(RECIPE.parent, folder, [(run.method, run.seed, run.folder) for run in finished])
    missing = [run.folder.name for run in wanted if run not in finished]
    print(json.dumps({"runs": len(wanted), "finished": len(finished), "missing": missing}))
    raise SystemExit(bool(missing))


if __name__ == "__main__":
    main()
