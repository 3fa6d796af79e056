"""One rank of tests/train/test_backends.py: trains a tiny model under each of some back-ends, and saves what came out.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.sharing CASES.json
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmrl.algos.build import build_algorithm
from llmrl.batch import Algorithm, Batch, Loss, Needs, Output
from llmrl.settings.load import parse_recipe
from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import TrainState, Writer, read_state, read_tensors
from llmrl.train.collate import collate
from llmrl.train.learn import learn
from llmrl.train.models import Sources, build_models
from llmrl.train.sample import by_prompt
from llmrl.train.world import World
from llmrl.types import Score, Trajectory
from tests.tiny import random_trajectories

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"algo": {"name": "grpo"}},
    "grpo-reference": {
        "algo": {"name": "grpo", "kl_coef": 0.05}, "reference": {"kind": "reset_every", "every": 2, "reset_optimizer": True}
    },
    "pacs": {"algo": {"name": "pacs"}},
    "ppo": {"algo": {"name": "ppo"}, "critic": {"lr": 1e-2, "warmup_steps": 1, "whiten_targets": True}},
    "coderl": {
        "algo": {"name": "coderl", "baseline": "group_mean", "ce_coef": 0.0}, "outcome_critic": {"lr": 1e-2, "binary": True}
    },
    "coderl-shared": {
        "algo": {"name": "coderl", "baseline": "none", "ce_coef": 0.0}, "outcome_critic": {"kind": "shared", "lr": 1e-2}
    },
    "ppo-separate": {
        "algo": {"name": "ppo", "kl_coef": 0.05}, "critic": {"kind": "separate", "lr": 1e-2}, "reference": {"kind": "ema"}
    },
}  # fmt: skip
GROUPS = (5, 4, 2, 3, 2)  # rank 0 of two gets ten rows, rank 1 seven, of which three learn nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Training steps `start` to `end` of one back-end, from the checkpoint `load` if there is one, saved in `run`.

    `poison` makes a gradient not a number in step 1 and the loss in step 3, on the last rank only.
    """

    run: str
    source: str
    backend: str
    method: str = "grpo"
    lora: bool = False
    dtype: str = "float32"
    start: int = 0
    end: int = 5
    load: str | None = None
    poison: bool = False


def recipe_of(case: Case) -> Recipe:
    return parse_recipe(
        {
            "name": "sharing",
            "model": {"path": case.source, "dtype": case.dtype, "max_length": 256, "lora": {"r": 4} if case.lora else None},
            "data": {"source": "addition", "max_prompt_tokens": 128},
            "rollout": {"max_tokens": 64, "group_size": 2},
            "reward": {"none": {"name": "none:none"}},
            # A large eps: Adam would blow up rounding errors of gradients that are almost zero.
            "train": {
                "steps": 5, "lr": 1e-2, "eps": 1e-3, "max_grad_norm": 0.5, "epochs": 2, "tokens_per_microbatch": 30,
                "backend": case.backend,
            },
            **METHODS[case.method],
        }
    )  # fmt: skip


def data(step: int) -> list[Trajectory]:
    """Trajectories of a step with outcomes 0 and 1; the fourth group fails altogether."""
    found = random_trajectories(100 + step, groups=GROUPS)
    return [replace(t, scores=tuple(_with_outcome(s, _outcome(t, s)) for s in t.scores)) for t in found]


def _with_outcome(score: Score, value: float) -> Score:
    return replace(score, value=value, parts={"tests/outcome": 2.0 + value})


def _outcome(trajectory: Trajectory, score: Score) -> float:
    return float(bool(score.value) and score.value > 0 and trajectory.prompt.id != "g3")


@dataclass(frozen=True)
class Poisoned:
    """An algorithm whose first micro-batch of a step has a gradient, or a loss, that is not a number."""

    algo: Algorithm
    step: int
    given: list[int] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        return self.algo.needs

    def credit(self, batch: Batch) -> Batch:
        return self.algo.credit(batch)

    def loss(self, out: Output, batch: Batch) -> Loss:
        found = self.algo.loss(out, batch)
        if self.given:
            return found
        self.given.append(self.step)
        nothing = (out.logprobs * 0.0).sum()
        poison = nothing.sqrt() if self.step == 1 else nothing + math.nan
        return replace(found, value=found.value + poison)


def run_case(case: Case, world: World) -> None:
    """Train and save; the checkpoint is written by rank 0, from shards of all."""
    recipe = recipe_of(case)
    algo = build_algorithm(recipe.algo)
    prompts = [trajectory.prompt for trajectory in data(0)]
    models = build_models(recipe, algo, Sources(policy=case.source), prompts, [], world)
    if case.load is not None:
        folder = Path(case.load)
        models.load(lambda name: read_tensors(folder, name))
        assert read_state(folder).step == case.start
    metrics: list[dict[str, float]] = []
    for step in range(case.start, case.end):
        groups = by_prompt(data(step))
        mine = [trajectory for prompt in world.share(list(groups)) for trajectory in groups[prompt]]
        poisoned = case.poison and step in (1, 3) and world.rank == world.size - 1
        used: Algorithm = Poisoned(algo, step) if poisoned else algo
        metrics.append(learn(models, used, collate(mine), step)[1])
    tensors = models.tensors()
    if world.main:
        writer = Writer(Path(case.run), keep_last=9, keep_best=False)
        writer.save(models.exports(), tensors, TrainState(step=case.end, metrics_bytes=0))
        writer.close()
        (Path(case.run) / "metrics.json").write_text(json.dumps(metrics))
    else:
        models.join_gather()


def write_cases(file: Path, cases: list[Case]) -> None:
    file.write_text(json.dumps([asdict(case) for case in cases]))


def main() -> None:
    cases = [Case(**case) for case in json.loads(Path(sys.argv[1]).read_text())]
    world = World()
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
        world = World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size())
    for case in cases:
        run_case(case, world)
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
