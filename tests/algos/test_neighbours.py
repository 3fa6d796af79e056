"""RLOO, REINFORCE++, GSPO, CISPO: each against its own equation, written out with the slow definitions."""

import math
from dataclasses import replace

import pytest
import torch

from llmrl.algos.cispo import CISPO
from llmrl.algos.gspo import GSPO
from llmrl.algos.reinforce_pp import ReinforcePP
from llmrl.algos.rloo import RLOO
from llmrl.conformance import definitions as slow
from llmrl.conformance.cases import random_batch, random_output

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", range(3))


def alive(batch):
    return batch.mask.any(dim=1).nonzero()[:, 0].tolist()


def slow_sum(batch, i, x):
    return math.fsum(x[i, t].item() for t in range(x.shape[1]) if batch.mask[i, t])


@SEEDS
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_rloo_is_its_equation(seed, kl_coef):
    algo, batch = RLOO(kl_coef=kl_coef), random_batch(seed)
    out = random_output(batch, seed, spread=0.1)
    loss = algo.loss(out, algo.credit(batch)).value
    rows = alive(batch)
    reward = [
        batch.score[i].item() - kl_coef * slow_sum(batch, i, batch.old_logprobs - batch.ref_logprobs) for i in rows
    ]
    advantages = slow.leave_one_out(reward, batch.group[rows].tolist())
    expected = 0.0
    for i, advantage in zip(rows, advantages, strict=True):
        ratio = math.exp(slow_sum(batch, i, out.logprobs - batch.old_logprobs))
        expected += slow.surrogate_of_ratio(ratio, advantage, 0.2, 0.2) / len(rows)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_rloo_on_policy_sums_over_an_answers_tokens_without_length_normalisation():
    algo = RLOO()
    batch = algo.credit(replace(random_batch(1), old_logprobs=None))
    out = random_output(batch, 1)
    algo.loss(out, batch).value.backward()
    torch.testing.assert_close(out.logprobs.grad, -batch.advantages / batch.sequences_total)


def test_rloo_leaves_the_score_of_the_batch_alone():
    batch = random_batch(0)
    torch.testing.assert_close(RLOO(kl_coef=0.5).credit(batch).score, batch.score, equal_nan=True)


@SEEDS
@pytest.mark.parametrize(("kl_coef", "gamma"), [(0.0, 1.0), (0.05, 0.9)])
def test_reinforce_pp_whitens_returns_to_go_of_rewards_minus_kl(seed, kl_coef, gamma):
    algo, batch = ReinforcePP(kl_coef=kl_coef, gamma=gamma), random_batch(seed)
    mask = batch.mask.tolist()
    penalised = batch.rewards - kl_coef * (batch.old_logprobs - batch.ref_logprobs)
    returns = slow.discounted_returns(penalised.tolist(), mask, gamma)
    expected = torch.tensor(slow.whiten(returns, mask, 1e-2), dtype=F64)
    torch.testing.assert_close(algo.credit(batch).advantages, expected, rtol=1e-9, atol=1e-11)


@SEEDS
def test_reinforce_pp_with_the_group_baseline_is_its_equation(seed):
    algo, batch = ReinforcePP(baseline="group", kl_coef=0.05), random_batch(seed)
    rows, mask = alive(batch), batch.mask.tolist()
    centred = dict(zip(rows, slow.group_center(batch.score[rows].tolist(), batch.group[rows].tolist()), strict=True))
    raw = slow.over(mask, lambda i, t: centred[i])
    advantages = slow.whiten(raw, mask, 1e-2)
    credited = algo.credit(batch)
    torch.testing.assert_close(credited.advantages, torch.tensor(advantages, dtype=F64), rtol=1e-9, atol=1e-11)
    out = random_output(batch, seed)

    def token(i, t):
        new, old, ref = (x[i, t].item() for x in (out.logprobs, batch.old_logprobs, batch.ref_logprobs))
        return slow.clipped_surrogate(new, old, advantages[i][t], 0.2, 0.2) + 0.05 * slow.kl_estimate(new, ref, "k2")

    expected = slow.aggregate(slow.over(mask, token), mask, "token", float(batch.mask.sum()), 1.0, 1.0)
    assert algo.loss(out, credited).value.item() == pytest.approx(expected, rel=1e-10)


def test_reinforce_pp_does_not_blow_noise_up():
    batch = random_batch(0)
    batch = replace(
        batch, rewards=torch.zeros_like(batch.rewards), old_logprobs=batch.ref_logprobs + 1e-4 * batch.values
    )
    advantages = ReinforcePP(kl_coef=0.01).credit(batch).advantages
    assert 0 < advantages.abs().max() < 0.01


@SEEDS
def test_gspo_is_its_equation(seed):
    algo, batch = GSPO(clip_low=0.1, clip_high=0.2), random_batch(seed)
    out = random_output(batch, seed)
    rows = alive(batch)
    advantages = slow.group_zscore(batch.score[rows].tolist(), batch.group[rows].tolist())
    expected = 0.0
    for i, advantage in zip(rows, advantages, strict=True):
        ratio = math.exp(slow_sum(batch, i, out.logprobs - batch.old_logprobs) / int(batch.mask[i].sum()))
        expected += slow.surrogate_of_ratio(ratio, advantage, 0.1, 0.2) / len(rows)
    loss = algo.loss(out, algo.credit(batch))
    assert loss.value.item() == pytest.approx(expected, rel=1e-10)


def test_gspo_reports_the_clipped_share_of_sequence_ratios():
    algo = GSPO(clip_low=0.05, clip_high=0.05)
    batch = algo.credit(random_batch(4))
    out = random_output(batch, 4, spread=0.8)
    clipped_low = clipped_high = 0
    for i in alive(batch):
        tokens = int(batch.mask[i].sum())
        ratio = math.exp(slow_sum(batch, i, out.logprobs - batch.old_logprobs) / tokens)
        advantage = batch.advantages[i].sum().item()
        clipped_low += tokens * (ratio < 0.95 and advantage < 0)
        clipped_high += tokens * (ratio > 1.05 and advantage > 0)
    metrics = algo.loss(out, batch).metrics
    assert clipped_low > 0 < clipped_high
    assert metrics["clip_low"].item() == pytest.approx(clipped_low / int(batch.mask.sum()))
    assert metrics["clip_high"].item() == pytest.approx(clipped_high / int(batch.mask.sum()))


@SEEDS
def test_cispo_is_its_equation_and_keeps_every_tokens_gradient(seed):
    algo = CISPO(ratio_cap=1.2)
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    loss = algo.loss(out, batch)
    mask = batch.mask.tolist()
    per_token = slow.over(
        mask,
        lambda i, t: slow.capped_reinforce(
            out.logprobs[i, t].item(), batch.old_logprobs[i, t].item(), batch.advantages[i, t].item(), 1.2
        ),
    )
    expected = slow.aggregate(per_token, mask, "token", float(batch.mask.sum()), 1.0, 1.0)
    assert loss.value.item() == pytest.approx(expected, rel=1e-10)
    loss.value.backward()
    assert ((out.logprobs.grad != 0) == (batch.advantages != 0)).all()
    capped = ((out.logprobs - batch.old_logprobs).exp() > 1.2) & (batch.advantages > 0) & batch.mask
    assert capped.any()
    assert loss.metrics["clip_high"].item() == pytest.approx(capped.sum().item() / int(batch.mask.sum()))


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        (RLOO, {"clip_low": 2.0}),
        (RLOO, {"kl_coef": -1.0}),
        (GSPO, {"clip_high": -1e-4}),
        (GSPO, {"importance_cap": -1.0}),
        (CISPO, {"ratio_cap": 0.0}),
        (ReinforcePP, {"std_floor": 0.0}),
        (ReinforcePP, {"gamma": 1.5}),
    ],
)
def test_senseless_hyper_parameters_are_refused_by_name(method, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        method(**bad)


@pytest.mark.parametrize("algo", [RLOO(kl_coef=0.1), ReinforcePP(kl_coef=0.1)])
def test_credit_says_what_is_missing(algo):
    with pytest.raises(ValueError, match="ref_logprobs"):
        algo.credit(replace(random_batch(0), ref_logprobs=None))
