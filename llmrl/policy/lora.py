"""LoRA adapters: peft makes them and runs them; here they are set up from a recipe and merged into whole weights.

Merging never touches the model. Per adapted layer, with s the adapter's scale (alpha / r, or alpha / sqrt(r) for rsLoRA,
Kalajdzievski 2023, arXiv:2312.03732):

    LoRA   W + s B A
    DoRA   m (W + s B A) / |W + s B A|, row by row     (Liu et al. 2024, arXiv:2402.09353)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.nearest import nearest
from llmrl.settings.model import LoraConfig

PREFIX = "base_model.model."
OWN = (".lora_", ".modules_to_save.")  # in the names of what an adapter consists of
INITIAL: dict[str, bool | str] = {"default": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def is_adapters(name: str) -> bool:
    """Whether the parameter of this name belongs to the adapter."""
    return any(part in name for part in OWN)


def peft_config(model: nn.Module, config: LoraConfig, frozen: str | None = None) -> Any:
    """The recipe's adapter in peft's words, for `model`; no layer inside the module `frozen` gets one.

    Raises ConfigError for layers that the model has not or that cannot be adapted.
    """
    import peft

    if config.target != "all-linear":
        _check_target(model, list(config.target))
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target,
        exclude_modules=rf"{re.escape(frozen)}\..*" if frozen else None,
        use_rslora=config.rslora,
        use_dora=config.dora,
        modules_to_save=_whole_modules(model, config) or None,
        init_lora_weights=INITIAL[config.init],  # type: ignore[arg-type]
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        task_type="CAUSAL_LM",
    )


def with_adapter(model: Any, config: LoraConfig, seed: int, frozen: str | None = None) -> Any:
    """`model` with a new adapter, none inside the module `frozen`; `seed` keys its random start."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft_config(model, config, frozen))


def _whole_modules(model: Any, config: LoraConfig) -> list[str]:
    """The modules that are trained whole beside the adapter. Raises ConfigError for what cannot be."""
    names = {name: module for name, module in model.named_modules() if name}
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    shared = (model.get_input_embeddings(), model.get_output_embeddings()) if tied else ()
    for wanted in config.modules_to_save:
        found = [module for name, module in names.items() if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise ConfigError(
                f"model.lora.modules_to_save: the model has no module {wanted!r}; {nearest(wanted, known)}"
            )
        if any(module is layer for module in found for layer in shared):
            raise ConfigError(
                f"model.lora.modules_to_save: {wanted} shares its weight with another layer of this model, and would be "
                "trained as two; leave it out, or train all weights (without model.lora)"
            )
    return config.modules_to_save


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
            raise ConfigError(
                f"model.lora.target: {wanted} cannot carry an adapter here; leave it out, or train it whole with "
                f"model.lora.modules_to_save=[{wanted}]"
            )


def merged_weights(
    model: Any, base: Iterable[tuple[str, Tensor]], adapter: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Whole weights under their Hugging Face names, in their own dtype: `base` with `adapter` in it.

    `model` is peft's, both are named as its parameters are.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in base:
        owner, _, leaf = name.rpartition(".base_layer.")
        if owner in layers and leaf == "weight":
            parts = {
                part: adapter.get(f"{owner}.lora_{part}.default.weight") for part in ("A", "B", "magnitude_vector")
            }
            weight = _merged(layers[owner], weight, *parts.values())
        outer, _, leaf = name.rpartition(".original_module.")
        weight = adapter.get(f"{outer}.modules_to_save.default.{leaf}", weight) if outer else weight
        yield _plain(name), weight


def _merged(layer: Any, weight: Tensor, down: Tensor | None, up: Tensor | None, magnitude: Tensor | None) -> Tensor:
    from peft.utils.other import transpose

    assert down is not None and up is not None
    whole = transpose(weight.float(), layer.fan_in_fan_out) + (up.float() @ down.float()) * layer.scaling["default"]
    if magnitude is not None:
        norm = torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        whole = whole * (magnitude.float()[:, None] / norm)
    return transpose(whole, layer.fan_in_fan_out).to(weight.dtype)


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
