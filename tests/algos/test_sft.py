"""Supervised fine-tuning on the one loop: the loss by definition, TRL as judge, whole runs that resume."""

import json

import pytest
import torch

from llmrl.algos.sft import SFT
from llmrl.data.gold import gold_rows
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import make_row
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.checkpoint import checkpoints, digest
from llmrl.train.collate import collate
from llmrl.train.learn import update
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import Updater
from tests.tiny import random_model, tiny_models, tiny_tokenizer
from tests.train.test_episode_runs import trained
from tests.train.test_runs import recipe

pytestmark = pytest.mark.usefixtures("settings_as_before")
TEXTS = [("What is 2 + 3?", "five"), ("And 1?", "1"), ("Say something long.", "a b c d e f g"), ("x", "yes no")]


def examples(**changes):
    rows = [make_row({"prompt": q, "completion": a, **changes}, columns={}, origin=q, default_id=q) for q, a in TEXTS]
    prompts, _ = to_prompts(rows, tiny_tokenizer(), DataConfig(source="none"))
    return gold_rows(prompts, tiny_tokenizer(), max_length=200)[0]


def batch():
    return collate(list(examples().values()))


@pytest.mark.parametrize("normalize", ["token", "sequence"])
@pytest.mark.parametrize("budget", [20, 4096])
def test_the_loss_is_the_mean_nll_of_completions_however_it_is_cut(normalize, budget):
    model, made = random_model(), batch()
    logits = [model(row[None, :length]).logits[0].double() for row, length in zip(made.tokens, made.length.tolist())]
    by_row = []
    for row, line in enumerate(logits):
        logprobs = line.log_softmax(-1)
        where = [t for t in range(1, int(made.length[row])) if made.mask[row, t]]
        by_row.append([-float(logprobs[t - 1, made.tokens[row, t]].detach()) for t in where])
    means = [sum(row) / len(row) for row in by_row]
    flat = [x for row in by_row for x in row]
    wanted = sum(means) / len(means) if normalize == "sequence" else sum(flat) / len(flat)
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=budget)
    updater = Updater(list(model.named_parameters()), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9)
    config = TrainConfig(steps=9, lr=1e-9, tokens_per_microbatch=budget)
    metrics = update(tiny_models(logprob_model, updater, config=config), SFT(normalize=normalize), made, 0)
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["nll"] == pytest.approx(sum(flat) / len(flat), rel=1e-5)
    assert metrics["mismatch/mean_abs_logprob"] == 0.0 and metrics["rows/skipped"] == 0


def test_completions_end_as_the_template_ends_a_turn():
    rows = examples()
    end = tiny_tokenizer().convert_tokens_to_ids("<|end|>")
    assert all(row.tokens[-1] == end and row.logprobs is None for row in rows.values())
    assert tiny_tokenizer().decode(rows["And 1?"].tokens[rows["And 1?"].mask]) == "1<|end|>"


def prompts_of(**columns):
    rows = [make_row({"prompt": q, **columns}, columns={}, origin=q, default_id=q) for q, _ in TEXTS]
    return to_prompts(rows, tiny_tokenizer(), DataConfig(source="none"))[0]


def test_a_row_without_a_completion_or_too_long_is_named():
    bare, long = prompts_of(), prompts_of(completion="as it is")
    with pytest.raises(DataError, match=r"What is 2 \+ 3\? has no gold completion"):
        gold_rows(bare, tiny_tokenizer(), max_length=200)
    whole, _ = gold_rows(long, tiny_tokenizer(), max_length=200)
    sizes = {name: len(row.tokens) for name, row in whole.items()}
    kept, too_long = gold_rows(long, tiny_tokenizer(), max_length=max(sizes.values()) - 1)
    assert sizes[too_long[0]] == max(sizes.values()) and {*kept, *too_long} == set(sizes)
    with pytest.raises(DataError, match=r"all 4 examples are longer than model\.max_length=12"):
        gold_rows(long, tiny_tokenizer(), max_length=12)


def test_trl_trains_the_same_losses(tmp_path, tiny_model):
    """TRL's SFTTrainer on the same rows in the same order, without dropout: its logged losses are ours."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = list(examples().values())
    columns = {
        "input_ids": [row.tokens.tolist() for row in rows],
        "labels": [[t if m else -100 for t, m in zip(row.tokens.tolist(), row.mask)] for row in rows],
    }
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
        lr_scheduler_type="constant", max_grad_norm=1e9, gradient_checkpointing=False, report_to=[], use_cpu=True,
        bf16=False, save_strategy="no", max_length=None, dataloader_pin_memory=False, disable_tqdm=True, packing=False,
        train_sampling_strategy="sequential", weight_decay=0.0, adam_epsilon=1e-8,
    )  # fmt: skip
    trainer = SFTTrainer(theirs, config, train_dataset=Dataset.from_dict(columns), processing_class=tiny_tokenizer())
    trainer.train()
    wanted = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=4096)
    updater = Updater(list(model.named_parameters()), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9)
    models = tiny_models(logprob_model, updater, config=TrainConfig(steps=9, lr=1e-3))
    ours = [update(models, SFT(), batch(), step)["loss"] for step in range(3)]
    assert ours == pytest.approx(wanted, rel=2e-4)


def test_a_run_learns_its_completions_and_resumes_bit_for_bit(tmp_path, tiny_model):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {n}.", "completion": "abc", "answer": "abc"} for n in range(90)]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = {"source": str(file), "max_prompt_tokens": 100}
    sections = {"algo": {"name": "sft"}, "data": data, "eval": {"data": {"n": 4}, "every": 0}}
    rollout = {"group_size": 1, "prompts_per_step": 8}
    whole = recipe(tmp_path / "whole", tiny_model, steps=6, rollout=rollout, **sections)
    found = trained(whole)
    assert found[-1]["nll"] < 0.5 * found[0]["nll"] and "reward/mean" not in found[0]
    half = recipe(tmp_path / "half", tiny_model, steps=3, rollout=rollout, **sections)
    trained(half)
    trained(half.model_copy(update={"train": whole.train}), resume=True)
    assert digest(checkpoints(half.run_dir)[-1]) == digest(checkpoints(whole.run_dir)[-1])
