"""The policy: a Hugging Face causal LM, optionally with a LoRA adapter, its tokenizer, and how its weights leave it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmrl.config import LoraConfig, ModelConfig
from llmrl.policy.forward import as_in_forward

ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Policy:
    """The trained model and its tokenizer. `source` is the folder or hub id it was loaded from."""

    model: nn.Module
    tokenizer: Any
    source: str
    lora: bool

    @property
    def causal_lm(self) -> nn.Module:
        """The Hugging Face causal LM itself, adapter layers in place but without peft's wrapper."""
        return self.model.base_model.model if self.lora else self.model  # type: ignore[union-attr, return-value]

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer moves; tied parameters appear once."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face name, the adapter merged into it, in the model's dtype."""
        if not self.lora:
            yield from ((name, p.detach()) for name, p in self.model.named_parameters())
            return
        yield from _merged_weights(self.model)

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder (safetensors) that transformers and vLLM open as it is.

        With LoRA the adapter is merged into it, and lies beside it in `adapter/` by itself as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in self.weights()}
        self.causal_lm.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        if self.lora:
            self.model.save_pretrained(folder / "adapter")  # type: ignore[operator]
            (folder / "adapter" / "README.md").unlink(missing_ok=True)


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id; without a padding token it gets the end-of-sequence one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(config: ModelConfig, *, source: str, device: torch.device, seed: int) -> Policy:
    """Load the model in train mode on `device`; `seed` keys the adapter's random start. Dropout must be off.

    Raises ValueError for a model with dropout: sampler and trainer would then disagree about every probability.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, config.dtype)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    if config.gradient_checkpointing:
        again = {"use_reentrant": False, "context_fn": partial(as_in_forward, model)}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    model.config.use_cache = False
    if config.lora is not None:
        model = _with_adapter(model, config.lora, seed)
    model = cast(Any, model).to(device).train()
    active = [name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0 and "lora" not in name]
    if active:
        raise ValueError(
            f"{source} trains with dropout ({active[0]} and others); set it to 0 in the model's config.json"
        )
    return Policy(model=model, tokenizer=load_tokenizer(source), source=source, lora=config.lora is not None)


def _with_adapter(model: Any, config: LoraConfig, seed: int) -> Any:
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, settings)


def _merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".base_layer.")
        weight = parameter.detach()
        if owner in layers and leaf == "weight":
            delta = layers[owner].get_delta_weight("default").detach()
            weight = (weight.float() + delta.float()).to(weight.dtype)
        yield name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", "."), weight


def model_length(source: str) -> int | None:
    """The model's own maximum length in tokens, from a local folder's config.json; None if it does not say."""
    config = Path(source) / "config.json"
    if not config.is_file():
        return None
    return json.loads(config.read_text()).get("max_position_embeddings")
