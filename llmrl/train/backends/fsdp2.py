"""Fully sharded data parallelism (PyTorch's FSDP2, `fully_shard`): float32 shards, gathered in the compute dtype.

The sharded parameters are the master weights. Each layer is gathered in `dtype` when it runs, its gradients are summed
over ranks in float32 and stay with the shard's owner, and AdamW works on the shards alone. With LoRA the frozen weights
are sharded as they are, and the adapter keeps its own dtype. Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.policy.model import Policy
from llmrl.train.backends.gather import Shard, gathered, rows_of
from llmrl.train.backends.root import Root, blocks, sharded_scorer
from llmrl.train.update import Scorer
from llmrl.train.updater import check_names
from llmrl.train.world import World

STATES = ("exp_avg", "exp_avg_sq")


def shard(causal_lm: nn.Module, *, world: World, dtype: torch.dtype | None) -> nn.Module:
    """`causal_lm` cut over all ranks, in place; returns the root module to call. `dtype` None computes as stored."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    how: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        "reshard_after_forward": True,  # also at the root: a pass without backward must not leave old weights behind
    }
    for block in blocks(causal_lm):
        fully_shard(block, **how)
    root = fully_shard(Root(causal_lm), **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # gradients are shares of one loss: summed, not averaged
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return root


def shard_policy(policy: Policy, scorer: Scorer, world: World) -> tuple[Policy, Scorer]:
    """The policy with float32 shards of what it trains, and the scorer that calls it."""
    parameters = dict(policy.model.named_parameters())
    dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
    compute = None
    if not policy.lora:
        (compute,) = set(dtypes.values())
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
    root = shard(policy.causal_lm, world=world, dtype=compute)
    return replace(policy, whole=partial(_whole, world=world, dtypes=dtypes)), sharded_scorer(scorer, root, world)


class FSDP2Updater:
    """AdamW on this rank's shards; the counterpart of `Updater` for a policy that `shard` cut up."""

    def __init__(
        self,
        policy: Policy,
        *,
        world: World,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self._world = world
        self._named = policy.trainable()
        self._masters = [(name, local(parameter).requires_grad_(True)) for name, parameter in self._named]
        self._max_grad_norm = max_grad_norm
        self._adam = torch.optim.AdamW(
            [master for _, master in self._masters], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to this rank's shards; every rank must call it equally often."""
        loss.backward()

    def step(self, lr: float) -> tuple[float, bool]:
        """As `Updater.step`; the norm is over all shards, so that every rank clips, or drops the gradient, alike."""
        grads = []
        for (_, parameter), (_, master) in zip(self._named, self._masters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else local(parameter.grad)
            grads.append(master.grad)
        squares = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).double().square()
        norm = math.sqrt(float(self._world.sum_(squares)))
        if math.isfinite(norm):
            if norm > self._max_grad_norm:
                torch._foreach_mul_(grads, self._max_grad_norm / (norm + 1e-6))
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._adam.step()
        self.discard()
        return norm, math.isfinite(norm)

    def discard(self) -> None:
        """Forget accumulated gradients."""
        for (_, parameter), (_, master) in zip(self._named, self._masters, strict=True):
            parameter.grad = master.grad = None

    def state(self) -> dict[str, Tensor]:
        """As `Updater.state`, whole tensors on the CPU of rank 0; {} elsewhere. Every rank must call it."""
        found = {key: tensor.to("cpu") for key, tensor in self._gathered() if self._world.main}
        if self._world.main:
            for name, master in self._masters:
                kept = self._adam.state.get(master, {})
                found |= {f"step/{name}": kept["step"].cpu()} if "step" in kept else {}
        return found

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        shards = []
        for (name, parameter), (_, master) in zip(self._named, self._masters, strict=True):
            kept = self._adam.state.get(master, {})
            parts = {"master": master.detach()} | {key: kept[key] for key in STATES if key in kept}
            shards += [Shard(name=f"{key}/{name}", local=x, whole=tuple(parameter.shape)) for key, x in parts.items()]
        return gathered(shards, self._world)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """As `Updater.load`; every rank reads the whole tensors one by one and keeps its rows."""
        check_names([name for name, _ in self._masters], state)
        with torch.no_grad():
            for (name, parameter), (_, master) in zip(self._named, self._masters, strict=True):
                mine = rows_of(self._world.rank, rows=parameter.shape[0], size=self._world.size)
                master.copy_(state[f"master/{name}"][mine])
                kept = {key: state[f"{key}/{name}"][mine].to(master) for key in STATES if f"{key}/{name}" in state}
                if kept:
                    self._adam.state[master] = kept | {"step": state[f"step/{name}"].clone()}


def local(tensor: Any) -> Tensor:
    """This rank's rows of a DTensor, sharing its memory."""
    found: Tensor = tensor.detach().to_local()
    return found


def _whole(
    named: Iterable[tuple[str, Tensor]], *, world: World, dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of sharded parameters, cast to their model's precision before they are sent."""
    shards = (Shard(name=name, local=local(x).to(dtypes[name]), whole=tuple(x.shape)) for name, x in named)
    return gathered(shards, world)
