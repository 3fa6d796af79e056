"""A step of supervised fine-tuning against TRL's SFTTrainer: `python -m tests.bench.sft --model FOLDER`.

The same rows in the same order (GSM8K's worked solutions if the data is here, else chains of additions), the same
token-mean loss, AdamW, no gradient checkpointing. Each side is a process of its own and the sides take turns; the first
round warms up. `trl_8` and `trl_16` are TRL with forward passes of 8 and of all 16 examples. The losses of both sides are
printed: they are the same up to the rounding of the weights' precision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.contestants import Gate, _peak_gib, add_dtype, add_model
from tests.bench.vs_trl import Side

BATCH, LR, LONGEST = 16, 1e-5, 512
DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "gsm8k"


def examples(model: str, steps: int) -> list[Any]:
    """Gold trajectories, BATCH for each of the steps."""
    from llmrl.data.gold import gold_rows, with_completions
    from llmrl.data.prompts import to_prompts
    from llmrl.data.rows import make_row
    from llmrl.policy.model import load_tokenizer
    from llmrl.settings.data import DataConfig

    files = sorted(DATA.rglob("*train*.jsonl")) if DATA.is_dir() else []
    if files:
        lines = [json.loads(line) for line in files[0].read_text().splitlines()[: 4 * BATCH * steps]]
        texts = [(row.get("question") or row["problem"], row.get("solution") or row["answer"]) for row in lines]
    else:
        chains = [[(7 * n + 3 * k) % 97 for k in range(3 + n % 9)] for n in range(2 * BATCH * steps)]
        texts = [(" + ".join(map(str, chain)) + " = ?", " ".join(str(sum(chain[: k + 1])) for k in range(len(chain))))
                 for chain in chains]  # fmt: skip
    rows = [
        make_row({"prompt": q, "completion": a}, columns={}, origin=str(n), default_id=str(n))
        for n, (q, a) in enumerate(texts)
    ]
    tokenizer = load_tokenizer(model)
    prompts, _ = to_prompts(with_completions(rows), tokenizer, DataConfig(source="none"))
    return list(gold_rows(prompts, tokenizer, max_length=LONGEST)[0].values())[: BATCH * steps]


def ours(options: argparse.Namespace, gate: Gate) -> None:
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    import torch

    from llmrl.algos.sft import SFT
    from llmrl.policy.model import load_policy
    from llmrl.settings.recipe import ModelConfig, TrainConfig
    from llmrl.train.collate import collate
    from llmrl.train.learn import learn
    from llmrl.train.logprob_model import LogprobModel
    from llmrl.train.updater import Updater
    from tests.tiny import tiny_models

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    model = ModelConfig(path="model", dtype=options.dtype)
    policy = load_policy(model, source=options.model, device=torch.device("cpu"), seed=0)
    config = TrainConfig(steps=99, lr=LR)
    logprob_model = LogprobModel(
        model=policy.causal_lm, mode="packed", temperature=1.0, tokens_per_microbatch=config.tokens_per_microbatch
    )
    updater = Updater(policy.trainable(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    models, rows = tiny_models(logprob_model, updater, config=config), examples(options.model, options.steps)
    gate.say(ready=True)
    for step in range(options.steps):
        gate.wait()
        begin = time.perf_counter()
        mine = rows[step * BATCH : (step + 1) * BATCH]
        _, metrics = learn(models, SFT(), collate(mine), step)
        seconds = time.perf_counter() - begin
        gate.say(
            **{"time/step": seconds}, loss=metrics["loss"], tokens=sum(len(r.tokens) for r in mine), gib=_peak_gib(None)
        )


def trl(options: argparse.Namespace, gate: Gate) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = examples(options.model, options.steps)
    columns = {
        "input_ids": [row.tokens.tolist() for row in rows],
        "labels": [[t if m else -100 for t, m in zip(row.tokens.tolist(), row.mask)] for row in rows],
    }
    at_once = int(options.side.rpartition("_")[2])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=options.steps, per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH // at_once, learning_rate=LR, lr_scheduler_type="constant", max_grad_norm=1.0,
        gradient_checkpointing=False, report_to=[], use_cpu=True, bf16=False, save_strategy="no", max_length=None,
        dataloader_pin_memory=False, disable_tqdm=True, packing=False, train_sampling_strategy="sequential",
        weight_decay=0.0, logging_steps=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    spent: dict[str, float] = {}

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.wait()
            spent["begin"] = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            spent["step"] = time.perf_counter() - spent["begin"]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                mine = rows[(state.global_step - 1) * BATCH : state.global_step * BATCH]
                tokens = sum(len(row.tokens) for row in mine)
                gate.say(**{"time/step": spent["step"]}, loss=logs["loss"], tokens=tokens, gib=_peak_gib(None))

    trainer = SFTTrainer(
        model, config, train_dataset=Dataset.from_dict(columns), callbacks=[Turns()],
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )  # fmt: skip
    gate.say(ready=True)
    trainer.train()


SIDES: dict[str, Callable[[argparse.Namespace, Gate], None]] = {"ours": ours, "trl_8": trl, "trl_16": trl}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.sft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", nargs="?", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=4, help="steps of each side that count")
    parser.add_argument("--verbose", action="store_true", help="show what the sides print")
    add_model(parser)
    add_dtype(parser)
    options = parser.parse_args()
    if options.side:
        return SIDES[options.side](options, Gate())
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """All sides in turns, their table, and one JSON line."""
    passed = [f"--model={options.model}", f"--dtype={options.dtype}"]
    sides = [Side(name, options.rounds + 1, options, module="sft", passed=passed) for name in SIDES]
    try:
        for number in range(options.rounds + 1):
            for side in sides:
                side.step()
                found = side.found[-1]
                print(f"round {number} {side.name:8} {found['time/step']:7.2f} s  loss {found['loss']:.5f}", flush=True)
    finally:
        for side in sides:
            side.close()
    figures: dict[str, Any] = {"bench": "sft", "dtype": options.dtype, "rounds": options.rounds}
    for side in sides:
        rounds = list(zip(side.found[1:], sides[0].found[1:]))
        ratio = statistics.median(theirs["time/step"] / our["time/step"] for theirs, our in rounds)
        apart = max(abs(theirs["loss"] - our["loss"]) for theirs, our in zip(side.found, sides[0].found))
        seconds, gib, tokens = (side.median(name) for name in ("time/step", "gib", "tokens"))
        print(f"{side.name:8} {seconds:7.2f} s/step  {tokens / seconds:7.0f} tokens/s  {gib:5.2f} GiB  "
              f"{ratio:4.1f} x ours  losses at most {apart:.2g} apart")  # fmt: skip
        figures[side.name] = {"step": seconds, "gib": gib, "ratio": round(ratio, 2), "losses_apart": apart}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
