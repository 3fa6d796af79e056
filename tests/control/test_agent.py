"""The agent learns, is reproducible, continues bit for bit, and each option changes what it says it changes."""

import math

import pytest
import torch

from llmrl.control import pmoe, rlpd, symphony
from llmrl.control.agent import SAC
from llmrl.control.config import Actions, SACConfig
from llmrl.control.replay import Replay
from llmrl.errors import ConfigError

OPTIONS = {
    "plain": {},
    "float64": {"dtype": "float64"},
    "dsac nll": {"distributional": "nll"},
    "dsac released": {"distributional": "released"},
    "dsac 2024, risk": {"distributional": "released_2024", "risk": 0.5},
    "pmoe max": {"experts": 2},
    "pmoe all": {"experts": 3, "expert_update": "all"},
    "symphony": {"fading_replay": True, "temporal_advantage": True},
    "ensemble": {"critics": 4, "target_value": "lcb", "actor_value": "ucb"},
}
NUMBER, CHOICE = Actions(size=1), Actions(size=3, discrete=True)
ONE_STEP = {"gamma": 0.0, "learning_rate": 1e-2, "hidden": (32, 32), "batch_size": 16, "target_entropy": -3.0}


def quadratic(agent, steps, seed=0):
    """One-step rewards -(a - 0.4)^2, whatever is observed."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        obs = torch.randn(2, generator=draw, dtype=torch.float64)
        raw = agent.act(obs) if agent.ready else agent.random_action()
        reward = -float((raw.tanh() - 0.4).square().sum())
        agent.remember(obs=obs, raw=raw, reward=reward, next_obs=obs, terminated=True)
        if agent.ready:
            agent.update()
    return agent


def same(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name].nan_to_num(-7.0), other[name].nan_to_num(-7.0))] == []


@pytest.mark.parametrize("name", ["plain", "dsac 2024, risk", "pmoe max", "ensemble"])
def test_it_finds_the_best_action_of_a_quadratic(name):
    agent = quadratic(SAC(obs_size=2, actions=NUMBER, config=SACConfig(**{**ONE_STEP, **OPTIONS[name]}), seed=1), 150)
    obs = torch.randn(50, 2, generator=torch.Generator().manual_seed(9))
    actions = torch.stack([agent.act(row, explore=False).tanh() for row in obs])
    assert actions.mean().item() == pytest.approx(0.4, abs=0.1)


def test_choices_follow_the_observation():
    agent = SAC(obs_size=1, actions=CHOICE, config=SACConfig(**{**ONE_STEP, "target_entropy": 0.1}), seed=0)
    draw = torch.Generator().manual_seed(3)
    for _ in range(120):
        obs = torch.randint(2, (1,), generator=draw).double()
        raw = agent.act(obs) if agent.ready else agent.random_action()
        agent.remember(obs=obs, raw=raw, reward=float(raw == 2 * obs), next_obs=obs, terminated=True)
        if agent.ready:
            agent.update()
    assert [int(agent.act(torch.tensor([x]), explore=False)) for x in (0.0, 1.0)] == [0, 2]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stopped_and_loaded_agent_goes_on_bit_for_bit(name):
    config = SACConfig(hidden=(8, 8), batch_size=4, warmup=4, **OPTIONS[name])
    whole = quadratic(SAC(obs_size=2, actions=NUMBER, config=config, seed=1), 12)
    state = {key: x.clone() for key, x in whole.state().items()}
    resumed = SAC(obs_size=2, actions=NUMBER, config=config, seed=2)
    resumed.load(state)
    assert same(resumed.state(), state)
    quadratic(whole, 6, seed=5)
    quadratic(resumed, 6, seed=5)
    assert same(whole.state(), resumed.state()) and not same(whole.state(), state)


def test_an_agent_of_choices_goes_on_bit_for_bit_and_equal_seeds_are_equal():
    def run(steps, agent):
        draw = torch.Generator().manual_seed(steps)
        for _ in range(steps):
            obs = torch.randn(2, generator=draw)
            raw = agent.act(obs)
            agent.remember(obs=obs, raw=raw, reward=float(raw), next_obs=obs, terminated=False)
            if agent.ready:
                agent.update()
        return agent

    made = [SAC(obs_size=2, actions=CHOICE, config=SACConfig(hidden=(8,), warmup=4), seed=s) for s in (0, 0, 1)]
    one, two, other = (run(8, agent) for agent in made)
    assert same(one.state(), two.state()) and not same(one.state(), other.state())
    other.load(one.state())
    assert same(run(5, one).state(), run(5, other).state())


def test_only_the_named_part_moves_in_each_step():
    agent = quadratic(SAC(obs_size=2, actions=NUMBER, config=SACConfig(hidden=(8,), actor_every=2), seed=0), 8)
    before = agent.state()
    agent.update()  # the second update after the first at 8 transitions: everything; then one of the critics alone
    middle = agent.state()
    agent.update()
    after = agent.state()

    def moved(old, new):
        return {
            key.split(".")[0] for key in old if old[key].shape != new[key].shape or not torch.equal(old[key], new[key])
        }

    parts = {"policy", "critics", "targets", "log_alpha"}
    assert moved(before, middle) & parts == parts and moved(middle, after) & parts == {"critics"}


def test_a_risk_averse_actor_values_mean_minus_spread():
    agent = SAC(obs_size=2, actions=NUMBER, config=SACConfig(**OPTIONS["dsac 2024, risk"]), seed=0)
    obs, u = torch.randn(5, 2), torch.randn(5, 1)
    mean, std = agent.critics.gaussian(obs, u.tanh())
    torch.testing.assert_close(agent._actor_value(obs, u), (mean - 0.5 * std).min(0).values)


def test_a_network_that_is_not_a_number_shows():
    agent = SAC(obs_size=2, actions=NUMBER, config=SACConfig(), seed=0)
    assert agent.finite()
    agent.policy.net.biases[0].data[0] = math.nan
    assert not agent.finite() and not bool(agent.act(torch.zeros(2)).isfinite().any())


def test_replay_keeps_the_newest_and_fading_prefers_them():
    replay = Replay(obs_size=1, action_size=1, capacity=50, dtype=torch.float64)
    for i in range(120):
        replay.add(obs=torch.zeros(1), raw=torch.zeros(1), reward=float(i), next_obs=torch.zeros(1), terminated=0.0)
    draw = torch.Generator().manual_seed(0)
    rewards = replay.sample(4000, draw).reward
    assert (rewards.min(), rewards.max()) == (70, 119) and rewards.mean().item() == pytest.approx(94.5, abs=1)
    faded = replay.sample(4000, draw, weights=symphony.fading_weights).reward
    weights = symphony.fading_weights(50)
    expected = float((weights * torch.arange(70, 120)).sum() / weights.sum())
    assert faded.mean().item() == pytest.approx(expected, abs=1) and expected > 98


def test_fading_weights_and_temporal_advantage_by_hand():
    weights = symphony.fading_weights(4)
    assert weights.tolist() == pytest.approx([math.tanh((math.pi * i / 4) ** math.e) for i in (1, 2, 3, 4)])
    rho = (math.sqrt(5) - 1) / 2
    values = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    loss, ema = symphony.temporal_advantage_loss(values, torch.tensor(2.0, dtype=torch.float64))
    running = rho * 2 + (1 - rho) * 4
    x = (4 - running) / running
    assert loss.item() == pytest.approx(-x * math.tanh(x / 2)) and ema.item() == pytest.approx(running)
    loss.backward()
    assert values.grad.item() < 0  # a larger value is a smaller loss
    _, begun = symphony.temporal_advantage_loss(values, torch.tensor(math.nan, dtype=torch.float64))
    assert begun.item() == 4.0


def test_aggregates_by_hand_and_offline_rows():
    values = torch.tensor([[1.0], [3.0], [8.0]])
    std = math.sqrt((9 + 1 + 16) / 3)
    expected = {"min": 1, "mean": 4, "max": 8, "lcb": 4 - std, "ucb": 4 + std}
    assert {how: rlpd.aggregate(values, how).item() for how in expected} == pytest.approx(expected)
    assert rlpd.offline_rows(16, 0.25) == 4
    online, offline = (Replay(obs_size=1, action_size=1, capacity=9, dtype=torch.float32) for _ in range(2))
    for reward, into in ((0.0, online), (1.0, offline)):
        into.add(obs=torch.zeros(1), raw=torch.zeros(1), reward=reward, next_obs=torch.zeros(1), terminated=0.0)
    draw = torch.Generator().manual_seed(0)
    assert rlpd.mixed_batch(online, offline, 16, 0.25, draw).reward.sum() == 4
    assert rlpd.mixed_batch(online, None, 16, 0.25, draw).reward.sum() == 0


def test_the_mixtures_loss_by_hand():
    weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    logprob, values = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[5.0, 3.0]], dtype=torch.float64)
    gate = 2 * 0.75**2 - 1e-2 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    best, used = pmoe.mixture_actor_loss(weights, logprob, values, alpha=0.5, experts="max")
    assert best.item() == pytest.approx(0.5 - 5 + gate) and used.tolist() == [1.0]
    every, used = pmoe.mixture_actor_loss(weights, logprob, values, alpha=0.5, experts="all")
    assert every.item() == pytest.approx(0.25 * -4.5 + 0.75 * -2 + gate) and used.tolist() == [1.75]


def test_an_expert_that_was_idle_begins_again_near_the_used_one():
    agent = SAC(obs_size=2, actions=NUMBER, config=SACConfig(experts=3), seed=0)
    weights, obs = torch.tensor([[0.9995, 0.0005, 0.0]]), torch.randn(4, 2)
    idle = torch.zeros(3, dtype=torch.int64)
    for _ in range(20):
        idle = pmoe.count_idle(weights, idle)
    assert idle.tolist() == [0, 20, 20]
    idle = pmoe.revive(agent.policy, weights, idle, torch.Generator().manual_seed(0))
    shares, mean, _ = agent.policy(obs)
    assert idle.tolist() == [0, 0, 0]
    torch.testing.assert_close(shares, torch.full((4, 3), 1 / 3))
    assert 0 < (mean[:, 1] - mean[:, 0]).abs().max() < 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"risk": 0.5}, "distributional"),
        ({"distributional": "nll", "critics": 5}, "critics to 2"),
        ({"experts": 0}, "at least 1"),
        ({"alpha_range": (0.0, 1.0)}, "alpha_range"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        SACConfig(**wrong)


def test_options_of_numbers_are_refused_for_choices():
    with pytest.raises(ConfigError, match="experts"):
        SAC(obs_size=2, actions=CHOICE, config=SACConfig(experts=2), seed=0)
    with pytest.raises(ValueError, match="offline_share=2"):
        SACConfig(offline_share=2)
