"""The value model: a head on hidden states, linear or an MLP, of the policy itself or of a model of its own.

A value is read where a token is chosen: `values[t]` speaks of the state before token t. The head works in float32 and
starts at zero, so that an untrained critic says 0. With whitened targets its output is in units of the returns' running
deviation; when that moves, the head is rescaled so that no value changes (PopArt, van Hasselt et al. 2016,
arXiv:1602.07714). A separate model may read privileged text before the prompt (an asymmetric critic, Pinto et al. 2017,
arXiv:1710.06542): the policy's forward never opens those tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.batch import Batch
from llmrl.policy.forward import ForwardMode, forward_values
from llmrl.policy.model import Policy, check_tokenizer, load_policy
from llmrl.settings.model import CriticConfig, ModelConfig

HEAD_FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """hidden [N, D] -> values [N]: mean + deviation * (weight . f(hidden) + bias), float32 (float64 for float64).

    f is the identity, or an MLP with ReLU and layers of the widths `hidden`, drawn by `seed`.
    """

    mean: Tensor  # [] of the targets
    deviation: Tensor  # [] of the targets

    def __init__(self, width: int, *, hidden: Sequence[int] = (), stop_gradient: bool = False, seed: int = 0) -> None:
        super().__init__()
        widths = [width, *hidden]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        draw = torch.Generator().manual_seed(seed)
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=draw)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.weight = nn.Parameter(torch.zeros(widths[-1]))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self._stop_gradient = stop_gradient

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.detach() if self._stop_gradient else hidden
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            weight, bias = layer.weight.to(hidden.dtype), layer.bias.to(hidden.dtype)
            hidden = nn.functional.linear(hidden, weight, bias).relu()
        return self.mean + self.deviation * (hidden @ self.weight.to(hidden.dtype) + self.bias)

    @torch.no_grad()
    def move_targets(self, mean: Tensor, deviation: Tensor) -> None:
        """Take new target statistics; weight and bias follow, so that every value stays what it is."""
        ratio = self.deviation / deviation
        self.bias.copy_(self.bias * ratio + (self.mean - mean) / deviation)
        self.weight.mul_(ratio)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """A value head and, unless it sits on the policy, the model under it."""

    head: ValueHead
    model: Policy | None = None  # None: the policy's own hidden states
    mode: ForwardMode = "packed"  # of its own model
    sharded: Callable[[Batch], Tensor] | None = None  # its own model's values, if ranks share its weights

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What the value model's optimizer moves; a shared backbone is the policy's."""
        own = [] if self.model is None else self.model.trainable()
        return own + [(f"value_head.{name}", parameter) for name, parameter in self.head.named_parameters()]

    def values(self, batch: Batch) -> Tensor:
        """[B, T] with gradient, 0 outside the mask, by its own model; reads `batch.privileged` if it is there."""
        if self.model is None:
            raise ValueError("a shared head has no model of its own; its values come with the policy's forward")
        seen, shift = with_privileged(batch)
        if self.sharded is not None:
            found = self.sharded(seen)
        else:
            found = forward_values(self.model.causal_lm, seen, mode=self.mode, value_head=self.head)
        if shift is None:
            return found
        at = torch.arange(batch.tokens.shape[1])[None] + shift.cpu()[:, None]
        return found.gather(1, at.to(found.device))

    def join_gather(self) -> None:
        """Take part in the gathering of a rank that saves."""
        if self.model is not None:
            self.model.join_gather()

    def save(self, folder: Path) -> None:
        """Write value_head.safetensors, and its own model as a plain Hugging Face folder around it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if self.model is not None:
            self.model.save(folder)
        save_file({name: x.detach().contiguous() for name, x in self.head.state_dict().items()}, folder / HEAD_FILE)


def with_privileged(batch: Batch) -> tuple[Batch, Tensor | None]:
    """(the batch with every row's privileged tokens before its own, how far each row moved [B]); None: it has none."""
    if batch.privileged is None:
        return batch, None
    shift = (batch.privileged >= 0).sum(1)
    width, extra = batch.tokens.shape[1], batch.privileged.shape[1]
    at = torch.arange(width + extra, device=batch.tokens.device)[None] - shift[:, None]
    inside = (at >= 0) & (at < width)
    own = at.clamp(0, width - 1)
    before = torch.nn.functional.pad(batch.privileged, (0, width)).clamp_min(0)
    tokens = torch.where(inside, batch.tokens.gather(1, own), torch.where(at < 0, before, 0))
    return replace(
        batch,
        tokens=tokens,
        mask=batch.mask.gather(1, own) & inside,
        length=batch.length + shift,
        prompt_length=batch.prompt_length + shift,
        privileged=None,
    ), shift


def load_critic(
    config: CriticConfig, base: ModelConfig, policy: Policy, *, source: str, device: torch.device, seed: int
) -> Critic:
    """The value model that `config` asks for; a separate one is loaded from `source` in the policy's precision.

    A folder that `Critic.save` wrote brings its head along. Raises ConfigError for a separate model whose tokenizer
    differs from the policy's: it would read other text than the policy wrote.
    """
    if config.kind == "shared":
        return Critic(head=_head(policy, "", config, device, seed))
    settings = base.model_copy(update={"lora": config.lora})
    own = load_policy(settings, source=source, device=device, seed=seed)
    check_tokenizer("critic.path", own, policy)
    drop_output_layer(own.causal_lm)
    return Critic(head=_head(own, source, config, device, seed), model=own)


def _head(owner: Policy, source: str, config: CriticConfig, device: torch.device, seed: int) -> ValueHead:
    from safetensors.torch import load_file

    head = ValueHead(owner.width, hidden=config.hidden, stop_gradient=config.stop_gradient, seed=seed).to(device)
    stored = Path(source) / HEAD_FILE
    if source and stored.is_file():
        head.load_state_dict(load_file(stored))
    return head


def drop_output_layer(model: Any) -> None:
    """An output layer of its own gets no gradient from values, so it is not trained."""
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is not words.weight:
        output.weight.requires_grad_(False)
