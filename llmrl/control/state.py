"""Nested states as one flat dictionary of tensors, which a safetensors file can hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def flat(parts: Mapping[str, Mapping[str, Tensor]], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of `parts` as `part.key`, and `own` as they are; copies."""
    joined = {**own, **{f"{name}.{key}": x for name, part in parts.items() for key, x in part.items()}}
    return {name: x.detach().clone() for name, x in joined.items()}


def under(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries `name.key` of a flat state, as {key: tensor}."""
    return {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
