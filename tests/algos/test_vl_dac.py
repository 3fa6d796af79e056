"""VL-DAC: one advantage a step by GAE over the episode, token losses averaged within steps, the value at the first token."""

from dataclasses import replace

import pytest
import torch

from llmrl.algos.vl_dac import VLDAC
from llmrl.batch import Output
from llmrl.credit import episode_gae
from llmrl.train.collate import collate
from llmrl.types import Ending, Score
from tests.tiny import trajectory

PLAIN = {"normalize": False, "kl_coef": 0.0, "importance_cap": None}


def episode(name, rewards, ending=Ending.TERMINATED, *, tokens=2):
    rows = []
    for turn, reward in enumerate(rewards):
        row = trajectory((5, 6, turn), [[7] * (tokens + turn)], group=name, reward=reward)
        last = turn == len(rewards) - 1
        rows.append(replace(row, episode=name, turn=turn, ending=ending if last else Ending.CONTINUES))
    return rows


def batch_of(*rows, seed=0):
    batch = collate(rows)
    draw = torch.Generator().manual_seed(seed)
    return replace(batch, values=torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64))


def firsts(batch, x):
    return torch.stack([x[row][batch.mask[row]][0] for row in range(batch.rows)])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
@pytest.mark.parametrize("truncation", ["bootstrap", "drop", "terminal"])
def test_credit_is_gae_over_the_steps_of_each_episode_in_any_order_of_rows(order, truncation):
    rows = [*episode("a", [0.0, 0.5, 1.0]), *episode("b", [0.25, -1.0], Ending.TRUNCATED)]
    batch = batch_of(*rows)
    batch = replace(batch, final_values=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.7], dtype=torch.float64))
    wanted, returns = episode_gae(
        torch.tensor([0.0, 0.5, 1.0, 0.25, -1.0], dtype=torch.float64), firsts(batch, batch.values),
        terminated=torch.tensor([0, 0, 1, 0, 0]).bool(), truncated=torch.tensor([0, 0, 0, 0, 1]).bool(),
        final_values=batch.final_values, gamma=0.9, lam=0.8, truncation=truncation,
    )  # fmt: skip
    moved = batch.select(torch.tensor(order))
    found = VLDAC(gamma=0.9, lam=0.8, truncation=truncation, **PLAIN).credit(moved)
    torch.testing.assert_close(firsts(moved, found.advantages).double(), wanted[order])
    torch.testing.assert_close(firsts(moved, found.returns).double(), returns[order])
    for row in range(moved.rows):  # every token of a step has its step's advantage
        assert len(found.advantages[row][moved.mask[row]].unique()) == 1


def test_a_step_in_which_the_policy_chose_nothing_hands_its_reward_back():
    first, second, third = episode("a", [0.0, 2.0, 1.0])
    silent = replace(second, mask=[False] * second.length, step=[-1] * second.length, scores=(Score(value=2.0),))
    batch = batch_of(first, silent, third)
    assert batch.score.tolist() == [3.0, 3.0, 3.0]
    found = VLDAC(gamma=0.5, lam=1.0, **PLAIN).credit(batch)
    alive = batch.select(torch.tensor([0, 2]))
    values = firsts(alive, alive.values)
    returns = firsts(alive, found.select(torch.tensor([0, 2])).returns)
    assert float(returns[1]) == pytest.approx(1.0) and float(returns[0]) == pytest.approx(0.5 * 2.0 + 0.5 * 1.0)
    assert values.shape == (2,)


def test_the_loss_by_definition():
    rows = [*episode("a", [0.0, 1.0]), *episode("b", [0.5], tokens=5)]
    batch = batch_of(*rows)
    algo = VLDAC(normalize=True, kl_coef=0.2, value_coef=0.3, value_clip=0.2, importance_cap=None)
    draw = torch.Generator().manual_seed(1)
    noise = [0.3 * torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64) for _ in range(4)]
    batch = replace(batch, ref_logprobs=batch.logprobs + noise[0], old_logprobs=batch.logprobs + noise[1])
    out = Output(logprobs=batch.logprobs + noise[2], values=batch.values + noise[3])
    ready = algo.credit(batch)
    policy, value = [], []
    for row in range(batch.rows):
        at = batch.mask[row]
        ratio = (out.logprobs[row][at] - batch.old_logprobs[row][at]).exp()
        gain = ready.advantages[row][at]
        d = batch.ref_logprobs[row][at] - out.logprobs[row][at]
        tokens = -torch.minimum(ratio * gain, ratio.clamp(0.9, 1.1) * gain) + 0.2 * (d.exp() - d - 1)
        policy.append(tokens.mean())
        new, old, target = (x[row][at][0] for x in (out.values, batch.values, ready.returns))
        clipped = old + (new - old).clamp(-0.2, 0.2)
        value.append(0.5 * torch.maximum((new - target) ** 2, (clipped - target) ** 2))
    wanted = torch.stack(policy).mean() + 0.3 * torch.stack(value).mean()
    assert float(algo.loss(out, ready).value) == pytest.approx(float(wanted), rel=1e-6)


def test_one_step_and_equal_advantages_normalise_to_nothing_wild():
    alone = VLDAC(kl_coef=0.0).credit(batch_of(*episode("a", [1.0])))
    assert torch.isfinite(alone.advantages).all() and not alone.advantages.any()
