"""Five methods under one sample budget: `python -m tests.bench.compare` trains, samples, and writes the table.

Every run is a recipe of recipes/arithmetic with the same changes (`COMMON`), a task and a seed, through the real command
line. Finished runs are skipped and stopped ones resumed, so the command can be stopped and repeated at will. Afterwards
one engine samples every run's last policy, and recipes/arithmetic/README.md gets a table and a plot. With --only one
run is made; with --report nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.compare_report import write_report

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "arithmetic"
METHODS = ("grpo", "ppo", "pacs", "rloo", "dapo")
COMMON = (
    "train.steps=15", "train.minibatches=2", "train.lr=2e-5", "train.save_every=5", "train.keep_last=1",
    "train.keep_best=false", "eval.every=5", "eval.data.n=100", "rollout.engine=native",
)  # fmt: skip
PROMPTS = 12  # a step, 8 completions each
SAMPLES = 8  # per held-out problem, at temperature 1, after training


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained on: recipe overrides, and how many seeds.

    `base` are the overrides of a supervised run that is made once before, if not empty, and whose model all methods then
    start from.
    """

    changes: tuple[str, ...]
    seeds: tuple[int, ...]
    title: str
    base: tuple[str, ...] = ()


TASKS = {
    "countdown": Task(
        changes=(
            "data.source=countdown",
            "data.args={count: 3, high: 9, target_high: 30}",
            "data.max_prompt_tokens=96",
            "reward={countdown: {name: 'llmrl.rewards.countdown:Countdown'}}",
        ),
        base=(
            "stages=[{kind: sft, train: {steps: 100, lr: 5.0e-5, batch_size: 8}, eval: {data: {n: 64}}}]",
            "train.steps=1",
            "train.save_every=1",
            "eval.every=1",
            "eval.data.n=20",  # what follows is not used
        ),
        seeds=(0, 1, 2),
        title="reach a number with three others",
    ),
    "addition": Task(changes=(), seeds=(0,), title="a + b, two digits"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cell of the comparison."""

    task: str
    method: str
    seed: int
    folder: Path
    model: str
    more: tuple[str, ...] = ()

    @property
    def changes(self) -> list[str]:
        """The overrides of its recipe."""
        named = [f"name={self.folder.name}", f"runs_dir={self.folder.parent}", f"seed={self.seed}"]
        prompts = PROMPTS // 2 if self.method == "dapo" else PROMPTS  # which may ask for as many again
        named.append(f"rollout.prompts_per_step={prompts}")
        return [*COMMON, *TASKS[self.task].changes, f"model.path={self.model}", *named, *self.more]


def base(task: str, folder: Path, model: str) -> Run | None:
    """The supervised run that comes before all of `task`, if there is one."""
    more = TASKS[task].base
    return (
        Run(task=task, method="grpo", seed=0, folder=folder / f"{task}-base", model=model, more=more) if more else None
    )


def runs(folder: Path, model: str, *, seeds: int | None = None) -> Iterator[Run]:
    """All runs, the first seed of every method first, so that a comparison that is stopped early is still one."""
    for number in range(max(len(task.seeds) for task in TASKS.values())):
        for name, task in TASKS.items():
            before = base(name, folder, model)
            start = str(before.folder / "stages" / "01-sft" / "model") if before else model
            for seed in task.seeds[number : number + 1] if seeds is None or number < seeds else ():
                for method in METHODS:
                    at = folder / f"{name}-{method}-{seed}"
                    yield Run(task=name, method=method, seed=seed, folder=at, model=start)


def train(run: Run) -> bool:
    """Start, resume or skip `run`; True if it is finished then."""
    return train_recipe(RECIPES / f"{run.method}.yaml", run.folder, run.changes)


def train_recipe(recipe: Path, folder: Path, changes: Sequence[str]) -> bool:
    """Start, resume or skip the run of `recipe` in `folder`; True if it is finished then. Its output goes to a log beside
    the folder, what it cost into cost.json.
    """
    summary = folder / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["status"] == "finished":
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    resume = ["--resume"] if (folder / "recipe.yaml").is_file() else []
    command = [sys.executable, "-m", "llmrl", "train", str(recipe), *changes, *resume]
    begin = time.monotonic()
    with folder.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()  # it finishes its step, saves and ends
            process.wait()
            raise
    code = process.returncode = os.waitstatus_to_exitcode(status)
    file = folder / "cost.json"
    cost = json.loads(file.read_text()) if file.is_file() else {"wall_s": 0.0, "peak_gib": 0.0}
    cost["wall_s"] += time.monotonic() - begin
    cost["peak_gib"] = max(cost["peak_gib"], usage.ru_maxrss / 2**20)
    if folder.is_dir():
        file.write_text(json.dumps(cost))
    print(f"{folder.name}: exit code {code} after {time.monotonic() - begin:.0f} s", flush=True)
    return code == 0


def sample(finished: Sequence[Run], folder: Path) -> None:
    """`SAMPLES` completions of every held-out problem by each run's last policy, and by the model before training.

    What each gave lies in sampled.json: per problem how many were right, and how many different texts those were.
    """
    waiting = [run for run in finished if not (run.folder / "sampled.json").is_file()]
    bases = {task: folder / f"base-{task}.json" for task in {run.task for run in finished}}
    if not waiting and all(file.is_file() for file in bases.values()):
        return
    from llmrl.compose import model_folder
    from llmrl.rollout.build import build_engine
    from llmrl.rollout.engine import EngineSettings
    from llmrl.settings.load import load_recipe

    source = model_folder(finished[0].model)
    recipe = load_recipe(RECIPES / "grpo.yaml", finished[0].changes)
    engine = build_engine(
        EngineSettings(kind="native", model=source, max_length=recipe.model.max_length, max_sequences=512)
    )
    try:
        for task, file in bases.items():
            if not file.is_file():
                first = next(run for run in finished if run.task == task)
                file.write_text(json.dumps(_sampled(engine, first, source, model_folder(first.model))))
        for run in waiting:
            (checkpoint,) = (run.folder / "checkpoints").glob("step-*")
            found = _sampled(engine, run, source, str(checkpoint / "policy"))
            (run.folder / "sampled.json").write_text(json.dumps(found))
            print(f"{run.folder.name}: sampled", flush=True)
    finally:
        engine.close()


def _sampled(engine: Any, run: Run, source: str, weights: str) -> list[dict[str, int]]:
    import torch

    from llmrl.compose import rewards_of
    from llmrl.policy.model import load_policy, load_tokenizer
    from llmrl.rewards.scoring import score_all
    from llmrl.rollout.roll import roll
    from llmrl.settings.load import load_recipe
    from llmrl.train.problems import load_problems

    recipe = load_recipe(RECIPES / f"{run.method}.yaml", [*run.changes, f"rollout.group_size={SAMPLES}"])
    engine.load(load_policy(recipe.model, source=weights, device=torch.device("cpu"), seed=0).weights(), version=0)
    prompts = load_problems(recipe, load_tokenizer(source)).held_out
    trajectories = roll(engine, prompts, recipe.rollout, seed=key_of(run), step=10**6, version=0)
    scores = score_all(rewards_of(recipe), trajectories)
    found = []
    for start in range(0, len(trajectories), SAMPLES):
        texts = [
            t.text.strip()
            for t, score in zip(trajectories[start : start + SAMPLES], scores[start : start + SAMPLES], strict=True)
            if score.value is not None and score.value >= recipe.eval.threshold
        ]
        found.append({"right": len(texts), "distinct": len(set(texts))})
    return found


def key_of(run: Run) -> int:
    """The sampling seed: that of the run, so that seeds differ and methods do not."""
    return 1000 + run.seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare", help="where the runs lie")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, help="at most so many seeds of a task")
    parser.add_argument("--only", help="one run, such as multistep-ppo-0")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no training outlives it
    folder = arguments.runs.resolve()
    wanted = [
        run for run in runs(folder, arguments.model, seeds=arguments.seeds) if arguments.only in (None, run.folder.name)
    ]
    if not wanted:
        parser.error(f"--only {arguments.only}: no such run")
    done: list[Run] = []
    if arguments.report:
        done = [run for run in wanted if (run.folder / "summary.json").is_file()]
    else:
        before = [found for task in {run.task for run in wanted} if (found := base(task, folder, arguments.model))]
        if not all([train(run) for run in before]):
            raise SystemExit("a supervised run failed; its log says why")
    finished = done or [run for run in wanted if train(run)]
    if finished:
        sample(finished, folder)
    if finished and arguments.only is None:
        write_report(RECIPES, folder, finished, {name: task.title for name, task in TASKS.items()}, samples=SAMPLES)
    missing = [run.folder.name for run in wanted if run not in finished]
    print(json.dumps({"runs": len(wanted), "finished": len(finished), "missing": missing}))
    raise SystemExit(bool(missing))


if __name__ == "__main__":
    main()
