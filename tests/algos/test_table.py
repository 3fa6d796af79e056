"""All algorithms x the properties that every one of them must have."""

from dataclasses import fields, replace
from importlib import import_module

import pytest
import torch

from llmrl.algos import ALGORITHMS
from llmrl.algos.grpo import GRPO
from llmrl.conformance.cases import garbage_batch, garbage_output, random_batch, random_output


def load(path):
    module, name = path.split(":")
    return getattr(import_module(module), name)


TABLE = {name: load(path)() for name, path in ALGORITHMS.items()} | {
    "grpo with everything": GRPO(kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0, normalize="sequence"),
}
every_algorithm = pytest.mark.parametrize("algo", TABLE.values(), ids=TABLE.keys())


def gradients(algo, out, batch):
    loss = algo.loss(out, batch)
    leaves = [x for item in fields(out) if (x := getattr(out, item.name)) is not None]
    grads = torch.autograd.grad(loss.value, leaves, allow_unused=True)
    return loss, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


@every_algorithm
@pytest.mark.parametrize("seed", range(3))
def test_garbage_outside_the_mask_changes_nothing(algo, seed):
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, grads = gradients(algo, out, algo.credit(batch))
    dirty = garbage_batch(algo.credit(garbage_batch(batch)))
    dirty_loss, dirty_grads = gradients(algo, garbage_output(out, batch.mask), dirty)
    torch.testing.assert_close(dirty_loss.value, loss.value, rtol=0, atol=0)
    for name, value in loss.metrics.items():
        torch.testing.assert_close(dirty_loss.metrics[name], value, rtol=0, atol=0)
    assert any(g.abs().sum() > 0 for g in grads)
    for got, expected in zip(dirty_grads, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert (got[~batch.mask] == 0).all()


@every_algorithm
@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_sum_to_the_whole(algo, seed):
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    loss, grads = gradients(algo, out, batch)
    pieces = []
    if "whole_groups" in algo.needs:
        pieces = [(batch.group == g).nonzero()[:, 0] for g in batch.group.unique()]
    else:
        pieces = torch.randperm(batch.rows).split([1, 4, batch.rows - 5])
    value, metrics = 0.0, {}
    for index in pieces:
        micro = batch.select(index)
        width = micro.mask.shape[1]
        cut = {item.name: getattr(out, item.name)[index][:, :width] for item in fields(out)}
        share = algo.loss(type(out)(**cut), micro)
        share.value.backward()
        value = value + share.value.detach()
        for name, metric in share.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + metric
    torch.testing.assert_close(value, loss.value.detach())
    assert metrics.keys() == loss.metrics.keys()
    for name, metric in loss.metrics.items():
        torch.testing.assert_close(metrics[name], metric, msg=lambda text, name=name: f"{name}: {text}")
    for item, expected in zip(fields(out), grads, strict=True):
        got = getattr(out, item.name).grad
        torch.testing.assert_close(torch.zeros_like(expected) if got is None else got, expected)


@every_algorithm
@pytest.mark.parametrize("seed", range(3))
def test_row_order_changes_nothing(algo, seed):
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, grads = gradients(algo, out, algo.credit(batch))
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(seed))
    moved = type(out)(**{item.name: getattr(out, item.name)[order] for item in fields(out)})
    moved_loss, moved_grads = gradients(algo, moved, algo.credit(batch.select(order)))
    torch.testing.assert_close(moved_loss.value, loss.value)
    for got, expected in zip(moved_grads, grads, strict=True):
        torch.testing.assert_close(got, expected[order])


@every_algorithm
def test_a_better_answer_becomes_likelier_and_a_worse_one_less_likely(algo):
    batch = random_batch(5)
    batch = algo.credit(replace(batch, ref_logprobs=batch.old_logprobs))
    out = random_output(batch, 5, spread=0.0)  # on policy: no token is clipped, no KL pulls
    _, (grad, *_) = gradients(algo, out, batch)
    mixed = batch.group == 3  # the first group holds a right and a wrong answer
    right, wrong = mixed & (batch.score == 1), mixed & (batch.score == 0)
    assert (grad[right][batch.mask[right]] < 0).all()
    assert (grad[wrong][batch.mask[wrong]] > 0).all()


@every_algorithm
@pytest.mark.parametrize("spread", [1e2, 1e5])
def test_extreme_log_ratios_stay_finite_in_float32(algo, spread):
    batch = algo.credit(random_batch(6, dtype=torch.float32))
    out = random_output(batch, 6, spread=spread)
    loss, grads = gradients(algo, out, batch)
    assert torch.isfinite(loss.value)
    assert all(torch.isfinite(metric) for metric in loss.metrics.values())
    assert all(torch.isfinite(g).all() for g in grads)


@every_algorithm
def test_credit_and_loss_leave_the_batch_as_it_was(algo):
    batch = random_batch(7)
    before = {item.name: getattr(batch, item.name) for item in fields(batch)}
    copies = {name: None if x is None else x.clone() for name, x in before.items()}
    algo.loss(random_output(batch, 7), algo.credit(batch))
    for name, x in before.items():
        assert getattr(batch, name) is x
        if x is not None:
            torch.testing.assert_close(x, copies[name], equal_nan=True, rtol=0, atol=0)
