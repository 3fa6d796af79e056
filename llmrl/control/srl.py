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

import numpy as np
import torch
from torch import Tensor, nn

from llmrl.control import losses
from llmrl.control.config import SACConfig
from llmrl.control.nets import ActionCritics, EnsembleMLP, SquashedPolicy
from llmrl.control.replay import Replay, Transitions
from llmrl.control.state import load_optimizer, optimizer_state, under


class SequenceSAC:
    """Soft actor-critic whose `act` gives [length, d] of u; transitions are of single steps."""

    def __init__(self, *, obs_size: int, action_size: int, length: int, config: SACConfig, seed: int) -> None:
        if length < 1:
            raise ValueError(f"length={length} is no sequence; set it to 1 or more")
        self.config, self.length, self.action_size, dtype = config, length, action_size, config.torch_dtype
        self.generator = torch.Generator().manual_seed(seed)

        def net(inputs: int, outputs: int, members: int) -> EnsembleMLP:
            sizes = (inputs, *config.hidden, outputs)
            return EnsembleMLP(sizes, members=members, generator=self.generator, dtype=dtype)

        self.policy = SquashedPolicy(net(obs_size, 2 * action_size * length, 1), experts=1)
        self.critics = ActionCritics(net(obs_size + action_size, 1, 2))
        self.model = net(obs_size + action_size, obs_size, 1)
        self.model.zero_output()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_alpha), dtype=dtype))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        parts = {"actor": self.policy, "critic": self.critics, "model": self.model}
        self.trained = {name: list(part.parameters()) for name, part in parts.items()} | {"alpha": [self.log_alpha]}
        self.optimizers = {
            name: torch.optim.Adam(part, lr=config.learning_rate, fused=True) for name, part in self.trained.items()
        }
        self.replay = Replay(obs_size=obs_size, action_size=action_size, capacity=config.capacity, dtype=dtype)

    @torch.no_grad()
    def act(self, obs: Tensor, *, explore: bool = True) -> Tensor:
        """obs [n] -> the next `length` actions as u, [length, d]."""
        mean, std = self._sequence(obs.to(self.config.torch_dtype)[None])
        u = mean + std * self._normal(mean) if explore else mean
        return u[0]

    def _sequence(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, log_std = self.policy(obs)
        shape = (len(obs), self.length, self.action_size)
        return mean.reshape(shape), log_std.reshape(shape).exp()

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def update(self) -> dict[str, Tensor]:
        """One update of model, critics, actor, temperature and targets."""
        batch = self.replay.sample(self.config.batch_size, self.generator)
        model_loss = (self._next(batch.obs, batch.raw.tanh()) - batch.next_obs).square().mean()
        self._step("model", model_loss)
        critic_loss = self._critic_loss(batch)
        self._step("critic", critic_loss)
        actor_loss, logprob = self._actor_loss(batch.obs)
        self._step("actor", actor_loss)
        entropy = -float(self.action_size)
        self._step("alpha", losses.temperature_loss(self.log_alpha, logprob, target_entropy=entropy))
        with torch.no_grad():
            for target, online in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.copy_(losses.polyak(target, online, tau=self.config.tau))
        return {"model_loss": model_loss.detach(), "critic_loss": critic_loss.detach(), "entropy": -logprob.mean()}

    def _next(self, obs: Tensor, action: Tensor) -> Tensor:
        return obs + self.model(torch.cat([obs, action], -1))[0]

    def _critic_loss(self, batch: Transitions) -> Tensor:
        alpha, gamma = self.log_alpha.detach().exp(), self.config.gamma
        with torch.no_grad():
            mean, std = (part[:, 0] for part in self._sequence(batch.next_obs))
            u = mean + std * self._normal(mean)
            logprob, values = losses.squashed_logprob(mean, std.log(), u), self.targets(batch.next_obs, u.tanh())
        target = losses.soft_target(batch.reward, batch.terminated, values, logprob, gamma=gamma, alpha=alpha)
        return losses.critic_loss(self.critics(batch.obs, batch.raw.tanh()), target)

    def _actor_loss(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(loss [], log-probs of single actions [B * length], without gradient)."""
        mean, std = self._sequence(obs)
        u = mean + std * self._normal(mean)
        logprob, state, total = losses.squashed_logprob(mean, std.log(), u), obs, torch.zeros((), dtype=obs.dtype)
        for k in range(self.length):
            action = u[:, k].tanh()
            values = self.critics(state, action)
            total = total + losses.actor_loss(values, logprob[:, k], alpha=self.log_alpha.detach().exp())
            state = self._next(state, action).detach()
        return total / self.length, logprob.detach().flatten()

    def _step(self, name: str, loss: Tensor) -> None:
        for p, gradient in zip(self.trained[name], torch.autograd.grad(loss, self.trained[name]), strict=True):
            p.grad = gradient
        self.optimizers[name].step()

    def state(self) -> dict[str, Tensor]:
        """Everything that `act` and `update` depend on, flat and copied."""
        modules = {"policy": self.policy, "critics": self.critics, "targets": self.targets, "model": self.model}
        parts = {name: module.state_dict() for name, module in modules.items()}
        parts |= {f"adam_{name}": optimizer_state(own) for name, own in self.optimizers.items()}
        parts |= {"replay": self.replay.state()}
        flat = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.items()}
        flat |= {"log_alpha": self.log_alpha, "generator": self.generator.get_state()}
        return {name: x.detach().clone() for name, x in flat.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, where `state` was taken."""
        for name in ("policy", "critics", "targets", "model"):
            getattr(self, name).load_state_dict(under(state, name))
        for name, own in self.optimizers.items():
            load_optimizer(own, under(state, f"adam_{name}"))
        self.replay.load(under(state, "replay"))
        self.log_alpha.data.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"])


def frequency_averaged_score(returns: Mapping[int, float]) -> float:
    """Mean return over decision frequencies f = 1/k, by trapezoids: `returns[k]` with k actions played a decision."""
    frequency = np.array(sorted(1 / k for k in returns))
    score = np.array([returns[round(1 / f)] for f in frequency])
    return float(score[0]) if len(score) == 1 else float(np.trapezoid(score, frequency) / np.ptp(frequency))
