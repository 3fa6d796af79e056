"""Supervised fine-tuning: the negative log-likelihood of given completions, on the same loop as everything else.

    L = sum over the completions' tokens of -log pi(token | before) / number of such tokens

The denominator is that of the whole optimizer step, over ranks and micro-batches, so how a batch is cut changes nothing.
Prompts are no part of the loss. `normalize: sequence` gives every completion the same weight whatever its length. Rows
come from the data (the column `completion`, else the answer) and nothing is sampled but for the held-out evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrl.algos.terms import partial_mean
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.losses import aggregate, keep


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """Supervised fine-tuning's hyper-parameters.

    normalize  token or sequence, see llmrl.losses.aggregate.
    """

    normalize: Literal["token", "sequence"] = "token"

    @property
    def needs(self) -> Needs:
        """Gold completions instead of rollouts."""
        return Needs(gold=True)

    def credit(self, batch: Batch) -> Batch:
        """Nothing: every token counts alike."""
        return batch

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        nll = -keep(out.logprobs, batch.mask)
        value = aggregate(
            nll,
            batch.mask,
            normalize=self.normalize,
            tokens_total=batch.tokens_total,
            sequences_total=batch.sequences_total,
        )
        return Loss(value=value, metrics={"nll": partial_mean(batch)(nll)})
