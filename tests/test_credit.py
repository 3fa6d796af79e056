import doctest
import math

import pytest
import torch

from llmrl import credit
from llmrl.credit import (
    discounted_returns,
    episode_gae,
    gae,
    group_center,
    group_deviation,
    group_zscore,
    leave_one_out,
    length_adaptive_lambda,
    step_gae,
    whiten,
)

F64 = torch.float64


def by_group(score, group, rule):
    """The definition, one row at a time, in Python floats."""
    rows = []
    for i, own in enumerate(score.tolist()):
        members = [s for s, g in zip(score.tolist(), group.tolist(), strict=True) if g == group[i]]
        rows.append(rule(own, members))
    return torch.tensor(rows, dtype=F64)


def zscore_rule(own, members):
    mean = sum(members) / len(members)
    variance = sum((s - mean) ** 2 for s in members) / max(len(members) - 1, 1)
    return (own - mean) / (variance**0.5 + 1e-4)


def leave_one_out_rule(own, members):
    return own - (sum(members) - own) / (len(members) - 1) if len(members) > 1 else 0.0


RULES = [
    (group_center, lambda own, members: own - sum(members) / len(members)),
    (group_zscore, zscore_rule),
    (leave_one_out, leave_one_out_rule),
]


def scattered(seed):
    draw = torch.Generator().manual_seed(seed)
    group = torch.tensor([5, 5, 5, 5, -2, -2, -2, 90, 31, 31])[torch.randperm(10, generator=draw)]
    return torch.randn(10, generator=draw, dtype=F64), group


def test_group_zscore_by_hand():
    score = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=F64)
    group = torch.zeros(4, dtype=torch.int64)
    # mean 1/2, sample deviation sqrt(1/3), population deviation 1/2
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=F64)
    torch.testing.assert_close(group_zscore(score, group), expected / (3**-0.5 + 1e-4))
    torch.testing.assert_close(group_zscore(score, group, ddof=0, eps=0.0), 2 * expected)


def test_group_center_and_leave_one_out_by_hand():
    score = torch.tensor([1.0, 10.0, 0.0, 20.0, 0.5], dtype=F64)
    group = torch.tensor([0, 1, 0, 1, 0])
    torch.testing.assert_close(group_center(score, group), torch.tensor([0.5, -5.0, -0.5, 5.0, 0.0], dtype=F64))
    torch.testing.assert_close(leave_one_out(score, group), torch.tensor([0.75, -10.0, -0.75, 10.0, 0.0], dtype=F64))


@pytest.mark.parametrize(("credit", "rule"), RULES)
@pytest.mark.parametrize("seed", range(5))
def test_group_credit_is_its_definition_for_any_order_and_sizes(credit, rule, seed):
    score, group = scattered(seed)
    torch.testing.assert_close(credit(score, group), by_group(score, group, rule), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("credit", "rule"), RULES)
def test_group_credit_follows_a_permutation_of_rows(credit, rule):
    score, group = scattered(3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(credit(score[order], group[order]), credit(score, group)[order])


@pytest.mark.parametrize(("credit", "rule"), RULES)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1])
def test_equal_scores_and_groups_of_one_give_exactly_zero(credit, rule, value):
    score = torch.full((8,), value, dtype=torch.float32)
    group = torch.tensor([0] * 7 + [1])
    assert torch.equal(credit(score, group), torch.zeros(8))


@pytest.mark.parametrize(("credit", "rule"), RULES)
def test_group_credit_sums_to_zero_in_a_group_and_keeps_the_dtype(credit, rule):
    score, group = scattered(2)
    for dtype in (torch.float32, F64):
        result = credit(score.to(dtype), group)
        assert result.dtype == dtype
        assert result[group == 5].sum().abs() < 1e-5


def test_leave_one_out_and_center_are_differentiable_at_equal_scores():
    group = torch.zeros(4, dtype=torch.int64)
    score = torch.full((4,), 0.3, dtype=F64, requires_grad=True)
    for rule, own, other in ((leave_one_out, 1.0, -1 / 3), (group_center, 0.75, -0.25)):
        jacobian = torch.autograd.functional.jacobian(lambda s, rule=rule: rule(s, group), score)
        expected = torch.full((4, 4), other, dtype=F64).fill_diagonal_(own)
        torch.testing.assert_close(jacobian, expected)


def grid(*rows):
    return torch.tensor(rows, dtype=F64)


NAN = float("nan")


def test_gae_by_hand():
    # tokens:  sampled   environment   sampled   padding
    rewards = grid([1.0, NAN, 2.0, NAN])
    values = grid([0.5, NAN, 1.0, NAN])
    mask = torch.tensor([[True, False, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    # delta_2 = 2 - 1 = 1, delta_0 = 1 + 0.5 * 1 - 0.5 = 1, A_0 = 1 + 0.25 * 1
    torch.testing.assert_close(advantages, grid([1.25, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(returns, grid([1.75, 0.0, 2.0, 0.0]))


def test_gae_with_lambda_one_is_the_return_minus_the_value_and_with_zero_the_td_error():
    rewards, values = grid([0.0, 0.0, 1.0]), grid([0.2, 0.6, 0.9])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, grid([1.0, 1.0, 1.0]))
    torch.testing.assert_close(advantages, grid([0.8, 0.4, 0.1]))
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    torch.testing.assert_close(advantages, grid([0.4, 0.3, 0.1]))


def test_gae_takes_one_lambda_per_row():
    draw = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 5, generator=draw, dtype=F64), torch.randn(3, 5, generator=draw, dtype=F64)
    mask = torch.rand(3, 5, generator=draw) > 0.3
    lams = [0.0, 0.5, 1.0]
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=torch.tensor(lams, dtype=F64))
    for i, lam in enumerate(lams):
        alone, _ = gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], gamma=0.9, lam=lam)
        torch.testing.assert_close(advantages[i : i + 1], alone)


def test_environment_tokens_between_two_turns_change_nothing():
    rewards, values = grid([0.0, 0.5, 0.0, 1.0]), grid([0.1, 0.2, 0.3, 0.4])
    plain, _ = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), gamma=0.9, lam=0.8)
    spread = torch.tensor([0, 1, 5, 6])
    wide_rewards, wide_values = torch.full((1, 8), NAN, dtype=F64), torch.full((1, 8), NAN, dtype=F64)
    mask = torch.zeros(1, 8, dtype=torch.bool)
    wide_rewards[:, spread], wide_values[:, spread], mask[:, spread] = rewards, values, True
    wide, _ = gae(wide_rewards, wide_values, mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(wide[:, spread], plain)
    assert (wide[~mask] == 0).all()


def test_step_gae_by_hand():
    # step 0: two tokens, reward 1 on its last, value 0.5 at its first; step 1: one token, reward 2, value 1
    rewards, values = grid([NAN, 0.0, 1.0, NAN, 2.0]), grid([NAN, 0.5, 7.0, NAN, 1.0])
    step = torch.tensor([[-1, 0, 0, -1, 1]])
    advantages, returns = step_gae(rewards, values, step, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, grid([0.0, 1.25, 1.25, 0.0, 1.0]))
    torch.testing.assert_close(returns, grid([0.0, 1.75, 1.75, 0.0, 2.0]))


def test_step_gae_of_one_token_steps_is_token_gae():
    draw = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(3, 6, generator=draw, dtype=F64), torch.randn(3, 6, generator=draw, dtype=F64)
    step = torch.tensor([[0, 1, 2, 3, 4, 5], [-1, 0, -1, 1, 2, -1], [-1] * 6])
    for by_step, by_token in zip(
        step_gae(rewards, values, step, gamma=0.9, lam=0.8),
        gae(rewards, values, step >= 0, gamma=0.9, lam=0.8),
        strict=True,
    ):
        torch.testing.assert_close(by_step, by_token)


def test_step_gae_accepts_missing_step_numbers():
    rewards, values = grid([1.0, 2.0]), grid([0.5, 1.0])
    expected = step_gae(rewards, values, torch.tensor([[0, 1]]), gamma=0.5, lam=0.5)
    got = step_gae(rewards, values, torch.tensor([[2, 9]]), gamma=0.5, lam=0.5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_discounted_returns_by_hand():
    rewards = grid([1.0, NAN, 2.0, 4.0], [NAN, NAN, NAN, NAN])
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    expected = grid([1 + 0.5 * 2 + 0.25 * 4, 0.0, 4.0, 4.0], [0.0] * 4)
    torch.testing.assert_close(discounted_returns(rewards, mask, gamma=0.5), expected)


def test_whiten_by_hand():
    x = grid([1.0, 3.0, NAN], [5.0, NAN, NAN])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    std = (8 / 3) ** 0.5
    torch.testing.assert_close(whiten(x, mask), grid([-2 / std, 0.0, 0.0], [2 / std, 0.0, 0.0]))
    torch.testing.assert_close(whiten(x, mask, ddof=1), grid([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    kept = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept, grid([3 - 2 / std, 3.0, 0.0], [3 + 2 / std, 0.0, 0.0]))


def test_whiten_has_a_floor_and_gives_equal_values_exactly_zero():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(whiten(torch.full((1, 3), 0.1), mask), torch.zeros(1, 3))
    noise = grid([0.0, 1e-3, 2e-3])
    torch.testing.assert_close(whiten(noise, mask, floor=0.1), (noise - 1e-3) / 0.1)
    assert torch.equal(whiten(noise, torch.zeros_like(mask)), torch.zeros_like(noise))


def test_length_adaptive_lambda_by_hand():
    mask = torch.arange(200).expand(4, 200) < torch.tensor([[200], [40], [10], [0]])
    torch.testing.assert_close(length_adaptive_lambda(mask), torch.tensor([0.9, 0.5, 0.0, 0.0], dtype=F64))


def test_group_deviation_has_no_gradient_at_its_floor():
    score = torch.tensor([0.5, 0.5, 1.0, 3.0], dtype=F64, requires_grad=True)
    group = torch.tensor([0, 0, 1, 1])
    deviation = group_deviation(score, group, floor=0.1)
    torch.testing.assert_close(deviation.detach(), torch.tensor([0.1, 0.1, 2**0.5, 2**0.5], dtype=F64))
    deviation.sum().backward()
    assert torch.isfinite(score.grad).all()
    torch.testing.assert_close(score.grad, torch.tensor([0.0, 0.0, -(2**0.5), 2**0.5], dtype=F64))


def test_group_zscore_of_equal_scores_is_zero_even_without_eps():
    score, group = torch.tensor([0.3, 0.3, 1.0, 2.0], dtype=F64), torch.tensor([0, 0, 1, 1])
    expected = torch.tensor([0.0, 0.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(group_zscore(score, group, eps=0.0, ddof=0), expected)


def test_the_examples_in_the_docstrings_hold():
    outcome = doctest.testmod(credit)
    assert outcome.attempted >= 9
    assert outcome.failed == 0


def episodes(rewards, values, *, terminated=(), truncated=(), final=None, **options):
    """Lists and the indices of the rows where an episode ended -> (advantages, returns) as lists."""
    rows = range(len(rewards))
    options = {"gamma": 0.5, "lam": 0.5} | options
    advantages, returns = episode_gae(
        torch.tensor(rewards, dtype=F64),
        torch.tensor(values, dtype=F64),
        terminated=torch.tensor([n in terminated for n in rows], dtype=torch.bool),
        truncated=torch.tensor([n in truncated for n in rows], dtype=torch.bool),
        final_values=torch.tensor([math.nan] * len(rewards) if final is None else final, dtype=F64),
        **options,
    )
    return advantages.tolist(), returns.tolist()


def test_episode_gae_by_hand():
    # delta_1 = 2 - 4 = -2; delta_0 = 1 + 4 / 2 - 2 = 1, A_0 = 1 - 2 / 4
    advantages, returns = episodes([1.0, 2.0], [2.0, 4.0], terminated=[1])
    assert advantages == pytest.approx([0.5, -2.0]) and returns == pytest.approx([2.5, 2.0])


def test_the_three_meanings_of_truncation_by_hand():
    steps = {"rewards": [1.0, 2.0], "values": [2.0, 4.0], "truncated": [1], "final": [math.nan, 6.0]}
    # bootstrap: delta_1 = 2 + 6 / 2 - 4 = 1. drop: A_1 = 0, so A_0 is delta_0. terminal: as terminated.
    assert episodes(**steps)[0] == pytest.approx([1.25, 1.0])
    assert episodes(**steps, truncation="drop") == (pytest.approx([1.0, 0.0]), pytest.approx([3.0, 4.0]))
    assert episodes(**steps, truncation="terminal") == episodes([1.0, 2.0], [2.0, 4.0], terminated=[1])


@pytest.mark.parametrize("truncation", ["bootstrap", "drop", "terminal"])
def test_a_rollout_that_stops_inside_an_episode_bootstraps_from_its_last_observation(truncation):
    found, _ = episodes([1.0], [2.0], final=[6.0], truncation=truncation)
    assert found == pytest.approx([1.0 + 6.0 / 2 - 2.0])


@pytest.mark.parametrize("truncation", ["bootstrap", "drop", "terminal"])
def test_an_episode_is_credited_alone_and_beside_others_alike(truncation):
    draw = torch.Generator().manual_seed(5)
    rewards, values, final = (torch.randn(9, generator=draw, dtype=F64).tolist() for _ in range(3))
    together = episodes(rewards, values, terminated=[2], truncated=[5], final=final, truncation=truncation)
    pieces = [
        episodes(rewards[:3], values[:3], terminated=[2], truncation=truncation),
        episodes(rewards[3:6], values[3:6], truncated=[2], final=final[3:6], truncation=truncation),
        episodes(rewards[6:], values[6:], final=final[6:], truncation=truncation),
    ]
    for which in (0, 1):
        assert together[which] == pytest.approx([x for piece in pieces for x in piece[which]], abs=1e-12)


def test_terminated_and_truncated_at_once_is_terminated():
    over = episodes([1.0, 2.0], [2.0, 4.0], terminated=[1])
    for truncation in ("bootstrap", "drop", "terminal"):
        assert episodes([1.0, 2.0], [2.0, 4.0], terminated=[1], truncated=[1], truncation=truncation) == over


def test_episode_gae_of_one_episode_is_gae_over_its_steps():
    draw = torch.Generator().manual_seed(6)
    rewards, values = (torch.randn(1, 7, generator=draw, dtype=F64) for _ in range(2))
    by_token = gae(rewards, values, torch.ones(1, 7, dtype=torch.bool), gamma=0.9, lam=0.8)
    by_step = episodes(rewards[0].tolist(), values[0].tolist(), terminated=[6], gamma=0.9, lam=0.8)
    for token, step in zip(by_token, by_step):
        assert token[0].tolist() == pytest.approx(step, abs=1e-12)


def test_episode_gae_takes_no_steps_keeps_the_dtype_and_refuses_an_unknown_truncation():
    assert episodes([], []) == ([], [])
    nothing = torch.zeros(0)
    flags = torch.zeros(0, dtype=torch.bool)
    options = {"terminated": flags, "truncated": flags, "final_values": nothing, "gamma": 1.0, "lam": 1.0}
    assert episode_gae(nothing, nothing, **options)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="truncation='cut'"):
        episode_gae(nothing, nothing, **options, truncation="cut")
