"""Sizes of models that are not on this machine, so that a cluster can be planned without downloading anything.

A model that is here is read from its config.json (a local folder, the catalogue's, or the Hugging Face cache); the
shapes of a few families on the hub are listed below, as in their published config.json files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmrl.plan import ModelSize, size_of
from llmrl.policy.catalog import MODELS, cache_root

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
          "vocab_size", "tie_word_embeddings")  # fmt: skip
_QWEN25 = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (2048, 36, 16, 2, 11008, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
    "14B": (5120, 48, 40, 8, 13824, 152064, False),
    "32B": (5120, 64, 40, 8, 27648, 152064, False),
    "72B": (8192, 80, 64, 8, 29568, 152064, False),
}
_OTHERS = {
    "meta-llama/Llama-3.1-8B": (4096, 32, 32, 8, 14336, 128256, False),
    "meta-llama/Llama-3.2-1B": (2048, 16, 32, 8, 8192, 128256, True),
    "meta-llama/Llama-3.2-3B": (3072, 28, 24, 8, 8192, 128256, True),
    "HuggingFaceTB/SmolLM2-135M": (576, 30, 9, 3, 1536, 49152, True),
}
_SUFFIXES = ("", "-Instruct")
_CODER = ("0.5B", "1.5B", "3B", "7B", "14B", "32B")
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    **{f"Qwen/Qwen2.5-{size}{suffix}": shape for size, shape in _QWEN25.items() for suffix in _SUFFIXES},
    **{f"Qwen/Qwen2.5-Coder-{size}{suffix}": _QWEN25[size] for size in _CODER for suffix in _SUFFIXES},
    **{f"Qwen/Qwen2.5-Math-{size}{suffix}": _QWEN25[size] for size in ("1.5B", "7B") for suffix in _SUFFIXES},
    **{f"{name}{suffix}": shape for name, shape in _OTHERS.items() for suffix in _SUFFIXES},
    "smollm2-135m": _OTHERS["HuggingFaceTB/SmolLM2-135M"],  # of the catalogue
}  # fmt: skip


def config_of(source: str) -> dict[str, Any] | None:
    """What is known, without the network, of the config.json of a catalogue name, a folder or a hub id; None if nothing."""
    from huggingface_hub import try_to_load_from_cache

    file = (cache_root() / "models" if source in MODELS else Path()) / source / "config.json"
    if not file.is_file() and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        cached = try_to_load_from_cache(source, "config.json")
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    return dict(zip(_SHAPE, SHAPES[source], strict=True)) if source in SHAPES else None


def find_size(source: str) -> ModelSize | None:
    """Sizes of a catalogue name, a model folder or a hub id; None for one that is neither here nor listed."""
    config = config_of(source)
    return size_of(config) if config is not None else None
