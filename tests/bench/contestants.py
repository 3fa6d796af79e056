"""The sides of `vs_trl` and `memory`: one training step of llmrl or of TRL's GRPOTrainer, each in a process of its own.

A side prints one JSON line when it is ready and one for every step; before each step it waits for a line on its
standard input, so that the parent decides whose turn it is and only one side works at a time. Both do the same work:
the same prompts in the same order, 8 completions each, GRPO with clip range 0.2/0.28 and a mean over all tokens.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from llmrl.rollout.engine import EngineSettings

PROMPTS, GROUP, TOKENS, LR = 8, 8, 64, 1e-6


class Gate:
    """Talks with the parent over the process's original standard output; everything else is printed to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)

    def say(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")


def problems(steps: int) -> list[Any]:
    """The rows of addition problems that every side trains on, PROMPTS a step."""
    from llmrl.data.source import load_rows
    from llmrl.settings.data import DataConfig

    return load_rows(DataConfig(source="addition", limit=steps * PROMPTS, shuffle=False), seed=7)


def token_score(tokens: Any) -> float:
    """A reward that differs between nearly all completions, so that no group is uniform."""
    return sum(int(token) for token in tokens) % 1000 / 1000


def ours(options: argparse.Namespace, gate: Gate) -> None:
    """llmrl as a training run does it: engine, rewards, collate, credit, update, weights to the engine."""
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    import torch

    from llmrl.algos.grpo import GRPO
    from llmrl.policy.model import load_policy
    from llmrl.settings.recipe import ModelConfig, TrainConfig
    from llmrl.train.clock import Clock
    from llmrl.train.collate import collate
    from llmrl.train.learn import learn
    from llmrl.train.logprob_model import LogprobModel
    from llmrl.train.updater import Updater
    from tests.tiny import tiny_models

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    policy = load_policy(
        ModelConfig(path="model", dtype=options.dtype), source=options.model, device=torch.device("cpu"), seed=0
    )
    config = TrainConfig(steps=99, lr=LR)
    tokens = config.tokens_per_microbatch
    logprob_model = LogprobModel(model=policy.causal_lm, mode="packed", temperature=1.0, tokens_per_microbatch=tokens)
    updater = Updater(policy.trainable(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    algo = GRPO(importance_cap=None)
    prompts = _prompts(options, policy.tokenizer)
    engine = _engine(options, policy)
    engine.load(policy.weights(), version=0)
    gate.say(ready=True)
    for step in range(options.steps):
        gate.wait()
        clock = Clock()
        with clock("generate"):
            trajectories = _rollouts(engine, prompts[step * PROMPTS : (step + 1) * PROMPTS], options, step)
        with clock("reward"):
            trajectories = _scored(trajectories, equal=options.mode == "equal")
        with clock("update"):
            _, metrics = learn(tiny_models(logprob_model, updater, config=config), algo, collate(trajectories), step)
        with clock("sync"):
            engine.load(policy.weights(), version=step + 1)
        sampled = sum(t.sampled for t in trajectories)
        gate.say(
            **clock.seconds(), tokens=sampled, trained=metrics.get("tokens/packed", 0), gib=_peak_gib(engine),
            rows=[[list(t.prompt.tokens), t.tokens[len(t.prompt.tokens) :].tolist(), t.reward] for t in trajectories],
        )  # fmt: skip
    engine.close()


def _engine(options: argparse.Namespace, policy: Any) -> Any:
    from pathlib import Path

    from llmrl.rollout.native import NativeEngine
    from llmrl.rollout.process import ProcessEngine

    settings = EngineSettings(
        kind=options.engine, model=options.model, dtype=options.dtype, max_length=256, kv_cache_gib=1.0
    )
    if options.engine == "native":
        return NativeEngine(settings, model=policy.causal_lm, tokenizer=policy.tokenizer)
    return ProcessEngine(settings, log=Path(options.log or os.devnull))


def _prompts(options: argparse.Namespace, tokenizer: Any) -> list[Any]:
    from llmrl.data.prompts import to_prompts
    from llmrl.settings.data import DataConfig

    return to_prompts(problems(options.steps), tokenizer, DataConfig(source="addition"))[0]


def _rollouts(engine: Any, prompts: list[Any], options: argparse.Namespace, step: int) -> list[Any]:
    from llmrl.rollout.roll import single_turn
    from llmrl.seeding import key
    from llmrl.types import Request, Sampling

    places = [(prompt, sample) for prompt in prompts for sample in range(GROUP)]
    shortest = TOKENS if options.mode == "equal" else 0
    requests = [
        Request(
            tokens=prompt.tokens,
            sampling=Sampling(max_tokens=TOKENS, min_tokens=shortest, seed=key(0, step, prompt.id, sample)),
        )
        for prompt, sample in places
    ]
    made = engine.generate(requests)
    return [single_turn(p, completion, sample=i, version=step) for (p, i), completion in zip(places, made)]


def _scored(trajectories: list[Any], *, equal: bool) -> list[Any]:
    from dataclasses import replace

    from llmrl.rewards.exact_number import ExactNumber
    from llmrl.types import Score

    reward = ExactNumber()

    def score(t: Any) -> Score:
        return Score(value=token_score(t.tokens[t.mask])) if equal else reward(t)

    return [replace(t, scores=(score(t),)) for t in trajectories]


def trl(options: argparse.Namespace, gate: Gate) -> None:
    """TRL's GRPOTrainer: at its defaults, or (`best`) weights in --dtype and no gradient checkpointing."""
    from transformers import TrainerCallback

    trainer = trl_trainer(options)
    spent: dict[str, float] = {}
    inner = trainer._generate_single_turn

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        made = inner(*args, **kwargs)
        spent["generate"] = time.perf_counter() - begin
        spent["tokens"] = sum(len(ids) for ids in made[0])
        return made

    trainer._generate_single_turn = timed

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.wait()
            spent["begin"] = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step = time.perf_counter() - spent["begin"]
            times = {"time/step": step, "time/generate": spent["generate"], "time/update": step - spent["generate"]}
            gate.say(**times, tokens=spent["tokens"], gib=_peak_gib(None))

    trainer.add_callback(Turns())
    gate.say(ready=True)
    trainer.train()


def trl_trainer(options: argparse.Namespace) -> Any:
    """A GRPOTrainer of TRL for the bench's task."""
    import tempfile
    import warnings

    warnings.filterwarnings("ignore")
    # Importing vLLM would bind this process's threads.
    importlib.import_module("trl.import_utils").is_vllm_available = lambda *_, **__: False  # type: ignore[attr-defined]
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    best = options.side == "trl_best"
    rows = [
        {"prompt": [{"role": "user", "content": row.prompt}], "answer": row.answer} for row in problems(options.steps)
    ]
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "max_steps": options.steps, "report_to": [],
        "save_strategy": "no", "num_generations": GROUP, "max_completion_length": TOKENS, "learning_rate": LR,
        "shuffle_dataset": False, "lr_scheduler_type": "constant", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0,
        "loss_type": "dapo", "scale_rewards": "group", "temperature": 1.0, "logging_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip
    batch = options.trl_batch if best else 8  # 8 is TRL's default
    settings |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": PROMPTS * GROUP // batch}
    if options.mode == "equal":
        settings["generation_kwargs"] = {"min_new_tokens": TOKENS}
    model: Any = options.model
    if best:
        settings |= {"gradient_checkpointing": False, "bf16": False}
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype), attn_implementation=options.trl_attention
        )
    return GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
        reward_funcs=_trl_equal_reward if options.mode == "equal" else _trl_exact_reward,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
    )


def _trl_equal_reward(completions: Any, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [token_score(tokens) for tokens in completion_ids]


def _trl_exact_reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    from llmrl.rewards.exact_number import ExactNumber
    from llmrl.types import Prompt, Status, Trajectory

    reward = ExactNumber()

    def score(text: str, gold: str) -> float:
        prompt = Prompt(id="x", tokens=(1,), text="", answer=gold)
        made = Trajectory(prompt=prompt, tokens=[1, 1], mask=[0, 1], logprobs=[0, 0], step=[-1, 0], text=text,
                          status=Status.done())  # fmt: skip
        return float(reward(made).value or 0.0)

    return [score(made[0]["content"], gold) for made, gold in zip(completions, answer)]


def _peak_gib(engine: Any) -> float:
    """Peak resident memory of this process and of the engine's child, GiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round((own + (_child_peak(engine.pid) if hasattr(engine, "pid") else 0)) / 2**20, 3)


def _child_peak(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


SIDES: dict[str, Callable[[argparse.Namespace, Gate], None]] = {"ours": ours, "trl_best": trl, "trl_default": trl}


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`: a catalog name, which is pulled if it is not there, or a folder."""
    from llmrl.policy.catalog import resolve

    parser.add_argument(
        "--model", type=lambda name: str(resolve(name)), default="smollm2-135m", help="a catalog name or a folder"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """`--dtype`: auto is what a recipe would take on this machine."""
    from llmrl.hardware import dtype_here

    choices = ["auto", "bfloat16", "float32"]
    parser.add_argument(
        "--dtype", type=lambda name: dtype_here(name) if name in choices else name, default="auto",
        choices=choices[1:], help="precision of the weights on every side; auto as in recipes",
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that the parent passes on to the sides."""
    add_model(parser)
    add_dtype(parser)
    parser.add_argument("--mode", choices=["natural", "equal"], default="natural", help="lengths of completions")
    parser.add_argument("--engine", choices=["native", "vllm"], default="native", help="what our side samples with")
    parser.add_argument("--log", default="", help="file for the output of our engine")
    parser.add_argument("--trl-batch", type=int, default=64, help="rows of one forward pass of TRL at its best")
    parser.add_argument("--trl-attention", default="sdpa", help="attention of TRL at its best: sdpa or eager")


def passed_on(options: argparse.Namespace) -> Iterator[str]:
    for name in ("model", "dtype", "mode", "engine", "log", "trl_batch", "trl_attention"):
        yield f"--{name.replace('_', '-')}={getattr(options, name)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--steps", type=int, required=True)
    add_options(parser)
    chosen = parser.parse_args()
    SIDES[chosen.side](chosen, Gate())
