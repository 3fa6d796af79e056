"""Turns every `auto` of a recipe into what it means on this machine, so that a run's record holds no `auto`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmrl.hardware import best_precision, cores, cores_left, gpus, warning_for
from llmrl.policy.catalog import MADE, MODELS
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe

FUSED = ("llama", "mistral", "qwen2", "qwen3")  # see llmrl.policy.fused
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # set by accelerate launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A recipe without `auto`. `chosen` says what was chosen and why, by key; `warnings` are about explicit choices."""

    recipe: Recipe
    chosen: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """All of it, for a terminal."""
        return [*(f"{key}: {text}" for key, text in self.chosen.items()), *(f"warning: {w}" for w in self.warnings)]


def settle(recipe: Recipe, *, resume: bool = False, on_gpu: bool | None = None) -> Settled:
    """Decide what the recipe leaves to `auto`. A resumed run keeps what it was started with, on whatever machine.

    `on_gpu` says that it will run on another machine, with or without GPUs; None: on this one.
    """
    stored = recipe.run_dir / "recipe.yaml"
    before = load_recipe(stored) if resume and stored.is_file() else None
    chosen: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    if recipe.model.dtype != "auto":
        warning = None if on_gpu else warning_for(recipe.model.dtype)
        warnings = (f"model.dtype={recipe.model.dtype}: {warning}",) if warning else ()
    else:
        dtype, chosen["model.dtype"] = _dtype(before, on_gpu)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})
    if recipe.rollout.engine == "auto":
        engine, chosen["rollout.engine"] = _engine(recipe, before, on_gpu)
        recipe = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"engine": engine})})
    if recipe.train.threads == 0 and (threads := _threads(before)):
        chosen["train.threads"] = f"{threads}, by nice: other work comes first, and a resumed run keeps the number"
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"threads": threads})})
    return Settled(recipe=recipe, chosen=chosen, warnings=warnings)


def _threads(before: Recipe | None) -> int:
    """Threads of a run that `nice` puts behind others, which bits depend on; 0 leaves the number to each start."""
    if before is not None:
        return min(before.train.threads, cores())
    return cores_left() if cores_left() < cores() else 0


def _dtype(before: Recipe | None, on_gpu: bool | None) -> tuple[str, str]:
    if before is not None and before.model.dtype != "auto":
        return before.model.dtype, f"{before.model.dtype}, as the run was started with"
    if on_gpu:
        return "bfloat16", "bfloat16, by auto: GPUs compute it in hardware"
    best = best_precision()
    return best.dtype, f"{best.dtype}, by auto: {best.reason}"


def _engine(recipe: Recipe, before: Recipe | None, on_gpu: bool | None) -> tuple[str, str]:
    if before is not None and before.rollout.engine != "auto":
        return before.rollout.engine, f"{before.rollout.engine}, as the run was started with"
    name, reason = engine_for(recipe, on_gpu=bool(gpus()) if on_gpu is None else on_gpu)
    return name, f"{name}, by auto: {reason}"


def engine_for(recipe: Recipe, *, on_gpu: bool) -> tuple[str, str]:
    """(the faster engine for this recipe, why). `tests.bench.generation` measures the two side by side.

    On a CPU `native` wins for the models that it runs in fused operations: it shares prompts among siblings and needs
    neither a second process nor a transfer of weights (541 against 496 tokens/s in bfloat16, tests/bench/RESULTS.md; not
    measured side by side in float32 yet). Everything else goes to vLLM.
    """
    if on_gpu:
        return "vllm", "a GPU runs vLLM's own kernels"
    rollout = recipe.rollout
    obstacles = {
        f"rollout.placement={rollout.placement}": rollout.placement != "colocated",
        f"rollout.max_staleness={rollout.max_staleness}": rollout.max_staleness > 0,
        "rollout.sleep": rollout.sleep,
        f"train.backend={recipe.train.backend}": recipe.train.backend not in ("auto", "ddp"),
        "accelerate's configuration of a back-end": any(os.environ.get(key) == "true" for key in SHARDED),
        f"model.forward={recipe.model.forward}": recipe.model.forward not in ("auto", "packed"),
        "a LoRA adapter": recipe.model.lora is not None,
        "an environment": recipe.env is not None,
        "this kind of model": model_type(recipe.model.path) not in FUSED,
    }
    if reason := next((what for what, there in obstacles.items() if there), ""):
        return "vllm", f"native is not made for {reason}, or slower with it"
    return "native", "on a CPU it samples this kind of model faster than vLLM"


def engine_to_play(model: str) -> Literal["native", "vllm"]:
    """The faster engine to evaluate the model at `model`, a path or a catalogue name, in environments: without an update
    there is nothing to weigh but sampling.
    """
    return "native" if not gpus() and model_type(model) in FUSED else "vllm"


def model_type(path: str) -> str:
    """The architecture that a catalogue name or a local folder holds (of its text part, if it has several), as transformers
    names it; empty if unknown.
    """
    file = Path(path).expanduser() / "config.json"
    if path in MODELS or path in MADE:
        return "llama"
    config = json.loads(file.read_text()) if file.is_file() else {}
    return str(config.get("text_config", config).get("model_type", ""))
