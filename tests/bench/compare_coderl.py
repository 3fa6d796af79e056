"""CodeRL's parts under one sample budget: `python -m tests.bench.compare_coderl` trains, samples, and writes the table.

A small model, made here, is taught reference programs until 29 % of what it samples passes. Every run is
recipes/programs/coderl.yaml with a few changes, from that one warm start, through the real command line: the learned critic,
uniform and linear weights, no baseline, SFT continued, and GRPO, three seeds each. A greedy completion counts as a sample, so
methods that ask for one draw one sample a prompt less. Finished runs are skipped and stopped ones resumed. Afterwards one
engine samples every last policy (pass@1, pass@5), the learned critics are asked about programs of a policy that they have not
seen, whole and as prefixes, and critic sampling, with a repair model taught on the first critic run's failing programs,
spends equal numbers of tokens in five ways. recipes/programs/README.md gets the tables. With
--only one run is made; with --report nothing is trained or sampled.
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

from llmrl.data.programs import programs
from llmrl.rollout.programs import repairs, write_jsonl
from tests.bench.coderl_report import write_report
from tests.bench.coderl_sampling import measure, newest
from tests.bench.compare import train_recipe
from tests.bench.small import small_llama

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "programs"
SEEDS = (0, 1, 2)
GROUP = 8  # completions of a prompt, the greedy one included
OPERATIONS = 3
ALL = (
    "model.dtype=float32", "model.max_length=512", f"data.args={{operations: {OPERATIONS}}}", "train.keep_last=1",
    "train.keep_best=false", "train.tokens_per_microbatch=8192", "eval.data.n=96", "eval.temperature=1.0",
)  # fmt: skip
COMMON = (
    *ALL, "data.limit=3000", "train.steps=40", "train.lr=1e-4", "train.save_every=20", "eval.every=40",
    "rollout.prompts_per_step=12",
)  # fmt: skip
WARM = (
    *ALL, "data.limit=12000", "train.steps=1300", "train.lr=2e-3", "train.schedule=cosine", "train.warmup_steps=50",
    "train.save_every=100", "train.keep_last=20", "eval.every=400", "rollout.prompts_per_step=32", "rollout.group_size=1",
)  # fmt: skip
START = 800  # of those steps: the checkpoint that all others begin with; later ones leave too little to learn
REPAIRING = (
    "model.dtype=float32", "model.max_length=512", "data.args={}", "data.max_prompt_tokens=400", "reward=null", "eval=false",
    "train.steps=150", "train.lr=5e-4", "train.schedule=cosine", "rollout.prompts_per_step=16", "rollout.group_size=1",
    "train.save_every=150", "train.keep_last=1", "train.tokens_per_microbatch=8192",
)  # fmt: skip
GREEDY = f"rollout.group_size={GROUP - 1}"
CRITIC = "outcome_critic.lr=5e-4"
METHODS: dict[str, tuple[str, ...]] = {
    "critic": (GREEDY, CRITIC),
    "uniform": (GREEDY, "algo={name: coderl, weights: uniform}", "outcome_critic=null"),
    "grpo": (f"rollout.group_size={GROUP}", "algo={name: grpo}", "outcome_critic=null"),
    "linear": (GREEDY, "algo={name: coderl, weights: linear}", "outcome_critic=null"),
    "no baseline": (f"rollout.group_size={GROUP}", "algo={name: coderl, baseline: none}", CRITIC),
    "sft": ("algo={name: sft}", "outcome_critic=null"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cell of the comparison; `changes` are the overrides of its recipe."""

    method: str
    seed: int
    folder: Path
    changes: tuple[str, ...]


def small_model(folder: Path) -> Path:
    """The model that the warm start begins with, made if it is not there."""
    target = folder / "small"
    if not (target / "tokenizer.json").is_file():
        tasks = [programs(0, number, operations=OPERATIONS) for number in range(2000)]
        texts = ["\n".join((task["problem"], *task["solutions"])) for task in tasks]
        small_llama(target, texts, words=600, width=128, layers=4)
    return target


def supervised(folder: Path, name: str, model: Path | str, changes: tuple[str, ...]) -> Run:
    """A run of SFT: the warm start that all others begin with, or the repair model."""
    own = (f"model.path={model}", f"runs_dir={folder}", f"name={name}")
    return Run(method=name, seed=0, folder=folder / name, changes=(*changes, *own))


def start_of(folder: Path) -> Path:
    return folder / "base" / "checkpoints" / f"step-{START:06d}" / "policy"


def repair_model(folder: Path, more: tuple[str, ...]) -> Path | None:
    """The policy of the repair model, trained on what the first critic's run sampled; None before that has finished."""
    source, file = folder / "critic-0", folder / "repairs.jsonl"
    if not (source / "summary.json").is_file():
        return None
    if not file.is_file():
        write_jsonl(file, repairs(source))
    run = supervised(folder, "repair", start_of(folder), (*REPAIRING, f"data.source={file}"))
    if not train_recipe(RECIPES / "sft.yaml", run.folder, (*run.changes, *more)):
        raise SystemExit(f"the repair model failed; {run.folder}.log says why")
    return newest(run.folder) / "policy"


def runs(folder: Path) -> Iterator[Run]:
    """All runs, the first seed of every method first, so that a comparison that is stopped early is still one."""
    for seed in SEEDS:
        for method, changes in METHODS.items():
            name = f"{method.replace(' ', '-')}-{seed}"
            own = (
                "stages=[]",
                f"model.path={start_of(folder)}",
                f"runs_dir={folder}",
                f"name={name}",
                f"seed={seed}",
            )
            yield Run(method=method, seed=seed, folder=folder / name, changes=(*COMMON, *changes, *own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare-coderl", help="where the runs lie")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="at most so many seeds")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a training; 0: all")
    parser.add_argument("--only", help="one run, such as critic-0")
    parser.add_argument("--report", action="store_true", help="train and sample nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no training outlives it
    folder: Path = arguments.runs.resolve()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads or os.cpu_count())
    more = (f"train.threads={arguments.threads}",)
    if not arguments.report and not start_of(folder).is_dir():
        base = supervised(folder, "base", small_model(folder), WARM)
        if not train_recipe(RECIPES / "sft.yaml", base.folder, (*base.changes, *more)):
            raise SystemExit(f"the warm start failed; {folder}/base.log says why")
    wanted = [run for run in runs(folder) if run.seed < arguments.seeds and arguments.only in (None, run.folder.name)]
    if arguments.report:
        finished = [run for run in wanted if (run.folder / "summary.json").is_file()]
    else:
        finished = [r for r in wanted if train_recipe(RECIPES / "coderl.yaml", r.folder, (*r.changes, *more))]
    if finished and arguments.only is None:
        runs_by_name = {run.folder.name: run.folder for run in finished}
        if not arguments.report:
            repairing = repair_model(folder, more)
            measure(RECIPES / "coderl.yaml", COMMON, start_of(folder), runs_by_name, repairing=repairing)
        write_report(RECIPES, folder, [(run.method, run.seed, run.folder) for run in finished])
    missing = [run.folder.name for run in wanted if run not in finished]
    print(json.dumps({"runs": len(wanted), "finished": len(finished), "missing": missing}))
    raise SystemExit(bool(missing))


if __name__ == "__main__":
    main()
