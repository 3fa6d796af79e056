"""Reading back the weights that a vLLM model computes with, under their Hugging Face names.

vLLM joins some matrices (`qkv_proj` is q, k and v, one below the other), and its CPU build packs them for its kernels and
drops the original. A packed layer still tells its columns: the answer to a one-hot input is one, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from llmrl.rollout.engine import ChecksumRequest
from llmrl.rollout.verify import checksum


def checksums(model: Any, request: ChecksumRequest) -> dict[str, int]:
    """Checksums of the weights in `request`, those that the model has."""
    import torch

    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    joined = {part: (whole, parts) for whole, parts in packed.items() for part in parts}
    found: dict[str, int] = {}
    last, values = "", None
    for name, shape in request.shapes.items():
        owner, start = _place(name, joined, request.shapes)
        if owner != last:  # the parts of a joined matrix come one after the other
            layer, _, leaf = owner.rpartition(".")
            last, values = owner, _values(model, layer, leaf, request, width=prod(shape[1:]))
        if values is None or len(rows := values[start : start + shape[0]]) < shape[0]:
            continue  # the model has no such layer, or (with tensor parallelism) only a part of it
        # Some kernels want biases in float32; what was bfloat16 comes back from that unchanged.
        found[name] = checksum(rows.to(getattr(torch, request.dtypes[name])))
    return found


def _place(name: str, joined: Mapping[str, tuple[str, list[str]]], shapes: Mapping[str, Any]) -> tuple[str, int]:
    """(the engine's name of the tensor that holds `name`, the row at which it begins)."""
    layer, _, leaf = name.rpartition(".")
    parent, _, part = layer.rpartition(".")
    if part not in joined:
        return name, 0
    whole, parts = joined[part]
    before = parts[: parts.index(part)]
    return f"{parent}.{whole}.{leaf}", sum(shapes[f"{parent}.{other}.{leaf}"][0] for other in before)


def _values(model: Any, layer: str, leaf: str, request: ChecksumRequest, *, width: int) -> Any:
    """The chosen columns of a layer's weight of `width` columns, or a vector whole; None if the model has no such one."""
    import torch

    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    tensor = getattr(module, leaf, None)
    if tensor is None:
        return None
    if tensor.numel():
        if tensor.dim() < 2:
            return tensor
        matrix = tensor.reshape(tensor.shape[0], -1)
        if matrix.shape[1] != width:
            return None
        return matrix if request.full else matrix[:, request.columns(width)]
    if width != (getattr(module, "input_size_per_partition", None) or module.input_size):
        return None
    columns = range(width) if request.full else request.columns(width)
    probe = torch.zeros(len(columns), width, dtype=tensor.dtype, device=tensor.device)
    probe[torch.arange(len(columns)), torch.tensor(list(columns))] = 1
    return module.cpu_linear(probe, tensor, None).T
