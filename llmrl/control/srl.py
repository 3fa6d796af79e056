"""Action sequences with temporal recall: SRL (Patel and Siegelmann 2025, arXiv 2410.08979).

The actor answers one state with n actions, a_1 .. a_n, so that decisions are needed at 1/n of the rate. The critic is an
ordinary one of single steps; what it must see of a later action, the state in which it will be played, a learnt model
supplies:

    critic   y = r + gamma (1 - terminated) (min_j Q_j(s', a'_1) - alpha log pi(a'_1 | s'))
    model    f(s, a) = s + network, mean squared error against s'
    actor    s_1 = s, s_(k+1) = f(s_k, a_k) without gradient,
             mean_k [alpha log pi(a_k | s) - min_j Q_j(s_k, a_k)]

After training the actor acts without the model. The frequency-averaged score integrates the return over decision
frequencies 1/k. The paper's actor is recurrent, so that n may change; here one network gives all n actions, of which any
first few may be played.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from llmrl.control import losses
from llmrl.control.config import Actions, SACConfig
from llmrl.control.nets import ActionCritics, EnsembleMLP, SquashedPolicy, follow
from llmrl.control.optimizers import Optimizers
from llmrl.control.replay import Replay, Transitions
from llmrl.control.state import flat, under


class SequenceSAC:
    """Soft actor-critic whose `act` gives [length, d] of u; transitions are of single steps. An `Agent`."""

    def __init__(self, *, obs_size: int, actions: Actions, length: int, config: SACConfig, seed: int) -> None:
        if length < 1 or actions.discrete:
            raise ValueError(f"length={length} of {actions}: a sequence has at least 1 action, and actions are numbers")
        self.config, self.length, self.actions, self.dtype = config, length, actions, config.torch_dtype
        self.generator = torch.Generator().manual_seed(seed)

        net = partial(EnsembleMLP, generator=self.generator, dtype=self.dtype)
        size, hidden = actions.size, config.hidden
        self.policy = SquashedPolicy(net((obs_size, *hidden, 2 * size * length), members=1), experts=1)
        self.critics = ActionCritics(net((obs_size + size, *hidden, 1), members=2, normalize=config.normalize_critic))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.model = net((obs_size + size, *hidden, obs_size), members=1)
        self.model.zero_output()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_alpha), dtype=self.dtype))
        self.modules = {"policy": self.policy, "critics": self.critics, "targets": self.targets, "model": self.model}
        trained = {name: module.parameters() for name, module in self.modules.items() if name != "targets"}
        self.optimizers = Optimizers(
            {**trained, "alpha": iter([self.log_alpha])}, lr=config.learning_rate, max_grad_norm=config.max_grad_norm
        )
        self.replay = Replay(obs_size=obs_size, action_size=size, capacity=config.capacity, dtype=self.dtype)

    @property
    def ready(self) -> bool:
        return len(self.replay) >= max(self.config.warmup, 1)

    def finite(self) -> bool:
        return self.optimizers.finite()

    @torch.no_grad()
    def act(self, obs: Tensor, *, explore: bool = True) -> Tensor:
        """obs [n] -> the next `length` actions as u, [length, d]."""
        mean, log_std = self._sequence(obs.to(self.dtype)[None])
        return (self._draw(mean, log_std)[0] if explore else mean)[0]

    def random_action(self) -> Tensor:
        return self.actions.random(self.generator, self.dtype)

    def remember(self, *, obs: Tensor, raw: Tensor, reward: float, next_obs: Tensor, terminated: bool) -> None:
        self.replay.add(obs=obs, raw=raw, reward=reward, next_obs=next_obs, terminated=float(terminated))

    def _sequence(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's mean and log_std, each [B, length, d]."""
        _, mean, log_std = self.policy(obs)
        shape = (len(obs), self.length, self.actions.size)
        return mean.reshape(shape), log_std.reshape(shape)

    def _draw(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """A fresh u [..., d] and its log-density [...]."""
        u = mean + log_std.exp() * torch.randn(mean.shape, generator=self.generator, dtype=mean.dtype)
        return u, losses.squashed_logprob(mean, log_std, u)

    def update(self) -> dict[str, Tensor]:
        """One update of model, critics, actor, temperature and targets."""
        config, step = self.config, self.optimizers.step
        batch = self.replay.sample(config.batch_size, self.generator)
        if config.normalize_reward:
            batch = replace(batch, reward=batch.reward / self.replay.reward_scale)
        error = self._next(batch.obs, batch.raw.tanh()) - batch.next_obs
        found = {"model_loss": step("model", error.square().mean())}
        found["critic_loss"] = step("critics", self._critic_loss(batch))
        actor_loss, logprob = self._actor_loss(batch.obs)
        found["actor_loss"] = step("policy", actor_loss)
        temperature_loss = losses.temperature_loss(self.log_alpha, logprob, target_entropy=-float(self.actions.size))
        step("alpha", temperature_loss, clip=False)
        self.log_alpha.data.clamp_(*(math.log(bound) for bound in config.alpha_range))
        follow(self.targets, self.critics, tau=config.tau)
        return {**found, "entropy": -logprob.mean()}

    def _next(self, obs: Tensor, action: Tensor) -> Tensor:
        return obs + self.model(torch.cat([obs, action], -1))[0]

    def _critic_loss(self, batch: Transitions) -> Tensor:
        alpha, gamma = self.log_alpha.detach().exp(), self.config.gamma
        with torch.no_grad():
            mean, log_std = self._sequence(batch.next_obs)
            u, logprob = self._draw(mean[:, 0], log_std[:, 0])
            values = self.targets(batch.next_obs, u.tanh())
        target = losses.soft_target(batch.reward, batch.terminated, values, logprob, gamma=gamma, alpha=alpha)
        return losses.critic_loss(self.critics(batch.obs, batch.raw.tanh()), target)

    def _actor_loss(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(loss [], log-probs of single actions [B * length], without gradient)."""
        (u, logprob), state, terms = self._draw(*self._sequence(obs)), obs, []
        for k in range(self.length):
            action = u[:, k].tanh()
            values = self.critics(state, action)
            terms.append(losses.actor_loss(values, logprob[:, k], alpha=self.log_alpha.detach().exp()))
            state = self._next(state, action).detach()
        return torch.stack(terms).mean(), logprob.detach().flatten()

    def state(self) -> dict[str, Tensor]:
        """Everything that `act` and `update` depend on, flat and copied."""
        parts = {name: module.state_dict() for name, module in self.modules.items()}
        parts |= {"adam": self.optimizers.state(), "replay": self.replay.state()}
        return flat(parts, {"log_alpha": self.log_alpha, "generator": self.generator.get_state()})

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, where `state` was taken."""
        for name, module in self.modules.items():
            module.load_state_dict(under(state, name))
        self.optimizers.load(under(state, "adam"))
        self.replay.load(under(state, "replay"))
        self.log_alpha.data.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"])


def frequency_averaged_score(returns: Mapping[int, float]) -> float:
    """Mean return over decision frequencies f = 1/k, by trapezoids: `returns[k]` with k actions played a decision."""
    frequency = np.array(sorted(1 / k for k in returns))
    score = np.array([returns[round(1 / f)] for f in frequency])
    return float(score[0]) if len(score) == 1 else float(np.trapezoid(score, frequency) / np.ptp(frequency))
