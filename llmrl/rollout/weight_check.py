"""Does an engine hold the weights it was sent? Digests of those weights that engines keep as they are.

Engines fuse and repack most matrices; the norms' scales and the embedding stay as Hugging Face has them. Every optimizer
step moves them, so an engine that is a version behind is found out. Used by the trainer on what it sends, and, as vLLM's
worker extension, inside the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SharedDigests = dict[str, str]
KEPT = ("norm.weight", "embed_tokens.weight", "wte.weight")
EVERY = 16  # rows of an embedding are sampled


def shared_digests(weights: Iterable[tuple[str, Tensor]], *, rows: dict[str, int] | None = None) -> SharedDigests:
    """sha256 by name of the weights whose name says that engines keep them; of embeddings every 16th row.

    `rows` limits a weight to its first rows: engines pad vocabularies.
    """
    import torch

    found: SharedDigests = {}
    for name, tensor in weights:
        if not name.endswith(KEPT):
            continue
        kept = tensor.detach()
        if rows is not None and name in rows:
            kept = kept[: rows[name]]
        kept = kept[::EVERY] if kept.dim() > 1 else kept
        data = kept.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = hashlib.sha256(data.tobytes()).hexdigest()
    return found


class WeightCheck:
    """vLLM's `--worker-extension-cls`: adds one call to the worker, which has `model_runner`."""

    model_runner: Any

    def shared_weight_digests(self) -> SharedDigests:
        model = self.model_runner.get_model()
        config = self.model_runner.vllm_config.model_config.hf_text_config
        named = list(model.named_parameters())
        rows = {name: config.vocab_size for name, tensor in named if tensor.dim() > 1}
        if self.model_runner.vllm_config.parallel_config.tensor_parallel_size > 1:
            named = [(name, tensor) for name, tensor in named if tensor.dim() == 1]  # embeddings are split
        return shared_digests(named, rows=rows)
