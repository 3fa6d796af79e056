"""The policy: a Hugging Face causal LM or vision-language model, optionally with a LoRA adapter, its tokenizer and
processor, and how its weights leave it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmrl.data.pictures import PictureReader, load_pictures
from llmrl.errors import ConfigError
from llmrl.hardware import dtype_here
from llmrl.nearest import nearest
from llmrl.policy.attention import same_attention_again
from llmrl.policy.vision import architecture, load_lm, text_config
from llmrl.settings.model import LoraConfig, ModelConfig

Named = Iterable[tuple[str, Tensor]]
ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Policy:
    """The trained model and its tokenizer. `source` is the folder or hub id it was loaded from.

    `unshard` makes whole tensors of named parameters that are sharded over ranks; None: they are whole as they are. Then
    `weights` and `save` are collective: a rank that does not write calls `join_gather`.
    """

    model: nn.Module
    tokenizer: Any
    source: str
    lora: bool
    unshard: Callable[[Named], Iterator[tuple[str, Tensor]]] | None = None
    pictures: PictureReader | None = None  # of a model that sees

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
            yield from self._unsharded(self.model.named_parameters())
            return
        adapter = self._adapter()
        base = self._unsharded((name, p) for name, p in self.model.named_parameters() if ".lora_" not in name)
        yield from _merged_weights(self.model, base, adapter)

    def _unsharded(self, named: Named) -> Iterator[tuple[str, Tensor]]:
        return ((name, p.detach()) for name, p in named) if self.unshard is None else self.unshard(named)

    def join_gather(self) -> None:
        """Take part in the gathering of a rank that saves."""
        if self.unshard is not None:
            for _ in self.weights():
                pass
            if self.lora:
                self._adapter()

    def _adapter(self) -> dict[str, Tensor]:
        return dict(self._unsharded((name, p) for name, p in self.model.named_parameters() if ".lora_" in name))

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder (safetensors) that transformers and vLLM open as it is.

        With LoRA the adapter is merged into it, and lies beside it in `adapter/` by itself as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.weights()}
        self.causal_lm.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        (self.tokenizer if self.pictures is None else self.pictures).save_pretrained(folder)
        if self.lora:
            self.model.save_pretrained(folder / "adapter", state_dict=self._adapter())  # type: ignore[operator]
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

    Raises ConfigError for a model with dropout (sampler and trainer would disagree about every probability) and for
    LoRA targets that the model has not or that cannot be adapted.
    """
    model = load_lm(source, dtype=getattr(torch, dtype_here(config.dtype)))
    if config.gradient_checkpointing:
        how = {"use_reentrant": False, "context_fn": same_attention_again(text_config(model))}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    model.config.use_cache = False
    eyes = architecture(model)
    if config.vision_tower and eyes is None:
        raise ConfigError(f"model.vision_tower is set and {source} has no vision tower; remove it")
    frozen = None if eyes is None or config.vision_tower else eyes.tower
    if frozen is not None:
        model.get_submodule(frozen).requires_grad_(False)
    if config.lora is not None:
        model = _with_adapter(model, config.lora, seed, frozen)
    model = cast(Any, model).to(device).train()
    active = [name for name, module in model.named_modules() if _dropout(module) > 0]
    if active:
        raise ConfigError(
            f"{source} trains with dropout ({active[0]} and others); set it to 0 in the model's config.json"
        )
    return Policy(
        model=model, tokenizer=load_tokenizer(source), source=source, lora=config.lora is not None,
        pictures=load_pictures(source),
    )  # fmt: skip


def _dropout(module: Any) -> float:
    """The module's own dropout: many attentions keep theirs as a number and call the function."""
    return float(module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0))


def _check_target(model: Any, target: list[str]) -> None:
    """Every name must match a layer, and none the embedding or output layer: those are read past their adapters."""
    names = {name: module for name, module in model.named_modules() if name}
    shared = (model.get_input_embeddings(), model.get_output_embeddings())
    for wanted in target:
        found = [module for name, module in names.items() if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name, m in names.items() if isinstance(m, nn.Linear)})
            raise ConfigError(f"model.lora.target: the model has no layer {wanted!r}; {nearest(wanted, known)}")
        if any(module is layer for module in found for layer in shared):
            raise ConfigError(f"model.lora.target: {wanted} cannot carry an adapter here; leave it out")


def _with_adapter(model: Any, config: LoraConfig, seed: int, frozen: str | None) -> Any:
    """The model with an adapter on the layers that `config` names, none inside the module `frozen`."""
    import peft

    if config.target != "all-linear":
        _check_target(model, list(config.target))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target,
            exclude_modules=rf"{re.escape(frozen)}\..*" if frozen else None,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, settings)


def _merged_weights(model: Any, base: Named, adapter: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import transpose

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in base:
        owner, _, leaf = name.rpartition(".base_layer.")
        if owner in layers and leaf == "weight":
            down, up = (adapter[f"{owner}.lora_{side}.default.weight"].float() for side in "AB")
            delta = transpose(up @ down, layers[owner].fan_in_fan_out) * layers[owner].scaling["default"]
            weight = (weight.float() + delta).to(weight.dtype)
        yield name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", "."), weight


def model_length(source: str) -> int | None:
    """The model's own maximum length in tokens, from a local folder's config.json; None if it does not say."""
    config = Path(source) / "config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text())
    return found.get("text_config", found).get("max_position_embeddings")
