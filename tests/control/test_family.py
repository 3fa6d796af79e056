"""Members of the family that are files of their own: known laws, several objectives, sequences, boosted trees, gymnasium."""

import importlib
import inspect
import math
import pkgutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from llmrl import control
from llmrl.conformance.control import cases
from llmrl.conformance.control_family import check_family, checks
from llmrl.conformance.report import summarise
from llmrl.control import gmorl, nets, pmoe, rlpd, srl, symphony, yann
from llmrl.control.agent import SAC
from llmrl.control.config import Actions, SACConfig, benchmark
from llmrl.control.gbrl import BoostedActorCritic, BoostedConfig
from llmrl.control.gmorl import PreferenceEnv, histogram, hypervolume, pareto_front
from llmrl.control.gym import Interface, evaluate, train
from llmrl.control.nets import EnsembleMLP
from llmrl.control.srl import SequenceSAC, frequency_averaged_score
from llmrl.control.yann import Piecewise, Region, saturated_law
from llmrl.errors import ConfigError
from tests.bench.control_objectives import Line, true_front

F64 = torch.float64
REAL_LAW = yann.saturated_law
# What draws, writes into networks or runs an environment has tests of its own and no definition on plain values.
WITHOUT_DEFINITION = {"revive", "train", "evaluate", "flat", "under", "benchmark", "make_controller", "knob_controller",
                      "chooser_of", "built", "described", "knobs_of"}  # fmt: skip


def rows(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_a_saturated_law_is_its_clipped_line_everywhere():
    gain, offset = torch.tensor([[1.5, -0.5], [0.2, 2.0]], dtype=F64), torch.tensor([0.3, -0.1], dtype=F64)
    x = 2 * rows(500, 2)
    law = Piecewise(saturated_law(gain, offset))
    assert set(law.region(x).tolist()) == set(range(9))
    torch.testing.assert_close(law(x), (x @ gain.T + offset).clamp(-1, 1))


def test_a_quadratic_piece_by_hand():
    region = Region(
        H=torch.zeros(0, 2, dtype=F64), h=torch.zeros(0, dtype=F64), F=torch.tensor([[1.0, 0.0]], dtype=F64),
        g=torch.tensor([-2.0], dtype=F64), P=torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=F64),
    )  # fmt: skip
    value = Piecewise([region], scalar=True)(torch.tensor([[1.0, 2.0]], dtype=F64))
    assert value.tolist() == [2 + 2 + 12 + 1 - 2]
    with pytest.raises(ConfigError, match="at least one region"):
        Piecewise([])


def test_actor_and_critic_equal_the_known_solution_before_the_first_update_and_move_after():
    gain = torch.tensor([[0.8, -0.3]], dtype=F64)
    everywhere = {"H": torch.zeros(0, 3, dtype=F64), "h": torch.zeros(0, dtype=F64)}
    q = Region(**everywhere, F=rows(1, 3, 4), g=torch.zeros(1, dtype=F64), P=-torch.eye(3, dtype=F64))
    config = SACConfig(dtype="float64", warmup=4, batch_size=4)
    law, value = Piecewise(saturated_law(gain)), Piecewise([q], scalar=True)
    agent = SAC(obs_size=2, actions=Actions(size=1), config=config, seed=0, law=law, value=value)
    obs, action = rows(40, 2), rows(40, 1, 1).tanh()
    expected = (obs @ gain.T).clamp(-1, 1)
    acted = torch.stack([agent.act(row, explore=False).tanh() for row in obs])
    torch.testing.assert_close(acted, expected, atol=2e-6, rtol=0)
    both = torch.cat([obs, action], -1)
    known = both @ q.F[0] - both.square().sum(-1)
    torch.testing.assert_close(agent.critics(obs, action), known.expand(2, 40))
    for i in range(8):
        agent.remember(obs=obs[i], raw=action[i].atanh(), reward=1.0, next_obs=obs[i], terminated=False)
    agent.update()
    moved = torch.stack([agent.act(row, explore=False).tanh() for row in obs])
    assert 0 < (moved - expected).abs().max() < 0.2


def test_histograms_count_shares_whatever_the_order_and_number():
    edges = [0.0, 1.0, 2.0, 3.0]
    assert histogram([0.5, 2.5, 2.6, 9.0], edges).tolist() == [0.25, 0.0, 0.75]
    assert histogram([9.0, 2.6, 0.5, 2.5] * 3, edges).tolist() == [0.25, 0.0, 0.75]


def test_front_and_hypervolume_by_hand():
    points = np.array([[1.0, 1.0], [0.0, 2.0], [0.5, 0.5], [1.0, 1.0], [0.0, 1.5]])
    assert pareto_front(points).tolist() == [[0.0, 2.0], [1.0, 1.0]]
    assert hypervolume(points, (-1.0, 0.0)) == pytest.approx(2 * 1 + 1 * 1)
    front = true_front()
    assert pareto_front(front).shape == front.shape


def test_preferences_weigh_objectives_and_are_seen():
    env = PreferenceEnv(Line(), objectives=2)
    obs, _ = env.reset(seed=0)
    assert obs[-2:].sum() == pytest.approx(1.0) and not np.allclose(obs[-2:], env.reset()[0][-2:])
    env.reset(options={"preference": [0.25, 0.75]})
    _, reward, over, _, info = env.step(1)
    assert reward == pytest.approx(-0.75 / 9) and not over and info["objectives"] == (0.0, -1 / 9)
    _, reward, over, _, _ = env.step(0)
    assert reward == pytest.approx(0.25 * math.sqrt(1 / 9)) and over


def sequence_agent(seed=0, length=3):
    config = SACConfig(hidden=(16,), batch_size=8, dtype="float64", learning_rate=1e-2)
    return SequenceSAC(obs_size=1, actions=Actions(size=1), length=length, config=config, seed=seed)


def walk(agent, steps, seed=0):
    """s' = s + a / 2, reward -s'^2."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        obs, raw = torch.randn(1, generator=draw, dtype=F64), torch.randn(1, generator=draw, dtype=F64)
        following = obs + raw.tanh() / 2
        agent.replay.add(obs=obs, raw=raw, reward=-float(following**2), next_obs=following, terminated=1.0)
        if len(agent.replay) > 8:
            agent.update()
    return agent


def test_temporal_recall_judges_each_action_where_the_model_says_it_is_played():
    agent = sequence_agent()
    obs = rows(5, 1)
    agent.generator.manual_seed(3)
    loss, logprob = agent._actor_loss(obs)
    agent.generator.manual_seed(3)
    u, _ = agent._draw(*agent._sequence(obs))
    # the model begins as s' = s, so every action is judged in the first state
    values = torch.stack([agent.critics(obs, u[:, k].tanh()).min(0).values for k in range(3)], 1)
    expected = (agent.config.initial_alpha * logprob.view(5, 3) - values).mean()
    torch.testing.assert_close(loss, expected)


def test_a_sequence_learns_the_model_and_brings_the_state_home():
    agent = walk(sequence_agent(length=2), 250)
    obs, action = rows(50, 1), rows(50, 1, 1).tanh()
    assert (agent._next(obs, action) - (obs + action / 2)).abs().mean().item() < 0.1
    for start in (-0.4, 0.4):
        first = agent.act(torch.tensor([start], dtype=F64), explore=False)[0].tanh()
        assert abs(start + first.item() / 2) < 0.2


def test_a_sequence_agent_goes_on_bit_for_bit():
    whole = walk(sequence_agent(), 12)
    resumed = sequence_agent(seed=9)
    resumed.load(whole.state())
    walk(whole, 4, seed=1)
    walk(resumed, 4, seed=1)
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_frequency_averaged_score_by_hand():
    assert frequency_averaged_score({1: 10.0, 2: 4.0}) == pytest.approx(7.0)
    # frequencies 1/4, 1/2, 1
    assert frequency_averaged_score({1: 8.0, 2: 4.0, 4: 0.0}) == pytest.approx((0.25 * 2 + 0.5 * 6) / 0.75)


def boosted(discrete, seed=0):
    actions = Actions(size=3 if discrete else 1, discrete=discrete)
    config = BoostedConfig(gamma=0.0, beta=0.3, warmup=8 if discrete else 60)
    return BoostedActorCritic(obs_size=2, actions=actions, config=config, seed=seed)


def play(agent, steps, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        obs = torch.rand(2, generator=draw)
        high = float(obs[0] > 0.5)
        raw = agent.act(obs) if agent.ready else agent.random_action()
        off = raw - 2 * high if agent.actions.discrete else raw.tanh() - (1.6 * high - 0.8)
        agent.remember(obs=obs, raw=raw, reward=-float(off.abs()), next_obs=obs, terminated=True)
        if agent.ready:
            agent.update()
    return agent


@pytest.mark.parametrize("discrete", [True, False])
def test_boosted_trees_learn_and_go_on_as_they_were(discrete):
    agent = play(boosted(discrete), 100 if discrete else 160)
    low, high = (agent.act(torch.tensor([x, 0.5]), explore=False) for x in (0.1, 0.9))
    assert (low, high) == (0, 2) if discrete else (low.tanh() < -0.3 and high.tanh() > 0.3)
    resumed = boosted(discrete, seed=5)
    resumed.load(agent.state())
    grid = torch.rand(30, 2, generator=torch.Generator().manual_seed(1))
    for made in (agent, resumed):
        play(made, 3, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(agent._outputs(grid), resumed._outputs(grid), strict=True))
    assert torch.equal(agent.act(grid[0]), resumed.act(grid[0])) and agent.finite()


def test_one_tree_serves_actor_and_critic():
    assert boosted(True).trees.shared_tree_struct
    agent = play(boosted(True), 20)
    assert agent.trees.get_num_trees() == agent.planted == 13


class Short(gymnasium.Env):
    """Ends by itself after two steps (go=1), or is cut after three."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return 0, {}

    def step(self, action):
        assert action in (5, 6)
        self.at += 1
        return min(self.at, 2), 1.0, False, self.at == 3, {}


def test_time_limits_bootstrap_and_observations_are_flattened():
    agent = SAC(obs_size=3, actions=Actions(size=2, discrete=True), config=SACConfig(hidden=(8,)), seed=0)
    progress = train(agent, Short(), steps=9, seed=0)
    held = agent.replay.state()
    assert progress.returns == [3.0, 3.0, 3.0] and progress.ends == [3, 6, 9]
    assert held["terminated"].tolist() == [0.0] * 9
    assert held["obs"][:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]] and held["next_obs"][2].tolist() == [0, 0, 1]
    assert evaluate(agent, Short(), episodes=2, seed=0) == [3.0, 3.0]


class FiveSteps(gymnasium.Env):
    """Ends after five steps; keeps the actions of every episode."""

    observation_space = spaces.Box(-1.0, 9.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self):
        self.played = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.played.append([])
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.played[-1].append(round(float(action[0]), 3))
        at = len(self.played[-1])
        return np.full(1, at, np.float32), 1.0, False, at == 5, {}


class Counts:
    """An agent whose answer to state s is s/10, s/10 + 0.01, s/10 + 0.02."""

    ready, config = True, BoostedConfig(updates_per_step=0)

    def act(self, obs, *, explore=True):
        return torch.atanh(obs.double() / 10 + torch.tensor([[0.0], [0.01], [0.02]]))

    def remember(self, **transition):
        pass


def test_several_actions_are_carried_out_one_after_another_until_the_episode_ends():
    env = FiveSteps()
    train(Counts(), env, steps=10, seed=0)
    assert env.played == [[0.0, 0.01, 0.02, 0.3, 0.31]] * 2 + [[]]
    for every, expected in (
        (1, [0.0, 0.1, 0.2, 0.3, 0.4]),
        (2, [0.0, 0.01, 0.2, 0.21, 0.4]),
        (4, [0.0, 0.01, 0.02, 0.02, 0.4]),
    ):
        env = FiveSteps()
        assert evaluate(Counts(), env, episodes=1, seed=0, decide_every=every) == [5.0] and env.played == [expected]


def test_actions_are_stretched_to_the_box_and_other_spaces_are_refused():
    box = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    see = Interface(spaces.Discrete(2), box)
    assert see.actions == Actions(size=2)
    assert see.action(torch.tensor([0.0, 40.0])).tolist() == [0.0, 10.0]
    whole = Interface(spaces.Discrete(2), spaces.Box(0, 10, (3,), np.int64))
    assert whole.action(torch.atanh(torch.tensor([-0.09, 0.09, 0.11]))).tolist() == [5, 5, 6]  # 4.55, 5.45, 5.55
    with pytest.raises(ConfigError, match="bounded Box"):
        _ = Interface(spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,))).actions


def test_an_ensembles_members_are_the_networks_that_their_weights_say():
    net = EnsembleMLP((3, 4, 2), members=2, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = rows(5, 3)
    for j in range(2):
        hidden = (x @ net.weights[0][j] + net.biases[0][j]).clamp_min(0)
        torch.testing.assert_close(net(x)[j], hidden @ net.weights[1][j] + net.biases[1][j])


def test_our_update_on_pendulum_is_stable_baselines3s_loss_for_loss():
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    obs = torch.randn(6, 3)
    mean, log_std, _ = model.actor.get_action_dist_params(obs)
    action, logprob = model.actor.action_log_prob(obs)
    from llmrl.control.losses import squashed_logprob

    u = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))
    inside = action.abs()[:, 0] < 0.99
    torch.testing.assert_close(squashed_logprob(mean, log_std, u)[inside], logprob[inside], atol=1e-3, rtol=1e-3)
    assert benchmark().batch_size == model.batch_size and benchmark().tau == model.tau


def test_conformance_covers_every_public_function_of_control():
    found = set()
    for module in (
        importlib.import_module(f"llmrl.control.{info.name}") for info in pkgutil.iter_modules(control.__path__)
    ):
        found |= {
            name for name, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
        }  # fmt: skip
    covered = {case.name.split()[0] for case in cases()} | {name for name, _ in checks()}
    assert found - covered == WITHOUT_DEFINITION


@pytest.mark.parametrize(
    ("module", "name", "wrong", "caught"),
    [
        (symphony, "fading_weights", lambda n: torch.ones(n), ("fading_weights", "definition")),
        (pmoe, "count_idle", lambda weights, idle: idle + 1, ("count_idle", "definition")),
        (rlpd, "offline_rows", lambda size, share: int(size * share), ("offline_rows", "definition")),
        (
            srl,
            "frequency_averaged_score",
            lambda x: sum(x.values()) / len(x),
            ("frequency_averaged_score", "definition"),
        ),
        (rlpd, "mixed_batch", lambda on, off, n, share, draw: on.sample(n, draw), ("mixed_batch", "definition")),
        (yann, "saturated_law", lambda gain, offset: REAL_LAW(gain), ("saturated_law", "definition")),
        (nets, "follow", lambda held, other, tau: None, ("follow", "definition")),
        (gmorl, "histogram", lambda v, e: np.histogram(v, e)[0] / len(v), ("histogram", "definition")),
        (gmorl, "pareto_front", lambda points: points[:1], ("pareto_front", "definition")),
        (gmorl, "hypervolume", lambda points, low: float(np.prod(points[0] - low)), ("hypervolume", "row order")),
    ],
)
def test_conformance_passes_and_catches_a_wrong_function(monkeypatch, module, name, wrong, caught):
    def failures():
        results = summarise(finding for seed in range(5) for finding in check_family(seed))
        return {(result.name, result.check) for result in results if not result.passed}

    assert failures() == set()
    monkeypatch.setattr(module, name, wrong)
    assert caught in failures()
