import math

import pytest
import torch

from llmrl.errors import ConfigError
from llmrl.privacy.controllers import FIELDS, Quantile, controller_of, utility
from llmrl.privacy.optimizer import Release
from llmrl.privacy.planning import decayed_sigmas, plan
from llmrl.privacy.thresholds import next_threshold
from llmrl.privacy.view import SIGNALS, numbers_of, signal_ratio
from llmrl.settings.controller import ControllerConfig
from llmrl.settings.privacy import PrivacyConfig


def test_a_view_holds_only_listed_plain_numbers():
    view = numbers_of({name: (1.0,) for name in SIGNALS if name != "raw_norms"})
    assert {type(x) for x in view.values()} == {float} and set(view) >= SIGNALS.keys() - {"raw_norms"}
    with pytest.raises(ConfigError, match="train_loss is not on the list"):
        numbers_of({"train_loss": 1.0})
    with pytest.raises(ConfigError, match="must be a plain number"):
        numbers_of({"cosine": torch.tensor(1.0)})
    with pytest.raises(ConfigError, match="without noise"):
        numbers_of({"raw_norms": (1.0,)})


def test_the_signal_ratio_is_zero_where_the_sum_is_as_long_as_its_noise():
    release = Release(sizes=(4, 4), deviations=(0.5, 0.5), squared=(1.0, 3.0), cosine=0.0, below=None)
    assert signal_ratio(release) == (0.0, 2.0)


def test_numbers_are_flat_with_means_over_groups():
    view = numbers_of({"cosine": -1.0, "thresholds": (1.0, 3.0)})
    assert view == {"cosine": -1.0, "thresholds/0": 1.0, "thresholds/1": 3.0, "thresholds": 2.0}


def test_quantile_follows_the_noised_share_within_its_bounds_and_goes_on_after_a_restart():
    steered, again = (Quantile((1.0, 2.0), low=0.97, high=10.0, quantile=0.5, lr=0.2) for _ in range(2))
    first = steered.observe({"below/0": 0.6, "below/1": 0.5})
    assert first == {"threshold/0": pytest.approx(math.exp(-0.02)), "threshold/1": 2.0}
    expected = next_threshold(2.0, below=[1.0, 0.0], noise=1.0, expected_batch=2, lr=0.2, quantile=0.5)
    again.load(steered.state())
    assert steered.observe({"below/0": 5.0, "below/1": 1.0}) == again.observe({"below/0": 5.0, "below/1": 1.0})
    assert steered.state()["thresholds"].tolist() == [0.97, pytest.approx(expected)]
    with pytest.raises(ConfigError, match="needs the noised counts"):
        steered.observe({"progress": 0.0})


def made(name="sac", thresholds=(0.6, 0.8), plan=None, *, args=None, **privacy):
    limits = {"threshold": {"low": 0.1, "high": 10.0, "log": True, "max_change": 0.1}}
    section = ControllerConfig(name=name, knobs=limits, args=args or {})
    return controller_of(section, PrivacyConfig(epsilon=4, delta=1e-5, **privacy), thresholds, plan or PLAN, seed=1)


PLAN = plan(4.0, 1e-5, q=0.05, steps=50)
VIEW = {**dict.fromkeys(FIELDS, 0.5), "utility": 0.0}


@pytest.mark.parametrize("name", ["random", "bandit", "sac", "dsac_t"])
@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
def test_every_controller_keeps_bounds_and_rate(name, mode):
    args = {"warmup": 2} if name in ("sac", "dsac_t") else {}
    steered, before = made(name, args=args, mode=mode), 1.0
    for step in range(6):
        knobs = steered.observe(VIEW | {"progress": step / 6, "utility": 0.1 * step})
        norm = knobs["threshold"]
        assert 0.1 <= norm <= 10 and abs(math.log10(norm / before)) <= 0.2 + 1e-9  # a tenth of two decades
        before = norm
        assert ("sigma" in knobs) == (mode == "adaptive")
        assert mode == "fixed" or PLAN.lowest_sigma <= knobs["sigma"] <= 4 * PLAN.sigma + 1e-9


def test_constant_is_no_controller_and_raw_state_is_seen():
    assert controller_of(None, PrivacyConfig(epsilon=4, delta=1e-5), (1.0,), PLAN, seed=0) is None
    assert made("constant") is None
    raw = made(state="raw")
    with pytest.raises(ConfigError, match="raw_norms"):
        raw.observe(VIEW)


def test_a_decay_falls_by_its_ratio_and_keeps_the_number_of_steps():
    schedule = decayed_sigmas(2.0, 21, ratio=0.5, pieces=4)
    assert sum(steps for _, steps in schedule) == 21
    sigmas = [sigma for sigma, _ in schedule]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] / sigmas[0] == pytest.approx(0.5)
    assert math.sqrt(sigmas[0] * sigmas[-1]) == pytest.approx(2.0)


def test_rewards_by_hand():
    assert utility(3.0, 2.0, cost=0.1) == pytest.approx(0.9)
    assert utility(30.0, 2.0, cost=0.0) == 5.0 and utility(math.nan, 2.0, cost=0.1) == pytest.approx(-0.1)
    assert math.isnan(utility(3.0, math.nan, cost=0.0))
    assert utility(3.0, 2.0, cost=0.5, form="log_ratio", floor=0.0) == pytest.approx(math.log(2.0))
    assert utility(2.0, 3.0, cost=1.0, form="log_ratio") == -5.0
