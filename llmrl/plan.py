"""`llmrl plan`: what a recipe will do, from arithmetic alone; no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llmrl.algos.build import remarks
from llmrl.batch import Algorithm
from llmrl.data.files import is_file_source
from llmrl.data.generators import is_generator
from llmrl.data.source import held_out_config, load_train_eval
from llmrl.seeding import key
from llmrl.settings.model import CriticConfig, LoraConfig
from llmrl.settings.recipe import Recipe
from llmrl.stages.pairs import stage_data

BYTES = {"bfloat16": 2, "float32": 4}
GIB = 2**30
NEEDED = {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What memory depends on, read from config.json; parameters are counted for a Llama-like model."""

    parameters: int
    layers: int
    kv_width: int  # key plus value numbers per layer and token
    vocabulary: int
    hidden: int
    heads: int
    intermediate: int


def model_size(source: str) -> ModelSize | None:
    """Sizes of a local model folder; None for a hub id, which is not here yet, and for a config that is not Llama-like."""
    file = Path(source) / "config.json"
    return size_of(json.loads(file.read_text())) if file.is_file() else None


def size_of(config: Mapping[str, Any]) -> ModelSize | None:
    """Sizes of a model with this config.json; None for one that is not Llama-like."""
    if not set(config) >= NEEDED:
        return None
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    block = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return ModelSize(
        parameters=layers * block + embeddings + hidden,
        layers=layers,
        kv_width=2 * kv_heads * head,
        vocabulary=vocabulary,
        hidden=hidden,
        heads=heads,
        intermediate=config["intermediate_size"],
    )


def plan(recipe: Recipe, algo: Algorithm, source: str, critic_source: str = "") -> list[tuple[str, str]]:
    """(what, how much) rows about a run of `recipe`; `critic_source` is the folder of a value model that is another one.

    Raises DataError for data that training would refuse.
    """
    rollout, train = recipe.rollout, recipe.train
    samples = rollout.prompts_per_step * rollout.group_size
    updates = recipe.updates_per_step
    policy = (
        "on-policy: one update per rollout"
        if updates == 1
        else f"off-policy: {updates} updates per rollout ({train.epochs} epochs x {train.minibatches} minibatches)"
    )
    rows = [
        ("run folder", str(recipe.run_dir)),
        ("model", f"{source}, {recipe.model.dtype}" + (f", LoRA r={recipe.model.lora.r}" if recipe.model.lora else "")),
        *stage_rows(recipe),
        ("data", _data(recipe)),
        ("algorithm", f"{recipe.algo['name']}: {_settings(algo)}"),
        ("needs", ", ".join(sorted(algo.needs)).replace("_", " ") or "nothing beyond the rollouts"),
        *([("value model", _critic(recipe))] if "values" in algo.needs else []),
        *([("reference", _reference(recipe))] if "ref_logprobs" in algo.needs else []),
        ("steps", f"{train.steps}"),
        ("prompts per step", f"{rollout.prompts_per_step}"),
        ("samples per step", f"{samples} ({rollout.group_size} for each prompt)"),
        ("tokens per step", f"at most {samples * rollout.max_tokens:,} sampled"),
        (
            "whole run",
            f"{train.steps * samples:,} samples, at most {train.steps * samples * rollout.max_tokens:,} tokens",
        ),
        ("optimizer updates", f"{train.steps * updates:,}, {policy}"),
        ("evaluation", _evaluation(recipe)),
        ("checkpoints", f"every {train.save_every} steps and at the end, {train.keep_last} kept"),
    ]
    if rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0:
        bias = "top_p, top_k and min_p bias the sampler against the trainer's full softmax; watch the mismatch"
        rows.append(("note", bias))
    rows += [("note", remark) for remark in remarks(recipe, algo)]
    size = model_size(source)
    if size is None:
        return [*rows, ("memory", "unknown: the model is not here yet, or its config.json has no familiar sizes")]
    return rows + _memory(recipe, algo, size, model_size(critic_source) if critic_source else size)


def _critic(recipe: Recipe) -> str:
    critic = recipe.critic or CriticConfig()
    warmup = f", alone for {critic.warmup_steps} steps" if critic.warmup_steps else ""
    told = f", told {critic.privileged!r}" if critic.privileged else ""
    if critic.kind == "shared":
        stopped = ", the gradient stops there" if critic.stop_gradient else ""
        return f"a head on the policy{stopped}, lr {critic.lr:g}{warmup}"
    adapter = f", LoRA r={critic.lora.r}" if critic.lora else ""
    return f"{critic.path or recipe.model.path}{adapter}, lr {critic.lr:g}{warmup}{told}"


def _reference(recipe: Recipe) -> str:
    reference = recipe.reference
    if reference.kind == "reset_every":
        fresh = ", with fresh Adam averages" if reference.reset_optimizer else ""
        return f"the policy of every {reference.every} steps{fresh}"
    return "the first policy" if reference.kind == "fixed" else f"average of the policies, decay {reference.decay:g}"


def stage_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """A row for each supervised stage. Raises DataError for data whose rows say nothing to learn."""
    rows = []
    for place, stage in enumerate(recipe.supervised, start=1):
        train = stage.train
        unit = "examples" if stage.kind == "sft" else "pairs"
        adapter = ", LoRA" if recipe.model.lora and stage.lora else ""
        said = f"{train.steps:,} steps of {train.batch_size} {unit}, lr {train.lr:g}{adapter}"
        rows.append((f"stage {place}: {stage.title}", f"{said}, from {stage_data(stage, recipe)}"))
    return rows


def _data(recipe: Recipe) -> str:
    """Counts of what generators and files give; a data set on the hub is not fetched."""
    held_out = held_out_config(recipe.eval.data, recipe.data)
    remote = [c.source for c in (recipe.data, held_out) if not (is_generator(c.source) or is_file_source(c.source))]
    if any("/" in source for source in remote):
        return f"{recipe.data.source}, looked at when training starts"
    train_rows, eval_rows = load_train_eval(recipe.data, recipe.eval.data, seed=key(recipe.seed, "data"))
    return f"{recipe.data.source}: {len(train_rows):,} problems to train on, {len(eval_rows):,} held out"


def _settings(algo: Algorithm) -> str:
    """The hyper-parameters, those that are off left out."""
    values = {field.name: getattr(algo, field.name) for field in fields(algo)}  # type: ignore[arg-type]
    return ", ".join(f"{name}={value}" for name, value in values.items() if value not in (None, 0.0))


def _evaluation(recipe: Recipe) -> str:
    often = f"every {recipe.eval.every} steps, " if recipe.eval.every else ""
    count = recipe.eval.data.n if recipe.eval.data.n is not None else "all"
    return f"{often}before and after, on {count} held-out problems"


def _memory(recipe: Recipe, algo: Algorithm, size: ModelSize, critic_size: ModelSize | None) -> list[tuple[str, str]]:
    """Estimates of the large parts; activations are for the packed forward without recomputation."""
    width = BYTES[recipe.model.dtype]
    model = size.parameters * width
    lora = recipe.model.lora
    tokens = recipe.train.tokens_per_microbatch
    # A reference is a copy of what trains, in the model's precision; an average is kept in float32 too.
    copies = model if lora is None else 4 * _adapter_parameters(size, lora.r)
    average = copies * 4 // width if recipe.reference.kind == "ema" else 0
    parts = {
        "policy": model,
        "float32 weights, gradients, Adam": _optimizer(recipe, size, lora),
        f"activations of {tokens:,} tokens": _activations(recipe, size),
        "reference model": copies + average if "ref_logprobs" in algo.needs else 0,
        "engine: model and KV cache": model + int(recipe.rollout.kv_cache_gib * GIB),
    }
    critic = recipe.critic
    unknown = []
    if "values" in algo.needs and critic is not None and critic.kind == "separate":
        if critic_size is None:
            unknown = [("memory: value model", "unknown: it is not here yet, or its config.json has no familiar sizes")]
        else:
            weights = critic_size.parameters * width + _optimizer(recipe, critic_size, critic.lora)
            parts["value model: weights, gradients, Adam"] = weights
            parts["value model: activations"] = _activations(recipe, critic_size)
    rows = [(f"memory: {name}", f"{amount / GIB:.2f} GiB") for name, amount in parts.items() if amount]
    total = ("memory: together, about", f"{sum(parts.values()) / GIB:.1f} GiB")
    return [("parameters", f"{size.parameters:,}"), *rows, *unknown, total]


def _optimizer(recipe: Recipe, size: ModelSize, lora: LoraConfig | None) -> int:
    """Bytes of master weights, gradients and Adam's averages."""
    trained = size.parameters if lora is None else _adapter_parameters(size, lora.r)
    return (16 if recipe.model.dtype == "bfloat16" or lora else 12) * trained


def _activations(recipe: Recipe, size: ModelSize) -> int:
    hidden = max(1, size.parameters // (12 * size.layers)) ** 0.5
    tokens = recipe.train.tokens_per_microbatch
    return int(tokens * size.layers * hidden * 34 * BYTES[recipe.model.dtype] / 2) + 4 * 2**25 * 2


def _adapter_parameters(size: ModelSize, rank: int) -> int:
    hidden = (size.parameters / (12 * size.layers)) ** 0.5
    return int(size.layers * 7 * 3 * hidden * rank)
