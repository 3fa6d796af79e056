"""Nested states as one flat dictionary of tensors, which a safetensors file can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def under(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries `name.key` of a flat state, as {key: tensor}."""
    return {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter number: {"0.exp_avg": ...}."""
    per_parameter = optimizer.state_dict()["state"]
    return {f"{index}.{key}": x for index, moments in per_parameter.items() for key, x in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`; hyper-parameters stay those of `optimizer`."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, x in state.items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = x.clone()
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
