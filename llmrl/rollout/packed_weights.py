"""Reading back the weights that a vLLM model computes with, under their Hugging Face names.

vLLM joins some matrices (`qkv_proj` is q, k and v, one below the other), and its CPU build packs them for its kernels and
drops the original. A packed layer still tells its columns: the answer to a one-hot input is one, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrl.rollout.engine import Look
from llmrl.rollout.verify import checksum


def checksums(model: Any, look: Look) -> dict[str, int]:
    """Checksums of the weights in `look`, those that the model has."""
    import torch

    joined = {part: (whole, parts) for whole, parts in _joined(model).items() for part in parts}
    found: dict[str, int] = {}
    for name in look.shapes:
        owner, start = _place(name, joined, look.shapes)
        layer, _, leaf = owner.rpartition(".")
        values = _values(model, layer, leaf, look)
        if values is not None:
            # Some kernels want biases in float32; what was bfloat16 comes back from that unchanged.
            rows = values[start : start + look.shapes[name][0]]
            found[name] = checksum(rows.to(getattr(torch, look.dtypes[name])))
    return found


def _joined(model: Any) -> Mapping[str, list[str]]:
    return getattr(model, "packed_modules_mapping", None) or {}


def _place(name: str, joined: Mapping[str, tuple[str, list[str]]], shapes: Mapping[str, Any]) -> tuple[str, int]:
    """(the engine's name of the tensor that holds `name`, the row at which it begins)."""
    layer, _, leaf = name.rpartition(".")
    parent, _, part = layer.rpartition(".")
    if part not in joined:
        return name, 0
    whole, parts = joined[part]
    before = parts[: parts.index(part)]
    return f"{parent}.{whole}.{leaf}", sum(shapes[f"{parent}.{other}.{leaf}"][0] for other in before)


def _values(model: Any, layer: str, leaf: str, look: Look) -> Any:
    """The chosen columns of a layer's weight, or a vector whole; None if the model has no such layer."""
    import torch

    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    tensor = getattr(module, leaf, None)
    if tensor is None:
        return None
    if tensor.numel() and tensor.dim() < 2:
        return tensor
    if tensor.numel():
        matrix = tensor.reshape(tensor.shape[0], -1)
        return matrix if look.full else matrix[:, look.columns(matrix.shape[1])]
    width = getattr(module, "input_size_per_partition", None) or module.input_size
    columns = range(width) if look.full else look.columns(width)
    probe = torch.zeros(len(columns), width, dtype=tensor.dtype, device=tensor.device)
    probe[torch.arange(len(columns)), torch.tensor(list(columns))] = 1
    return module.cpu_linear(probe, tensor, None).T
