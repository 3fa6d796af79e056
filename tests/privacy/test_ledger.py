import json
import math

import pytest

from llmrl.errors import ConfigError
from llmrl.privacy.accounting import epsilon, rdp
from llmrl.privacy.ledger import Ledger, LedgerError, load_ledger, terms_of
from llmrl.privacy.planning import best_order, decayed_sigmas, epsilons, lowest_sigma, plan, sigma_for


def terms(mode="fixed", steps=50, **more):
    found = plan(2.0, 1e-5, q=0.05, steps=steps)
    return terms_of(found, unit="row", mode=mode, accountant="rdp", **more)


def test_the_planned_noise_is_the_smallest_that_fits():
    sigma = sigma_for(2.0, 1e-5, q=0.02, steps=300)
    assert epsilon([(sigma, 0.02, 300)], 1e-5) <= 2.0 < epsilon([(sigma * 0.99, 0.02, 300)], 1e-5)


def test_numerical_accountants_need_less_noise():
    pytest.importorskip("opacus")
    ours, theirs = (sigma_for(2.0, 1e-5, q=0.05, steps=100, accountant=name, digits=0.1) for name in ("rdp", "prv"))
    assert 0.6 * ours < theirs < ours


def test_a_plan_says_what_it_costs_by_each_accountant():
    found = plan(2.0, 1e-5, q=0.05, steps=100)
    costs = dict(epsilons([(found.sigma, 0.05, 100)], 1e-5))
    assert costs["rdp"] == pytest.approx(2.0, rel=5e-3) and costs["rdp"] <= 2.0
    assert costs["prv"] == pytest.approx(costs["pld"], abs=0.03)
    assert found.order == best_order([(found.sigma, 0.05, 100)], 1e-5)
    assert 100 * rdp(found.sigma, 0.05, found.order) <= found.budget
    assert rdp(found.lowest_sigma, 0.05, found.order) == pytest.approx(8 * found.budget / 100, rel=1e-3)


def test_lowest_sigma_is_where_a_step_costs_what_was_said():
    assert rdp(lowest_sigma(q=0.02, order=6, cost=0.153), 0.02, 6) == pytest.approx(0.153, rel=1e-6)


def test_a_sigma_that_breaks_the_target_is_refused():
    with pytest.raises(ConfigError, match=r"costs epsilon .* more than privacy\.epsilon=1\.0"):
        plan(1.0, 1e-5, q=0.05, steps=100, sigma=0.6)
    with pytest.raises(ConfigError, match="out of reach"):
        sigma_for(0.001, 1e-5, q=1.0, steps=10)


def test_fixed_terms_admit_the_planned_steps_and_no_more():
    ledger = Ledger(terms(steps=5))
    sigma, q = ledger.planned_sigma, 0.05
    assert [ledger.admit(sigma, q, step=step) for step in range(7)] == [True] * 5 + [False] * 2
    assert ledger.history == [(sigma, q, 5)] and ledger.share == 1.0
    assert ledger.epsilon() == 2.0


def test_fixed_terms_refuse_less_noise_or_a_higher_rate_and_charge_more_noise_as_planned():
    ledger = Ledger(terms())
    assert not ledger.admit(ledger.planned_sigma * 0.999, 0.05, step=0)
    assert not ledger.admit(ledger.planned_sigma, 0.051, step=0)
    assert ledger.admit(ledger.planned_sigma * 9, 0.01, step=0)
    assert ledger.history == [(ledger.planned_sigma, 0.05, 1)]


def test_adaptive_terms_stay_within_the_filter_whatever_is_asked():
    ledger = Ledger(terms("adaptive"))
    for step in range(400):
        ledger.admit([0.3, 0.6, 0.9, 2.0][step % 4], 0.05, step=step)
    while ledger.admit(2.0, 0.05, step=ledger.paid):  # until not even a cheap step is admitted
        pass
    order, budget = ledger.terms.orders[0], plan(2.0, 1e-5, q=0.05, steps=50).budget
    spent = math.fsum(n * rdp(sigma, q, order) for sigma, q, n in ledger.history)
    assert spent == pytest.approx(ledger.share * budget)
    assert budget - rdp(2.0, 0.05, order) < spent <= budget


def test_what_is_asked_is_raised_to_the_smallest_admissible_noise():
    ledger = Ledger(terms("adaptive"))
    near = ledger.nearest(0.3, 0.05)
    assert near > 0.3 and ledger.fits(near, 0.05) and not ledger.fits(near * 0.998, 0.05)
    while ledger.admit(1.0, 0.05, step=ledger.paid):
        pass
    assert ledger.nearest(1.0, 0.05) > 1.0


def test_a_schedule_of_falling_noise_is_held_to_the_target():
    found = plan(2.0, 1e-5, q=0.05, steps=40)
    with pytest.raises(LedgerError, match="schedule costs epsilon"):
        terms_of(found, unit="row", mode="fixed", accountant="rdp", sigmas=[(found.sigma * 0.8, 40)])
    schedule = decayed_sigmas(found.sigma * 1.2, 40, ratio=0.7)
    ledger = Ledger(terms_of(found, unit="row", mode="fixed", accountant="rdp", sigmas=schedule))
    used = []
    while (sigma := ledger.planned_sigma) is not None:
        assert ledger.admit(sigma, 0.05, step=ledger.paid)
        used.append(sigma)
    assert len(used) == 40 and used == sorted(used, reverse=True) and used[-1] == pytest.approx(0.7 * used[0])


def test_a_saved_ledger_is_the_same_after_loading(tmp_path):
    for mode in ("fixed", "adaptive"):
        ledger = Ledger(terms(mode))
        for step in (0, 1, 2, 1, 2):  # two steps were lost and made again
            assert ledger.admit(ledger.terms.sigmas[0][0], 0.05, step=step)
        ledger.save(tmp_path / "ledger.json")
        again = load_ledger(tmp_path / "ledger.json")
        assert again.terms == ledger.terms and again.entries == ledger.entries
        assert again.paid == 5 and again.share == ledger.share


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body["entries"][0].update(steps=1), "was changed after it was written"),
        (lambda body: body["terms"].update(delta=0.1), "was changed"),
        (lambda body: body.pop("terms"), "is no ledger"),
        (lambda body: body.update(version=7), "of version 7"),
    ],
)
def test_a_changed_ledger_is_refused(tmp_path, change, says):
    ledger = Ledger(terms())
    for step in range(3):
        ledger.admit(ledger.planned_sigma, 0.05, step=step)
    file = tmp_path / "ledger.json"
    ledger.save(file)
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    with pytest.raises(LedgerError, match=says):
        load_ledger(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body["entries"][0].update(sigma=0.4), "do not admit"),
        (lambda body: body["entries"][0].update(steps=400), "do not admit"),
        (lambda body: body["spent"].update(steps=1), "but its entries give 3 steps"),
        (lambda body: body["terms"].update(sigmas=[[0.5, 50]]), "more than the promised 2.0"),
    ],
)
def test_a_ledger_that_contradicts_itself_is_refused_even_with_its_digest_mended(tmp_path, change, says):
    from llmrl.privacy.ledger import _digest

    ledger = Ledger(terms())
    for step in range(3):
        ledger.admit(ledger.planned_sigma, 0.05, step=step)
    file = tmp_path / "ledger.json"
    ledger.save(file)
    body = json.loads(file.read_text())
    body.pop("sha256")
    change(body)
    file.write_text(json.dumps({**body, "sha256": _digest(body)}))
    with pytest.raises(LedgerError, match=says):
        load_ledger(file)


def test_a_torn_file_is_refused(tmp_path):
    (tmp_path / "ledger.json").write_text('{"version": 1, "ter')
    with pytest.raises(LedgerError, match="is no ledger"):
        load_ledger(tmp_path / "ledger.json")


def test_without_a_guarantee_no_epsilon_is_claimed():
    assert Ledger(terms(guarantee=False)).epsilon() == math.inf
