"""The reference policy: a copy of the trained weights that stays, follows at intervals, or averages.

The copy is of the trainable weights alone (with LoRA that is the adapter) and takes their place while the reference is
asked, so that there is one model, one forward pass and one code path for all kinds. A hard reset to the policy, with or
without fresh Adam averages, is ProRL's (Liu et al. 2025, arXiv:2505.24864) and the paper's choice for PACS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.settings.model import ReferenceConfig
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.protocols import Optimizer, Shards


class Reference:
    """Log-probabilities of a policy of before. It is made before a checkpoint is restored: it holds the first policy.

    With sharded weights every rank keeps its part.
    """

    def __init__(self, config: ReferenceConfig, optimizer: Optimizer, shards: Shards) -> None:
        self._config = config
        self._optimizer = optimizer
        self._shards = shards
        self._kept = {name: held.clone() for name, held in shards.held().items()}
        # An average of bfloat16 numbers would not move.
        self._average = {name: x.float() for name, x in self._kept.items()} if config.kind == "ema" else {}

    def logprobs(self, logprob_model: LogprobModel, batch: Batch) -> Tensor:
        """What `logprob_model`, the policy's, says with the reference's weights: [B, T] float32, no gradient, masked."""
        with self._in_place():
            return logprob_model.logprobs(batch)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The policy with the reference's weights."""
        self._shards.swap(self._kept)
        try:
            yield
        finally:
            self._shards.swap(self._kept)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After `step` steps are done: reset to the policy, or average it in, as the recipe says."""
        if self._config.kind == "reset_every" and step % self._config.every == 0:
            for name, held in self._shards.held().items():
                self._kept[name].copy_(held)
            if self._config.reset_optimizer:
                self._optimizer.reset()
        elif self._config.kind == "ema":
            for name, held in self._shards.held().items():
                self._average[name].lerp_(held.float(), 1 - self._config.decay)
                self._kept[name].copy_(self._average[name])

    @property
    def stored(self) -> bool:
        """Whether a checkpoint holds it; not a fixed one, which the model's own folder gives."""
        return self._config.kind != "fixed"

    def state(self) -> dict[str, Tensor]:
        return self._shards.unshard(self._average or self._kept) if self.stored else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if not self.stored:
            return
        if state.keys() != self._kept.keys():
            raise ValueError("the stored reference is of another model")
        for name, kept in self._kept.items():
            part = self._shards.shard(name, state[name])
            kept.copy_(part)
            if self._average:
                self._average[name].copy_(part)
