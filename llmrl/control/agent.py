"""One soft actor-critic whose parts are options (see `SACConfig`): numbers in (-1, 1)^d or one of A choices.

    agent = SAC(obs_size=3, actions=Actions(size=1), config=SACConfig(), seed=0)
    raw = agent.act(obs)                    # u, or the index of a choice
    agent.remember(obs=obs, raw=raw, reward=1.0, next_obs=obs, terminated=False)
    agent.update()

An update draws a batch, then updates critics, policy, temperature and target critics (Haarnoja et al. 2018). Discrete
actions take expectations over the policy instead of samples (Christodoulou 2019, arXiv 1910.07207); everything else is
shared. Every draw comes from one generator; `state()` holds all that matters as flat tensors, and `load` continues bit
for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmrl.control import losses, pmoe, rlpd, symphony
from llmrl.control.config import Actions, SACConfig
from llmrl.control.nets import ActionCritics, CategoricalPolicy, EnsembleMLP, SquashedPolicy, follow
from llmrl.control.optimizers import Optimizers
from llmrl.control.replay import Replay, Transitions
from llmrl.control.state import flat, under
from llmrl.errors import ConfigError

NAN = float("nan")


class SAC:
    """The agent. `law` ([B, n] -> [B, d], unit box) and `value` ([B, n + d] -> [B]) start it from a known controller."""

    def __init__(
        self,
        *,
        obs_size: int,
        actions: Actions,
        config: SACConfig,
        seed: int,
        law: nn.Module | None = None,
        value: nn.Module | None = None,
    ) -> None:
        _check(actions, config, law, value)
        self.config, self.actions, self.dtype = config, actions, config.torch_dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.policy, self.critics = self._networks(obs_size, law, value)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_alpha), dtype=self.dtype))
        self.replay, self.offline = (
            Replay(obs_size=obs_size, action_size=actions.width, capacity=config.capacity, dtype=self.dtype)
            for _ in range(2)
        )
        free = 0.5 * math.log(actions.size) if actions.discrete else -float(actions.size)
        self.target_entropy = free if config.target_entropy is None else config.target_entropy
        parts = {
            "actor": self.policy.parameters(),
            "critic": self.critics.parameters(),
            "alpha": [self.log_alpha],
        }
        self.optimizers = Optimizers(parts, lr=config.learning_rate, max_grad_norm=config.max_grad_norm)
        self.updates = 0
        self.memory = {  # what runs along with updates
            "ema_std": torch.full((2,), NAN, dtype=self.dtype),
            "ema_value": torch.tensor(NAN, dtype=self.dtype),
            "idle": torch.zeros(config.experts, dtype=torch.int64),
        }

    def _networks(
        self, obs_size: int, law: nn.Module | None, value: nn.Module | None
    ) -> tuple[SquashedPolicy | CategoricalPolicy, ActionCritics | EnsembleMLP]:
        config, size = self.config, self.actions.size

        def net(inputs: int, outputs: int, members: int, normalize: bool) -> EnsembleMLP:
            return EnsembleMLP(
                (inputs, *config.hidden, outputs),
                members=members,
                generator=self.generator,
                dtype=self.dtype,
                normalize=normalize,
            )

        if self.actions.discrete:
            actor = CategoricalPolicy(net(obs_size, size, 1, False))
            return actor, net(obs_size, size, config.critics, config.normalize_critic)
        gate = config.experts if config.experts > 1 else 0
        policy = SquashedPolicy(
            net(obs_size, gate + 2 * size * config.experts, 1, False), experts=config.experts, law=law
        )
        distributional = config.distributional is not None
        outputs = net(obs_size + size, 2 if distributional else 1, config.critics, config.normalize_critic)
        return policy, ActionCritics(outputs, distributional=distributional, value=value)

    @torch.no_grad()
    def act(self, obs: Tensor, *, explore: bool = True) -> Tensor:
        """obs [n] -> u [d], or [1] with the index of a choice. Without `explore`: the mean (of the likeliest expert)."""
        row = obs.to(self.dtype)[None]
        if isinstance(self.policy, CategoricalPolicy):
            chances = self.policy(row)[0].exp()
            if not bool(chances.isfinite().all()):
                return torch.full((1,), NAN, dtype=self.dtype)
            index = torch.multinomial(chances, 1, generator=self.generator) if explore else chances.argmax()[None]
            return index.to(self.dtype)
        weights, mean, log_std = (part[0] for part in self.policy(row))
        if not bool(weights.isfinite().all()):
            return torch.full((self.actions.size,), NAN, dtype=self.dtype)
        if not explore:
            return mean[int(weights.argmax())]
        k = int(torch.multinomial(weights, 1, generator=self.generator)) if len(weights) > 1 else 0
        return mean[k] + log_std[k].exp() * self._normal(mean[k].shape)

    def random_action(self) -> Tensor:
        return self.actions.random(self.generator, self.dtype)

    def remember(
        self, *, obs: Tensor, raw: Tensor, reward: float, next_obs: Tensor, terminated: bool, offline: bool = False
    ) -> None:
        """Store one transition; `offline`: of an earlier run, for the offline share of batches."""
        into = self.offline if offline else self.replay
        into.add(obs=obs, raw=raw, reward=reward, next_obs=next_obs, terminated=float(terminated))

    @property
    def ready(self) -> bool:
        """Whether enough transitions are held to update."""
        return len(self.replay) + len(self.offline) >= max(self.config.warmup, 1)

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return self.optimizers.finite()

    def update(self) -> dict[str, Tensor]:
        """One update of everything; metrics as scalars."""
        batch, alpha = self._batch(), self.log_alpha.detach().exp()
        found = {"critic_loss": self.optimizers.step("critic", self._critic_loss(batch, alpha))}
        self.updates += 1
        if self.updates % self.config.actor_every == 0:
            actor_loss, logprob = self._actor_loss(batch, alpha)
            found["actor_loss"] = self.optimizers.step("actor", actor_loss)
            found["entropy"] = -logprob.detach().mean()
            self.optimizers.step(
                "alpha",
                losses.temperature_loss(self.log_alpha, logprob, target_entropy=self.target_entropy),
                clip=False,
            )
            self.log_alpha.data.clamp_(*(math.log(bound) for bound in self.config.alpha_range))
            follow(self.targets, self.critics, tau=self.config.tau)
        return {**found, "alpha": alpha}

    def _batch(self) -> Transitions:
        config = self.config
        if config.fading_replay:
            batch = self.replay.sample(config.batch_size, self.generator, weights=symphony.fading_weights)
        else:
            batch = rlpd.mixed_batch(self.replay, self.offline, config.batch_size, config.offline_share, self.generator)
        return replace(batch, reward=batch.reward / self.replay.reward_scale) if config.normalize_reward else batch

    def _critic_loss(self, batch: Transitions, alpha: Tensor) -> Tensor:
        config, gamma = self.config, self.config.gamma
        if isinstance(self.critics, EnsembleMLP):
            with torch.no_grad():
                value, logprob = self._expected(batch.next_obs, self.targets, config.target_value)
            target = losses.soft_target(batch.reward, batch.terminated, value[None], logprob, gamma=gamma, alpha=alpha)
            index = batch.raw.long()[None].expand(config.critics, -1, -1)
            return losses.critic_loss(self.critics(batch.obs).gather(2, index)[..., 0], target)
        assert isinstance(self.targets, ActionCritics)
        with torch.no_grad():
            u, logprob = self._draw(batch.next_obs)
            next_mean, next_std = self.targets.gaussian(batch.next_obs, u.tanh())
        mean, std = self.critics.gaussian(batch.obs, batch.raw.tanh())
        if config.distributional is None:
            value = rlpd.aggregate(next_mean, config.target_value)[None]
            target = losses.soft_target(batch.reward, batch.terminated, value, logprob, gamma=gamma, alpha=alpha)
            return losses.critic_loss(mean, target)
        z = self._normal(next_mean.shape)
        goals = losses.distributional_targets(
            batch.reward, batch.terminated, next_mean, next_std, z, logprob, gamma=gamma, alpha=alpha
        )
        loss, self.memory["ema_std"] = losses.distributional_critic_loss(
            mean, std, *goals, ema_std=self.memory["ema_std"], tau_b=config.tau, form=config.distributional
        )
        return loss

    def _actor_loss(self, batch: Transitions, alpha: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if isinstance(self.policy, CategoricalPolicy):
            value, logprob = self._expected(batch.obs, self.critics, config.actor_value)
        elif config.experts == 1:
            u, logprob = self._draw(batch.obs)
            value = self._actor_value(batch.obs, u)
        else:
            return self._mixture_loss(batch.obs, alpha)
        if config.temporal_advantage:
            loss, self.memory["ema_value"] = symphony.temporal_advantage_loss(value, self.memory["ema_value"])
            return loss + (alpha * logprob).mean(), logprob
        return losses.actor_loss(value[None], logprob, alpha=alpha), logprob

    def _mixture_loss(self, obs: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.policy, SquashedPolicy)
        weights, mean, log_std = self.policy(obs)
        u = mean + log_std.exp() * self._normal(mean.shape)
        logprob = losses.mixture_logprob(weights.detach(), mean, log_std, u)
        values = self._actor_value(obs.repeat_interleave(self.config.experts, 0), u.flatten(0, 1)).view_as(logprob)
        idle = pmoe.count_idle(weights, self.memory["idle"])
        self.memory["idle"] = pmoe.revive(self.policy, weights, idle, self.generator)
        return pmoe.mixture_actor_loss(weights, logprob, values, alpha=alpha, experts=self.config.expert_update)

    def _draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """A fresh u [B, d] of the policy and its log-density [B]."""
        assert isinstance(self.policy, SquashedPolicy)
        weights, mean, log_std = self.policy(obs)
        if self.config.experts == 1:
            u = mean[:, 0] + log_std[:, 0].exp() * self._normal(mean[:, 0].shape)
            return u, losses.squashed_logprob(mean[:, 0], log_std[:, 0], u)
        chosen = torch.multinomial(weights, 1, generator=self.generator)  # [B, 1]
        u = mean + log_std.exp() * self._normal(mean.shape)
        logprob = losses.mixture_logprob(weights, mean, log_std, u).gather(1, chosen)[:, 0]
        return u.gather(1, chosen[..., None].expand(-1, 1, u.shape[-1]))[:, 0], logprob

    def _actor_value(self, obs: Tensor, u: Tensor) -> Tensor:
        assert isinstance(self.critics, ActionCritics)
        mean, std = self.critics.gaussian(obs, u.tanh())
        return rlpd.aggregate(mean - self.config.risk * std, self.config.actor_value)

    def _expected(self, obs: Tensor, critics: nn.Module, how: rlpd.Aggregation) -> tuple[Tensor, Tensor]:
        """Of a discrete policy: (sum_a pi Q [B], sum_a pi log pi [B])."""
        logprobs = self.policy(obs)
        chances = logprobs.exp()
        value = rlpd.aggregate(critics(obs), how)
        return (chances * value).sum(-1), (chances * logprobs).sum(-1)

    def _normal(self, shape: Iterable[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=self.dtype)

    def state(self) -> dict[str, Tensor]:
        """Networks, optimizers, transitions, running values and the generator: flat, copied."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "policy": self.policy.state_dict(),
            "critics": self.critics.state_dict(),
            "targets": self.targets.state_dict(),
            "replay": self.replay.state(),
            "offline": self.offline.state(),
            "memory": self.memory,
            "adam": self.optimizers.state(),
        }
        own = {
            "log_alpha": self.log_alpha,
            "updates": torch.tensor(self.updates),
            "generator": self.generator.get_state(),
        }
        return flat(parts, own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take on what `state()` of an agent of the same configuration gave; goes on bit for bit."""
        for name, module in (("policy", self.policy), ("critics", self.critics), ("targets", self.targets)):
            module.load_state_dict(under(state, name))
        self.replay.load(under(state, "replay"))
        self.offline.load(under(state, "offline"))
        self.memory = {name: x.clone() for name, x in under(state, "memory").items()}
        self.optimizers.load(under(state, "adam"))
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])


def _check(actions: Actions, config: SACConfig, law: nn.Module | None, value: nn.Module | None) -> None:
    if actions.discrete:
        given = [name for name, there in (
            ("distributional", config.distributional is not None), ("experts", config.experts > 1),
            ("law", law is not None), ("value", value is not None)) if there]  # fmt: skip
        if given:
            raise ConfigError(f"controller: {', '.join(given)}: only for actions that are numbers, not choices")
    if law is not None and config.experts > 1:
        raise ConfigError("controller: a known law starts one expert; set experts to 1")
