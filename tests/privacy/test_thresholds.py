import math

import pytest

from llmrl.privacy.clipping import effective_sigma
from llmrl.privacy.thresholds import below_fraction, count_std, next_threshold


def test_by_hand():
    # (0.5 + 0.5 - 0.5 + 0.3) / 4 + 0.5 = 0.7; 2 * exp(-0.2 * (0.7 - 0.5))
    got = next_threshold(2.0, below=[1, 1, 0], noise=0.3, expected_batch=4, lr=0.2, quantile=0.5)
    assert got == pytest.approx(2.0 * math.exp(-0.04), rel=1e-12)


def test_nothing_drawn_and_no_noise_reads_as_one_half():
    assert below_fraction([], noise=0.0, expected_batch=8) == 0.5
    assert next_threshold(3.0, below=[], noise=0.0, expected_batch=8, lr=0.5, quantile=0.5) == 3.0


def test_it_grows_while_too_few_are_within_and_shrinks_while_too_many_are():
    few = next_threshold(1.0, below=[0] * 8, noise=0.0, expected_batch=8, lr=0.2, quantile=0.5)
    many = next_threshold(1.0, below=[1] * 8, noise=0.0, expected_batch=8, lr=0.2, quantile=0.5)
    assert few == pytest.approx(math.exp(0.1)) and many == pytest.approx(math.exp(-0.1))


@pytest.mark.parametrize("bit", [0, 1])
def test_one_record_moves_the_sum_by_one_half(bit):
    with_it = below_fraction([1, 0, 1, bit], noise=0.0, expected_batch=5)
    without = below_fraction([1, 0, 1], noise=0.0, expected_batch=5)
    assert abs(with_it - without) * 5 == pytest.approx(0.5)


def test_it_finds_the_quantile_of_fixed_norms():
    norms, threshold = [0.1 * (k + 1) for k in range(100)], 1.0
    for _ in range(400):
        below = [float(norm <= threshold) for norm in norms]
        threshold = next_threshold(threshold, below=below, noise=0.0, expected_batch=100, lr=0.2, quantile=0.9)
    assert threshold == pytest.approx(9.0, abs=0.2)


def test_counts_and_gradient_are_one_gaussian_mechanism():
    """A count with sensitivity 1/2 and deviation s is a group with threshold 1/2."""
    std = count_std(1.1, 1.0, counts=3)
    assert effective_sigma([1.0, 0.5, 0.5, 0.5], [1.1, std, std, std]) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"quantile": 1.5}, "quantile=1.5"),
        ({"expected_batch": 0}, "expected_batch=0"),
        ({"below": [2.0]}, "below holds 2.0"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, says):
    values = {"threshold": 1.0, "below": [1.0], "noise": 0.0, "expected_batch": 4, "lr": 0.2, "quantile": 0.5} | changes
    with pytest.raises(ValueError, match=says):
        next_threshold(values.pop("threshold"), **values)
    with pytest.raises(ValueError, match="needs more gradient noise"):
        count_std(1.0, 1.0, counts=1)
