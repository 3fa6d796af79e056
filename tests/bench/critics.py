"""What a value model costs: `python -m tests.bench.critics MODEL_FOLDER` prints one JSON line.

An update of GRPO, of PPO with a shared head and of PPO with a separate value model of the same size, on the same made-up
rollout (8 groups of 8), each in a process of its own: seconds of annotate plus update (median), and peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from llmrl.algos.grpo import GRPO
from llmrl.algos.ppo import PPO
from llmrl.batch import Algorithm
from llmrl.memory import keep_freed_memory
from llmrl.policy.critic import load_critic
from llmrl.policy.model import load_policy
from llmrl.settings.model import CriticConfig
from llmrl.settings.recipe import ModelConfig, TrainConfig
from llmrl.train.collate import collate
from llmrl.train.learn import learn
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import Updater
from llmrl.train.values import CriticTrainer
from tests.tiny import random_trajectories, tiny_models

ROUNDS = 4
CASES: dict[str, tuple[Algorithm, CriticConfig | None]] = {
    "grpo": (GRPO(), None),
    "ppo_shared": (PPO(), CriticConfig()),
    "ppo_separate": (PPO(), CriticConfig(kind="separate")),
}


def main() -> None:
    source, *name = sys.argv[1:]
    if name:
        print(json.dumps(measured(source, *CASES[name[0]])))
        return
    found: dict[str, object] = {"model": source}
    for case in CASES:
        command = [sys.executable, "-m", "tests.bench.critics", source, case]
        found[case] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(json.dumps(found))


def measured(source: str, algo: Algorithm, config: CriticConfig | None) -> dict[str, float]:
    """Seconds and peak GiB of one method's step, rollouts apart."""
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cpu, settings = torch.device("cpu"), ModelConfig(path=source, dtype="bfloat16")
    policy = load_policy(settings, source=source, device=cpu, seed=0)
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
    updater, critic_trainer = Updater(policy.trainable(), **options), None  # type: ignore[arg-type]
    if config is not None:
        critic = load_critic(config, settings, policy, source=source, device=cpu, seed=0)
        critic_trainer = CriticTrainer(critic=critic, updater=Updater(critic.trainable(), **options), config=config)  # type: ignore[arg-type]
    logprob_model = LogprobModel(model=policy.causal_lm, mode="packed", temperature=1.0, tokens_per_microbatch=4096)
    rows = random_trajectories(0, groups=(8,) * 8, longest_prompt=60, longest=60)
    batch = collate(rows)
    models = tiny_models(logprob_model, updater, config=TrainConfig(steps=99), critic_trainer=critic_trainer)
    seconds = []
    for step in range(ROUNDS + 1):
        begin = time.perf_counter()
        learn(models, algo, batch, step)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"step_s": round(statistics.median(seconds[1:]), 2), "peak_gib": round(peak, 2)}


if __name__ == "__main__":
    main()
