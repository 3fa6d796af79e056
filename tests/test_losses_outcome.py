"""The outcome critic's functions by hand and at their edges; slow definitions are judged in tests/test_conformance.py."""

import doctest
import math

import pytest
import torch

from llmrl import losses_outcome
from llmrl.losses import pooled_logits, token_scores, weighted_nll

F64 = torch.float64
NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=F64)


def logits_of(*probabilities):
    """Two-class logits [1, T, 2] whose softmax gives class 1 these probabilities."""
    return tensor([[[0.0, math.log(p / (1 - p))] for p in probabilities]])


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(losses_outcome).failed == 0


def test_pooled_logits_by_hand():
    logits = tensor([[[1.0, 5.0], [NAN, NAN], [3.0, 2.0], [9.0, 9.0]], [[NAN, NAN]] * 4])
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    for pool, expected in {"max": [3.0, 5.0], "mean": [2.0, 3.5], "last": [3.0, 2.0]}.items():
        torch.testing.assert_close(pooled_logits(logits, mask, pool=pool), tensor([expected, [0.0, 0.0]]))


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
def test_padding_changes_neither_the_prediction_nor_its_gradient(pool):
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    short = logits.clone().requires_grad_()
    longer = torch.cat([logits, torch.full((3, 2, 4), 1e9, dtype=F64)], dim=1).requires_grad_()
    a = pooled_logits(short, torch.ones(3, 5, dtype=torch.bool), pool=pool)
    b = pooled_logits(longer, torch.tensor([[True] * 5 + [False] * 2] * 3), pool=pool)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(longer.grad[:, :5], short.grad) and not longer.grad[:, 5:].any()


def test_token_scores_by_hand():
    logits, mask = logits_of(0.2, 0.6, 0.4), torch.tensor([[True, True, True]])

    def scores(outcome=1, **options):
        return token_scores(logits, torch.tensor([outcome]), mask, **options)[0].tolist()

    assert scores() == pytest.approx([0.2, 0.6, 0.4])
    assert scores(0) == pytest.approx([0.8, 0.4, 0.6])
    assert scores(alignment="shifted") == pytest.approx([0.0, 0.2, 0.6])
    assert scores(scale="mean_one") == pytest.approx([0.5, 1.5, 1.0])
    assert scores(scale="max_one") == pytest.approx([1 / 3, 1.0, 2 / 3])
    assert scores(alignment="shifted", scale="max_one") == pytest.approx([0.0, 1 / 3, 1.0])


def test_the_state_before_a_token_is_the_one_at_the_sampled_token_before_it():
    logits = torch.cat([torch.full((1, 1, 2), NAN, dtype=F64), logits_of(0.2, 0.6, 0.4)], dim=1)
    mask = torch.tensor([[False, True, False, True]])
    scores = token_scores(logits, torch.tensor([1]), mask, alignment="shifted")
    torch.testing.assert_close(scores, tensor([[0.0, 0.0, 0.0, 0.2]]))


@pytest.mark.parametrize("scale", ["mean_one", "max_one"])
def test_a_row_without_a_score_stays_zero_at_every_scale(scale):
    logits = tensor([[[0.0, -2000.0]], [[NAN, NAN]]])
    scores = token_scores(logits, torch.tensor([1, -1]), torch.tensor([[True], [False]]), scale=scale)
    assert scores.tolist() == [[0.0], [0.0]]


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.tensor([[[0.0, 10.0]]], dtype=torch.bfloat16)
    scores = token_scores(logits, torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool))
    assert scores.dtype == torch.float32
    assert scores.item() == pytest.approx(1 / (1 + math.exp(10.0)), rel=1e-6)


def test_a_program_without_a_verdict_has_no_score():
    logits = torch.zeros(3, 2, 4)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    with pytest.raises(ValueError, match=r"outcome=\[-1\] in rows \[1\]"):
        token_scores(logits, torch.tensor([0, -1, -1]), mask)
    with pytest.raises(ValueError, match=r"outcome=\[4\] in rows \[0\]"):
        token_scores(logits, torch.tensor([4, 0, 0]), mask)


def test_weighted_nll_by_hand():
    logprobs = tensor([[-1.0, -2.0, NAN], [-4.0, NAN, NAN], [NAN, NAN, NAN]])
    weights = tensor([[1.0, 0.5, NAN], [-1.0, NAN, NAN], [NAN, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    # row 0: 1 + 1 = 2 over 2 tokens, row 1: -4 over 1 token
    assert weighted_nll(logprobs, weights, mask).item() == pytest.approx(-2 / 3)
    assert weighted_nll(logprobs, weights, mask, normalize="sequence").item() == pytest.approx((1 - 4) / 2)
    assert weighted_nll(logprobs, weights, mask, normalize="sum").item() == pytest.approx((2 - 4) / 2)


@pytest.mark.parametrize("normalize", ["token", "sequence", "sum"])
def test_no_token_sampled_is_no_loss(normalize):
    nothing = torch.full((2, 3), NAN, dtype=F64, requires_grad=True)
    loss = weighted_nll(nothing, nothing, torch.zeros(2, 3, dtype=torch.bool), normalize=normalize)
    loss.backward()
    assert loss.item() == 0.0 and not nothing.grad.any()


@pytest.mark.parametrize("normalize", ["sequence", "sum"])
def test_a_batch_of_two_is_the_mean_of_two_batches_of_one(normalize):
    draw = torch.Generator().manual_seed(3)
    logprobs, weights = (torch.randn(2, 6, generator=draw, dtype=F64) for _ in range(2))
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    both = weighted_nll(logprobs, weights, mask, normalize=normalize)
    single = [
        weighted_nll(logprobs[i : i + 1], weights[i : i + 1], mask[i : i + 1], normalize=normalize) for i in (0, 1)
    ]
    torch.testing.assert_close(both, sum(single) / 2)


def test_no_gradient_flows_into_the_weights_and_none_out_of_a_tie():
    logprobs = tensor([[-1.0, -2.0]]).requires_grad_()
    weights = tensor([[0.5, 0.25]]).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    weighted_nll(logprobs, weights, mask, normalize="sum").backward()
    assert weights.grad is None and logprobs.grad.tolist() == [[-0.5, -0.25]]
    impossible = tensor([[-math.inf, -2.0]]).requires_grad_()
    tie = weighted_nll(impossible, torch.zeros(1, 2, dtype=F64), mask)  # sample and baseline had the same outcome
    tie.backward()
    assert tie.item() == 0.0 and not impossible.grad.any()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: pooled_logits(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), pool="sum"), "pool='sum'"),
        (lambda: _scores(alignment="left"), "alignment='left'"),
        (lambda: _scores(scale="sum_one"), "scale='sum_one'"),
        (
            lambda: weighted_nll(*torch.zeros(2, 1, 1), torch.ones(1, 1, dtype=torch.bool), normalize="x"),
            "normalize='x'",
        ),
    ],
)
def test_unknown_options_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def _scores(**options):
    return token_scores(torch.zeros(1, 1, 2), torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool), **options)
