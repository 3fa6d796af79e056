import doctest
import math

import pytest
import torch

from llmrl import losses
from llmrl.losses import (
    aggregate,
    capped_reinforce,
    clipped_surrogate,
    clipped_value,
    keep,
    kl_estimate,
    sequence_clipped_surrogate,
    truncated_importance,
)

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def surrogate_of_one_token(logprob, old, advantage, low, high, dual):
    ratio = math.exp(logprob - old)
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def test_clipped_surrogate_by_hand():
    logprobs = tensor(math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5), 0.0)
    advantages = tensor(2.0, -2.0, 2.0, -2.0, 3.0)
    loss = clipped_surrogate(logprobs, torch.zeros(5, dtype=F64), advantages, clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, tensor(-2.56, 3.0, -1.0, 1.6, -3.0))


def test_dual_clip_bounds_only_negative_advantages():
    logprobs, old = tensor(math.log(10), math.log(10)), torch.zeros(2, dtype=F64)
    loss = clipped_surrogate(logprobs, old, tensor(-1.0, 1.0), clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    torch.testing.assert_close(loss, tensor(3.0, -1.28))


@pytest.mark.parametrize("dual", [None, 2.5])
def test_clipped_surrogate_is_its_definition(dual):
    draw = torch.Generator().manual_seed(0)
    logprobs, old, advantages = (torch.randn(6, 7, generator=draw, dtype=F64) for _ in range(3))
    loss = clipped_surrogate(logprobs, old, advantages, clip_low=0.1, clip_high=0.3, dual_clip=dual)
    for i in range(6):
        for t in range(7):
            token = (logprobs[i, t].item(), old[i, t].item(), advantages[i, t].item())
            assert loss[i, t].item() == pytest.approx(surrogate_of_one_token(*token, 0.1, 0.3, dual), rel=1e-12)


@pytest.mark.parametrize("dual", [None, 2.5])
def test_clipped_surrogate_gradient_is_its_finite_difference(dual):
    draw = torch.Generator().manual_seed(1)
    logprobs, old, advantages = (torch.randn(4, 5, generator=draw, dtype=F64) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=dual),
        logprobs.requires_grad_(),
    )


def test_clipped_surrogate_stays_finite_for_extreme_ratios():
    logprobs = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped_surrogate(logprobs, torch.zeros(4), advantages, clip_low=0.2, clip_high=0.28)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logprobs.grad).all()


def test_kl_estimators_by_hand():
    logprobs, ref = tensor(-1.0, -2.0), tensor(-2.0, -1.5)
    torch.testing.assert_close(kl_estimate(logprobs, ref, estimator="k1"), tensor(1.0, -0.5))
    torch.testing.assert_close(kl_estimate(logprobs, ref, estimator="k2"), tensor(0.5, 0.125))
    expected = tensor(math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1)
    torch.testing.assert_close(kl_estimate(logprobs, ref), expected)


def test_k1_and_k3_have_the_kl_as_their_mean_and_k2_its_gradient():
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(6, generator=draw, dtype=F64, requires_grad=True)
    ref = torch.randn(6, generator=draw, dtype=F64).log_softmax(0)
    policy = logits.log_softmax(0)
    kl = (policy.exp() * (policy - ref)).sum()
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(policy, ref, estimator=estimator)).sum()
        torch.testing.assert_close(mean, kl)
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    weighted = (policy.exp().detach() * kl_estimate(policy, ref, estimator="k2")).sum()
    (got,) = torch.autograd.grad(weighted, logits)
    torch.testing.assert_close(got, expected)


def test_k3_is_precise_near_zero_and_finite_far_away():
    near = torch.tensor([1e-4], dtype=torch.float32)
    assert kl_estimate(near, torch.zeros(1)).item() == pytest.approx(5e-9, rel=0.01)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = kl_estimate(far, torch.zeros(2))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(far.grad).all()


def test_unknown_kl_estimator_is_refused():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(tensor(0.0), tensor(0.0), estimator="k4")


def test_truncated_importance_by_hand_and_without_gradient():
    old = tensor(math.log(0.5), math.log(0.9), 0.0, 1e4).requires_grad_()
    sampler = tensor(math.log(0.25), math.log(0.3), math.log(2.0), 0.0)
    weights = truncated_importance(old, sampler, cap=2.5)
    torch.testing.assert_close(weights, tensor(2.0, 2.5, 0.5, 2.5))
    assert not weights.requires_grad


def test_aggregate_by_hand():
    x = torch.tensor([[1.0, 3.0, 9.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    totals = {"tokens_total": 3.0, "sequences_total": 2.0}
    assert aggregate(x, mask, normalize="token", **totals).item() == pytest.approx(8 / 3)
    assert aggregate(x, mask, normalize="sequence", **totals).item() == pytest.approx((2 + 4) / 2)
    assert aggregate(x, mask, normalize="constant", constant=10, **totals).item() == pytest.approx(8 / 20)


@pytest.mark.parametrize("normalize", ["token", "sequence", "constant"])
def test_aggregate_shares_add_up_whatever_the_split_and_padding(normalize):
    draw = torch.Generator().manual_seed(3)
    x, mask = torch.randn(7, 9, generator=draw, dtype=F64), torch.rand(7, 9, generator=draw) > 0.4
    totals = {"tokens_total": float(mask.sum()), "sequences_total": 7.0, "constant": 9}
    whole = aggregate(x, mask, normalize=normalize, **totals)
    parts = sum(aggregate(x[i], mask[i], normalize=normalize, **totals) for i in torch.arange(7).split([1, 4, 2]))
    torch.testing.assert_close(parts, whole)
    padded = aggregate(
        torch.nn.functional.pad(x, (0, 5), value=float("nan")),
        torch.nn.functional.pad(mask, (0, 5), value=False),
        normalize=normalize,
        **totals,
    )
    torch.testing.assert_close(padded, whole)


def test_aggregate_refuses_what_it_does_not_know():
    x, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="mean"):
        aggregate(x, mask, normalize="mean", tokens_total=1, sequences_total=1)
    with pytest.raises(ValueError, match="constant"):
        aggregate(x, mask, normalize="constant", tokens_total=1, sequences_total=1)


def test_keep_stops_garbage_in_values_and_gradients():
    x = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    kept = keep(x, torch.tensor([True, False, False]))
    (kept.exp() * torch.tensor([2.0, 1.0, 1.0])).sum().backward()
    assert kept.tolist() == [1.0, 0.0, 0.0]
    assert x.grad.tolist() == pytest.approx([2 * math.e, 0.0, 0.0])


def test_sequence_clipped_surrogate_by_hand():
    logprobs = torch.tensor([[0.3, 0.1, math.nan], [0.5, 9.0, 9.0]], dtype=F64)
    old = torch.tensor([[0.0, 0.0, math.nan], [0.0, 0.0, 0.0]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    for advantages in (tensor(1.0, -2.0), tensor(1.0, -2.0)[:, None].expand(2, 3)):
        mean = sequence_clipped_surrogate(logprobs, old, advantages, mask, **clip)
        whole = sequence_clipped_surrogate(logprobs, old, advantages, mask, ratio="sum", **clip)
        a, b = math.exp(0.2), 2 * math.exp(0.5)
        torch.testing.assert_close(mean, torch.tensor([[-a, -a, 0.0], [b, 0.0, 0.0]], dtype=F64))
        torch.testing.assert_close(whole, torch.tensor([[-1.28, -1.28, 0.0], [b, 0.0, 0.0]], dtype=F64))
    with pytest.raises(ValueError, match="median"):
        sequence_clipped_surrogate(logprobs, old, tensor(1.0, 1.0), mask, ratio="median", **clip)


def test_sequence_clipped_surrogate_has_no_gradient_outside_the_mask():
    mask = torch.tensor([[True, True, False]])
    logprobs = torch.tensor([[0.1, 0.3, math.inf]], dtype=F64, requires_grad=True)
    old = torch.tensor([[0.0, 0.0, math.nan]], dtype=F64)
    loss = sequence_clipped_surrogate(logprobs, old, tensor(1.0), mask, clip_low=0.2, clip_high=0.28)
    aggregate(loss, mask, normalize="sequence", tokens_total=2, sequences_total=1).backward()
    expected = -math.exp(0.2) / 2  # the ratio's own derivative, shared by the two tokens
    torch.testing.assert_close(logprobs.grad, torch.tensor([[expected, expected, 0.0]], dtype=F64))


def test_capped_reinforce_gradient_is_the_capped_weight_times_the_advantage():
    logprobs = tensor(math.log(0.5), math.log(0.5)).requires_grad_()
    old = tensor(math.log(0.25), math.log(0.01))
    loss = capped_reinforce(logprobs, old, tensor(3.0, -1.0), ratio_cap=5.0)
    torch.testing.assert_close(loss.detach(), tensor(-2 * 3 * math.log(0.5), 5 * math.log(0.5)))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, tensor(-6.0, 5.0))


def test_clipped_value_by_hand():
    values, old, returns = tensor(1.0, 1.0, 0.1), tensor(0.0, 0.0, 0.0), tensor(1.0, -1.0, 1.0)
    torch.testing.assert_close(clipped_value(values, old, returns, clip=0.5), tensor(0.125, 2.0, 0.405))
    torch.testing.assert_close(clipped_value(values, old, returns, clip=None), tensor(0.0, 2.0, 0.405))


def test_clipped_value_stops_rewarding_a_value_beyond_the_clip():
    values = tensor(0.8, 0.3).requires_grad_()
    clipped_value(values, tensor(0.0, 0.0), tensor(1.0, 1.0), clip=0.5).sum().backward()
    torch.testing.assert_close(values.grad, tensor(0.0, -0.7))


def test_the_examples_in_the_docstrings_hold():
    outcome = doctest.testmod(losses)
    assert outcome.attempted >= 12
    assert outcome.failed == 0
