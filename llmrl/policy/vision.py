"""Models that see: which architectures are known, how one is loaded, and what its forward pass is given of pictures.

A vision-language model here is a text model behind a vision tower and a projector, whose picture tokens have ordinary
positions: what reads its text part (packing, decoding, the output layer) is the same as for a text model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Picture, moved
from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The module of the vision tower by name, and the axis along which the processor's tensors of several images join."""

    tower: str
    axis: int


# By transformers' model_type. Left out: models whose picture tokens have positions of their own (qwen2_vl, ...).
ARCHITECTURES = {
    "idefics3": Architecture(tower="model.vision_model", axis=1),
    "smolvlm": Architecture(tower="model.vision_model", axis=1),
    "llava": Architecture(tower="model.vision_tower", axis=0),
}


def load_lm(source: str | Path, *, dtype: torch.dtype, **options: Any) -> Any:
    """The Hugging Face model of a folder or hub id, with its vision tower if it has one.

    `options` go to transformers. Raises ConfigError for a vision-language model of an architecture that is not known here.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    file = Path(source) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if "vision_config" not in config:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **options)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{source} is a vision-language model of type {kind}, whose pictures llmrl cannot train on; "
            f"known are {', '.join(ARCHITECTURES)}"
        )
    return AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, trust_remote_code=False, **options)


def architecture(model: Any) -> Architecture | None:
    """None for a model without eyes."""
    return ARCHITECTURES.get(model.config.model_type)


def text_config(model: Any) -> Any:
    """The configuration of the model's text part: its own, if it has no other part."""
    return model.config.get_text_config()


def seen(model: Any, pictures: Sequence[Picture], device: torch.device) -> dict[str, Tensor]:
    """Arguments of the model's forward pass for `pictures`, in the order of their tokens; none without pictures."""
    if not pictures:
        return {}
    found = architecture(model)
    if found is None:
        raise ValueError(f"a {model.config.model_type} model has no eyes and is shown {len(pictures)} images")
    names = pictures[0].tensors
    return {name: moved(torch.cat([p.tensors[name] for p in pictures], found.axis), device) for name in names}
