"""One rollout's worth of learning: the same gradient however it is cut, packed or skipped; metrics that are right."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from llmrl.algos.grpo import GRPO
from llmrl.algos.pacs import PACS
from llmrl.batch import Loss, Needs
from llmrl.policy.forward import forward
from llmrl.policy.packing import packed_tokens
from llmrl.settings.recipe import TrainConfig
from llmrl.train import learn as learn_module
from llmrl.train.collate import collate, with_totals
from llmrl.train.learn import annotate, rows_that_learn, update
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.microbatches import microbatches, minibatches
from llmrl.train.updater import Updater
from tests.tiny import random_batch, random_model, random_trajectories, tiny_models


def logprob_model(model, *, mode="packed", budget=4096):
    return LogprobModel(model=model, mode=mode, temperature=1.0, tokens_per_microbatch=budget)


def one_update(batch, algo, *, mode="packed", model=None, step=0, **settings):
    """(metrics, the summed gradients of every optimizer step, the model after it)."""
    model = model or random_model()
    config = TrainConfig(steps=10, **{"lr": 1e-3, **settings})
    seen = []
    updater = Updater(
        list(model.named_parameters()),
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1e9,
        reduce=lambda grad: seen.append(grad.clone()),
    )
    used = logprob_model(model, mode=mode, budget=config.tokens_per_microbatch)
    metrics = update(tiny_models(used, updater, config=config), algo, batch, step)
    count = len(list(model.parameters()))
    return metrics, [seen[start : start + count] for start in range(0, len(seen), count)], model


def by_definition(batch, algo):
    """The gradient of the algorithm's loss on all rows at once, through padded rows."""
    model = random_model()
    loss = algo.loss(forward(model, batch, mode="plain", entropy=algo.needs.entropy), batch).value
    loss.backward()
    return float(loss.detach()), [p.grad for p in model.parameters()]


def assert_close(mine, yours, tolerance=2e-4):
    size = max(float(grad.abs().max()) for grad in yours)
    assert size > 0
    for one, other in zip(mine, yours, strict=True):
        assert float((one - other).abs().max()) <= tolerance * size


ALGORITHMS = {
    "grpo": GRPO(importance_cap=None),
    "sequence mean": GRPO(normalize="sequence", importance_cap=None),
    "constant": GRPO(advantage="center", normalize="constant", constant_tokens=8, importance_cap=None),
    "entropy bonus": GRPO(entropy_coef=0.01),
    "pacs": PACS(),
}


@pytest.mark.parametrize("budget", [1, 15, 40, 4096])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_gradient_does_not_depend_on_the_micro_batches(name, budget):
    algo = ALGORITHMS[name]
    batch = random_batch(11, groups=(4, 3, 2, 1))
    if name == "pacs":
        batch = replace(batch, score=(batch.score > 0).float().where(~batch.score.isnan(), math.nan))
    batch = algo.credit(batch)
    loss, wanted = by_definition(batch, algo)
    metrics, (got,), _ = one_update(batch, algo, tokens_per_microbatch=budget)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in wanted)), rel=1e-4)
    assert_close(got, wanted)


def test_skipped_rows_change_no_gradient_and_are_counted(monkeypatch):
    rows = [replace(t, scores=(replace(t.scores[-1], value=1.0),)) if t.prompt.id == "g1" else t for t in singles(12)]
    batch = GRPO().credit(collate(rows))
    learning = rows_that_learn(batch, GRPO().needs)
    assert len(learning) == 4  # g1 is uniform, g2 is alone
    metrics, (got,), _ = one_update(batch, GRPO())
    monkeypatch.setattr(learn_module, "rows_that_learn", lambda part, needs: part.mask.any(1).nonzero().squeeze(1))
    every, (wanted,), _ = one_update(batch, GRPO())
    assert_close(got, wanted, 1e-5)
    assert (metrics["rows/skipped"], every["rows/skipped"]) == (4.0, 0.0)
    assert metrics["tokens/trained"] == float(batch.mask[learning].sum())
    assert every["tokens/trained"] == float(batch.mask.sum())
    assert metrics["tokens/packed"] == packed_tokens(batch.select(learning)) < every["tokens/packed"]
    assert metrics["loss"] == pytest.approx(every["loss"], rel=1e-4)


def singles(seed):
    """Random trajectories of one turn each."""
    found = random_trajectories(seed, groups=(4, 3, 1))
    return [t if len(t.scores) == 1 else replace(t, step=t.mask.astype(int) - 1, scores=t.scores[-1:]) for t in found]


def test_a_zero_advantage_is_not_skipped_where_other_terms_still_pull():
    batch = GRPO().credit(collate(singles(12)))
    zero = replace(batch, advantages=torch.zeros_like(batch.advantages))
    assert len(rows_that_learn(zero, GRPO().needs)) == 0
    for name in ("ref_logprobs", "entropy", "values", "whole_groups"):
        assert len(rows_that_learn(zero, Needs(**{name: True}))) == 8
    assert len(rows_that_learn(replace(batch, advantages=None), Needs())) == 8


def test_a_step_in_which_nothing_learns_has_zero_gradient_and_finite_metrics():
    batch = GRPO().credit(collate(singles(12)))
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    metrics, (grads,), _ = one_update(batch, GRPO())
    assert not any(bool(grad.any()) for grad in grads)
    assert metrics["rows/skipped"] == 8 and metrics["tokens/trained"] == 0 and metrics["update/skipped"] == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_metrics_are_finite_and_right():
    batch = GRPO().credit(random_batch(13))
    with torch.no_grad():
        logprobs = forward(random_model(), batch, mode="plain").logprobs
    metrics, _, _ = one_update(batch, GRPO(), lr=0.25, warmup_steps=4, step=1)
    assert all(math.isfinite(value) for value in metrics.values())
    ran = batch.select(rows_that_learn(batch, GRPO().needs))
    ours = logprobs[rows_that_learn(batch, GRPO().needs)][:, : ran.tokens.shape[1]]
    gap = (ours - ran.logprobs).abs()[ran.mask].mean()
    assert metrics["mismatch/mean_abs_logprob"] == pytest.approx(float(gap), rel=1e-5)
    assert metrics["lr"] == 0.25 * 2 / 4
    assert metrics["update/skipped"] == 0.0
    assert metrics["rows/skipped"] == batch.rows - ran.rows


@dataclass(frozen=True)
class Spy:
    """Sum of log-probs times advantage, remembering the batches and outputs it saw."""

    seen: list
    factor: float = 1.0
    needs: Needs = field(default_factory=lambda: Needs(old_logprobs=True))

    def credit(self, batch):
        return replace(batch, advantages=batch.mask.float())

    def loss(self, out, batch):
        self.seen.append((batch, out.logprobs.detach()))
        total = -(out.logprobs * batch.advantages).sum() / batch.tokens_total * self.factor
        metrics = {"mean_logprob": (out.logprobs.detach() * batch.mask).sum() / batch.tokens_total}
        return Loss(value=total, metrics=metrics)


def test_minibatches_and_epochs_keep_the_log_probs_of_before_the_first_step():
    model, spy = random_model(), Spy([])
    batch = spy.credit(random_batch(14, groups=(3, 3, 2, 2)))
    metrics, steps, _ = one_update(batch, spy, model=model, epochs=2, minibatches=2, lr=1e-2)
    assert len(steps) == 4
    for number, (seen, logprobs) in enumerate(spy.seen):
        moved = float((logprobs - seen.old_logprobs)[seen.mask].abs().max())
        assert (moved < 1e-4) == (number == 0)  # later steps have moved on, the old log-probs have not
    groups = [set(seen.group.tolist()) for seen, _ in spy.seen]
    for epoch in (groups[:2], groups[2:]):
        assert epoch[0] | epoch[1] == {0, 1, 2, 3} and not epoch[0] & epoch[1]
    for seen, _ in spy.seen:
        assert float(seen.tokens_total) == float(seen.mask.sum())  # each optimizer step has its own denominator
        assert float(seen.sequences_total) == float(seen.mask.any(1).sum())
    assert metrics["tokens/trained"] == 2 * float(batch.mask.sum())
    by_step = [float((logprobs * seen.mask).sum() / seen.mask.sum()) for seen, logprobs in spy.seen]
    assert metrics["mean_logprob"] == pytest.approx(sum(by_step) / 4, rel=1e-5)


def test_old_log_probs_are_computed_for_rows_that_learn_and_for_no_others():
    model, spy = random_model(), Spy([])
    batch = spy.credit(random_batch(14, groups=(3, 3, 2, 2)))
    batch = replace(batch, advantages=batch.advantages * (batch.group != 1)[:, None])
    rows = (batch.group != 1).nonzero().squeeze(1)
    used = logprob_model(model)
    whole, some = used.logprobs(batch), used.logprobs(batch, rows=rows)
    torch.testing.assert_close(some[rows], whole[rows], rtol=1e-5, atol=1e-6)
    assert not some[batch.group == 1].any() and whole[batch.group == 1].any()
    assert not used.logprobs(batch, rows=rows[:0]).any()
    one_update(batch, spy, model=model, epochs=2, lr=1e-2)
    (first, logprobs), (second, _) = spy.seen
    assert set(first.group.tolist()) == set(second.group.tolist()) == {0, 2, 3}
    torch.testing.assert_close(first.old_logprobs, logprobs, rtol=1e-5, atol=1e-6)
    assert torch.equal(first.old_logprobs, second.old_logprobs)


def test_a_metric_of_a_partly_skipped_step_is_a_mean_over_the_tokens_that_ran():
    spy = Spy([])
    batch = spy.credit(collate(singles(12)))
    batch = replace(batch, advantages=batch.advantages * (batch.group == 0)[:, None])
    metrics, _, _ = one_update(batch, spy)
    ((seen, logprobs),) = spy.seen
    assert metrics["mean_logprob"] == pytest.approx(float(logprobs[seen.mask].mean()), rel=1e-5)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(factor):
    model = random_model()
    before = [p.detach().clone() for p in model.parameters()]
    spy = Spy([], factor=factor)
    metrics, steps, _ = one_update(spy.credit(random_batch(14)), spy, model=model, epochs=2)
    assert steps == [] and metrics["update/skipped"] == 2.0 and math.isnan(metrics["grad_norm"])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    metrics, _, _ = one_update(spy.credit(random_batch(14)), Spy([]), model=model)
    clean, _, _ = one_update(spy.credit(random_batch(14)), Spy([]))
    assert metrics == clean  # and nothing of it stays behind


def test_annotate_computes_what_is_asked_and_no_more():
    batch, used = random_batch(1), logprob_model(random_model())
    for updates in (1, 2):  # with one they are the update's own, with more the update makes those of rows that learn
        models = tiny_models(used, None, config=TrainConfig(steps=10, epochs=updates))
        alone = annotate(models, Needs(old_logprobs=True), batch)
        assert alone.old_logprobs is None and alone.ref_logprobs is None
    other = logprob_model(random_model(seed=5))
    reference = SimpleNamespace(logprobs=lambda policy, batch: other.logprobs(batch))
    both = annotate(replace(models, reference=reference), Needs(old_logprobs=True, ref_logprobs=True), batch)
    assert torch.equal(both.ref_logprobs, other.logprobs(batch)) and not torch.equal(
        both.ref_logprobs, both.old_logprobs
    )
    with pytest.raises(ValueError, match="no reference"):
        annotate(models, Needs(ref_logprobs=True), batch)


@pytest.mark.parametrize("mode", ["packed", "plain"])
@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_scored_log_probs_do_not_depend_on_the_budget(mode, budget):
    batch = random_batch(15)
    with torch.no_grad():
        wanted = forward(random_model(), batch, mode="plain").logprobs
    got = logprob_model(random_model(), mode=mode, budget=budget).logprobs(batch)
    assert not got.requires_grad and got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("budget", [1, 12, 25, 60, 4096])
@pytest.mark.parametrize("whole_groups", [True, False])
def test_micro_batches_hold_every_row_once_within_the_budget(budget, whole_groups):
    batch = random_batch(16, groups=(5, 4, 3, 1, 1))
    parts = microbatches(batch, budget=budget, whole_groups=whole_groups)
    assert sorted(torch.cat(parts).tolist()) == list(range(batch.rows))
    for part in parts:
        groups = batch.group[part].unique()
        atoms = len(part) if not whole_groups else len(groups)
        assert packed_tokens(batch.select(part)) <= budget or atoms == 1
        if whole_groups:
            assert int(torch.isin(batch.group, groups).sum()) == len(part)
    if budget == 4096:
        assert len(parts) == 1


def test_mini_batches_are_keyed_shuffles_of_whole_groups():
    batch = random_batch(17, groups=(3, 2, 2, 1))
    (same,) = minibatches(batch, 1, order=(0,))
    assert same is batch
    halves = [[set(part.group.tolist()) for part in minibatches(batch, 2, order=(seed,))] for seed in range(6)]
    assert halves == [[set(part.group.tolist()) for part in minibatches(batch, 2, order=(seed,))] for seed in range(6)]
    assert len({tuple(map(tuple, map(sorted, half))) for half in halves}) > 1
    for first, second in halves:
        assert len(first) == len(second) == 2 and not first & second
    rows = [part.rows for part in minibatches(batch, 2, order=(0,))]
    assert sum(rows) == batch.rows


def test_packed_tokens_by_hand():
    batch = with_totals(collate(random_trajectories(3, groups=(2,))), reduce=lambda x: x)
    prompt, lengths = int(batch.prompt_length[0]), batch.length.tolist()
    assert packed_tokens(batch) == prompt + sum(length - prompt for length in lengths)
