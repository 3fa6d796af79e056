"""What durability costs: `python tests/bench/checkpoints.py MODEL_FOLDER` prints one JSON line.

Time and size of a checkpoint (how long training waits, how long the disk is written behind it), and an update's time
with and without `train.deterministic`, alternating, as a ratio of medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from llmrl.algos.grpo import GRPO
from llmrl.memory import keep_freed_memory
from llmrl.policy.model import Policy, load_policy
from llmrl.settings.recipe import ModelConfig, TrainConfig
from llmrl.train.checkpoint import TrainState, Writer, checkpoints, damage, read_tensors
from llmrl.train.collate import collate
from llmrl.train.learn import update
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import Updater
from tests.tiny import random_trajectories, tiny_models

ROUNDS = 5


def main() -> None:
    keep_freed_memory()
    source = sys.argv[1]
    settings = ModelConfig(path=source, dtype="bfloat16")
    policy = load_policy(settings, source=source, device=torch.device("cpu"), seed=0)
    updater = Updater(policy.trainable(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    deterministic = _update_seconds(policy, updater)
    print(json.dumps({"model": source} | deterministic | _checkpoint_seconds(policy, updater)))


def _update_seconds(policy: Policy, updater: Updater) -> dict[str, float]:
    rows = random_trajectories(0, groups=(8,) * 4, longest_prompt=60, longest=60)
    batch = GRPO().credit(collate(rows))
    logprob_model = LogprobModel(model=policy.causal_lm, mode="packed", temperature=1.0, tokens_per_microbatch=4096)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * (ROUNDS + 1)):
        torch.use_deterministic_algorithms(number % 2 == 0)
        begin = time.perf_counter()
        update(tiny_models(logprob_model, updater, config=TrainConfig(steps=99)), GRPO(), batch, 0)
        times[number % 2 == 0].append(time.perf_counter() - begin)
    free, strict = (statistics.median(times[kind][1:]) for kind in (False, True))
    return {"update_s": round(free, 3), "deterministic_ratio": round(strict / free, 3)}


def _checkpoint_seconds(policy: Policy, updater: Updater) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        writer = Writer(run, keep_last=1, keep_best=False)
        waits, writes = [], []
        for step in range(1, ROUNDS + 1):
            begin = time.perf_counter()
            writer.save({"policy": policy.save}, {"optimizer": updater.state()}, TrainState(step=step, metrics_bytes=0))
            waits.append(time.perf_counter() - begin)
            writer.finish()
            writes.append(time.perf_counter() - begin)
        writer.close()
        (folder,) = checkpoints(run)
        begin = time.perf_counter()
        assert damage(folder) is None
        updater.load(read_tensors(folder, "optimizer"))
        read = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "checkpoint_mib": round(size / 2**20, 1),
        "checkpoint_wait_s": round(statistics.median(waits), 3),
        "checkpoint_total_s": round(statistics.median(writes), 3),
        "check_and_restore_s": round(read, 3),
    }


if __name__ == "__main__":
    main()
