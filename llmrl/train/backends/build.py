"""Which back-end a run uses, and the policy, logprob_model, value model and updaters in its form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.policy.critic import Critic
from llmrl.policy.model import Policy
from llmrl.policy.outcome_critic import OutcomeCritic
from llmrl.settings.recipe import TrainConfig
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.protocols import Optimizer, ShardedOptimizer, Shards
from llmrl.train.updater import Updater
from llmrl.train.world import World

Backend = Literal["ddp", "fsdp2", "zero2", "zero3"]
AnyCritic = TypeVar("AnyCritic", Critic, OutcomeCritic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A policy as its back-end holds it, how its log-probabilities are computed, and what moves it."""

    policy: Policy
    logprob_model: LogprobModel
    optimizer: Optimizer
    shards: Shards


def choose(train: TrainConfig, world: World) -> Backend:
    """The back-end of this run. One process has nothing to share, so it is always the plain one (ddp).

    With train.backend=auto it is the one that `accelerate launch` was configured for. Raises ConfigError if that and the
    recipe disagree.
    """
    launched = _launched()
    if train.backend != "auto" and launched is not None and launched != train.backend:
        raise ConfigError(
            f"train.backend={train.backend}, but accelerate was configured for {launched}; set train.backend=auto, or "
            f"launch with launch/accelerate/{train.backend}.yaml"
        )
    if world.size == 1:
        return "ddp"
    return (launched or "ddp") if train.backend == "auto" else train.backend


def _launched() -> Backend | None:
    """What `accelerate launch` says in the environment, if it says anything."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") == "3" else "zero2"
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else None


def share(backend: Backend, train: TrainConfig, policy: Policy, logprob_model: LogprobModel, world: World) -> Shared:
    """Hand `policy` to `backend`: sharded over ranks unless it is ddp, with the optimizer that fits."""
    settings = _settings(train)
    if backend != "ddp" and train.lr_groups:
        raise ConfigError(
            f"train.lr_groups with train.backend={backend}: only ddp has learning rates by group; remove one"
        )
    if backend == "ddp":
        moves: ShardedOptimizer = _plain(policy.trainable(), train, world, factors=_factors(policy, train))
    elif backend == "fsdp2":
        from llmrl.train.backends import fsdp2

        policy, logprob_model = fsdp2.shard_policy(policy, logprob_model, world)
        moves = fsdp2.FSDP2Updater(policy.trainable(), world=world, **settings)
    else:
        from llmrl.train.backends import zero

        stage = 3 if backend == "zero3" else 2
        policy, logprob_model, moves = zero.shard_policy(policy, logprob_model, world, stage=stage, **settings)
    return Shared(policy=policy, logprob_model=logprob_model, optimizer=moves, shards=moves)


def share_critic(
    backend: Backend, train: TrainConfig, critic: AnyCritic, world: World, *, joint_loss: bool = True
) -> tuple[AnyCritic, ShardedOptimizer]:
    """A value model or outcome critic, sharded by FSDP2 if it is a model of its own and `backend` shards, and what moves it.

    ZeRO multiplies the one loss of policy and values (`joint_loss`) by the number of ranks; what is not its own divides
    that out again.
    """
    scale = float(world.size) if joint_loss and backend in ("zero2", "zero3") else 1.0
    if backend == "ddp" or critic.model is None:
        return critic, _plain(critic.trainable(), train, world, scale=scale)
    from llmrl.train.backends import fsdp2

    critic = fsdp2.shard_critic(critic, world, scale=scale)
    return critic, fsdp2.FSDP2Updater(critic.trainable(), world=world, scale=scale, **_settings(train))


def _settings(train: TrainConfig) -> dict[str, Any]:
    return {
        "betas": train.betas, "eps": train.eps, "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm,
    }  # fmt: skip


def _factors(policy: Policy, train: TrainConfig) -> dict[str, float]:
    """How many times `train.lr` some parameters learn with. Raises ConfigError for a group that the policy has not."""
    groups = policy.groups() if train.lr_groups else {}
    for name in train.lr_groups:
        if not groups[name]:
            there = ", ".join(group for group, names in groups.items() if names) or "none of them"
            raise ConfigError(
                f"train.lr_groups.{name}: the policy trains no such part on its own (there is: {there}); an output layer "
                "that shares the embedding's weight is not one, nor is a frozen vision tower"
            )
    return {name: rate / train.lr for group, rate in train.lr_groups.items() for name in groups[group]}


def _plain(
    named: list[tuple[str, nn.Parameter]],
    train: TrainConfig,
    world: World,
    *,
    scale: float = 1.0,
    factors: Mapping[str, float] | None = None,
) -> Updater:
    """The optimizer over whole weights, whose gradients are summed over ranks."""
    reduce = partial(_sum, world=world, scale=scale) if world.size > 1 else None
    return Updater(named, reduce=reduce, factors=factors, **_settings(train))


def _sum(tensor: Tensor, *, world: World, scale: float) -> Tensor:
    return world.sum_(tensor) if scale == 1.0 else world.sum_(tensor).div_(scale)
