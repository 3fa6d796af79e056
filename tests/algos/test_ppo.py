from dataclasses import replace

import pytest
import torch

from llmrl.algos.ppo import PPO
from llmrl.batch import Needs
from llmrl.conformance import definitions as slow
from llmrl.conformance.cases import random_batch, random_output

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", range(3))


def assert_grid(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-11)


@SEEDS
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_credit_is_gae_of_rewards_minus_kl(seed, estimator):
    algo = PPO(gamma=0.9, lam=0.8, kl_coef=0.3, kl_estimator=estimator)
    batch = random_batch(seed)
    credited = algo.credit(batch)
    mask = batch.mask.tolist()
    rewards = slow.over(
        mask,
        lambda i, t: (
            batch.rewards[i, t].item()
            - 0.3 * slow.kl_estimate(batch.old_logprobs[i, t].item(), batch.ref_logprobs[i, t].item(), estimator)
        ),
    )
    advantages, returns = slow.gae(rewards, batch.values.tolist(), mask, 0.9, 0.8)
    assert_grid(credited.advantages, slow.whiten(advantages, mask, 1e-2))
    assert_grid(credited.returns, returns)


@SEEDS
def test_the_critic_may_have_its_own_lambda_and_the_policy_a_length_adaptive_one(seed):
    batch = random_batch(seed)
    credited = PPO(gamma=0.9, lam_critic=1.0, lam_alpha=0.5, whiten_advantages=False).credit(batch)
    mask, values = batch.mask.tolist(), batch.values.tolist()
    rewards = slow.over(mask, lambda i, t: batch.rewards[i, t].item())
    _, returns = slow.gae(rewards, values, mask, 0.9, 1.0)
    assert_grid(credited.returns, returns)
    for i, row in enumerate(mask):
        lam = max(0.0, 1 - 1 / (0.5 * max(sum(row), 1)))
        advantages, _ = slow.gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], 0.9, lam)
        assert_grid(credited.advantages[i : i + 1], advantages)


@SEEDS
def test_the_loss_is_its_equation(seed):
    algo = PPO(
        value_coef=0.7,
        value_clip=0.3,
        dual_clip=2.0,
        importance_cap=1.5,
        kl_coef=0.1,
        kl_in="loss",
        kl_estimator="k3",
        entropy_coef=0.01,
    )
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    mask = batch.mask.tolist()

    def token(i, t):
        new, old, ref, sampler = (
            x[i, t].item() for x in (out.logprobs, batch.old_logprobs, batch.ref_logprobs, batch.logprobs)
        )
        policy = slow.clipped_surrogate(new, old, batch.advantages[i, t].item(), 0.2, 0.2, 2.0)
        value = slow.clipped_value(*(x[i, t].item() for x in (out.values, batch.values, batch.returns)), 0.3)
        weight = slow.truncated_importance(old, sampler, 1.5)
        return weight * policy + 0.1 * slow.kl_estimate(new, ref, "k3") + 0.7 * value - 0.01 * out.entropy[i, t].item()

    expected = slow.aggregate(slow.over(mask, token), mask, "token", float(batch.mask.sum()), 1.0, 1.0)
    assert algo.loss(out, batch).value.item() == pytest.approx(expected, rel=1e-10)


def test_the_metrics_give_the_explained_variance():
    algo = PPO(whiten_advantages=False)
    batch = algo.credit(random_batch(1))
    out = random_output(batch, 1)
    metrics = {name: value.item() for name, value in algo.loss(out, batch).metrics.items()}
    assert "explained_variance" not in algo.derived_metrics(metrics | {"return_square": metrics["return"] ** 2})
    returns, values = batch.returns[batch.mask], out.values[batch.mask].detach()
    expected = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert algo.derived_metrics(metrics)["explained_variance"] == pytest.approx(expected.item())
    clipped = ((values - batch.values[batch.mask]).abs() > 0.2).double().mean().item()
    assert metrics["value_clipped"] == pytest.approx(clipped)


def test_policy_and_value_have_their_own_gradients():
    algo = PPO(value_coef=0.0)
    batch = algo.credit(random_batch(2))
    out = random_output(batch, 2)
    algo.loss(out, batch).value.backward()
    assert out.logprobs.grad.abs().sum() > 0
    assert (out.values.grad == 0).all()
    algo = PPO(value_coef=1.0, value_clip=None)
    out = random_output(batch, 2)
    algo.loss(out, batch).value.backward()
    expected = torch.where(batch.mask, out.values - batch.returns, 0.0) / batch.tokens_total
    torch.testing.assert_close(out.values.grad, expected.detach())


def test_a_batch_without_signal_gets_no_unit_noise():
    batch = random_batch(0)
    batch = replace(batch, rewards=torch.zeros_like(batch.rewards), values=1e-5 * batch.values)
    assert 0 < PPO().credit(batch).advantages.abs().max() < 0.01


def test_needs_follow_the_coefficients():
    plain = Needs(values=True, old_logprobs=True)
    whole = replace(plain, whole_batch=True)
    assert PPO(whiten_advantages=False).needs == plain
    assert PPO().needs == whole
    assert PPO(kl_coef=0.1, entropy_coef=0.1).needs == replace(whole, ref_logprobs=True, entropy=True)


@SEEDS
def test_the_reported_kl_is_that_of_the_policy_that_sampled(seed):
    algo = PPO(kl_coef=0.1, kl_estimator="k3")
    batch = algo.credit(random_batch(seed))
    metrics = algo.loss(random_output(batch, seed), batch).metrics
    old, ref, mask = batch.old_logprobs.tolist(), batch.ref_logprobs.tolist(), batch.mask.tolist()
    kl = slow.over(mask, lambda i, t: slow.kl_estimate(old[i][t], ref[i][t], "k3"))
    assert metrics["kl_ref"].item() == pytest.approx(sum(map(sum, kl)) / float(batch.mask.sum()))


@SEEDS
def test_the_value_unit_scales_errors_and_the_clip_range(seed):
    algo = PPO(value_clip=0.3, value_coef=1.0)
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    mask = batch.mask.tolist()

    def token(i, t):
        return slow.clipped_value(*(x[i, t].item() / 0.25 for x in (out.values, batch.values, batch.returns)), 0.3)

    expected = slow.aggregate(slow.over(mask, token), mask, "token", float(batch.mask.sum()), 1.0, 1.0)
    metrics = algo.loss(out, replace(batch, value_unit=torch.tensor(0.25, dtype=F64))).metrics
    assert metrics["value_loss"].item() == pytest.approx(expected)


def test_what_is_missing_is_named():
    batch = random_batch(0)
    with pytest.raises(ValueError, match="values"):
        PPO().credit(replace(batch, values=None))
    credited = PPO().credit(batch)
    with pytest.raises(ValueError, match="values"):
        PPO().loss(replace(random_output(batch, 0), values=None), credited)


@pytest.mark.parametrize(
    "bad",
    [
        {"lam": 1.1},
        {"lam_critic": -0.1},
        {"lam_alpha": 0.0},
        {"gamma": float("nan")},
        {"value_clip": 0.0},
        {"value_coef": -0.5},
        {"std_floor": 0.0},
        {"constant_tokens": 10},
        {"kl_estimator": "k1", "kl_in": "loss", "kl_coef": 0.1},
    ],
    ids=str,
)
def test_senseless_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PPO(**bad)
