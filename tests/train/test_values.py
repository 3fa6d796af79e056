"""The value model in the update: its own optimizer, warm-up, whitened targets, state; credit over ranks."""

import math
from dataclasses import replace

import pytest
import torch

from llmrl.algos.ppo import PPO
from llmrl.credit import whiten
from llmrl.policy.critic import Critic, ValueHead
from llmrl.policy.forward import forward, forward_values
from llmrl.policy.model import Policy
from llmrl.settings.model import CriticConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.collate import joined, with_totals
from llmrl.train.learn import annotate, learn
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.updater import Updater
from llmrl.train.values import CriticTrainer
from llmrl.train.world import World
from tests.tiny import random_batch, random_model, tiny_models, tiny_tokenizer

BATCH = {"groups": (4, 3, 2, 1)}


def updater_of(named, seen=None):
    return Updater(
        named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9,
        reduce=None if seen is None else lambda grad: seen.append(grad.clone()),
    )  # fmt: skip


def parts(kind="shared", *, budget=4096, seen=None, **config):
    """(logprob_model, policy's updater, critic_trainer) on tiny models; `seen` collects the gradients of both."""
    model, head = random_model(), ValueHead(64)
    with torch.no_grad():
        head.weight.copy_(0.05 * torch.randn(64, generator=torch.Generator().manual_seed(1)))
    own = None
    if kind == "separate":
        own = Policy(model=random_model(seed=7), tokenizer=tiny_tokenizer(), source="", lora=False)
    critic = Critic(head=head, model=own)
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=budget)
    critic_trainer = CriticTrainer(
        critic=critic, updater=updater_of(critic.trainable(), seen), config=CriticConfig(**config)
    )
    return logprob_model, updater_of(list(model.named_parameters()), seen), critic_trainer


def one_update(kind, algo, *, budget=4096, step=0, config=None, train=None, batch=None):
    seen = []
    logprob_model, updater, critic_trainer = parts(kind, budget=budget, seen=seen, **(config or {}))
    settings = TrainConfig(steps=10, lr=1e-3, tokens_per_microbatch=budget, **(train or {}))
    batch = random_batch(11, **BATCH) if batch is None else batch
    batch, metrics = learn(
        tiny_models(logprob_model, updater, config=settings, critic_trainer=critic_trainer), algo, batch, step
    )
    return metrics, seen, logprob_model, critic_trainer, batch


@pytest.mark.parametrize("kind", ["shared", "separate"])
@pytest.mark.parametrize("budget", [1, 15, 40])
def test_ppos_gradients_and_values_do_not_depend_on_the_micro_batches(kind, budget):
    algo = PPO(importance_cap=None)
    metrics, grads, *_, batch = one_update(kind, algo, budget=budget)
    wanted, whole, *_, whole_batch = one_update(kind, algo)
    torch.testing.assert_close(batch.values, whole_batch.values, rtol=1e-4, atol=1e-5)
    assert metrics["value_loss"] == pytest.approx(wanted["value_loss"], rel=1e-4)
    assert metrics["value/grad_norm"] == pytest.approx(wanted["value/grad_norm"], rel=1e-3)
    size = max(float(grad.abs().max()) for grad in whole)
    assert len(grads) == len(whole) and all(
        float((one - other).abs().max()) < 2e-4 * size for one, other in zip(grads, whole, strict=True)
    )


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_update_is_the_gradient_of_the_algorithms_own_loss(kind):
    algo = PPO(importance_cap=None, value_clip=None)
    _, seen, _, _, batch = one_update(kind, algo)
    logprob_model, _, critic_trainer = parts(kind)
    out = forward(logprob_model.model, batch, mode="plain", value_head=critic_trainer.critic.head)
    if kind == "separate":
        own = critic_trainer.critic.model.causal_lm
        out = replace(out, values=forward_values(own, batch, mode="plain", value_head=critic_trainer.critic.head))
    algo.loss(out, with_totals(batch, reduce=lambda x: x)).value.backward()
    named = [*logprob_model.model.named_parameters(), *critic_trainer.critic.trainable()]
    size = max(float(p.grad.abs().max()) for _, p in named if p.grad is not None)
    for grad, (name, parameter) in zip(seen, named, strict=True):
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert float((grad - wanted).abs().max()) < 2e-4 * size, name


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_in_warm_up_steps_only_the_value_model_moves(kind):
    fresh = random_model()
    metrics, _, logprob_model, critic_trainer, _ = one_update(
        kind, PPO(), config={"warmup_steps": 2}, step=1, train={"epochs": 2}
    )
    assert all(torch.equal(p, q) for p, q in zip(logprob_model.model.parameters(), fresh.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in logprob_model.model.parameters())
    assert metrics["grad_norm"] == 0.0 == metrics["lr"] and metrics["value/grad_norm"] > 0
    assert bool((critic_trainer.critic.head.weight != parts(kind)[2].critic.head.weight).any())
    metrics, _, logprob_model, *_ = one_update(kind, PPO(), config={"warmup_steps": 2}, step=2)
    assert not all(torch.equal(p, q) for p, q in zip(logprob_model.model.parameters(), fresh.parameters(), strict=True))
    assert metrics["grad_norm"] > 0 and metrics["lr"] == 1e-3


def test_the_value_model_has_its_own_learning_rate():
    slow, *_, tortoise, _ = one_update("separate", PPO(), config={"lr": 1e-9})
    fast, *_, hare, _ = one_update("separate", PPO(), config={"lr": 1e-1})
    start = parts("separate")[2].critic
    moved = [float((v.critic.head.weight - start.head.weight).detach().abs().max()) for v in (tortoise, hare)]
    assert moved[0] < 1e-8 and moved[1] > 1e-2
    assert (slow["value/lr"], fast["value/lr"]) == (1e-9, 1e-1) and slow["lr"] == fast["lr"]


def test_values_learn_the_returns_and_the_explained_variance_says_so():
    algo, seen = PPO(lam=1.0, value_clip=None, whiten_advantages=False), []
    logprob_model, updater, critic_trainer = parts("separate", lr=1e-2)
    batch = random_batch(11, **BATCH)
    for step in range(40):
        config = TrainConfig(steps=99, lr=1e-9)
        models = tiny_models(logprob_model, updater, config=config, critic_trainer=critic_trainer)
        _, metrics = learn(models, algo, batch, step)
        seen.append(metrics["explained_variance"])
    assert seen[0] < 0.0 and seen[-1] > 0.7  # siblings share the state before their first token, so 1 is out of reach


def test_whitened_targets_change_the_unit_of_the_loss_and_no_value():
    algo, batch = PPO(value_clip=None), random_batch(11, **BATCH)
    metrics, _, _, critic_trainer, ready = one_update("separate", algo, config={"whiten_targets": True}, batch=batch)
    plain, *_, before = one_update("separate", algo, batch=batch)
    returns = ready.returns[ready.mask].double()
    head = critic_trainer.critic.head
    assert float(head.mean) == pytest.approx(float(returns.mean()), rel=1e-5)
    assert float(head.deviation) == pytest.approx(float(returns.std(correction=0)), rel=1e-5)
    assert metrics["value_loss"] == pytest.approx(plain["value_loss"] / float(head.deviation) ** 2, rel=1e-4)
    assert metrics["value_error"] == pytest.approx(plain["value_error"], rel=1e-3)
    assert torch.equal(ready.values, before.values)


def test_the_targets_statistics_are_decayed_and_have_a_floor():
    _, _, critic_trainer = parts("shared", whiten_targets=True, target_decay=0.5, target_std_floor=0.3)
    batch = random_batch(1)
    constant = replace(batch, returns=torch.full(batch.mask.shape, 2.0).where(batch.mask, math.nan))
    assert float(critic_trainer.with_targets(constant, World()).value_unit) == pytest.approx(0.3)
    assert float(critic_trainer.critic.head.mean) == pytest.approx(2.0)
    other = replace(batch, returns=torch.full(batch.mask.shape, 5.0))
    unit = critic_trainer.with_targets(other, World()).value_unit
    assert float(critic_trainer.critic.head.mean) == pytest.approx((0.5 * 2.0 + 1.0 * 5.0) / 1.5)
    assert float(unit) == pytest.approx(math.sqrt((0.5 * 4.0 + 25.0) / 1.5 - 16.0))
    nothing = replace(batch, mask=torch.zeros_like(batch.mask), returns=other.returns)
    critic_trainer.with_targets(nothing, World())
    assert float(critic_trainer.critic.head.mean) == pytest.approx(4.0)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_restored_value_model_goes_on_bit_for_bit(kind):
    algo, batch, config = PPO(), random_batch(11, **BATCH), {"whiten_targets": True}

    def learnt(logprob_model, updater, critic_trainer, step):
        settings = TrainConfig(steps=9, lr=1e-3)
        learn(tiny_models(logprob_model, updater, config=settings, critic_trainer=critic_trainer), algo, batch, step)

    first = parts(kind, **config)
    learnt(*first, 0)
    stored = [{name: x.clone() for name, x in one.state().items()} for one in first[1:]]
    learnt(*first, 1)
    again = parts(kind, **config)
    for one, state in zip(again[1:], stored, strict=True):
        one.load(state)
    learnt(*again, 1)
    for one, other in zip(first[1:], again[1:], strict=True):
        assert one.state().keys() == other.state().keys()
        assert all(torch.equal(x, other.state()[name]) for name, x in one.state().items())
    with pytest.raises(ValueError, match="another model"):
        parts("shared" if kind == "separate" else "separate")[2].load(stored[1])


def test_updates_stop_before_the_step_that_would_start_too_far_away():
    train = {"epochs": 6, "stop_kl": 1e-3}
    metrics, _, logprob_model, *_ = one_update("shared", PPO(), train=train)
    assert metrics["update/stopped"] == 1.0 and 1 <= metrics["update/steps"] < 6
    same, _, other, *_ = one_update("shared", PPO(), train={"epochs": int(metrics["update/steps"])})
    assert all(
        torch.equal(p, q) for p, q in zip(logprob_model.model.parameters(), other.model.parameters(), strict=True)
    )
    assert same["approx_kl"] == metrics["approx_kl"] <= 1e-3
    never, *_ = one_update("shared", PPO(), train={"epochs": 2, "stop_kl": 1e9})
    assert never["update/stopped"] == 0.0 and never["update/steps"] == 2.0


def test_annotate_refuses_values_without_a_value_model():
    logprob_model, *_ = parts()
    with pytest.raises(ValueError, match="no value model"):
        annotate(tiny_models(logprob_model, None), PPO().needs, random_batch(1))


def test_joined_batches_credit_like_the_whole():
    batch = random_batch(5, groups=(4, 3, 2, 2))
    batch = replace(batch, values=torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)))
    algo = PPO()
    whole = algo.credit(batch)
    rows = [((batch.group % 2) == rank).nonzero().squeeze(1) for rank in (0, 1)]
    halves = [batch.select(index) for index in rows]
    together = joined([replace(half, group=half.group // 2) for half in halves])
    assert len(together.group.unique()) == len(batch.group.unique())
    got = algo.credit(together)
    order = torch.cat(rows)
    width = together.tokens.shape[1]
    torch.testing.assert_close(got.advantages, whole.advantages[order][:, :width])
    torch.testing.assert_close(got.returns, whole.returns[order][:, :width])
    assert float(together.tokens_total) == float(batch.mask.sum())
    apart = torch.cat([algo.credit(half).advantages[half.mask] for half in halves])
    assert not torch.allclose(apart, got.advantages[together.mask])  # whitening by halves is another thing
    assert torch.allclose(whiten(got.advantages, together.mask), got.advantages, atol=1e-5)
    with pytest.raises(ValueError, match="values is in 1 of 2"):
        joined([halves[0], replace(halves[1], values=None)])
