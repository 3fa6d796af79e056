"""Critique-RL's credit by hand, and what a batch without a signal does: nothing."""

from dataclasses import replace

import pytest
import torch

from llmrl.algos.critique_rl import CritiqueRL
from llmrl.conformance.cases import random_batch, random_output
from llmrl.train.collate import collate
from llmrl.types import Ending
from tests.tiny import trajectory


def group(*rewards, kl=0.0):
    rows = [trajectory((5, 6), [[7, 8]], group="g", sample=n, reward=value) for n, value in enumerate(rewards)]
    batch = collate(rows)
    return replace(batch, ref_logprobs=batch.logprobs - kl)


def test_leave_one_out_and_the_kl_to_go_then_whitened():
    batch = group(1.0, 0.0, kl=2.0)
    found = CritiqueRL(kl_coef=0.1).credit(batch)
    # rewards to go: first token -0.2 - 0.2 + R', second -0.2 + R', with R' = +1 and -1
    raw = torch.tensor([[0.6, 0.8], [-1.4, -1.2]])
    wanted = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(found.advantages[:, 2:], wanted)


def test_equal_rewards_teach_nothing_and_noise_is_not_blown_up():
    assert not CritiqueRL(kl_coef=0.0).credit(group(1.0, 1.0, 1.0)).advantages.any()
    noisy = group(1.0, 1.0, 1.0)
    noise = 1e-3 * torch.randn(noisy.logprobs.shape, generator=torch.Generator().manual_seed(0))
    quiet = CritiqueRL(kl_coef=0.01).credit(replace(noisy, ref_logprobs=noisy.logprobs - noise))
    assert 0 < float(quiet.advantages.abs().max()) < 1e-3


def test_the_loss_is_a_mean_over_critiques_of_means_over_tokens():
    batch = random_batch(3)
    algo = CritiqueRL(importance_cap=None)
    ready = algo.credit(batch)
    out = random_output(batch, 4)
    found = algo.loss(out, ready).value
    ratio = (out.logprobs - batch.old_logprobs).exp()
    least = torch.minimum(ratio * ready.advantages, ratio.clamp(0.8, 1.2) * ready.advantages)
    rows = [-least[row][batch.mask[row]].mean() for row in range(batch.rows) if batch.mask[row].any()]
    assert found.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-9)


def test_critiques_of_an_episode_share_its_worth_and_it_counts_once():
    """Rounds: an episode of two critiques against one of one; rewards 1 and 0, so R' is +1 and -1."""
    long = [trajectory((5, 6), [[7, 8]], group="g", sample=0, reward=value) for value in (0.0, 1.0)]
    endings = (Ending.CONTINUES, Ending.TERMINATED)
    long = [replace(row, episode="a", turn=n, ending=endings[n]) for n, row in enumerate(long)]
    short = replace(trajectory((5, 6), [[7, 8]], group="g", sample=1, reward=0.0), episode="b")
    found = CritiqueRL(kl_coef=0.0).credit(collate([*long, short])).advantages[:, 2:]
    raw = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(found, (raw - raw.mean()) / raw.std(correction=0))


def test_the_worked_example_of_two_prompts_is_shaped_as_the_released_code_shapes_it():
    rewards = ((1.2, 0.2, -1.0, 1.2), (1.2, -1.0, -1.0, 0.2))
    rows = [
        trajectory((5, n), [[7]], group=f"g{n}", sample=k, reward=value)
        for n, group in enumerate(rewards)
        for k, value in enumerate(group)
    ]
    wanted = torch.tensor([1.066667, -0.266667, -1.866667, 1.066667, 1.8, -1.133333, -1.133333, 0.466667])
    found = CritiqueRL(kl_coef=0.0).credit(collate(rows)).advantages[:, -1]
    torch.testing.assert_close(found, (wanted - wanted.mean()) / wanted.std(correction=0), atol=1e-5, rtol=1e-5)
