"""How trained parameters are cut into clipping groups. The cut is public: it depends on names only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from llmrl.errors import ConfigError

Grouping = Literal["flat", "pair", "layer", "tensor"]

_LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b")
_LAYER = re.compile(r"^(.*?\.(?:layers|h|blocks)\.\d+)\.")


def parameter_groups(names: Sequence[str], grouping: Grouping) -> list[tuple[str, ...]]:
    """The names of each group, in order of first appearance.

    flat    all in one
    pair    the matrices A and B of one LoRA adapter together, other tensors alone
    layer   a transformer block together, all that lies outside blocks together
    tensor  each tensor alone

    Raises ConfigError for another grouping, or if there is nothing to group.
    """
    rules = {
        "flat": lambda name: "",
        "pair": lambda name: _LORA.split(name)[0],
        "layer": lambda name: found[1] if (found := _LAYER.match(name)) else "",
        "tensor": lambda name: name,
    }
    if grouping not in rules:
        raise ConfigError(f"privacy.groups={grouping} is unknown; it is one of {', '.join(rules)}")
    if not names:
        raise ConfigError("no parameter is trained: there is nothing to clip")
    found_groups: dict[str, list[str]] = {}
    for name in names:
        found_groups.setdefault(rules[grouping](name), []).append(name)
    return [tuple(group) for group in found_groups.values()]
