import math
import random

import pytest

from llmrl.privacy.audit import (
    Canary,
    auc,
    epsilon_lower_bound,
    exposure,
    make_canaries,
    min_k,
    other_secrets,
    tpr_at,
    wilson,
)


def test_exposure_by_hand():
    assert exposure(1.0, [2.0] * 7) == 3.0
    assert exposure(9.0, [2.0] * 7) == 0.0
    assert exposure(2.0, [1.0, 3.0, 3.0]) == 1.0
    assert exposure(2.0, [2.0, 3.0, 3.0]) == 1.0  # a tie counts against the attack


def test_min_k_is_the_mean_of_the_worst_tokens():
    assert min_k([1.0, 5.0, 3.0, 0.0, 0.0], share=0.4) == 4.0
    assert min_k([2.0], share=0.2) == 2.0
    with pytest.raises(ValueError, match="without tokens"):
        min_k([])


def test_auc_is_the_share_of_pairs_in_order():
    members, others = [1.0, 2.0, 2.5], [2.0, 3.0]
    pairs = [(x < y) + 0.5 * (x == y) for x in members for y in others]
    assert auc(members, others).value == pytest.approx(sum(pairs) / 6)
    assert auc([1.0, 2.0], [3.0, 4.0]).value == 1.0


def test_its_interval_covers_the_truth_about_as_often_as_it_says():
    draw, hits = random.Random(0), 0
    truth = 0.5 * math.erfc(-0.5 / math.sqrt(2) / math.sqrt(2))  # P(N(-0.5, 1) < N(0, 1))
    for _ in range(300):
        members, others = [draw.gauss(-0.5, 1) for _ in range(40)], [draw.gauss(0, 1) for _ in range(40)]
        found = auc(members, others)
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / 300 <= 0.99


def test_tpr_takes_no_more_of_the_others_than_allowed():
    others = [float(k) for k in range(100)]
    found = tpr_at([0.5, 3.0, 50.0, -1.0], others, fpr=0.01)
    assert found.value == 0.5  # below 1.0, which leaves one of a hundred
    assert found.low < 0.5 < found.high
    assert tpr_at([0.0, 0.0], others, fpr=0.0).value == 0.0


def test_wilson_by_hand():
    found = wilson(0, 10)
    assert (found.value, found.low) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert found.high == pytest.approx(1.96**2 / (10 + 1.96**2), rel=1e-3)


def answered(epsilon, canaries, seed):
    """Scores of an attack that sees each coin through randomised response of this epsilon."""
    draw = random.Random(seed)
    included = [draw.random() < 0.5 for _ in range(canaries)]
    truthful = 1 / (1 + math.exp(-epsilon))
    said = [bit if draw.random() < truthful else not bit for bit in included]
    return [0.0 if bit else 1.0 for bit in said], included


def test_the_audited_epsilon_stays_below_the_true_one_as_often_as_it_says():
    found = [epsilon_lower_bound(*answered(1.0, 200, seed), delta=0.0, guesses=200) for seed in range(60)]
    assert sum(value > 1.0 for value in found) <= 7
    assert sum(found) / 60 > 0.4


def test_a_run_that_hides_nothing_is_found_out():
    scores, included = answered(50.0, 100, 1)
    # Half of the canaries guessed, all right: (e^eps / (1 + e^eps))^50 = 0.05.
    half = 0.05 ** (1 / 50)
    got = epsilon_lower_bound(scores, included, delta=0.0, guesses=50)
    assert got == pytest.approx(math.log(half / (1 - half)), abs=1e-3)
    # All guessed, 50 in and 50 out: where the coins fell otherwise, as many guesses are wrong, however good the attack.
    wrong = abs(sum(included) - 50)
    p = 1 / (1 + math.exp(-epsilon_lower_bound(scores, included, delta=0.0, guesses=100)))
    assert wrong > 0
    assert sum(math.comb(100, k) * p ** (100 - k) * (1 - p) ** k for k in range(wrong + 1)) == pytest.approx(
        0.05, abs=1e-4
    )
    # all right: (e^eps / (1 + e^eps))^100 = 0.05
    expected = 0.05 ** (1 / 100)
    halves = [0.0] * 50 + [1.0] * 50
    got = epsilon_lower_bound(halves, [True] * 50 + [False] * 50, delta=0.0, guesses=100)
    assert got == pytest.approx(math.log(expected / (1 - expected)), abs=1e-3)


def test_a_coin_gives_zero_and_delta_lowers_the_bound():
    scores, included = answered(0.0, 100, 3)
    assert epsilon_lower_bound(scores, included, delta=1e-5, guesses=100) == 0.0
    scores, included = answered(3.0, 100, 3)
    exact, loose = (epsilon_lower_bound(scores, included, delta=d, guesses=100) for d in (0.0, 1e-3))
    assert loose < exact
    with pytest.raises(ValueError, match="guesses of 2 canaries"):
        epsilon_lower_bound([1.0, 2.0], [True, False], delta=0.0, guesses=4)


def test_canaries_are_keyed_and_candidates_differ_in_the_secret_only():
    canaries = make_canaries(100, seed=1)
    assert canaries == make_canaries(100, seed=1) != make_canaries(100, seed=2)
    assert 30 < sum(canary.included for canary in canaries) < 70
    others = other_secrets(canaries[0], count=50, seed=0)
    prefix = canaries[0].text.rpartition(" ")[0]
    assert all(text.startswith(prefix) and len(text) == len(canaries[0].text) for text in others)
    assert canaries[0].text not in others and isinstance(canaries[0], Canary)
