"""llmrl: reinforcement-learning post-training of language models.

The names below are its public face; everything else may move. They load on first use, so `import llmrl` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "Batch": "llmrl.batch",
    "Completion": "llmrl.types",
    "Environment": "llmrl.envs.protocol",
    "Loss": "llmrl.batch",
    "Needs": "llmrl.batch",
    "Observation": "llmrl.types",
    "Output": "llmrl.batch",
    "Prompt": "llmrl.types",
    "Score": "llmrl.types",
    "Trained": "llmrl.api",
    "Trajectory": "llmrl.types",
    "Turn": "llmrl.envs.protocol",
    "evaluate": "llmrl.api",
    "load_recipe": "llmrl.settings.load",
}
__all__ = sorted([*PUBLIC, "train"])


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("llmrl.train")
    if name not in PUBLIC:
        raise AttributeError(f"module 'llmrl' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
