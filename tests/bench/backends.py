"""One optimizer step under each back-end: `python tests/bench/backends.py MODEL_FOLDER [BACKEND ...]` prints one JSON line.

Every back-end runs in two processes over gloo with half of the cores each, and `one` in one process with all of them, on
the same 32 completions in four groups. Seconds are the median of the steps after the first; memory is of each process:
the peak of its resident set, and what it held after the last step beyond what it had before it loaded the model.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from llmrl.algos.grpo import GRPO
from llmrl.settings.load import parse_recipe
from llmrl.train.collate import collate
from llmrl.train.learn import update
from llmrl.train.models import Sources, build_models
from llmrl.train.sample import by_prompt
from llmrl.train.world import World
from tests.tiny import random_trajectories

STEPS = 4
BACKENDS = ("one", "ddp", "fsdp2", "zero2", "zero3")


def main() -> None:
    source, backends = sys.argv[1], sys.argv[2:] or list(BACKENDS)
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {"model": source, "cores": cores, "steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            processes = 1 if backend == "one" else 2
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
            env = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes)), "DS_ACCELERATOR": "cpu"}
            command = [sys.executable, *launcher, "--rank", source, backend, folder]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                print(f"{backend} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
                found[backend] = {"exit_code": done.returncode}
                continue
            ranks = [json.loads((Path(folder) / f"{backend}-{rank}.json").read_text()) for rank in range(processes)]
            found[backend] = {
                "step_s": round(max(rank["step_s"] for rank in ranks), 2),
                "peak_mib": [rank["peak_mib"] for rank in ranks],
                "held_mib": [rank["held_mib"] for rank in ranks],
                "grad_norm": ranks[0]["grad_norm"],
            }
    print(json.dumps(found))


def one_rank(source: str, backend: str, folder: Path) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.distributed.init_process_group("gloo")
    world = World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size())
    train = {
        "steps": STEPS,
        "lr": 1e-6,
        "tokens_per_microbatch": 1024,
        "backend": "ddp" if backend == "one" else backend,
    }
    recipe = parse_recipe(
        {"name": "bench", "model": {"path": source}, "data": {"source": "addition"}, "algo": {"name": "grpo"},
         "reward": {"none": {"name": "none:none"}}, "train": train}
    )  # fmt: skip
    before = _resident_mib()
    groups = by_prompt(random_trajectories(0, groups=(8,) * 4, longest_prompt=60, longest=60))
    prompts = [rows[0].prompt for rows in groups.values()]
    models = build_models(recipe, GRPO(), Sources(policy=source), prompts, [], world)
    batch = GRPO().credit(collate([t for prompt in world.share(list(groups)) for t in groups[prompt]]))
    seconds, norms = [], []
    for step in range(STEPS):
        begin = time.perf_counter()
        metrics = update(models, GRPO(), batch, step)
        seconds.append(time.perf_counter() - begin)
        norms.append(metrics["grad_norm"])
    gc.collect()
    measured = {
        "step_s": statistics.median(seconds[1:]),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "held_mib": round(_resident_mib() - before),
        "grad_norm": norms[0],
    }
    (folder / f"{backend}-{world.rank}.json").write_text(json.dumps(measured))
    world.leave()


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        one_rank(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
