"""Training: the loop, collation, the update, checkpoints and metrics.

The package can be called: `llmrl.train(model, data, reward)` is `llmrl.api.train`, because the verb and the folder share
a name that users expect at the top.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *given: Any, **more: Any) -> Any:
        """`llmrl.api.train`, which stands on a higher floor and is therefore loaded when it is called."""
        return import_module("llmrl.api").train(*given, **more)


sys.modules[__name__].__class__ = _Callable
