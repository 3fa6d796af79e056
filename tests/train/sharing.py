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
from llmrl.batch import Algorithm, Batch, Loss, Output
from llmrl.config import Recipe, parse_recipe
from llmrl.policy.model import load_policy
from llmrl.train.backends.build import build
from llmrl.train.checkpoint import TrainState, Writer, read_optimizer, read_state
from llmrl.train.collate import collate
from llmrl.train.job import by_prompt
from llmrl.train.start import reference_logprobs
from llmrl.train.update import Scorer, annotate, update
from llmrl.train.world import World
from llmrl.types import Score, Trajectory
from tests.tiny import random_trajectories

ALGOS: dict[str, dict[str, Any]] = {
    "grpo": {"name": "grpo"},
    "grpo_kl": {"name": "grpo", "kl_coef": 0.05},
    "pacs": {"name": "pacs"},
}
GROUPS = (5, 4, 2, 3, 2)  # rank 0 of two gets ten rows, rank 1 seven, of which three learn nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Training steps `start` to `end` of one back-end, from the checkpoint `load` if there is one, saved in `run`.

    `poison` makes a gradient not a number in step 1 and the loss in step 3, on the last rank only.
    """

    run: str
    source: str
    backend: str
    algo: str = "grpo"
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
            "model": {"path": case.source, "dtype": case.dtype, "lora": {"r": 4} if case.lora else None},
            "data": {"source": "addition"},
            "reward": {"exact": {"name": "tests.train.rewards:nothing"}},
            "algo": ALGOS[case.algo],
            # A large eps: Adam would blow up rounding errors of gradients that are almost zero.
            "train": {
                "steps": 5,
                "lr": 1e-2,
                "eps": 1e-3,
                "max_grad_norm": 0.5,
                "epochs": 2,
                "tokens_per_microbatch": 30,
            },
        }
    )


def data(step: int) -> list[Trajectory]:
    """Trajectories of a step with outcomes 0 and 1; the fourth group fails altogether."""
    found = random_trajectories(100 + step, groups=GROUPS)
    return [replace(t, scores=tuple(replace(s, value=_outcome(t, s)) for s in t.scores)) for t in found]


def _outcome(trajectory: Trajectory, score: Score) -> float:
    return float(bool(score.value) and score.value > 0 and trajectory.prompt.id != "g3")


@dataclass(frozen=True)
class Poisoned:
    """An algorithm whose first micro-batch of a step has a gradient, or a loss, that is not a number."""

    algo: Algorithm
    step: int
    given: list[int] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
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
    recipe, algo = recipe_of(case), build_algorithm(ALGOS[case.algo])
    policy = load_policy(recipe.model, source=case.source, device=world.device, seed=7)
    scorer = Scorer(model=policy.causal_lm, mode="packed", temperature=1.0, tokens_per_microbatch=30)
    backend: Any = case.backend
    trained = build(backend, recipe, policy, scorer, world)
    reference = reference_logprobs(
        recipe, algo, trained.policy, trained.scorer, case.source, backend=backend, world=world
    )
    if case.load is not None:
        trained.updater.load(read_optimizer(Path(case.load)))
        assert read_state(Path(case.load)).step == case.start
    metrics: list[dict[str, float]] = []
    for step in range(case.start, case.end):
        groups = by_prompt(data(step))
        mine = [trajectory for prompt in world.share(list(groups)) for trajectory in groups[prompt]]
        batch = annotate(
            collate(mine), needs=algo.needs, policy=trained.scorer, reference=reference, updates=recipe.updates_per_step
        )
        if case.poison and step in (1, 3) and world.rank == world.size - 1:
            used: Algorithm = Poisoned(algo, step)
        else:
            used = algo
        batch = used.credit(batch)
        metrics.append(
            update(batch, trained.scorer, used, trained.updater, recipe.train, step=step, seed=0, world=world)
        )
    state = TrainState(step=case.end, metrics_bytes=0)
    optimizer = trained.updater.state()
    if world.main:
        writer = Writer(Path(case.run), keep_last=9, keep_best=False)
        writer.save(trained.policy, optimizer, state)
        writer.close()
        (Path(case.run) / "metrics.json").write_text(json.dumps(metrics))
    else:
        trained.policy.lend()


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
    if world.size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
