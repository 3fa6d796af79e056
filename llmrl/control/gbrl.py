"""Gradient-boosted actor and critic on shared trees: GBRL (Fuhrer et al. 2024, arXiv 2407.08250), through its package.

An ensemble of trees F(s) = sum_t lr f_t(s) gives policy parameters and the value at once; a step of boosting fits one
more tree to the negative gradients of both losses, so that actor and critic share every split:

    value   (V(s) - y)^2 / 2,                   y = r + gamma (1 - terminated) V(s')
    policy  -w log pi(a|s) - c H(pi),   w ~ exp(A / (beta std A)) with mean 1, at most 5,   A = y - V(s)

The policy's loss is advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177), one of the algorithms that the
paper boosts: it needs no importance ratios, so all of the replay may be used. The policy is N(F(s), std^2) of u with a
fixed std, or a softmax over choices. Trees need no standardised inputs. gbrl comes with the extra `control`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from llmrl.control.config import Actions
from llmrl.control.replay import Replay
from llmrl.control.state import flat, under

NORMAL_STD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostedConfig:
    """`updates_per_step` trees are added a transition, once `warmup` are held."""

    learning_rate: float = 0.1
    depth: int = 3
    gamma: float = 0.95
    beta: float = 1.0
    entropy: float = 0.01
    batch_size: int = 64
    updates_per_step: int = 1
    warmup: int = 8
    capacity: int = 10_000


class BoostedActorCritic:
    """The trees and what they learn from. An `Agent`."""

    def __init__(self, *, obs_size: int, actions: Actions, config: BoostedConfig, seed: int) -> None:
        from gbrl.models.actor_critic import ActorCritic

        self.config, self.actions = config, actions
        self.generator = torch.Generator().manual_seed(seed)
        self.replay = Replay(
            obs_size=obs_size, action_size=actions.width, capacity=config.capacity, dtype=torch.float32
        )
        step = {"algo": "SGD", "lr": config.learning_rate, "start_idx": 0, "stop_idx": actions.size}
        self.trees = ActorCritic(
            tree_struct={
                "max_depth": config.depth, "grow_policy": "greedy", "n_bins": 64, "min_data_in_leaf": 2, "par_th": 10**6,
            },
            input_dim=obs_size, output_dim=actions.size + 1, shared_tree_struct=True, policy_optimizer=step,
            value_optimizer={**step, "start_idx": actions.size, "stop_idx": actions.size + 1},
            params={"split_score_func": "Cosine", "generator_type": "Quantile"},
        )  # fmt: skip
        self.planted = 0

    @property
    def ready(self) -> bool:
        return len(self.replay) >= self.config.warmup

    def finite(self) -> bool:
        """Whether the last transitions' outputs are numbers."""
        if not self.planted:
            return True
        policy, value = self._outputs(self.replay.sample(1, torch.Generator().manual_seed(0)).obs)
        return bool(policy.isfinite().all() and value.isfinite().all())

    def _outputs(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [B, n] -> (policy parameters [B, A or d], values [B])."""
        if not self.planted:
            return torch.zeros(len(obs), self.actions.size), torch.zeros(len(obs))
        rows: Any = np.ascontiguousarray(obs.numpy(), dtype=np.float32)
        policy, value = self.trees(rows, requires_grad=False, tensor=False)
        return torch.as_tensor(np.array(policy)).reshape(len(obs), -1), torch.as_tensor(np.array(value)).reshape(-1)

    def act(self, obs: Tensor, *, explore: bool = True) -> Tensor:
        """obs [n] -> u [d], or the index of a choice [1]."""
        policy = self._outputs(obs.float()[None])[0][0]
        if self.actions.discrete:
            drawn = torch.multinomial(policy.softmax(-1), 1, generator=self.generator)
            return (drawn if explore else policy.argmax()[None]).float()
        return policy + (NORMAL_STD * torch.randn(policy.shape, generator=self.generator) if explore else 0.0)

    def random_action(self) -> Tensor:
        return self.actions.random(self.generator, torch.float32)

    def remember(self, *, obs: Tensor, raw: Tensor, reward: float, next_obs: Tensor, terminated: bool) -> None:
        self.replay.add(obs=obs, raw=raw, reward=reward, next_obs=next_obs, terminated=float(terminated))

    def update(self) -> dict[str, Tensor]:
        """Fit one more tree to a batch; its losses as scalars."""
        config, batch = self.config, self.replay.sample(self.config.batch_size, self.generator)
        policy, value = (part.requires_grad_() for part in self._outputs(batch.obs))
        follows = self._outputs(batch.next_obs)[1]
        target = batch.reward + config.gamma * (1 - batch.terminated) * follows
        advantage = (target - value).detach()
        weight = (advantage / (config.beta * advantage.std(correction=0).clamp_min(1e-6))).clamp(-3, 3).exp()
        weight = (weight / weight.mean()).clamp_max(5.0)
        if self.actions.discrete:
            logprobs = policy.log_softmax(-1)
            logprob = (one_hot(batch.raw[:, 0].long(), self.actions.size) * logprobs).sum(-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        else:
            aim = batch.raw.clamp(-3, 3)  # tanh(3) is 0.995
            logprob = -0.5 * (aim - policy).square().sum(-1)  # times std^2: a step is then a share of the distance
            entropy = torch.zeros_like(logprob)  # a fixed standard deviation has a fixed entropy
        policy_loss = -(weight * logprob + config.entropy * entropy).sum()
        value_loss = (value - target).square().sum() / 2
        gradients = torch.autograd.grad(policy_loss + value_loss, (policy, value))
        rows = np.ascontiguousarray(batch.obs.numpy(), dtype=np.float32)
        self.trees.step(rows, *(np.ascontiguousarray(g.numpy(), dtype=np.float32) for g in gradients))
        self.planted += 1
        return {"policy_loss": policy_loss.detach() / len(rows), "value_loss": value_loss.detach() / len(rows)}

    def state(self) -> dict[str, Tensor]:
        """The trees as the bytes of their file, the transitions and the generator.

        Trees predict the same bit for bit after `load`; two files of equal trees may differ in bytes that mean nothing.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.trees.save_learner(f"{folder}/trees")
            (file,) = Path(folder).iterdir()
            trees = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        own = {"trees": trees, "planted": torch.tensor(self.planted), "generator": self.generator.get_state()}
        return flat({"replay": self.replay.state()}, own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "trees.gbrl_model").write_bytes(state["trees"].numpy().tobytes())
            self.trees = type(self.trees).load_learner(f"{folder}/trees", "cpu")
        self.planted = int(state["planted"])
        self.generator.set_state(state["generator"])
        self.replay.load(under(state, "replay"))
