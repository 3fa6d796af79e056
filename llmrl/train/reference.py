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
from llmrl.train.protocols import Moves
from llmrl.train.update import LogprobModel


class Reference:
    """Log-probabilities of a policy of before. It is made before a checkpoint is restored: it holds the first policy.

    With sharded weights every rank keeps its part.
    """

    def __init__(self, config: ReferenceConfig, logprob_model: LogprobModel, updater: Moves) -> None:
        self._config = config
        self._scorer = logprob_model
        self._updater = updater
        self._kept = {name: held.clone() for name, held in updater.held().items()}
        # An average of bfloat16 numbers would not move.
        self._average = {name: x.float() for name, x in self._kept.items()} if config.kind == "ema" else {}

    def logprobs(self, batch: Batch) -> Tensor:
        """[B, T] float32 without gradient, 0 outside the mask."""
        with self._in_place():
            return self._scorer.logprobs(batch)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The policy with the reference's weights."""
        self._updater.swap(self._kept)
        try:
            yield
        finally:
            self._updater.swap(self._kept)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After `step` steps are done: reset to the policy, or average it in, as the recipe says."""
        if self._config.kind == "reset_every" and step % self._config.every == 0:
            for name, held in self._updater.held().items():
                self._kept[name].copy_(held)
            if self._config.reset_optimizer:
                self._updater.reset()
        elif self._config.kind == "ema":
            for name, held in self._updater.held().items():
                self._average[name].lerp_(held.float(), 1 - self._config.decay)
                self._kept[name].copy_(self._average[name])

    @property
    def stored(self) -> bool:
        """Whether a checkpoint holds it; not a fixed one, which the model's own folder gives."""
        return self._config.kind != "fixed"

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs, whole tensors, on rank 0 at least. With several ranks all must call it."""
        return self._updater.unshard(self._average or self._kept) if self.stored else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave. Raises ValueError if it is of another model."""
        if not self.stored:
            return
        if state.keys() != self._kept.keys():
            raise ValueError("the stored reference is of another model")
        for name, kept in self._kept.items():
            part = self._updater.shard(name, state[name])
            kept.copy_(part)
            if self._average:
                self._average[name].copy_(part)
