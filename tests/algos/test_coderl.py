"""CodeRL by hand: returns against siblings, token weights, given programs, the floor under bad tokens."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from llmrl.algos.coderl import CodeRL
from llmrl.batch import Batch, Output, stacked
from llmrl.losses import weighted_nll
from llmrl.train.learn import comparable, credit
from llmrl.train.world import World

F64 = torch.float64


SIBLINGS = {"baseline": "group_mean", "weights": "uniform"}


def batch_of(scores, lengths, *, given=(), group=None, **more):
    """Rows with one prompt token and `lengths` sampled ones; NaN in every slot outside the mask."""
    rows, width = len(scores), 1 + max(lengths)
    at = torch.arange(width).expand(rows, width)
    length = torch.tensor(lengths) + 1
    mask = (at >= 1) & (at < length[:, None])
    floats = torch.where(mask, -1.0, float("nan")).to(F64)
    return Batch(
        tokens=torch.zeros(rows, width, dtype=torch.int64), length=length, mask=mask, logprobs=floats,
        step=torch.where(mask, 0, -1), rewards=floats, group=torch.tensor(group or [0] * rows),
        score=torch.tensor(scores, dtype=F64), prompt_length=torch.ones(rows, dtype=torch.int64),
        tokens_total=mask.sum().to(F64), sequences_total=torch.tensor(float(rows), dtype=F64),
        given=torch.tensor([n in given for n in range(rows)]), **more,
    )  # fmt: skip


def output(batch, logprob=-1.0):
    return Output(logprobs=torch.where(batch.mask, logprob, float("nan")).to(F64).requires_grad_())


def test_the_relative_return_reaches_every_token():
    credited = CodeRL(**SIBLINGS).credit(batch_of([1.0, -0.6, -1.0], [2, 1, 2]))
    mean = -0.2
    expected = [[0, 1 - mean, 1 - mean], [0, -0.6 - mean, 0], [0, -1 - mean, -1 - mean]]
    torch.testing.assert_close(credited.advantages, torch.tensor(expected, dtype=F64))


def test_programs_of_one_outcome_teach_exactly_nothing():
    batch = CodeRL(**SIBLINGS).credit(batch_of([-0.3, -0.3, -0.3], [2, 1, 3]))
    assert torch.equal(batch.advantages, torch.zeros_like(batch.advantages))
    out = output(batch)
    CodeRL(**SIBLINGS).loss(out, batch).value.backward()
    assert not out.logprobs.grad.any()


def test_token_weights_by_hand():
    batch = batch_of([1.0], [4])
    linear = CodeRL(baseline="none", weights="linear").credit(batch).advantages
    torch.testing.assert_close(linear, torch.tensor([[0, 1.0, 0.75, 0.5, 0.25]], dtype=F64))
    scores = torch.tensor([[float("nan"), 0.5, 0.25, 0.125, 1.0]], dtype=F64)
    by_critic = CodeRL(baseline="none", weights="critic").credit(replace(batch, token_scores=scores)).advantages
    torch.testing.assert_close(by_critic, torch.tensor([[0, 0.5, 0.25, 0.125, 1.0]], dtype=F64))


def test_without_a_critic_its_weights_are_refused_by_name():
    with pytest.raises(ValueError, match=r"batch\.token_scores is None"):
        CodeRL(baseline="group_mean").credit(batch_of([1.0, -1.0], [2, 2]))


def test_a_given_program_is_learnt_by_cross_entropy_and_is_no_sibling():
    alone = CodeRL(**SIBLINGS).credit(batch_of([1.0, -1.0], [2, 2]))
    beside = CodeRL(ce_coef=0.5, **SIBLINGS).credit(batch_of([1.0, -1.0, 0.0], [2, 2, 1], given=[2]))
    torch.testing.assert_close(beside.advantages[:2], alone.advantages * 5 / 4)  # of 5 tokens 4 are sampled
    assert beside.advantages[2].tolist() == [0.0, 2.5, 0.0]
    loss = CodeRL(ce_coef=0.5, **SIBLINGS).loss(output(beside, -1.0), beside)
    # siblings cancel (equal log-probs, opposite advantages); half of 1 nat over 1 token is left
    assert loss.value.item() == pytest.approx(0.5)


@pytest.mark.parametrize("normalize", ["token", "sequence", "sum"])
@pytest.mark.parametrize("given", [[2], [1, 4]])
def test_both_terms_are_means_over_programs_of_their_own(normalize, given):
    """The loss of a batch with references is that of the samples alone and ce_coef times that of the references alone."""
    draw = torch.Generator().manual_seed(5)
    scores, lengths, groups = [1.0, -0.6, 0.0, -1.0, 0.0], [3, 1, 2, 2, 4], [0, 0, 0, 1, 1]
    algo = CodeRL(
        baseline="none", weights="uniform", ce_coef=0.5, normalize=normalize, importance_cap=None, logprob_floor=None
    )
    batch = batch_of(scores, lengths, given=given, group=groups)
    logprobs = torch.where(batch.mask, -torch.rand(batch.mask.shape, generator=draw, dtype=F64), float("nan"))
    value = algo.loss(Output(logprobs=logprobs), algo.credit(batch)).value
    drawn = torch.tensor([n not in given for n in range(5)])
    returns = torch.tensor(scores, dtype=F64)[:, None].expand(batch.mask.shape)
    sampled = weighted_nll(logprobs[drawn], returns[drawn], batch.mask[drawn], normalize=normalize)
    taught = weighted_nll(logprobs[~drawn], torch.ones_like(returns[~drawn]), batch.mask[~drawn], normalize=normalize)
    torch.testing.assert_close(value, sampled + 0.5 * taught)


@pytest.mark.parametrize("normalize", ["token", "sequence", "sum"])
def test_the_loss_is_the_weighted_likelihood(normalize):
    draw = torch.Generator().manual_seed(2)
    algo = CodeRL(normalize=normalize, **SIBLINGS, importance_cap=None, logprob_floor=None)
    batch = algo.credit(batch_of([1.0, -0.6, -0.3], [3, 1, 2]))
    logprobs = torch.where(batch.mask, -torch.rand(batch.mask.shape, generator=draw, dtype=F64), float("nan"))
    value = algo.loss(Output(logprobs=logprobs), batch).value
    torch.testing.assert_close(value, weighted_nll(logprobs, batch.advantages, batch.mask, normalize=normalize))


def test_the_floor_stops_bad_tokens_alone():
    algo = CodeRL(importance_cap=None, **SIBLINGS)
    batch = algo.credit(batch_of([1.0, -1.0], [1, 1]))
    far, near = output(batch, -11.0), output(batch, -9.0)
    lost = algo.loss(far, batch)
    lost.value.backward()
    algo.loss(near, batch).value.backward()
    good, bad = far.logprobs.grad[:, 1].tolist()
    assert good < 0 and bad == 0.0 and near.logprobs.grad[1, 1] > 0
    assert lost.metrics["floored"].item() == 0.5


def test_negative_coef_scales_what_is_below_the_baseline():
    credited = CodeRL(negative_coef=0.25, **SIBLINGS).credit(batch_of([1.0, -1.0], [1, 1]))
    assert credited.advantages[:, 1].tolist() == [1.0, -0.25]


def test_the_greedy_program_is_the_baseline_of_its_prompt():
    greedy = torch.tensor([-0.3, -0.3, 1.0, float("nan")], dtype=F64)
    batch = batch_of([1.0, -0.3, -1.0, 1.0], [1, 2, 1, 1], group=[0, 0, 1, 2], baseline=greedy)
    credited = CodeRL(weights="uniform").credit(batch).advantages
    expected = [[0, 1.3, 0], [0, 0, 0], [0, -2.0, 0], [0, 0, 0]]  # no verdict on the greedy program: nothing to compare
    torch.testing.assert_close(credited, torch.tensor(expected, dtype=F64))
    with pytest.raises(ValueError, match=r"batch\.baseline is None"):
        CodeRL(weights="uniform").credit(replace(batch, baseline=None))


def test_needs_follow_the_settings():
    full = CodeRL().needs
    assert full.greedy and full.token_scores and full.references and not full.siblings
    bare = CodeRL(baseline="leave_one_out", weights="linear", ce_coef=0).needs
    assert bare.siblings and not (bare.greedy or bare.token_scores or bare.references)


def test_a_clip_is_ppos():
    algo = CodeRL(clip=0.2, importance_cap=None, **SIBLINGS)
    batch = replace(algo.credit(batch_of([1.0, -1.0], [1, 1])), old_logprobs=torch.full((2, 2), -1.5, dtype=F64))
    out = output(batch, -1.0)  # a ratio of e^0.5 in both rows
    found = algo.loss(out, batch)
    found.value.backward()
    assert found.value.item() == pytest.approx((-1.2 + math.exp(0.5)) / 2)
    assert out.logprobs.grad[0, 1] == 0.0 and out.logprobs.grad[1, 1].item() == pytest.approx(math.exp(0.5) / 2)
    assert found.metrics["clip_high"].item() == 0.5


@pytest.mark.parametrize("wrong", [{"negative_coef": -1.0}, {"clip": 0.0}, {"logprob_floor": 0.0}, {"ce_coef": -0.1}])
def test_senseless_hyper_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        CodeRL(**wrong)


@dataclass(frozen=True)
class Ranks(World):
    """A rank of two whose other rank holds `other`."""

    other: Batch | None = None

    def gather(self, items):
        return [*items, self.other] if self.rank == 0 else [self.other, *items]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_with_and_without_references_weigh_them_as_one_process_does(rank):
    """A rank may have no reference, no greedy program and no outcome: whole fields are then missing in its batch."""
    algo = CodeRL(weights="uniform", ce_coef=0.5, importance_cap=None)
    greedy = torch.tensor([-0.3, -0.3], dtype=F64)
    rich = batch_of([1.0, 0.0], [2, 3], given=[1], baseline=greedy, outcome=torch.tensor([3, -1]))
    poor = replace(batch_of([-0.6, 1.0], [2, 3]), given=None)
    alone = replace(poor, given=torch.tensor([False, False]), baseline=torch.full((2,), torch.nan, dtype=F64))
    whole = algo.credit(stacked([replace(rich, outcome=None), alone]))
    own, other = ((rich, poor), (poor, rich))[rank]
    found = credit(algo, own, Ranks(rank=rank, size=2, other=comparable(other)))
    torch.testing.assert_close(found.advantages, whole.select(torch.arange(2) + 2 * rank).advantages)
