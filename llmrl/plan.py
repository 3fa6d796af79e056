"""`llmrl plan`: what a recipe will do, from arithmetic alone; no weights are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llmrl.batch import Algorithm
from llmrl.config import Recipe

BYTES = {"bfloat16": 2, "float32": 4}
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What memory depends on, read from config.json; parameters are counted for a Llama-like model."""

    parameters: int
    layers: int
    kv_width: int  # key plus value numbers per layer and token
    vocabulary: int


def model_size(source: str) -> ModelSize | None:
    """Sizes of a local model folder; None for a hub id, which would have to be downloaded first."""
    file = Path(source) / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text())
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
    )


def plan(recipe: Recipe, algo: Algorithm, source: str) -> list[tuple[str, str]]:
    """(what, how much) rows about a run of `recipe`."""
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
        ("algorithm", f"{recipe.algo['name']}: {algo}"),
        ("needs", ", ".join(sorted(algo.needs)) or "nothing beyond the rollouts"),
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
    size = model_size(source)
    if size is None:
        return [*rows, ("memory", "unknown until the model is downloaded")]
    return rows + _memory(recipe, algo, size)


def _evaluation(recipe: Recipe) -> str:
    often = f"every {recipe.eval.every} steps, " if recipe.eval.every else ""
    count = recipe.eval.data.n if recipe.eval.data.n is not None else "all"
    return f"{often}before and after, on {count} held-out problems"


def _memory(recipe: Recipe, algo: Algorithm, size: ModelSize) -> list[tuple[str, str]]:
    """Estimates of the large parts; activations are for the packed forward without recomputation."""
    width = BYTES[recipe.model.dtype]
    model = size.parameters * width
    lora = recipe.model.lora
    trained = size.parameters if lora is None else _adapter_parameters(size, lora.r)
    masters = 16 * trained if (recipe.model.dtype == "bfloat16" or lora) else 12 * trained
    tokens = recipe.train.tokens_per_microbatch
    hidden = max(1, size.parameters // (12 * size.layers)) ** 0.5
    activations = int(tokens * size.layers * hidden * 34 * width / 2) + 4 * 2**25 * 2
    cache = int(recipe.rollout.kv_cache_gib * GIB)
    reference = model if "ref_logprobs" in algo.needs and lora is None else 0
    parts = {
        "policy": model,
        "float32 weights, gradients, Adam": masters,
        f"activations of {tokens:,} tokens": activations,
        "reference model": reference,
        "engine: model and KV cache": model + cache,
    }
    rows = [(f"memory: {name}", f"{amount / GIB:.2f} GiB") for name, amount in parts.items() if amount]
    total = ("memory: together, about", f"{sum(parts.values()) / GIB:.1f} GiB")
    return [("parameters", f"{size.parameters:,}"), *rows, total]


def _adapter_parameters(size: ModelSize, rank: int) -> int:
    hidden = (size.parameters / (12 * size.layers)) ** 0.5
    return int(size.layers * 7 * 3 * hidden * rank)
