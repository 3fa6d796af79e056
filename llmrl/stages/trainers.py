"""TRL's stable trainers under a recipe's settings. The one module that imports trl.

Nothing is sent anywhere: telemetry and trackers of the libraries are off. Examples come as token ids, so that the chat
template is applied in one place of the project only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from llmrl.hardware import dtype_here
from llmrl.policy.lora import peft_config
from llmrl.policy.model import Policy, load_policy, load_tokenizer
from llmrl.seeding import key
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import PairStage, RewardModelStage
from llmrl.stages.examples import Examples
from llmrl.stages.follow import Follower
from llmrl.stages.optimizer import MasterAdamW
from llmrl.train.world import World

huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # read from the environment at its import, maybe long ago

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def make_trainer(
    stage: PairStage,
    recipe: Recipe,
    examples: Examples,
    follower: Follower,
    *,
    source: str,
    folder: Path,
    world: World,
) -> Any:
    """The stage's trainer with its model, optimizer and data; `train(resume_from_checkpoint=...)` runs it.

    Raises ConfigError for a model that cannot be trained (dropout, LoRA targets).
    """
    settings = _settings(stage, recipe, folder, world, len(examples.held_out))
    lora = _lora(stage, recipe, source)
    shared: dict[str, Any] = {"processing_class": load_tokenizer(source), "peft_config": lora, "callbacks": [follower]}
    data = {"train_dataset": Dataset.from_list(examples.train), "eval_dataset": Dataset.from_list(examples.held_out)}
    args: Any
    trainer: Any
    if isinstance(stage, RewardModelStage):
        args = RewardConfig(
            **settings, max_length=None, center_rewards_coefficient=stage.center or None,
            model_init_kwargs={"dtype": dtype_here(recipe.model.dtype)},
        )  # fmt: skip
        trainer = RewardTrainer(model=source, args=args, **shared, **data)
    else:
        args = DPOConfig(
            **settings, max_length=None, beta=stage.beta, loss_type=[stage.loss], label_smoothing=stage.label_smoothing
        )
        shown = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # it tokenizes what it is given
        with _unheard():
            trainer = DPOTrainer(model=_policy(recipe, source), args=args, train_dataset=shown, **shared)
        trainer.train_dataset, trainer.eval_dataset = data["train_dataset"], data["eval_dataset"]
    trainer.remove_callback(PrinterCallback)
    trainer.optimizer = MasterAdamW(
        [p for p in trainer.model.parameters() if p.requires_grad],
        lr=stage.train.lr,
        betas=stage.train.betas,
        eps=stage.train.eps,
        weight_decay=stage.train.weight_decay,
    )
    return trainer


@contextmanager
def _unheard() -> Iterator[None]:
    """What TRL says and shows while it tokenizes the row that stands in for the data."""
    logger = logging.getLogger(DPOTrainer.__module__)
    level = logger.level
    disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        enable_progress_bars()


def _equal_parts(count: int, most: int, ranks: int) -> int:
    """The largest batch of at most `most` that cuts `count` examples evenly for `ranks` processes: TRL averages over
    batches, not examples. 1 if none does.

    >>> _equal_parts(200, 16, 1), _equal_parts(6, 4, 1), _equal_parts(6, 4, 2)
    (10, 3, 3)
    """
    return next((size for size in range(min(most, count), 0, -1) if count % (size * ranks) == 0), 1)


def _settings(stage: PairStage, recipe: Recipe, folder: Path, world: World, held_out: int) -> dict[str, Any]:
    train = stage.train
    at_once = train.microbatch_size or train.batch_size // world.size
    seed = key(recipe.seed, "stage", stage.title) % 2**31
    return {
        "output_dir": str(folder),
        "max_steps": train.steps,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": _equal_parts(held_out, at_once, world.size),
        "gradient_accumulation_steps": train.batch_size // (at_once * world.size),
        "learning_rate": train.lr,
        "lr_scheduler_type": SCHEDULES[train.schedule],
        "warmup_steps": train.warmup_steps,
        "max_grad_norm": train.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
        "bf16": False,  # the weights themselves are in model.dtype
        "gradient_checkpointing": recipe.model.gradient_checkpointing,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",  # the follower says when
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_timeout": int(recipe.limits.rank_timeout_s),
    }


def _lora(stage: PairStage, recipe: Recipe, source: str) -> Any:
    """The recipe's adapter; a reward model's trains its new layer too."""
    lora = recipe.model.lora if stage.lora else None
    if lora is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))  # for the names of its layers
    config = peft_config(model, lora)
    if stage.kind == "reward_model":
        config.task_type = "SEQ_CLS"
        config.modules_to_save = [*(config.modules_to_save or []), "score"]
    return config


def _policy(recipe: Recipe, source: str) -> Any:
    """The causal LM, with the checks of the reinforcement learning; TRL adds adapter and recomputation itself."""
    plain = recipe.model.model_copy(update={"lora": None, "gradient_checkpointing": False})
    return load_policy(plain, source=source, device=torch.device("cpu"), seed=0).model


def export(trainer: Any, stage: PairStage, folder: Path) -> None:
    """Write the trained model as a plain Hugging Face folder, the adapter merged into it."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    adapted = hasattr(model, "merge_and_unload")
    if stage.kind == "reward_model":
        (model.merge_and_unload() if adapted else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        Policy(model=model, tokenizer=tokenizer, source="", lora=adapted).save(folder)
