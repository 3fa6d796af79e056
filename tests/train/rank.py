"""One rank of tests/train/test_ranks.py: an update on this rank's groups; rank 0 stores what came out.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.rank OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmrl.algos.grpo import GRPO
from llmrl.algos.ppo import PPO
from llmrl.batch import Algorithm
from llmrl.policy.critic import Critic, ValueHead
from llmrl.settings.model import CriticConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.collate import collate
from llmrl.train.learn import learn
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.sample import by_prompt
from llmrl.train.updater import Updater
from llmrl.train.values import CriticTrainer
from llmrl.train.world import World
from tests.tiny import random_model, random_trajectories, tiny_models

CONFIG = TrainConfig(steps=1, lr=1e-2, tokens_per_microbatch=30, max_grad_norm=0.5)


ALGORITHMS: dict[str, Algorithm] = {
    "token": GRPO(normalize="token"),
    "sequence": GRPO(normalize="sequence"),
    "ppo": PPO(),  # whitens over all ranks, and so do its value targets
}


def learned(world: World, algo: Algorithm) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(gradients and new weights by name, metrics) of one update on this rank's share of five unequal groups."""
    groups = by_prompt(random_trajectories(21, groups=(5, 4, 2, 2, 1)))
    mine = [trajectory for prompt in world.share(list(groups)) for trajectory in groups[prompt]]
    model = random_model()
    named = list(model.named_parameters())
    grads: list[torch.Tensor] = []

    def reduce(grad: torch.Tensor) -> torch.Tensor:
        grads.append(world.sum_(grad).clone())
        return grad

    def updater_of(named: list[tuple[str, torch.nn.Parameter]]) -> Updater:
        norm = CONFIG.max_grad_norm
        return Updater(named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=norm, reduce=reduce)

    updater, critic_trainer = updater_of(named), None
    if algo.needs.values:
        critic = Critic(head=ValueHead(64))
        critic_trainer = CriticTrainer(
            critic=critic, updater=updater_of(critic.trainable()), config=CriticConfig(whiten_targets=True, lr=1e-2)
        )
        named = [*named, *critic.trainable()]
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=30)
    models = tiny_models(logprob_model, updater, config=CONFIG, critic_trainer=critic_trainer, world=world)
    _, metrics = learn(models, algo, collate(mine), 0)
    found = {f"grad/{name}": grad for (name, _), grad in zip(named, grads, strict=True)}
    return found | {f"weight/{name}": p.detach().clone() for name, p in named}, metrics


def main() -> None:
    torch.distributed.init_process_group("gloo")
    world = World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size())
    for name, algo in ALGORITHMS.items():
        tensors, metrics = learned(world, algo)
        output = Path(sys.argv[1]) / f"{name}-{world.rank}"
        save_file(tensors, output.with_suffix(".safetensors"))
        output.with_suffix(".json").write_text(json.dumps(metrics))
    world.leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
