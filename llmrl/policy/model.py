"""The policy: a Hugging Face causal LM or vision-language model, optionally with a LoRA adapter, its tokenizer and
processor, and how its weights leave it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.data.pictures import PictureReader, load_pictures
from llmrl.errors import ConfigError
from llmrl.hardware import dtype_here
from llmrl.policy.attention import same_attention_again
from llmrl.policy.loading import open_causal_lm, turn_note
from llmrl.policy.lora import is_adapters, merged_weights, with_adapter
from llmrl.policy.vision import architecture, text_config
from llmrl.settings.model import ModelConfig

Named = Iterable[tuple[str, Tensor]]


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
    notes: tuple[str, ...] = ()  # what a user should know about how it was loaded
    unshard: Callable[[Named], Iterator[tuple[str, Tensor]]] | None = None
    pictures: PictureReader | None = None  # of a model that sees

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face causal LM itself, adapter layers in place but without peft's wrapper."""
        wrapped: Any = self.model
        return wrapped.base_model.model if self.lora else wrapped

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(self.causal_lm.get_output_embeddings().weight.shape[1])

    def groups(self) -> dict[str, list[str]]:
        """Names of trained parameters that may have a learning rate of their own: head, adapter, vision_tower."""
        head = self.causal_lm.get_output_embeddings()
        words = self.causal_lm.get_input_embeddings()
        heads = {id(p) for p in head.parameters()} - {id(p) for p in words.parameters()}
        eyes = architecture(self.causal_lm)
        tower = f"{eyes.tower}." if eyes is not None else None
        found: dict[str, list[str]] = {"head": [], "adapter": [], "vision_tower": []}
        for name, parameter in self.trainable():
            if ".lora_" in name:
                found["adapter"].append(name)
            elif id(parameter) in heads:
                found["head"].append(name)
            elif tower is not None and tower in name:
                found["vision_tower"].append(name)
        return found

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer moves; tied parameters appear once."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face name, the adapter merged into it, in the model's dtype."""
        if not self.lora:
            yield from self._unsharded(self.model.named_parameters())
            return
        adapter = self._adapter()
        base = self._unsharded((name, p) for name, p in self.model.named_parameters() if not is_adapters(name))
        yield from merged_weights(self.model, base, adapter)

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
        return dict(self._unsharded((name, p) for name, p in self.model.named_parameters() if is_adapters(name)))

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder (safetensors) that transformers and vLLM open as it is.

        With LoRA the adapter is merged into it, and lies beside it in `adapter/` by itself as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.weights()}
        self.causal_lm.save_pretrained(folder, state_dict=state)
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
    """Load the model in train mode on `device`; `seed` keys the adapter's random start. Dropout is set to 0.

    Raises ConfigError for LoRA targets that the model has not or that cannot be adapted.
    """
    model, notes = open_causal_lm(source, getattr(torch, dtype_here(config.dtype)))
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
        model = with_adapter(model, config.lora, seed, frozen)
    model = model.to(device).train()
    tokenizer = load_tokenizer(source)
    notes.extend(filter(None, [turn_note(model, tokenizer)]))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        notes.append(f"{_too_few_rows(source, len(tokenizer), rows)}; model.resize: true adds them")
    return Policy(
        model=model, tokenizer=tokenizer, source=source, lora=config.lora is not None, notes=tuple(notes),
        pictures=load_pictures(source),
    )  # fmt: skip


def check_vocabulary(policy: Policy, tokens: Iterable[int]) -> None:
    """Raise ConfigError if one of `tokens`, or the end of a sequence, has no row in the policy's embedding."""
    rows = policy.causal_lm.config.get_text_config().vocab_size
    highest = max([*tokens, policy.tokenizer.eos_token_id or 0])
    if highest >= rows:
        raise ConfigError(
            f"{_too_few_rows(policy.source, len(policy.tokenizer), rows)}, and token {highest} "
            f"({policy.tokenizer.convert_ids_to_tokens(highest)!r}) is used; model.resize=true adds the missing rows, "
            "each the mean of the others"
        )


def check_tokenizer(what: str, model: Policy, policy: Policy) -> None:
    """Raise ConfigError if they do not read the same tokens."""
    if model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"{what}={model.source} has another tokenizer than the policy {policy.source}; it reads the policy's tokens, so "
            "take a model of the same family"
        )


def _too_few_rows(source: str, tokens: int, rows: int) -> str:
    return f"the tokenizer of {source} knows {tokens} tokens, and its model has embeddings of {rows}"


def model_length(source: str) -> int | None:
    """The model's own maximum length in tokens, from a local folder's config.json; None if it does not say."""
    config = Path(source) / "config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text())
    return found.get("text_config", found).get("max_position_embeddings")
