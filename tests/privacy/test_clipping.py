import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.privacy.clipping import clip_factors, clipped_sum, effective_sigma, noise_std


def test_a_long_row_is_cut_to_the_threshold_and_a_short_one_stays():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped_sum([rows], [1.0]), [torch.tensor([0.9, 1.2])])


def test_groups_are_clipped_apart():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[12.0]])
    torch.testing.assert_close(clipped_sum([a, b], [10.0, 2.0]), [torch.tensor([3.0, 4.0]), torch.tensor([2.0])])


def test_no_record_sums_to_zero():
    assert [g.tolist() for g in clipped_sum([torch.zeros(0, 2), torch.zeros(0, 1)], [1.0, 1.0])] == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_contributes_nothing(bad):
    rows = torch.tensor([[bad, 1.0], [0.6, 0.8]])
    torch.testing.assert_close(clipped_sum([rows], [0.5]), [torch.tensor([0.3, 0.4])])


def test_numbers_whose_squares_overflow_are_clipped_like_others():
    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])
    torch.testing.assert_close(clipped_sum([rows], [1.0]), [torch.tensor([0.6, 0.8])])
    torch.testing.assert_close(
        clipped_sum([rows[1:]], [1e-30]), [torch.tensor([0.6e-30, 0.8e-30])], atol=1e-36, rtol=1e-5
    )


def slow_sum(groups, thresholds):
    totals = []
    for rows, limit in zip(groups, thresholds):
        total = [0.0] * rows.shape[1]
        for row in rows.tolist():
            norm = math.sqrt(sum(x * x for x in row))
            scale = 1.0 if norm <= limit else limit / norm
            total = [t + scale * x for t, x in zip(total, row)]
        totals.append(torch.tensor(total, dtype=torch.float64))
    return totals


def random_groups(seed, records=6, sizes=(5, 1, 3)):
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(records, size, generator=draw, dtype=torch.float64) * 10 ** torch.randn(records, 1, generator=draw)
        for size in sizes
    ]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_its_definition(seed):
    groups, thresholds = random_groups(seed), [0.7, 0.05, 30.0]
    torch.testing.assert_close(clipped_sum(groups, thresholds), slow_sum(groups, thresholds), rtol=1e-12, atol=1e-15)


@given(
    st.integers(0, 10**6),
    st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    st.sampled_from(["isotropic", "equal_budget", (0.2, 0.5, 0.3)]),
)
@settings(max_examples=60, deadline=None)
def test_removing_a_record_moves_the_scaled_sum_by_at_most_one(seed, thresholds, rule):
    """In units where the noise is sigma in every coordinate."""
    groups, sigma = random_groups(seed), 1.3
    if seed % 3 == 0:
        groups[1][0] = math.inf
    deviations = noise_std(thresholds, sigma, rule=rule)
    whole = clipped_sum(groups, thresholds)
    for record in range(6):
        others = [i for i in range(6) if i != record]
        less = clipped_sum([rows[others] for rows in groups], thresholds)
        moved = sum(float(((a - b) * sigma / s).square().sum()) for a, b, s in zip(whole, less, deviations))
        assert math.sqrt(moved) <= 1 + 1e-9


def test_the_bound_of_one_is_reached():
    groups, thresholds = [torch.full((1, 4), 9.0), torch.full((1, 2), 9.0)], [0.5, 2.0]
    deviations = noise_std(thresholds, 2.0, rule="equal_budget")
    moved = sum(float((g * 2.0 / s).square().sum()) for g, s in zip(clipped_sum(groups, thresholds), deviations))
    assert moved == pytest.approx(1.0, rel=1e-6)


def test_noise_of_each_rule():
    assert noise_std([3.0, 4.0], 2.0) == [10.0, 10.0]
    assert noise_std([3.0, 4.0], 2.0, rule="equal_budget") == pytest.approx([6 * math.sqrt(2), 8 * math.sqrt(2)])
    assert noise_std([3.0, 4.0], 2.0, rule=[0.25, 0.75]) == pytest.approx([12.0, 8 / math.sqrt(0.75)])


@given(
    st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=6),
    st.floats(0.1, 20),
    st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_every_rule_keeps_the_multiplier_whatever_thresholds_and_weights_are(thresholds, sigma, raw):
    raw = raw[: len(thresholds)]
    weights = [x / math.fsum(raw) for x in raw]
    for rule in ("isotropic", "equal_budget", weights):
        assert effective_sigma(thresholds, noise_std(thresholds, sigma, rule=rule)) == pytest.approx(sigma, rel=1e-9)


def test_noise_in_proportion_to_each_threshold_is_worth_less():
    """The trap: s_g = sigma C_g has the multiplier sigma / sqrt(G)."""
    assert effective_sigma([0.3, 2.0, 7.0, 1.0], [0.3, 2.0, 7.0, 1.0]) == pytest.approx(0.5)


def test_a_group_without_noise_leaves_no_privacy():
    assert effective_sigma([1.0, 1.0], [5.0, 0.0]) == 0.0
    assert noise_std([1.0, 2.0], 0.0) == [0.0, 0.0]


def test_factors_never_exceed_one_and_drop_what_is_not_finite():
    norms = torch.tensor([0.0, 0.5, 2.0, math.inf, math.nan])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clipped_sum([torch.ones(1, 1)], [1.0, 2.0]), "2 thresholds for 1 groups"),
        (lambda: clipped_sum([torch.ones(1, 1)], [0.0]), "threshold 0.0 does not bound"),
        (lambda: clipped_sum([torch.ones(1, 1)], [math.nan]), "threshold nan"),
        (lambda: noise_std([1.0], -1.0), "sigma=-1.0"),
        (lambda: noise_std([1.0], 1.0, rule="equal"), "noise rule 'equal' is unknown"),
        (lambda: noise_std([1.0, 1.0], 1.0, rule=[0.5, 0.4]), "sum to 1"),
        (lambda: noise_std([1.0, 1.0], 1.0, rule=[1.0]), "1 noise weights for 2 groups"),
        (lambda: effective_sigma([1.0], [math.nan]), "standard deviation"),
    ],
)
def test_what_bounds_nothing_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
