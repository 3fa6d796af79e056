"""Which back-end a run uses, and the policy, scorer and updater in its form."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmrl.config import ConfigError, Recipe, TrainConfig
from llmrl.policy.forward import forward
from llmrl.policy.model import Policy
from llmrl.train.backends.seam import Moves
from llmrl.train.update import Scorer
from llmrl.train.updater import Updater
from llmrl.train.world import World

Backend = Literal["ddp", "fsdp2", "zero2", "zero3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A policy as its back-end holds it, its scorer, and what moves it."""

    policy: Policy
    scorer: Scorer
    updater: Moves


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


def build(backend: Backend, recipe: Recipe, policy: Policy, scorer: Scorer, world: World) -> Trained:
    """Hand `policy` to `backend`: sharded over ranks unless it is ddp, with the optimizer that fits."""
    train = recipe.train
    settings: dict[str, Any] = {
        "betas": train.betas, "eps": train.eps, "weight_decay": train.weight_decay, "max_grad_norm": train.max_grad_norm,
    }  # fmt: skip
    if backend == "ddp":
        reduce = world.sum_ if world.size > 1 else None
        return Trained(policy=policy, scorer=scorer, updater=Updater(policy.trainable(), reduce=reduce, **settings))
    if backend == "fsdp2":
        from llmrl.train.backends.fsdp2 import FSDP2Updater, shard_policy

        policy, scorer = shard_policy(policy, scorer, world)
        return Trained(policy=policy, scorer=scorer, updater=FSDP2Updater(policy, world=world, **settings))
    from llmrl.train.backends import zero

    stage = 3 if backend == "zero3" else 2
    policy, scorer, moves = zero.shard_policy(policy, scorer, world, stage=stage, **settings)
    return Trained(policy=policy, scorer=scorer, updater=moves)


def frozen(backend: Backend, policy: Policy, scorer: Scorer, world: World) -> Scorer:
    """A scorer of `policy`, a model that only answers: sharded where `backend` shards weights."""
    model = policy.causal_lm.requires_grad_(False)
    if backend == "fsdp2":
        from llmrl.train.backends.fsdp2 import shard
        from llmrl.train.backends.root import sharded_scorer

        return sharded_scorer(scorer, shard(model, world=world, dtype=None), world)
    if backend == "zero3":
        from llmrl.train.backends.root import sharded_scorer
        from llmrl.train.backends.zero import shard_frozen

        return sharded_scorer(scorer, shard_frozen(model, world), world)
    return replace(scorer, model=model, forward=forward, together=int)
