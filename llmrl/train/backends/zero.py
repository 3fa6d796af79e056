"""DeepSpeed's ZeRO: stage 2 shares gradients and AdamW's state over ranks, stage 3 the weights as well.

DeepSpeed keeps the float32 master weights and sums gradients in float32 over micro-batches and ranks. It averages over
ranks where llmrl sums shares of one loss, so the loss is multiplied by their number. It skips a step whose gradient is
not finite, on every rank. Rajbhandari et al. 2020, arXiv:1910.02054. The only module that imports deepspeed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.policy.model import Policy
from llmrl.train.backends.gather import BUCKET_BYTES, Shard, buckets, gathered, rows_of
from llmrl.train.backends.wrapped import Root, sharded_scorer
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import check_names, discarding, exchange
from llmrl.train.world import World, collective

STATES = ("exp_avg", "exp_avg_sq")


def shard_policy(
    policy: Policy,
    logprob_model: LogprobModel,
    world: World,
    *,
    stage: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float,
) -> tuple[Policy, LogprobModel, ZeROUpdater]:
    """The policy shared as `stage` (2 or 3) says, the logprob_model that calls it, and what moves it."""
    deepspeed = _deepspeed(world)
    named = policy.trainable()
    dtypes = {name: parameter.dtype for name, parameter in policy.model.named_parameters()}
    low = {parameter.dtype for _, parameter in named} == {torch.bfloat16}
    adam = torch.optim.AdamW([p for _, p in named], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
    config = _config(stage, low=low) | {"gradient_clipping": max_grad_norm}
    engine, *_ = deepspeed.initialize(model=Root(policy.causal_lm), optimizer=adam, config=config)
    if stage == 3:
        # The output layer's weight is read in Root.forward, not by calling the layer.
        output = policy.causal_lm.get_output_embeddings()
        for parameter in output.parameters():
            deepspeed.zero.register_external_parameter(engine.module, parameter)
        policy = replace(policy, unshard=partial(_whole, dtypes=dtypes))
    return (
        policy,
        sharded_scorer(logprob_model, engine, world),
        ZeROUpdater(engine, policy.trainable(), world=world, stage=stage),
    )


def _deepspeed(world: World) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"train.backend=zero2 and zero3 need DeepSpeed, which cannot be imported ({error}); "
            "pip install 'llmrl[deepspeed]', or set train.backend=fsdp2"
        ) from error
    deepspeed.utils.logger.setLevel("WARNING")
    # On CPUs it would compile an all-reduce for inference, which training never calls; that needs a compiler, and a
    # compilation that was killed leaves a lock for which every later run waits without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _config(stage: int, *, low: bool) -> dict[str, Any]:
    """DeepSpeed's settings. Without `low` parameters keep the precision they have."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # `step` ends a step, however many passes came before
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "bf16": {"enabled": low, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
    }


class ZeROUpdater:
    """The counterpart of `Updater` for a policy that DeepSpeed shares."""

    def __init__(self, engine: Any, named: list[tuple[str, nn.Parameter]], *, world: World, stage: int) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._named: list[tuple[str, Any]] = list(named)
        self._world = world
        self._stage = stage

    @property
    def _flat(self) -> list[Tensor]:
        """The float32 tensors that AdamW moves: this rank's parts, end to end."""
        found = (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return list(found)

    def backward(self, loss: Tensor, group: Tensor | None = None) -> None:
        """Add the gradients of `loss`; every rank must call it equally often."""
        with collective():
            self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def step(self, lr: float) -> tuple[float, bool]:
        """As `Updater.step`; DeepSpeed clips by the norm over all ranks."""
        for group in self._zero.param_groups:
            group["lr"] = lr
        with collective():
            self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return (norm, True) if self._engine.was_step_applied() else (math.nan, False)  # it keeps no norm of these

    def discard(self) -> None:
        """Forget accumulated gradients, as DeepSpeed does itself after one that is not finite."""
        self._zero.zero_grad(set_to_none=True)
        if self._stage == 3:
            self._zero.averaged_gradients = {}
            return
        self._zero.micro_step_id = -1
        for group in range(len(self._zero.bit16_groups)):
            self._zero.averaged_gradients[group] = self._zero.all_grad_tensors[group] = None

    def frozen(self) -> AbstractContextManager[None]:
        return discarding(self)

    def reset(self) -> None:
        for flat in self._flat:
            for value in self._zero.optimizer.state.get(flat, {}).values():
                value.zero_()  # DeepSpeed holds views of them

    def state(self) -> dict[str, Tensor]:
        """As `Updater.state`, whole tensors on the CPU of rank 0; {} elsewhere. Every rank must call it."""
        kept = self._zero.optimizer.state.get(self._flat[0], {})
        keys = ["master", *(key for key in STATES if key in kept)]
        parts = self._parts_of_stage_3(keys) if self._stage == 3 else self._parts_of_stage_2(keys)
        found = {key: tensor.to("cpu") for key, tensor in parts if self._world.main}
        if self._world.main and "step" in kept:
            found |= {f"step/{name}": kept["step"].detach().to("cpu", copy=True) for name, _ in self._named}
        return found

    def _parts_of_stage_2(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._named:
            for key in keys:
                yield f"{key}/{name}", parameter.get_full_hp_param(None if key == "master" else key)

    def _parts_of_stage_3(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        shapes = {f"{key}/{name}": parameter.ds_shape for name, parameter in self._named for key in keys}
        shards = (self._part(key, name, parameter) for name, parameter in self._named for key in keys)
        return ((key, tensor.view(shapes[key])) for key, tensor in gathered(shards, self._world))

    def _part(self, key: str, name: str, parameter: Any) -> Shard:
        local = self._zero.get_local_fp32_param(parameter, None if key == "master" else key)
        return self._shard(f"{key}/{name}", local.detach(), parameter)

    def _shard(self, key: str, part: Tensor, parameter: Any) -> Shard:
        """This rank's run of elements, without the padding that the last rank has."""
        mine = rows_of(self._world.rank, rows=parameter.ds_numel, size=self._world.size)
        return Shard(name=key, local=part[: mine.stop - mine.start], whole=(parameter.ds_numel,))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """As `Updater.load`; every rank reads the whole tensors one by one and keeps its part."""
        check_names([name for name, _ in self._named], state)
        keys = ["master", *(key for key in STATES if f"{key}/{self._named[0][0]}" in state)]
        if len(keys) > 1:
            self._make_room(state[f"step/{self._named[0][0]}"])
        with torch.no_grad():
            for name, parameter in self._named:
                for key in keys:
                    self._put(key, parameter, state[f"{key}/{name}"])
            if self._stage == 2:
                self._zero.update_lp_params()

    def held(self) -> dict[str, Tensor]:
        """This rank's part of every trained weight, in the model's precision, sharing its memory."""
        if self._stage == 2:
            return {name: parameter.detach() for name, parameter in self._named}
        return {name: parameter.ds_tensor.detach() for name, parameter in self._named}

    def swap(self, kept: dict[str, Tensor]) -> None:
        if self._stage == 3:
            self._engine.empty_partition_cache()  # gathered weights would outlive the exchange
        exchange(self.held(), kept)

    def unshard(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._stage == 2:
            return dict(parts)
        shards = (self._shard(name, parts[name], parameter) for name, parameter in self._named)
        shapes = {name: parameter.ds_shape for name, parameter in self._named}
        return {name: x.view(shapes[name]).cpu() for name, x in gathered(shards, self._world) if self._world.main}

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of a whole `tensor`; of stage 3 a run of elements, padded on the last rank."""
        return tensor if self._stage == 2 else self._cut(dict(self._named)[name], tensor)

    def _cut(self, parameter: Any, value: Tensor) -> Tensor:
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self._world.size - value.numel()))
        return padded.narrow(0, size * self._world.rank, size)

    def _make_room(self, step: Tensor) -> None:
        """AdamW's state, which does not exist before its first step, at `step`."""
        adam = self._zero.optimizer
        for flat in self._flat:
            adam.state[flat] = {"step": step.clone(), **{key: torch.zeros_like(flat) for key in STATES}}
        if self._stage == 2:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _put(self, key: str, parameter: Any, value: Tensor) -> None:
        value = value.to(self._world.device)
        inner = None if key == "master" else key
        if self._stage == 2:
            parameter.set_full_hp_param(value, inner)
            return
        if key == "master":
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        self._zero.set_local_hp_param(self._cut(parameter, value), parameter, inner)


def _whole(named: Iterable[tuple[str, Tensor]], *, dtypes: Mapping[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of parameters that stage 3 shares, gathered a bucket at a time."""
    import deepspeed

    parameters: dict[str, Any] = dict(named)
    shards = (Shard(name=name, local=p.detach(), whole=tuple(p.ds_shape)) for name, p in parameters.items())
    for bucket in buckets(shards, BUCKET_BYTES):
        with deepspeed.zero.GatheredParameters([parameters[shard.name] for shard in bucket]):
            yield from ((shard.name, parameters[shard.name].detach().to(dtypes[shard.name])) for shard in bucket)
