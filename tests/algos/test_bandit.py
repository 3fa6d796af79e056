"""Every algorithm learns a small task from its own samples: credit, loss and optimiser together.

The policy is a table of logits [state, position, action]; a completion is two actions, right if both are the state's.
Every rollout is updated on four times, so that ratios, clipping and PACS's logits leave their starting point.
"""

from dataclasses import replace

import pytest
import torch

from llmrl.batch import Batch, Output
from llmrl.conformance.algorithms import algorithms

STATES, ACTIONS, GROUP = 3, 3, 8
TARGET = torch.tensor([[0, 2], [1, 1], [2, 0]])  # [state, position]
TABLE = algorithms()


def rollout(logits, values, draw):
    """A batch of STATES groups; row layout: prompt, action, action."""
    state = torch.arange(STATES).repeat_interleave(GROUP)
    rows = len(state)
    probabilities = logits.detach().softmax(dim=2)[state].reshape(rows * 2, ACTIONS)
    actions = torch.multinomial(probabilities, 1, generator=draw).reshape(rows, 2)
    score = (actions == TARGET[state]).all(dim=1).float()
    tokens = torch.cat([state[:, None], actions], dim=1)
    mask = torch.tensor([False, True, True]).expand(rows, 3)
    forward = policy(logits, values, tokens)
    logprobs = forward.logprobs.detach()
    return Batch(
        tokens=tokens,
        length=torch.full((rows,), 3),
        mask=mask,
        logprobs=logprobs,
        step=torch.where(mask, 0, -1),
        rewards=torch.nn.functional.pad(score[:, None], (2, 0)),
        group=state,
        score=score,
        prompt_length=torch.ones(rows, dtype=torch.int64),
        tokens_total=mask.sum().float(),
        sequences_total=torch.tensor(float(rows)),
        values=forward.values.detach(),
        old_logprobs=logprobs,
        baseline=torch.zeros(rows),
        token_scores=mask.float(),
    )


def policy(logits, values, tokens):
    """The forward pass: [B, 3] tokens -> log-probs, entropy, values; nothing for the prompt."""
    by_action = logits[tokens[:, 0]].log_softmax(dim=2)
    chosen = by_action.gather(2, tokens[:, 1:, None])[:, :, 0]
    entropy = -(by_action.exp() * by_action).sum(dim=2)
    seen = torch.stack([torch.zeros_like(tokens[:, 1]), 1 + tokens[:, 1]], dim=1)  # the critic knows the first action
    pad = torch.nn.functional.pad
    return Output(
        logprobs=pad(chosen, (1, 0)), entropy=pad(entropy, (1, 0)), values=pad(values[tokens[:, :1], seen], (1, 0))
    )


def accuracy(logits):
    probabilities = logits.detach().softmax(dim=2)
    right = probabilities.gather(2, TARGET[:, :, None])[:, :, 0]
    return right.prod(dim=1).mean().item()


@pytest.mark.parametrize("name", [name for name, algo in TABLE.items() if not algo.needs.gold])
def test_algorithm_learns_a_bandit(name):
    algo, draw = TABLE[name], torch.Generator().manual_seed(0)
    logits = torch.zeros(STATES, 2, ACTIONS, requires_grad=True)
    values = torch.zeros(STATES, 1 + ACTIONS, requires_grad=True)
    start = policy(logits, values, torch.zeros(1, 3, dtype=torch.int64))
    assert accuracy(logits) == pytest.approx(1 / 9)
    assert start.logprobs.shape == (1, 3)
    reference = logits.detach().clone()
    optimiser = torch.optim.Adam([logits, values], lr=0.05)
    for _ in range(60):
        batch = rollout(logits, values, draw)
        batch = replace(batch, ref_logprobs=policy(reference, values.detach(), batch.tokens).logprobs)
        batch = algo.credit(batch)
        for _ in range(4):
            optimiser.zero_grad()
            algo.loss(policy(logits, values, batch.tokens), batch).value.backward()
            optimiser.step()
    assert accuracy(logits) > 0.6
