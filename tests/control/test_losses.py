"""Numbers by hand, a second implementation (torch.distributions) as judge, and the properties that controllers need."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from llmrl.conformance.control import cases, check_control
from llmrl.conformance.report import summarise
from llmrl.control import losses

F64 = torch.float64
NAN = float("nan")


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def test_every_function_is_its_definition():
    results = summarise(finding for seed in (1, 2, 3) for finding in check_control(seed))
    assert [result for result in results if not result.passed] == []
    public = {name for name, f in vars(losses).items() if getattr(f, "__module__", "") == losses.__name__}
    public = {name for name in public if not name.startswith("_") and callable(getattr(losses, name))}
    assert public <= {case.name.split()[0] for case in cases()}


def test_squashed_logprob_by_hand():
    # at u = 0 tanh has slope 1: a standard normal's density
    assert losses.squashed_logprob(tensor(0.0), tensor(0.0), tensor(0.0)).item() == pytest.approx(-0.9189385332046727)
    two = losses.squashed_logprob(tensor(0.0, 0.0), tensor(0.0, math.log(2)), tensor(0.0, 0.0)).item()
    assert two == pytest.approx(-2 * 0.9189385332046727 - math.log(2))


def test_squashed_logprob_against_torch_distributions_and_far_out():
    mean, log_std = torch.randn(7, 3, dtype=F64), 0.3 * torch.randn(7, 3, dtype=F64)
    u = mean + torch.randn(7, 3, dtype=F64)
    judge = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform(cache_size=1)])
    torch.testing.assert_close(
        losses.squashed_logprob(mean, log_std, u), judge.log_prob(u.tanh()), atol=1e-6, rtol=1e-6
    )
    far = losses.squashed_logprob(torch.zeros(1), torch.zeros(1), torch.tensor([40.0])).item()
    assert far == pytest.approx(-800 - 0.918939 - 2 * (math.log(2) - 40), rel=1e-6)


def test_squashed_density_integrates_to_one():
    a = torch.linspace(-1, 1, 200_003, dtype=F64)[1:-1, None]
    density = losses.squashed_logprob(tensor(0.3), tensor(-0.5), a.atanh()).exp()
    assert torch.trapezoid(density, a[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


def test_soft_target_by_hand_takes_the_smaller_value_and_terminated_rows_ignore_what_follows():
    values, logprob = tensor([5.0, NAN, 1.0], [3.0, NAN, 2.0]), tensor(-1.0, NAN, 0.0)
    found = losses.soft_target(
        tensor(1.0, 7.0, 0.0), torch.tensor([False, True, False]), values, logprob, gamma=0.5, alpha=0.2
    )
    torch.testing.assert_close(found, tensor(1 + 0.5 * 3.2, 7.0, 0.5))


def test_critic_and_actor_loss_by_hand():
    values = tensor([1.0, 2.0], [3.0, 0.0])
    assert losses.critic_loss(values, tensor(1.0, 1.0)).item() == pytest.approx((0 + 1) / 2 + (4 + 1) / 2)
    assert losses.actor_loss(values, tensor(2.0, -1.0), alpha=0.5).item() == pytest.approx(((1 - 1) + (-0.5 - 0)) / 2)


@pytest.mark.parametrize(("logprob", "lowers"), [(-5.0, True), (5.0, False)])
def test_entropy_above_its_target_lowers_the_temperature(logprob, lowers):
    log_alpha = torch.tensor(0.1, dtype=F64, requires_grad=True)
    losses.temperature_loss(log_alpha, tensor(logprob), target_entropy=-1.0).backward()
    assert bool(log_alpha.grad > 0) is lowers
    assert log_alpha.grad.item() == pytest.approx(-math.exp(0.1) * (logprob - 1))


def test_polyak_and_log_uniform_by_hand():
    torch.testing.assert_close(losses.polyak(tensor(1.0), tensor(3.0), tau=0.25), tensor(1.5))
    found = losses.log_uniform(tensor(-1.0, 0.0, 1.0), low=0.1, high=10.0)
    torch.testing.assert_close(found, tensor(0.1, 1.0, 10.0))
    with pytest.raises(ValueError, match="low=0"):
        losses.log_uniform(tensor(0.0), low=0, high=1)


def test_distributional_targets_by_hand():
    mean, std, z = (
        tensor([1.0, 5.0, NAN], [2.0, 4.0, NAN]),
        tensor([0.5, 9.0, 1.0], [9.0, 2.0, 1.0]),
        tensor([1.0, 0.0, 0.0], [0.0, -100.0, 0.0]),
    )
    of_mean, sampled = losses.distributional_targets(
        torch.zeros(3, dtype=F64), tensor(0.0, 0.0, 1.0), mean, std, z, tensor(0.0, 1.0, NAN), gamma=1.0, alpha=0.5
    )
    torch.testing.assert_close(of_mean, tensor(1.0, 3.5, 0.0))
    torch.testing.assert_close(sampled, tensor(1.5, 4 - 2 * 3 - 0.5, 0.0))


def distributional(form, mean, std, y, drawn, ema=(2.0, 2.0), tau_b=0.0):
    mean, std = tensor(*mean)[:, None].requires_grad_(), tensor(*std)[:, None].requires_grad_()
    loss, b = losses.distributional_critic_loss(
        mean, std, tensor(y), tensor(drawn), ema_std=tensor(*ema), tau_b=tau_b, form=form
    )
    loss.backward()
    return mean.grad[:, 0].tolist(), std.grad[:, 0].tolist(), b


@pytest.mark.parametrize(
    ("form", "of_mean", "of_std"),
    [
        # m = 0, s = 1, y = 1, a draw of 100 that the bound 3 b = 6 cuts
        ("nll", -4.0, -4 * 35.0),
        ("released_2024", -4.1 / 1.1, -4.1 * 35 / 1.1),
        ("released", -4 / 1.1, (4 / 1.1) * (1 - 18) / 1.1),
    ],
)
def test_distributional_gradients_by_hand(form, of_mean, of_std):
    found_mean, found_std, b = distributional(form, (0.0, 0.0), (1.0, 1.0), 1.0, 100.0)
    assert found_mean == pytest.approx([of_mean] * 2, rel=1e-6) and found_std == pytest.approx([of_std] * 2, rel=1e-6)
    assert b.tolist() == [2.0, 2.0]


def test_the_running_standard_deviation_begins_with_the_first_batch():
    for empty in (0.0, -1.0, NAN):
        _, _, b = distributional("nll", (0.0, 0.0), (1.0, 3.0), 1.0, 1.0, ema=(empty, empty), tau_b=0.1)
        assert b.tolist() == [1.0, 3.0]
    _, _, b = distributional("nll", (0.0, 0.0), (1.0, 3.0), 1.0, 1.0, ema=(2.0, 2.0), tau_b=0.1)
    torch.testing.assert_close(b, tensor(1.9, 2.1))
    with pytest.raises(ValueError, match="gauss"):
        distributional("gauss", (0.0, 0.0), (1.0, 1.0), 1.0, 1.0)


@pytest.mark.parametrize(("form", "settles_at"), [("nll", 1.0), ("released_2024", 1.0), ("released", 2**-0.5)])
def test_where_the_standard_deviation_of_a_unit_error_settles(form, settles_at):
    _, of_std, _ = distributional(form, (0.0, 0.0), (settles_at, settles_at), 0.0, 1.0)
    assert of_std == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_mixture_of_one_and_a_mixture_of_equals_are_the_plain_policy():
    mean, log_std, u = torch.randn(4, 1, 3, dtype=F64), torch.randn(4, 1, 3, dtype=F64), torch.randn(4, 1, 3, dtype=F64)
    plain = losses.squashed_logprob(mean, log_std, u)
    torch.testing.assert_close(losses.mixture_logprob(torch.ones(4, 1, dtype=F64), mean, log_std, u), plain)
    twice = losses.mixture_logprob(
        tensor(0.3, 0.7).expand(4, 2), mean.expand(4, 2, 3), log_std.expand(4, 2, 3), u.expand(4, 2, 3)
    )
    torch.testing.assert_close(twice, plain.expand(4, 2))


def test_an_expert_without_weight_leaves_the_density_and_every_gradient_finite():
    weights = tensor([1.0, 0.0]).requires_grad_()
    u = torch.zeros(1, 2, 1, dtype=F64)
    found = losses.mixture_logprob(weights, torch.zeros(1, 2, 1, dtype=F64), torch.zeros(1, 2, 1, dtype=F64), u)
    found.sum().backward()
    torch.testing.assert_close(found, tensor([-0.9189385332046727] * 2))
    assert bool(weights.grad.isfinite().all())


def test_gate_loss_by_hand_and_its_gradient_over_logits_sums_to_zero():
    assert losses.gate_loss(tensor([0.5, 0.5]), tensor([1.0, 2.0])).item() == pytest.approx(0.5)
    logits = torch.randn(6, 3, dtype=F64, requires_grad=True)
    losses.gate_loss(logits.softmax(-1), torch.randn(6, 3, dtype=F64)).backward()
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(6, dtype=F64), atol=1e-12, rtol=0)


def test_a_critics_ensemble_of_any_size_goes_through():
    values = torch.randn(5, 4, dtype=F64)
    expected = 1 + 0.9 * values.min(0).values
    found = losses.soft_target(torch.ones(4, dtype=F64), torch.zeros(4), values, torch.zeros(4), gamma=0.9, alpha=0.1)
    torch.testing.assert_close(found, expected)
