"""A step's generation alone and beside one burning process, for each engine: what a shared machine costs.

    python -m tests.bench.busy --engines native vllm

The burner is stopped and woken in turn, step by step, so that whatever else the machine does slows both sides alike.
The ratio of the medians should be at most 2: with one of two cores taken, half the time is left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmrl.cli import BRIEF_WAITS

SAMPLES, TOKENS = 16, 15
WAITING = {
    "as torch": {},
    "brief": BRIEF_WAITS,  # what llmrl sets
}  # how OpenMP's threads wait for work


@contextmanager
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing but use a core; it starts stopped."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(kind: str, model: str, dtype: str, steps: int) -> dict[str, float]:
    """Seconds a step alone and beside the burner (medians), and their ratio."""
    import torch

    from llmrl.hardware import cores
    from llmrl.rollout.build import build_engine
    from llmrl.rollout.engine import EngineSettings
    from llmrl.types import Request, Sampling

    torch.set_num_threads(cores())
    engine = build_engine(
        EngineSettings(kind=kind, model=model, dtype=dtype, max_length=128, max_sequences=SAMPLES, kv_cache_gib=1.0)  # type: ignore[arg-type]
    )
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS, temperature=1.0, seed=0)
    requests = [Request(tokens=tuple(range(100 + n, 140 + n)), sampling=sampling) for n in range(SAMPLES)]
    engine.generate(requests)  # everything is loaded and compiled
    seconds: dict[str, list[float]] = {"alone": [], "busy": []}
    with burner() as other:
        for _ in range(steps):
            for side, wanted in (("alone", signal.SIGSTOP), ("busy", signal.SIGCONT)):
                other.send_signal(wanted)
                started = time.perf_counter()
                engine.generate(requests)
                seconds[side].append(time.perf_counter() - started)
    engine.close()
    found = {side: round(statistics.median(values), 3) for side, values in seconds.items()}
    return found | {"ratio": round(found["busy"] / found["alone"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engines", nargs="+", default=["native", "vllm"])
    parser.add_argument("--waiting", nargs="+", default=list(WAITING), choices=list(WAITING))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from llmrl.compose import model_folder

        found = measure(options.engines[0], model_folder(options.model), options.dtype, options.steps)
        print(json.dumps(found))
        return
    for engine in options.engines:
        for waiting in options.waiting:
            child = [sys.executable, "-m", "tests.bench.busy", "--child", "--model", options.model, "--dtype", options.dtype,
                     "--engines", engine, "--steps", str(options.steps)]  # fmt: skip
            threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            done = subprocess.run(
                child, env=os.environ | threads | WAITING[waiting], capture_output=True, text=True, check=False
            )
            said = done.stdout.strip().splitlines()[-1] if not done.returncode else done.stderr[-400:]
            print(f"{engine:7} {waiting:9} load {os.getloadavg()[0]:4.1f}  {said}", flush=True)


if __name__ == "__main__":
    main()
