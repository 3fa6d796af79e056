"""AdamW on float32 master weights: the only thing that moves the policy.

Low-precision parameters get a float32 copy; their gradients are added up in float32 as each backward pass produces
them, so that splitting a batch into micro-batches loses nothing. After a step the copy is rounded back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from llmrl.train.protocols import Optimizer

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, *, peak: float, total: int, warmup: int, schedule: Schedule) -> float:
    """The learning rate of `step` (0, 1, ...): linear warm-up over `warmup` steps, then the schedule down to 0 at `total`.

    >>> [learning_rate(s, peak=1.0, total=4, warmup=2, schedule="linear") for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (1 - progress) if schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * progress))


class Updater:
    """`Optimizer` and `Shards` over whole weights: the master weights and AdamW's state (Loshchilov & Hutter 2019) of
    `named` parameters.

    `factors` multiply the learning rate of some of them, by name. `reduce` sums a tensor over ranks in place; gradients
    are shares of one global loss, so they are summed, not averaged.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        reduce: Callable[[Tensor], Tensor] | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self._named = list(named)
        self._masters = [(name, _master(parameter)) for name, parameter in self._named]
        self._copies = {
            master for (_, p), (_, master) in zip(self._named, self._masters, strict=True) if master is not p
        }
        self._touched: set[Tensor] = set()  # masters whose gradient is of this step; that of others is stale
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_accumulate_into(master, self._touched))
            for (_, parameter), (_, master) in zip(self._named, self._masters, strict=True)
            if master is not parameter
        ]
        self._max_grad_norm = max_grad_norm
        self._reduce = reduce
        by_factor: dict[float, list[Tensor]] = {}
        for name, master in self._masters:
            by_factor.setdefault((factors or {}).get(name, 1.0), []).append(master)
        groups = [{"params": masters, "factor": factor} for factor, masters in by_factor.items()]
        self._adam = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def backward(self, loss: Tensor, group: Tensor | None = None) -> None:
        loss.backward()

    def step(self, lr: float) -> tuple[float, bool]:
        """Clip and apply what backward passes left. Returns (gradient norm before clipping, whether it was applied).

        A gradient that is not finite is dropped: nothing moves, not even Adam's averages.
        """
        masters = [master for _, master in self._masters]
        grads = [self._grad(master) for master in masters]
        if self._reduce is not None:
            for grad in grads:
                self._reduce(grad)
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        applied = clipped_step(self._adam, grads, norm, limit=self._max_grad_norm, lr=lr)
        if applied:
            self._round_back()
        self.discard()
        return norm, applied

    def discard(self) -> None:
        """The memory of float32 copies is kept for the next gradients."""
        self._touched.clear()
        for (_, parameter), (_, master) in zip(self._named, self._masters, strict=True):
            if master is parameter:
                master.grad = None

    def _grad(self, master: Tensor) -> Tensor:
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        elif master in self._copies and master not in self._touched:
            master.grad.zero_()
        return master.grad

    def held(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._named}

    def swap(self, kept: dict[str, Tensor]) -> None:
        for name, parameter in self._named:
            parameter.data, kept[name] = kept[name], parameter.data

    def unshard(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(parts)

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def reset(self) -> None:
        self._adam.state.clear()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """These parameters get no gradient inside, and no graph is built for them."""
        for _, parameter in self._named:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for _, parameter in self._named:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def _round_back(self) -> None:
        for (_, parameter), (_, master) in zip(self._named, self._masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, master in self._masters:
            found[f"master/{name}"] = master.detach()
            for key, value in self._adam.state.get(master, {}).items():
                found[f"{key}/{name}"] = value
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        check_names([name for name, _ in self._masters], state)
        with torch.no_grad():
            for name, master in self._masters:
                master.copy_(state[f"master/{name}"])
                kept = {
                    key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in state
                }
                if kept:
                    self._adam.state[master] = {key: value.clone() for key, value in kept.items()}
        self._round_back()


def clipped_step(adam: torch.optim.Optimizer, grads: list[Tensor], norm: float, *, limit: float, lr: float) -> bool:
    """Clip `grads`, whose norm over all ranks is `norm`, and apply them; nothing happens, and False, if it is not finite."""
    if not math.isfinite(norm):
        return False
    if norm > limit:
        torch._foreach_mul_(grads, limit / (norm + 1e-6))
    for group in adam.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
    adam.step()
    return True


def exchange(held: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Put the values of `kept` in the place of those of `held`, and the other way round: memory stays where it is."""
    for name, own in held.items():
        before = own.clone()
        own.copy_(kept[name])
        kept[name].copy_(before)


@contextmanager
def discarding(optimizer: Optimizer) -> Iterator[None]:
    """`Optimizer.frozen` where weights cannot be told to need no gradient: what is accumulated inside is forgotten."""
    try:
        yield
    finally:
        optimizer.discard()


def check_names(names: Sequence[str], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` holds exactly the weights `names`."""
    odd = sorted(set(names) ^ {key.partition("/")[2] for key in state if key.startswith("master/")})
    if odd:
        raise ValueError(f"the checkpoint is of another model: {len(odd)} weights differ, such as {odd[0]}")


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().clone().float().requires_grad_(True)


def _accumulate_into(master: Tensor, touched: set[Tensor]) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        if master.grad is None:
            master.grad = parameter.grad.float()
        elif master in touched:
            master.grad += parameter.grad
        else:
            master.grad.copy_(parameter.grad)
        touched.add(master)
        parameter.grad = None

    return hook
