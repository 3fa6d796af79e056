"""Fully sharded data parallelism (PyTorch's FSDP2, `fully_shard`): float32 shards, gathered in the compute dtype.

The sharded parameters are the master weights. Each layer is gathered in `dtype` when it runs, its gradients are summed
over ranks in float32 and stay with the shard's owner, and AdamW works on the shards alone. With LoRA the frozen weights
are sharded as they are, and the adapter keeps its own dtype. Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from llmrl.batch import Batch
from llmrl.policy.critic import Critic
from llmrl.policy.model import Policy
from llmrl.policy.outcome_critic import OutcomeCritic
from llmrl.train.backends.gather import Shard, gathered, rows_of
from llmrl.train.backends.wrapped import Root, ValueRoot, blocks, sharded_scorer
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import check_names, clipped_step, discarding, exchange
from llmrl.train.world import World, collective

STATES = ("exp_avg", "exp_avg_sq")
AnyCritic = TypeVar("AnyCritic", Critic, OutcomeCritic)


def shard(root: nn.Module, *, world: World, dtype: torch.dtype | None, scale: float = 1.0) -> nn.Module:
    """`root` cut over all ranks, in place, layer by layer. `dtype` None computes as stored; gradients are divided by
    `scale`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    how: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        "reshard_after_forward": True,  # also at the root: a pass without backward must not leave old weights behind
    }
    for block in blocks(cast(nn.Module, root.causal_lm)):
        fully_shard(block, **how)
    fully_shard(root, **how)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(scale)  # gradients are shares of one loss: summed, not averaged
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return root


def shard_policy(policy: Policy, logprob_model: LogprobModel, world: World) -> tuple[Policy, LogprobModel]:
    """The policy with float32 shards of what it trains, and the logprob_model that calls it."""
    policy, root = _sharded(policy, Root(policy.causal_lm), world)
    return policy, sharded_scorer(logprob_model, root, world)


def shard_critic(critic: AnyCritic, world: World, *, scale: float) -> AnyCritic:
    """A value model or outcome critic of its own with float32 shards; every rank holds the whole head."""
    assert critic.model is not None
    model, root = _sharded(critic.model, ValueRoot(critic.model.causal_lm), world, scale=scale)
    mode, head = critic.mode, critic.head

    def values(batch: Batch) -> Tensor:
        with collective():
            found: Tensor = root(batch, mode, head)[0]
        return found

    return replace(critic, model=model, sharded=values)


def _sharded(policy: Policy, root: nn.Module, world: World, *, scale: float = 1.0) -> tuple[Policy, nn.Module]:
    parameters = dict(policy.model.named_parameters())
    dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
    compute = None
    if not policy.lora:
        (compute,) = set(dtypes.values())
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
    shard(root, world=world, dtype=compute, scale=scale)
    return replace(policy, unshard=partial(_whole, world=world, dtypes=dtypes)), root


class FSDP2Updater:
    """AdamW on this rank's shards: `Updater` for weights that `shard` cut up.

    Weights that are not cut (a value head) are held by every rank; their gradients are summed and divided by `scale`.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        *,
        world: World,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        scale: float = 1.0,
    ) -> None:
        self._world = world
        self._named = list(named)
        self._cut = {name: is_cut(parameter) for name, parameter in self._named}
        self._masters = {name: local(parameter).requires_grad_(True) for name, parameter in self._named}
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self._named}
        self._max_grad_norm = max_grad_norm
        self._scale = scale
        self._adam = torch.optim.AdamW(
            list(self._masters.values()), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    def backward(self, loss: Tensor, group: Tensor | None = None) -> None:
        """Add the gradients of `loss` to this rank's shards; every rank must call it equally often."""
        with collective():
            loss.backward()

    def step(self, lr: float) -> tuple[float, bool]:
        """As `Updater.step`; the norm is over all shards, so that every rank clips, or drops the gradient, alike."""
        for name, parameter in self._named:
            self._masters[name].grad = self._gradient(name, parameter)
        own = [cast(Tensor, x.grad) for name, x in self._masters.items() if self._cut[name] or self._world.main]
        squares = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(own))).double().square()
        norm = math.sqrt(float(self._world.sum_(squares)))
        grads = [cast(Tensor, master.grad) for master in self._masters.values()]
        applied = clipped_step(self._adam, grads, norm, limit=self._max_grad_norm, lr=lr)
        self.discard()
        return norm, applied

    def _gradient(self, name: str, parameter: Tensor) -> Tensor:
        if parameter.grad is None:
            grad = torch.zeros_like(self._masters[name])
        else:
            grad = local(parameter.grad)
        return grad if self._cut[name] else self._world.sum_(grad).div_(self._scale)

    def discard(self) -> None:
        for name, parameter in self._named:
            parameter.grad = self._masters[name].grad = None

    def frozen(self) -> AbstractContextManager[None]:
        return discarding(self)

    def reset(self) -> None:
        self._adam.state.clear()

    def state(self) -> dict[str, Tensor]:
        """As `Updater.state`, whole tensors on the CPU of rank 0; {} elsewhere. Every rank must call it."""
        parts: dict[str, Tensor] = {}
        steps: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            kept = self._adam.state.get(master, {})
            parts |= {f"master/{name}": master.detach()} | {f"{key}/{name}": kept[key] for key in STATES if key in kept}
            steps |= {f"step/{name}": kept["step"].cpu()} if "step" in kept else {}
        found = self._collected(parts, {key: key.partition("/")[2] for key in parts})
        return found | steps if self._world.main else {}

    def _collected(self, parts: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of rank 0, {} elsewhere; `names` tells of which weight each part is."""
        cut = {key: x for key, x in parts.items() if self._cut[names[key]]}
        shards = (Shard(name=key, local=x, whole=self._shapes[names[key]]) for key, x in cut.items())
        found = {key: x.to("cpu") for key, x in gathered(shards, self._world) if self._world.main}
        return found | {key: x.cpu() for key, x in parts.items() if key not in cut} if self._world.main else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """As `Updater.load`; every rank reads the whole tensors one by one and keeps its rows."""
        check_names(list(self._masters), state)
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(self.shard(name, state[f"master/{name}"]))
                keys = [key for key in STATES if f"{key}/{name}" in state]
                kept = {key: self.shard(name, state[f"{key}/{name}"]).to(master, copy=True) for key in keys}
                if kept:
                    self._adam.state[master] = kept | {"step": state[f"step/{name}"].clone()}

    def held(self) -> dict[str, Tensor]:
        """This rank's rows of every trained weight, in float32, sharing the model's memory."""
        return {name: master.detach() for name, master in self._masters.items()}

    def swap(self, kept: dict[str, Tensor]) -> None:
        """Other rows in the place of the model's, and the model's into `kept`: values move, since the model gathers from
        where they lie.
        """
        exchange(self.held(), kept)

    def unshard(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of all ranks' `parts` on the CPU of rank 0; {} elsewhere."""
        return self._collected(parts, {name: name for name in parts})

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's rows of a whole `tensor`."""
        if not self._cut[name]:
            return tensor
        return tensor[rows_of(self._world.rank, rows=self._shapes[name][0], size=self._world.size)]


def is_cut(tensor: Tensor) -> bool:
    """Whether ranks hold parts of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Any) -> Tensor:
    """This rank's rows of a tensor, or all of one that is not cut, sharing its memory."""
    found: Tensor = tensor.detach()
    return cast(Any, found).to_local() if is_cut(found) else found


def _whole(
    named: Iterable[tuple[str, Tensor]], *, world: World, dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of sharded parameters, cast to their model's precision before they are sent."""
    shards = (Shard(name=name, local=local(x).to(dtypes[name]), whole=tuple(x.shape)) for name, x in named)
    return gathered(shards, world)
