"""Controllers keep within bounds and rates, freeze on what is not a number, and continue bit for bit."""

import math

import pytest
import torch

from llmrl.control.config import Actions, SACConfig
from llmrl.control.controllers import Constant, KnobController, Random
from llmrl.control.knob import Knob
from llmrl.control.learner import Learner
from llmrl.control.srl import SequenceSAC
from llmrl.control.ucb1 import Bandit
from llmrl.errors import ConfigError

CLIP = Knob(name="clip", low=0.1, high=10.0, default=1.0, log=True, max_change=0.1)
NOISE = Knob(name="noise", low=0.0, high=2.0, default=0.5)
SMALL = SACConfig(hidden=(8, 8), batch_size=4, warmup=3, updates_per_step=1)


def sequences():
    agent = SequenceSAC(obs_size=2, actions=Actions(size=2), length=4, config=SMALL, seed=1)
    return Learner(fields=2, knobs=2, seed=1, agent=agent)


CHOOSERS = {
    "constant": Constant,
    "random": lambda: Random(seed=1),
    "bandit": lambda: Bandit(knobs=2, seed=1),
    "learner": lambda: Learner(fields=2, knobs=2, config=SMALL, seed=1),
    "sequences": sequences,
}


def controller(name):
    return KnobController(knobs=(CLIP, NOISE), fields=("loss", "norm"), reward="gain", chooser=CHOOSERS[name]())


def views(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        loss, norm, gain = torch.randn(3, generator=draw).tolist()
        yield {"loss": loss, "norm": norm, "gain": gain, "unread": 1.0}


def test_a_knob_maps_the_box_to_its_range_and_back():
    assert [CLIP.value(a) for a in (-1.0, 0.0, 1.0)] == pytest.approx([0.1, 1.0, 10.0])
    assert [NOISE.value(a) for a in (-1.0, 0.0, 1.0)] == [0.0, 1.0, 2.0]
    for knob in (CLIP, NOISE):
        assert knob.value(knob.action(0.7)) == pytest.approx(0.7)


def test_constant_stays_at_the_defaults():
    held = controller("constant")
    for view in views(5):
        assert held.observe(view) == pytest.approx({"clip": 1.0, "noise": 0.5})


@pytest.mark.parametrize("name", CHOOSERS)
def test_knobs_stay_in_range_and_move_no_faster_than_allowed(name):
    held, before = controller(name), CLIP.default
    for view in views(25):
        knobs = held.observe(view)
        assert 0.1 <= knobs["clip"] <= 10 and 0 <= knobs["noise"] <= 2
        # a tenth of the range of two decades: a factor of 10^0.2
        assert abs(math.log10(knobs["clip"] / before)) <= 0.2 + 1e-9
        before = knobs["clip"]


@pytest.mark.parametrize("name", CHOOSERS)
def test_a_stopped_and_loaded_controller_goes_on_bit_for_bit(name):
    whole = controller(name)
    for view in views(9):
        whole.observe(view)
    resumed = controller(name)
    resumed.load({key: x.clone() for key, x in whole.state().items()})
    for view in views(9, seed=3):
        assert whole.observe(view) == resumed.observe(view)
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key].nan_to_num(-7.0), other[key].nan_to_num(-7.0)) for key in one)


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("field", ["loss", "gain"])
def test_a_view_that_is_not_a_number_leaves_the_knobs_where_they_are(name, field):
    held = controller(name)
    for view in views(6):
        last = held.observe(view)
    assert held.observe({"loss": 0.0, "norm": 0.0, "gain": 0.0, field: math.nan}) == last and held.frozen == 1
    assert all(math.isfinite(x) for x in held.observe(next(views(1))).values()) and held.frozen == 1


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("learner", "policy"),
        ("learner", "critics"),
        ("learner", "targets"),
        ("sequences", "policy"),
        ("sequences", "model"),
    ],
)
def test_a_network_that_is_not_a_number_freezes_the_knobs_for_good(name, part):
    held = controller(name)
    for view in views(6):
        last = held.observe(view)
    broken = getattr(held.chooser.agent, part)
    getattr(broken, "net", broken).weights[0].data[0, 0, 0] = math.nan
    for view in views(3, seed=2):
        assert held.observe(view) == last
    assert held.frozen == 3


def test_a_learner_carries_out_what_its_agent_answered_before_it_asks_again():
    learner, asked = sequences(), []
    act = learner.agent.act
    learner.agent.act = lambda obs: asked.append(act(obs)) or asked[-1]
    held = KnobController(knobs=(NOISE, NOISE), fields=("loss", "norm"), reward="gain", chooser=learner)
    played = []
    for view in views(12):  # four transitions are three, so that three decisions are random
        held.observe(view)
        played.append(held.last.clone())
    assert len(asked) == 3  # nine decisions: two whole answers, and the first action of a third
    torch.testing.assert_close(torch.stack(played[3:11]), torch.cat(asked[:2]).double().tanh())
    torch.testing.assert_close(played[11], asked[2][0].double().tanh())


def test_the_bandit_settles_on_the_best_arm():
    held = KnobController(knobs=(NOISE,), fields=(), reward="gain", chooser=Bandit(knobs=1, seed=0))
    gain, played = 0.0, []
    for _ in range(100):
        noise = held.observe({"gain": gain})["noise"]
        gain = -((noise - 1.5) ** 2)
        played.append(noise)
    assert set(played[:5]) == {0.0, 0.5, 1.0, 1.5, 2.0} and played[50:].count(1.5) > 35


def test_the_learner_moves_towards_what_pays():
    config = SACConfig(hidden=(32, 32), gamma=0.0, learning_rate=1e-2, updates_per_step=4, target_entropy=-3.0)
    learner = Learner(fields=1, knobs=1, config=config, seed=0)
    held = KnobController(knobs=(NOISE,), fields=("t",), reward="gain", chooser=learner)
    gain, played = 0.0, []
    for step in range(80):
        noise = held.observe({"gain": gain, "t": step / 80})["noise"]
        gain = -((noise - 1.5) ** 2)
        played.append(noise)
    assert sum(played[-20:]) / 20 == pytest.approx(1.5, abs=0.3)


def test_it_learns_from_the_action_that_was_carried_out():
    held = controller("learner")
    acts = []
    for view in views(5):
        held.observe(view)
        acts.append(held.last.clone())
    stored = held.chooser.agent.replay.state()["raw"].double().tanh()
    torch.testing.assert_close(stored, torch.stack(acts[:-1]), atol=1e-5, rtol=0)


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="gain, which the view has not"):
        controller("constant").observe({"loss": 1.0, "norm": 1.0})
    with pytest.raises(ConfigError, match="low=0"):
        Knob(name="x", low=0.0, high=1.0, default=0.5, log=True)
    with pytest.raises(ConfigError, match="low <= default"):
        Knob(name="x", low=0.0, high=1.0, default=2.0)
    with pytest.raises(ConfigError, match="arms=1"):
        Bandit(knobs=1, arms=1)
