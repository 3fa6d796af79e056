import math

import pytest
import torch

from llmrl.errors import ConfigError
from llmrl.privacy.controllers import (
    Bandit,
    Constant,
    Knobs,
    Limited,
    Quantile,
    Random,
    Steered,
    decayed_sigmas,
    log_ratio_reward,
    utility_reward,
)
from llmrl.privacy.optimizer import Release
from llmrl.privacy.view import SIGNALS, ControllerView, signal_ratio

START = Knobs(thresholds=(1.0, 2.0))


def test_a_view_holds_only_listed_plain_numbers():
    view = ControllerView({"progress": 0.5, "thresholds": (1.0, 2.0)})
    assert view["progress"] == 0.5 and view.groups("thresholds") == (1.0, 2.0) and "below" not in view
    assert {name: signal.provenance for name, signal in view.signals().items()} == {
        "progress": "public",
        "thresholds": "post_processed",
    }
    with pytest.raises(ConfigError, match="train_loss is not on the list"):
        ControllerView({"train_loss": 1.0})
    with pytest.raises(ConfigError, match="must be a plain number"):
        ControllerView({"cosine": torch.tensor(1.0)})
    with pytest.raises(ConfigError, match="without noise"):
        ControllerView({"raw_norms": (1.0,)})
    with pytest.raises(AttributeError):
        view.optimizer = 1


def test_nothing_but_plain_numbers_can_be_reached_from_a_view():
    view = ControllerView({name: (1.0,) for name in SIGNALS if name != "raw_norms"})
    reached, todo = [], [view]
    while todo:
        thing = todo.pop()
        reached.append(thing)
        if isinstance(thing, dict):
            todo += list(thing.values())
        elif isinstance(thing, (tuple, list)):
            todo += list(thing)
        elif hasattr(thing, "__slots__"):
            todo += [getattr(thing, slot) for slot in thing.__slots__]
    assert {type(thing).__name__ for thing in reached} == {"ControllerView", "dict", "Signal", "tuple", "float", "str"}


def test_the_signal_ratio_is_zero_where_the_sum_is_as_long_as_its_noise():
    release = Release(sizes=(4, 4), deviations=(0.5, 0.5), squared=(1.0, 3.0), cosine=0.0, below=None)
    assert signal_ratio(release) == (0.0, 2.0)


def test_features_are_squashed_and_unknown_is_zero():
    view = ControllerView({"probe_loss": math.nan, "cosine": -1.0, "thresholds": (math.e - 1,)})
    assert view.features() == pytest.approx([0.0, 1.0, -math.log(2)])


def test_quantile_follows_the_noised_share():
    steered = Quantile(START, quantile=0.5, lr=0.2)
    assert steered.observe(ControllerView({"below": (1.0, 0.5)})).thresholds == pytest.approx((math.exp(-0.1), 2.0))
    with pytest.raises(ValueError, match="needs the noised counts"):
        steered.observe(ControllerView({"progress": 0.0}))


def test_random_is_keyed_and_within_bounds_and_goes_on_after_a_restart():
    view = ControllerView({})
    one, two = (Random(START, low=0.1, high=10.0, seed=3) for _ in range(2))
    drawn = [one.observe(view).thresholds for _ in range(50)]
    assert all(0.1 <= x <= 10 for pair in drawn for x in pair)
    logs = [math.log10(x) for pair in drawn for x in pair]
    assert abs(sum(logs) / len(logs)) < 0.2
    two.load({"count": 20})
    assert [two.observe(view).thresholds for _ in range(30)] == drawn[20:]


def test_the_bandit_finds_the_better_arm_and_goes_on_after_a_restart():
    def play(bandit, rounds, loss=10.0):
        pulls = []
        for _ in range(rounds):
            knobs = bandit.observe(ControllerView({"probe_loss": loss}))
            pulls.append(knobs.thresholds[0])
            loss -= 0.05 if knobs.thresholds[0] == 2.0 else 0.01
        return pulls, loss

    bandit = Bandit(START, factors=(0.5, 1.0, 2.0))
    pulls, loss = play(bandit, 60)
    assert pulls[:3] == [0.5, 1.0, 2.0] and pulls[-30:].count(2.0) > 20
    again = Bandit(START, factors=(0.5, 1.0, 2.0))
    again.load(bandit.state())
    assert play(again, 20, loss)[0] == play(bandit, 20, loss)[0]


def test_limits_hold_any_controller():
    wild = Limited(Constant(Knobs(thresholds=(100.0, 1e-9), sigma=0.1)), START, low=0.01, high=3.0, rate=0.5, warm_up=2,
                   lowest_sigma=0.6)  # fmt: skip
    view = ControllerView({})
    assert [wild.observe(view) for _ in range(2)] == [START, START]
    third = wild.observe(view)
    assert third.thresholds == pytest.approx((math.exp(0.5), 2 * math.exp(-0.5))) and third.sigma == 0.6
    for _ in range(30):
        last = wild.observe(view)
    assert last.thresholds == (3.0, 0.01)


def test_a_decay_falls_by_its_ratio_and_keeps_the_number_of_steps():
    schedule = decayed_sigmas(2.0, 21, ratio=0.5, pieces=4)
    assert sum(steps for _, steps in schedule) == 21
    sigmas = [sigma for sigma, _ in schedule]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] / sigmas[0] == pytest.approx(0.5)
    assert math.sqrt(sigmas[0] * sigmas[-1]) == pytest.approx(2.0)


def test_rewards_by_hand():
    assert utility_reward(3.0, 2.0, cost=0.1, weight=2.0) == pytest.approx(0.8)
    assert utility_reward(30.0, 2.0) == 5.0 and utility_reward(math.nan, 2.0, cost=0.1) == pytest.approx(-0.1)
    assert log_ratio_reward(3.0, 2.0, cost=0.5, floor=0.0) == pytest.approx(math.log(2.0))
    assert log_ratio_reward(2.0, 3.0, cost=1.0) == -5.0


def test_a_controller_of_numbers_steers_a_private_run_and_goes_on_after_a_restart():
    class Inner:
        def __init__(self):
            self.seen, self.memory = [], torch.zeros(2, dtype=torch.float64)

        def observe(self, view):
            self.seen.append(dict(view))
            self.memory = self.memory + 1
            return {"threshold_scale": 0.5, "sigma": 1.5}

        def state(self):
            return {"memory": self.memory}

        def load(self, state):
            self.memory = state["memory"]

    inner = Inner()
    steered = Steered(inner, START, weight=2.0)
    steered.observe(ControllerView({"probe_loss": 3.0, "spent": 0.1, "thresholds": (1.0, 3.0)}))
    knobs = steered.observe(ControllerView({"probe_loss": 2.5, "spent": 0.2}))
    assert knobs.thresholds == (0.5, 1.0) and knobs.sigma == 1.5 and knobs.lr_scale == 1.0
    assert inner.seen[0]["thresholds"] == 2.0 and inner.seen[1]["utility"] == pytest.approx(0.5 - 0.2)
    other = Steered(Inner(), START, weight=2.0)
    other.load(steered.state())
    assert torch.equal(other._inner.memory, inner.memory) and other.state() == steered.state()
