"""torch, imported when something of it is first used.

Importing it takes over a second. Modules that describe algorithms take it from here, so that a plan, or a mistake in a
recipe, is told at once:

    from llmrl.later import torch
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class Postponed:
    """Stands for a module that is imported when an attribute is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, found)  # the next time it is as fast as the module
        return found


if TYPE_CHECKING:
    import torch as torch
else:
    torch = Postponed("torch")
