"""Tokens a second: `python -m tests.bench.generation --model FOLDER`.

Our engines against vLLM as a newcomer starts it (`LLM(model).generate`), on the same requests: the quickstart's prompts,
8 completions each. Of the environment only VLLM_CPU_KVCACHE_SPACE is set (GiB): left alone, vLLM 0.32 takes nearly all memory
of a machine for its cache, and is killed on one of 24 GiB. Every engine is a process of its own and they take turns.
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
from typing import Any

from tests.bench.contestants import GROUP, Gate, add_model, problems

ENGINES = ("native", "vllm", "vllm_default")


def serve(options: argparse.Namespace) -> None:
    """One engine: a JSON line for every line read, with its seconds and tokens."""
    gate = Gate()
    begin = time.perf_counter()
    generate = _newcomer(options) if options.engine == "vllm_default" else _ours(options)
    gate.say(start=round(time.perf_counter() - begin, 1))
    while True:
        gate.wait()
        begin = time.perf_counter()
        tokens = generate()
        gate.say(seconds=time.perf_counter() - begin, tokens=tokens)


def _prompts(options: argparse.Namespace) -> list[tuple[int, ...]]:
    from transformers import AutoTokenizer

    from llmrl.data.prompts import to_prompts
    from llmrl.settings.data import DataConfig

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts, _ = to_prompts(problems(options.sequences // GROUP // 8 + 1), tokenizer, DataConfig(source="addition"))
    return [prompt.tokens for prompt in prompts[: options.sequences // GROUP] for _ in range(GROUP)]


def _ours(options: argparse.Namespace) -> Any:
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    from llmrl.hardware import dtype_here
    from llmrl.rollout.build import build_engine
    from llmrl.rollout.engine import EngineSettings
    from llmrl.types import Request, Sampling

    requests = [
        Request(tokens=tokens, sampling=Sampling(max_tokens=options.tokens, seed=number))
        for number, tokens in enumerate(_prompts(options))
    ]
    settings = EngineSettings(
        kind=options.engine, model=options.model, dtype=dtype_here(options.dtype), max_length=256, kv_cache_gib=1.0
    )
    engine = build_engine(settings)
    return lambda: sum(len(made.tokens) for made in engine.generate(requests))


def _newcomer(options: argparse.Namespace) -> Any:
    from vllm import LLM, SamplingParams, TokensPrompt

    from llmrl.hardware import dtype_here

    llm = LLM(options.model, dtype=dtype_here(options.dtype), max_model_len=256)
    prompts = [TokensPrompt(prompt_token_ids=list(tokens)) for tokens in _prompts(options)]
    # No seeds: at its defaults vLLM 0.32 dies of seeded requests on a CPU ("CPU Generator does not use offset").
    sampling = SamplingParams(max_tokens=options.tokens, logprobs=0)

    def generate() -> int:
        return sum(len(made.outputs[0].token_ids) for made in llm.generate(prompts, sampling, use_tqdm=False))

    return generate


class _Engine:
    def __init__(self, name: str, options: argparse.Namespace) -> None:
        from llmrl.rollout.process import child_environment

        self.name = name
        self.rounds: list[dict[str, float]] = []
        environment = child_environment() if name == "vllm" else os.environ | {"VLLM_CPU_KVCACHE_SPACE": "4"}
        values = [f"--{key}={getattr(options, key)}" for key in ("model", "sequences", "tokens", "dtype")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.generation", *values, "--engine", name], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=None if options.verbose else subprocess.DEVNULL, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self.start = self._line()["start"]

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died; run again with --verbose to see why")
        return json.loads(line)  # type: ignore[no-any-return]

    def run(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.rounds.append(self._line())

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # with the processes that vLLM started
        self._process.wait()

    @property
    def rate(self) -> float:
        return statistics.median(found["tokens"] / found["seconds"] for found in self.rounds[1:] or self.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.generation", description=__doc__)
    add_model(parser)
    parser.add_argument("--sequences", type=int, default=128, help="completions asked for at once")
    parser.add_argument("--tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of every engine")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that warms up")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--verbose", action="store_true", help="show what the engines print")
    options = parser.parse_args()
    if options.engine:
        serve(options)
        return
    engines: list[_Engine] = []
    try:
        for name in options.engines:
            engines.append(_Engine(name, options))
        for _ in range(options.rounds + 1):
            for engine in engines:
                engine.run()
    finally:
        for engine in engines:
            engine.close()
    slowest = engines[-1].rate
    for engine in engines:
        print(
            f"{engine.name:14} {engine.rate:7.0f} tokens/s  {engine.rate / slowest:5.2f} x  start {engine.start:.0f} s"
        )
    figures = {engine.name: round(engine.rate, 1) for engine in engines}
    print(json.dumps({"bench": "generation", "sequences": options.sequences, "tokens": options.tokens, **figures}))


if __name__ == "__main__":
    main()
