"""The one module that a sharding library wraps, so that its hooks see the whole forward pass.

`policy.forward` calls the inside of a Hugging Face model: the layers without their output layer, then the output layer's
weight on scored positions only. Sharded weights are only there while a wrapped module's `forward` runs, so all of it
happens in `Root.forward`. Roots return tuples, because hooks look for tensors in those.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.forward import ForwardMode, ValueHead, forward, forward_values
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.world import World, collective


class Root(nn.Module):
    """A causal LM whose forward pass is llmrl's own."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(
        self, batch: Batch, mode: ForwardMode, temperature: float, entropy: bool, value_head: ValueHead | None
    ) -> tuple[Tensor, ...]:
        out = forward(self.causal_lm, batch, mode=mode, temperature=temperature, entropy=entropy, value_head=value_head)
        return tuple(tensor for tensor in (out.logprobs, out.entropy, out.values) if tensor is not None)


class ValueRoot(nn.Module):
    """A model of values; its head stays outside, since every rank holds all of that."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, batch: Batch, mode: ForwardMode, value_head: ValueHead) -> tuple[Tensor]:
        return (forward_values(self.causal_lm, batch, mode=mode, value_head=value_head),)


def sharded_forward(
    model: nn.Module,
    batch: Batch,
    *,
    mode: ForwardMode,
    temperature: float = 1.0,
    entropy: bool = False,
    value_head: ValueHead | None = None,
) -> Output:
    """`policy.forward.forward` of a wrapped Root. Every rank must call it the same number of times."""
    with collective():
        found: Any = model(batch, mode, temperature, entropy, value_head)
    return Output(
        logprobs=found[0],
        entropy=found[1] if entropy else None,
        values=found[-1] if value_head is not None else None,
    )


def sharded_scorer(logprob_model: LogprobModel, root: nn.Module, world: World) -> LogprobModel:
    """`logprob_model` of a wrapped Root, whose passes all ranks make together."""
    return replace(logprob_model, model=root, forward=sharded_forward, together=world.max)


def blocks(causal_lm: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: what transformers says must not be split."""
    kinds = set(getattr(causal_lm, "_no_split_modules", None) or ())
    return [module for module in causal_lm.modules() if type(module).__name__ in kinds]
