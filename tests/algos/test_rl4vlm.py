"""Thoughts and action: where they part, RL4VLM's weighted ratio and VL-DAC's weighted mean by definition."""

from dataclasses import replace

import pytest
import torch

from llmrl.algos.build import build_algorithm
from llmrl.algos.rl4vlm import RL4VLM
from llmrl.algos.vl_dac import VLDAC
from llmrl.batch import Output
from llmrl.credit import leave_one_out
from llmrl.data.conversation import Renderer
from llmrl.train.collate import collate
from llmrl.types import Completion, Status
from tests.algos.test_vl_dac import PLAIN, batch_of, episode
from tests.tiny import tiny_tokenizer


def thoughtful(seed=0):
    """(a batch of three steps, the first two with thoughts of one and two tokens, old and new log-probs)."""
    rows = [*episode("a", [0.0, 1.0], tokens=3), *episode("b", [0.5], tokens=5)]
    rows = [replace(row, thought=thought) for row, thought in zip(rows, (1, 2, 0))]
    batch = batch_of(*rows, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    noise = [0.3 * torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64) for _ in range(3)]
    batch = replace(batch, old_logprobs=batch.logprobs + noise[0])
    return batch, Output(logprobs=(batch.logprobs + noise[1]).requires_grad_(), values=batch.values + noise[2])


def test_the_tokens_before_the_action_are_thought():
    batch, _ = thoughtful()
    assert batch.thought.sum(1).tolist() == [1, 2, 0]
    assert (batch.thought & ~batch.mask).sum() == 0 and batch.thought[0].nonzero()[0] == batch.mask[0].nonzero()[0]
    tokenizer = tiny_tokenizer()
    text = '{"thoughts": "up", "action": 1}'
    tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    said = Completion(tokens=tokens, logprobs=(0.0,) * len(tokens), text=text, status=Status.done())
    place = text.index('"action"')
    count = Renderer(tokenizer).tokens_before(said, place)
    assert len(tokenizer.decode(tokens[:count])) <= place < len(tokenizer.decode(tokens[: count + 1]))
    assert collate(episode("a", [1.0])).thought.sum() == 0


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
def test_the_ratio_of_a_step_by_definition(weight):
    batch, out = thoughtful()
    algo = RL4VLM(thought_weight=weight, value_coef=0.3, value_clip=None, normalize=False)
    ready = algo.credit(batch)
    losses, value = [], []
    for row in range(batch.rows):
        at = batch.mask[row]
        weights = torch.where(batch.thought[row][at], weight, 1.0)
        ratio = (weights * (out.logprobs[row][at] - batch.old_logprobs[row][at])).sum().exp()
        gain = ready.advantages[row][at][0]
        losses.append(-torch.minimum(ratio * gain, ratio.clamp(0.9, 1.1) * gain))
        value.append(0.5 * (out.values[row][at][0] - ready.returns[row][at][0]) ** 2)
    wanted = torch.stack(losses).mean() + 0.3 * torch.stack(value).mean()
    found = algo.loss(out, ready)
    assert float(found.value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert algo.derived_metrics({k: float(v) for k, v in found.metrics.items()})["explained_variance"] <= 1


def test_without_weight_thoughts_have_no_gradient_and_the_mean_is_over_the_action():
    batch, out = thoughtful()
    algo = VLDAC(thought_weight=0.0, value_coef=0.0, clip_low=0.9, clip_high=9.0, **PLAIN)
    ready = algo.credit(batch)
    algo.loss(out, ready).value.backward()
    gradient = out.logprobs.grad
    assert not gradient[batch.thought].any() and gradient[batch.mask & ~batch.thought].all()
    row = 1  # two thoughts, two tokens of action
    at = batch.mask[row] & ~batch.thought[row]
    ratio = (out.logprobs[row][at] - batch.old_logprobs[row][at]).exp().detach()
    wanted = -ratio * ready.advantages[row][at] / at.sum() / batch.rows
    torch.testing.assert_close(gradient[row][at], wanted, check_dtype=False)
    same = [VLDAC(thought_weight=w, **PLAIN).loss(out, ready).value for w in (1.0, 0.5)]
    assert same[0] != same[1]


def test_loop_judges_an_episode_against_the_others_of_its_task():
    rows = [*episode("a", [0.0, 1.0]), *episode("b", [0.5]), *episode("c", [0.0, 0.0])]
    rows = [replace(row, prompt=replace(row.prompt, id="task")) for row in rows]
    batch = build_algorithm({"name": "loop"}).credit(collate(rows))
    wanted = leave_one_out(torch.tensor([1.0, 0.5, 0.0]), torch.zeros(3, dtype=torch.int64))[[0, 0, 1, 2, 2]]
    for row in range(batch.rows):
        assert batch.advantages[row][batch.mask[row]].unique().tolist() == [pytest.approx(float(wanted[row]))]
