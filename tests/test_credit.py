import pytest
import torch

from llmrl.credit import group_center, group_zscore, leave_one_out

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
    for credit, own, other in ((leave_one_out, 1.0, -1 / 3), (group_center, 0.75, -0.25)):
        jacobian = torch.autograd.functional.jacobian(lambda s, credit=credit: credit(s, group), score)
        expected = torch.full((4, 4), other, dtype=F64).fill_diagonal_(own)
        torch.testing.assert_close(jacobian, expected)
