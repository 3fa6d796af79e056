import math
import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.privacy.accounting import (
    ORDERS,
    GaussianFilter,
    RenyiFilter,
    converted,
    epsilon,
    gaussian_delta,
    gaussian_mu,
    rdp,
    renyi_budget,
)
from llmrl.privacy.reports import pld_epsilon, prv_epsilon


def test_without_sampling_it_is_the_gaussian_divergence():
    assert rdp(2.0, 1.0, 8) == 8 / (2 * 4.0)
    assert rdp(0.5, 1.0, 2) == 4.0


def test_order_two_by_hand():
    # log(1 + q^2 (exp(1 / sigma^2) - 1))
    assert rdp(1.0, 0.1, 2) == pytest.approx(math.log(1 + 0.01 * (math.e - 1)), rel=1e-14)
    assert rdp(2.0, 0.3, 2) == pytest.approx(math.log(1 + 0.09 * (math.exp(0.25) - 1)), rel=1e-14)


def test_figures_that_were_published_with_the_design():
    assert rdp(1.0, 0.02, 6) == pytest.approx(0.00277, rel=5e-3)
    assert rdp(0.8, 0.02, 6) == pytest.approx(0.153, rel=5e-3)
    assert rdp(0.75, 0.02, 6) == pytest.approx(0.656, rel=5e-3)
    assert rdp(1.0, 0.02, 16) == pytest.approx(3.8, rel=2e-2)


def integrated(sigma, q, order, *, swapped=False):
    """The divergence by the trapezoid rule: mixture against N(0, sigma^2), or the other way round if `swapped`."""
    x = numpy.linspace(-12 * sigma, 12 * sigma + order + 1, 100_001)
    base = numpy.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    log_ratio = numpy.log1p(q * numpy.expm1((2 * x - 1) / (2 * sigma**2)))
    power = (1 - order) if swapped else order
    # E[ratio^power] - 1, without losing digits where it is small
    excess = (base * numpy.expm1(power * log_ratio)).sum() * (x[1] - x[0])
    return math.log1p(excess) / (order - 1)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("q", [0.001, 0.05, 0.7])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_it_is_the_integral_and_the_worse_of_the_two_directions(sigma, q, order):
    assert rdp(sigma, q, order) == pytest.approx(integrated(sigma, q, order), rel=1e-7, abs=1e-15)
    assert integrated(sigma, q, order, swapped=True) <= rdp(sigma, q, order) + 1e-12


@pytest.mark.parametrize("order", [2, 5, 16, 64, 256])
def test_opacus_and_dp_accounting_agree(order):
    analysis = pytest.importorskip("opacus.accountants.analysis.rdp")
    second = pytest.importorskip("dp_accounting.rdp")
    events = pytest.importorskip("dp_accounting")
    for sigma, q in [(0.7, 0.02), (1.1, 0.004), (4.0, 0.3), (1.0, 1.0)]:
        theirs = analysis.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order))
        accountant = second.RdpAccountant([order])
        accountant.compose(events.PoissonSampledDpEvent(q, events.GaussianDpEvent(sigma)))
        assert rdp(sigma, q, order) == pytest.approx(float(theirs), rel=1e-6)
        assert rdp(sigma, q, order) == pytest.approx(float(accountant._rdp[0]), rel=1e-6)


HISTORIES = [[(1.0, 0.01, 1000)], [(0.8, 0.02, 500)], [(1.2, 0.02, 300), (0.9, 0.02, 100)], [(5.0, 1.0, 10)]]


@pytest.mark.parametrize("history", HISTORIES)
def test_epsilon_is_that_of_dp_accounting_and_below_opacus(history):
    accountants = pytest.importorskip("opacus.accountants")
    second = pytest.importorskip("dp_accounting.rdp")
    events = pytest.importorskip("dp_accounting")
    theirs = accountants.RDPAccountant()
    theirs.history = list(history)
    other = second.RdpAccountant(ORDERS)
    for sigma, q, steps in history:
        other.compose(events.PoissonSampledDpEvent(q, events.GaussianDpEvent(sigma)), steps)
    ours = epsilon(history, 1e-5)
    assert ours == pytest.approx(other.get_epsilon(1e-5), rel=1e-9)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5, alphas=list(ORDERS)), rel=1e-6)


@pytest.mark.parametrize("history", HISTORIES[:1])
def test_numerical_composition_is_tighter_and_two_libraries_agree_on_it(history):
    pytest.importorskip("opacus")
    pytest.importorskip("dp_accounting")
    prv, pld, ours = prv_epsilon(history, 1e-5), pld_epsilon(history, 1e-5), epsilon(history, 1e-5)
    assert prv == pytest.approx(pld, abs=0.03)
    assert max(prv, pld) < ours < 1.25 * min(prv, pld)


def test_more_groups_at_noise_in_proportion_cost_what_the_design_says():
    pytest.importorskip("opacus")
    found = [prv_epsilon([(groups**-0.5, 0.01, 1000)], 1e-5) for groups in (1, 2, 4)]
    assert found == pytest.approx([1.84, 4.49, 13.4], rel=0.01)


def test_a_history_of_nothing_spends_nothing():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([(1.0, 0.0, 100), (math.inf, 0.5, 3), (1.0, 0.5, 0)], 1e-5) == 0.0
    assert prv_epsilon([], 1e-5) == pld_epsilon([], 1e-5) == 0.0


def test_a_step_without_noise_has_no_epsilon():
    assert rdp(0.0, 0.1, 4) == math.inf
    assert epsilon([(1.0, 0.1, 5), (0.0, 0.1, 1)], 1e-5) == math.inf
    assert rdp(1e-200, 0.1, 4) == math.inf and rdp(1e200, 0.1, 4) == 0.0


def test_small_rates_lose_no_digits():
    # q^2 (e - 1) to first order: the naive sum would be 1 + 1e-18 and its logarithm 0
    assert rdp(1.0, 1e-9, 2) == pytest.approx(1e-18 * (math.e - 1), rel=1e-12)


@given(st.floats(0.4, 10), st.floats(0.001, 1), st.sampled_from([2, 3, 7, 32]))
@settings(max_examples=100, deadline=None)
def test_it_grows_with_rate_and_order_and_falls_with_noise(sigma, q, order):
    cost = rdp(sigma, q, order)
    assert 0 < cost <= order / (2 * sigma**2) * (1 + 1e-12)
    assert rdp(1.1 * sigma, q, order) < cost <= rdp(sigma, q, order + 1) * (1 + 1e-12)
    assert rdp(sigma, 0.9 * q, order) < cost


def test_the_order_of_a_history_changes_nothing():
    history = [(0.7 + 0.01 * k, 0.02, 1 + k) for k in range(12)]
    shuffled = random.Random(0).sample(history, len(history))
    assert epsilon(history, 1e-5, orders=[4, 9]) == epsilon(shuffled, 1e-5, orders=[4, 9])
    assert epsilon([(1.0, 0.02, 7)], 1e-5) == pytest.approx(epsilon([(1.0, 0.02, 1)] * 7, 1e-5), rel=1e-12)


def test_budget_is_the_inverse_of_the_conversion():
    for order in (2, 8, 64):
        budget = renyi_budget(3.0, 1e-5, order)
        assert budget == pytest.approx(3.0 - math.log(1 - 1 / order) + (math.log(1e-5) + math.log(order)) / (order - 1))
        if budget > 0:
            assert converted(budget, 1e-5, order) == pytest.approx(3.0)


def admitted(filter_, sigma, q):
    count = 0
    while filter_.admit(sigma, q):
        count += 1
    return count


def test_a_fixed_order_admits_what_fits_into_its_budget():
    one = RenyiFilter(3.0, 1e-5, orders=[8])
    cost = rdp(1.0, 0.02, 8)
    assert admitted(one, 1.0, 0.02) == int(one.budget / cost)
    assert one.spent <= one.budget < one.spent + cost
    assert one.spent == pytest.approx(int(one.budget / cost) * cost, rel=1e-12)


def test_several_orders_share_delta_equally():
    several = RenyiFilter(3.0, 1e-5, orders=[4, 6, 8, 12])
    assert several.budgets == {order: renyi_budget(3.0, 1e-5 / 4, order) for order in (4, 6, 8, 12)}
    best = max(int(several.budgets[order] / rdp(1.0, 0.02, order)) for order in (4, 6, 8, 12))
    count = admitted(several, 1.0, 0.02)
    assert count == best < max(admitted(RenyiFilter(3.0, 1e-5, orders=[order]), 1.0, 0.02) for order in (4, 6, 8, 12))
    assert several.spent <= several.budget == several.budgets[several.order]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_adversary_that_sees_everything_never_overspends(data):
    """It picks each step's noise and rate as it likes, and asks again after every refusal."""
    orders = data.draw(st.sampled_from([[8], [4], [3, 8, 20]]))
    held = RenyiFilter(2.0, 1e-5, orders=orders)
    history, alive = [], set(orders)
    for _ in range(30):
        sigma = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.75, 1.0, 2.0]))
        q = data.draw(st.sampled_from([0.01, 0.05, 1.0]))
        if held.admit(sigma, q):
            history.append((sigma, q))
        totals = {order: math.fsum(rdp(s, r, order) for s, r in history) for order in orders}
        alive &= {order for order in orders if totals[order] <= held.budgets[order] * (1 + 1e-12)}
        assert alive or not history
    if history:
        certified = min(converted(totals[order], 1e-5 / len(orders), order) for order in alive)
        assert certified <= 2.0 + 1e-9


def test_a_greedy_adversary_stops_at_the_budget():
    held = RenyiFilter(1.0, 1e-5, orders=[16])
    for sigma in [0.4, 0.5, 0.7, 0.9, 1.0, 1.5, 3.0, 10.0, 100.0]:
        admitted_now = 0
        while admitted_now < 2000 and held.admit(sigma, 0.02):
            admitted_now += 1
        assert held.spent <= held.budget


def test_a_refused_step_spends_nothing_and_a_smaller_one_may_follow():
    held = RenyiFilter(1.0, 1e-5, orders=[16])
    assert not held.admit(0.3, 0.5) and held.spent == 0.0
    assert held.fits(3.0, 0.01) and held.spent == 0.0
    assert held.admit(3.0, 0.01) and held.spent == pytest.approx(rdp(3.0, 0.01, 16))
    assert not held.fits(3.0, 0.01, steps=10**7)


def test_the_order_of_steps_does_not_change_what_was_spent():
    steps = [(0.8 + 0.013 * k, 0.02) for k in range(50)]
    first, second = RenyiFilter(50.0, 1e-5, orders=[4, 8]), RenyiFilter(50.0, 1e-5, orders=[4, 8])
    assert all(first.admit(*step) for step in steps)
    assert all(second.admit(*step) for step in random.Random(1).sample(steps, 50))
    assert first.spent == second.spent


def test_an_order_that_cannot_certify_the_epsilon_admits_nothing():
    held = RenyiFilter(0.5, 1e-5, orders=[2])
    assert held.budget < 0 and not held.admit(100.0, 0.001)


def test_gaussian_literals():
    # Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu) at eps = 0 is 2 Phi(mu/2) - 1
    assert gaussian_delta(1.0, 0.0) == pytest.approx(math.erf(0.5 / math.sqrt(2)))
    assert gaussian_delta(0.0, 1.0) == 0.0
    for target in (0.5, 2.0, 8.0):
        assert gaussian_delta(gaussian_mu(target, 1e-5), target) == pytest.approx(1e-5, rel=1e-6)


def test_gaussian_filter_admits_mu_squared_in_total_and_dp_accounting_confirms_it():
    held = GaussianFilter(2.0, 1e-5)
    sigmas = [4.0, 9.0, 6.0, 5.0] * 40
    kept = [sigma for sigma in sigmas if held.admit(sigma)]
    total = math.fsum(sigma**-2 for sigma in kept)
    assert held.spent == pytest.approx(total) and total <= held.mu**2 < total + 4.0**-2
    assert not GaussianFilter(2.0, 1e-5).admit(0.0)
    libraries = pytest.importorskip("dp_accounting")
    assert libraries.get_epsilon_gaussian(1 / math.sqrt(total), 1e-5) <= 2.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rdp(1.0, 1.5, 2), "q=1.5"),
        (lambda: rdp(-1.0, 0.5, 2), "sigma=-1.0"),
        (lambda: rdp(1.0, 0.5, 1), "order=1"),
        (lambda: rdp(1.0, 0.5, 2.5), "order=2.5"),
        (lambda: epsilon([(1.0, 0.1, 1)], 0.0), "delta=0.0"),
        (lambda: epsilon([(1.0, 0.1, -1)], 1e-5), "-1 steps"),
        (lambda: epsilon([(1.0, 0.1, 1)], 1e-5, orders=[]), "no order"),
        (lambda: RenyiFilter(-1.0, 1e-5, orders=[8]), "epsilon=-1.0"),
        (lambda: RenyiFilter(1.0, 1e-5, orders=[]), "at least one order"),
        (lambda: RenyiFilter(1.0, 1e-5, orders=[8, 8]), "twice"),
        (lambda: GaussianFilter(1.0, 1.0), "delta=1.0"),
    ],
)
def test_what_has_no_meaning_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
