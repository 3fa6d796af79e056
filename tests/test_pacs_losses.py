"""PACS's pure functions: by-hand numbers, closed-form gradients, and what its paper and code imply."""

import math

import pytest
import torch

from llmrl.credit import leave_one_out
from llmrl.losses import pacs_center, pacs_loss, pacs_proxy, pacs_scores, pacs_weights

F64 = torch.float64
NAN = float("nan")


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def zeros(n):
    return torch.zeros(n, dtype=torch.int64)


PROXIES, LABELS = tensor(0.25, -0.30, 0.33, -0.30), tensor(1.0, 0.0, 0.0, 1.0)


def pull(proxies, labels, weights, group, score="rloo"):
    """The derivative of the loss in each row's proxy."""
    leaf = proxies.clone().requires_grad_()
    pacs_loss(pacs_center(leaf, group, score=score), labels, weights).backward()
    return leaf.grad


def random_rows(seed, sizes=(4, 3, 2)):
    draw = torch.Generator().manual_seed(seed)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[torch.randperm(sum(sizes))]
    shape = (sum(sizes), 6)
    new, ref = (-torch.rand(shape, generator=draw, dtype=F64) for _ in range(2))
    mask = torch.rand(shape, generator=draw) > 0.3
    mask[:, 0] = True
    labels = torch.randint(0, 2, (sum(sizes),), generator=draw).to(F64)
    return new, ref, mask, group, labels


def test_the_worked_example():
    new = PROXIES[:, None]
    scores = pacs_scores(new, torch.zeros_like(new), torch.ones(4, 1, dtype=torch.bool), zeros(4))
    torch.testing.assert_close(scores, tensor(0.34, -0.39333333, 0.44666667, -0.39333333), atol=1e-7, rtol=0)
    assert pacs_loss(scores, LABELS, torch.ones(4, dtype=F64)).item() == pytest.approx(0.725867, abs=5e-7)


def test_proxies_by_hand():
    new = torch.tensor([[-1.0, -2.0, NAN], [-1.0, NAN, NAN], [NAN, NAN, NAN]], dtype=F64)
    ref = torch.tensor([[-1.5, -2.25, NAN], [-3.0, NAN, NAN], [NAN, NAN, NAN]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    torch.testing.assert_close(pacs_proxy(new, ref, mask, beta=2.0), tensor(1.5, 4.0, 0.0))
    torch.testing.assert_close(pacs_proxy(new, ref, mask, proxy="mean_logprob"), tensor(-1.5, -1.0, 0.0))


def test_centring_by_hand():
    group = torch.tensor([0, 1, 0, 1, 0])
    r = tensor(1.0, 10.0, 0.0, 20.0, 0.5)
    torch.testing.assert_close(pacs_center(r, group, score="rloo"), tensor(0.75, -10.0, -0.75, 10.0, 0.0))
    torch.testing.assert_close(pacs_center(r, group, score="drgrpo"), tensor(0.5, -5.0, -0.5, 5.0, 0.0))
    half = math.sqrt(0.5)
    expected = tensor(1.0, -half, -1.0, half, 0.0)
    torch.testing.assert_close(pacs_center(r, group, score="grpo"), expected, atol=3e-6, rtol=0)
    torch.testing.assert_close(pacs_center(r, group, score="naive"), r)


def test_rloo_is_drgrpo_stretched_by_the_group_size():
    new, ref, mask, group, _ = random_rows(0)
    rloo = pacs_scores(new, ref, mask, group)
    drgrpo = pacs_scores(new, ref, mask, group, score="drgrpo")
    size = torch.bincount(group)[group].to(F64)
    torch.testing.assert_close(rloo, drgrpo * size / (size - 1))


@pytest.mark.parametrize(("score", "sees"), [("rloo", False), ("drgrpo", False), ("grpo", False), ("naive", True)])
def test_a_common_drift_of_a_group_is_invisible_but_to_naive(score, sees):
    drifted = pacs_center(PROXIES + 100.0, zeros(4), score=score)
    same = torch.allclose(drifted, pacs_center(PROXIES, zeros(4), score=score), atol=1e-9)
    assert same is not sees


def test_weights_by_hand():
    labels = tensor(1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    group = torch.tensor([5, 5, 5, 5, 2, 2, 9])
    third = 2 / 3
    torch.testing.assert_close(pacs_weights(labels, group), tensor(2.0, third, third, third, 1.0, 1.0, 1.0))
    torch.testing.assert_close(pacs_weights(labels, group, mode="only_positive"), labels)
    torch.testing.assert_close(pacs_weights(labels, group, mode="only_negative"), 1 - labels)
    torch.testing.assert_close(pacs_weights(labels, group, mode="none"), torch.ones(7, dtype=F64))


def test_the_weights_of_a_mixed_group_sum_to_its_size():
    _, _, _, group, labels = random_rows(3)
    weights = pacs_weights(labels, group)
    for g in group.unique():
        assert weights[group == g].sum().item() == pytest.approx(float((group == g).sum()))


def test_soft_or_missing_labels_are_refused_where_classes_matter():
    for bad in (tensor(0.5, 1.0), tensor(NAN, 1.0)):
        with pytest.raises(ValueError, match="labels"):
            pacs_weights(bad, zeros(2))
    torch.testing.assert_close(pacs_weights(tensor(0.5, 1.0), zeros(2), mode="none"), tensor(1.0, 1.0))


def test_unknown_names_are_refused():
    one = torch.ones(1, 1, dtype=F64)
    with pytest.raises(ValueError, match="ratio"):
        pacs_proxy(one, one, one.bool(), proxy="ratio")
    with pytest.raises(ValueError, match="gae"):
        pacs_center(one[0], zeros(1), score="gae")
    with pytest.raises(ValueError, match="balanced"):
        pacs_weights(one[0], zeros(1), mode="balanced")


def test_loss_is_finite_where_the_sigmoid_is_saturated():
    scores = tensor(-900.0, 400.0, 900.0).requires_grad_()
    loss = pacs_loss(scores, tensor(1.0, 0.0, 1.0), torch.ones(3, dtype=F64))
    assert loss.item() == pytest.approx(1300 / 3)
    loss.backward()
    torch.testing.assert_close(scores.grad, tensor(-1 / 3, 1 / 3, 0.0))


def test_shares_of_micro_batches_of_whole_groups_add_up():
    new, ref, mask, group, labels = random_rows(1)
    scores, weights = pacs_scores(new, ref, mask, group), pacs_weights(labels, group)
    whole = pacs_loss(scores, labels, weights)
    shares = [pacs_loss(scores[group == g], labels[group == g], weights[group == g], total=9) for g in group.unique()]
    torch.testing.assert_close(sum(shares), whole)


def test_gradient_is_the_closed_form_and_flows_through_the_baseline():
    new, ref, mask, group, labels = random_rows(2)
    beta, n = 0.7, len(labels)
    new.requires_grad_()
    weights = pacs_weights(labels, group)
    scores = pacs_scores(new, ref, mask, group, beta=beta)
    pacs_loss(scores, labels, weights).backward()
    residual = (weights * (scores.sigmoid() - labels) / n).detach()
    for j in range(n):
        siblings = residual[group == group[j]]
        size = len(siblings)
        slope = (size * residual[j] - siblings.sum()) / (size - 1)
        torch.testing.assert_close(new.grad[j], beta * slope * mask[j].to(F64))
        detached = beta * residual[j] * mask[j].to(F64)
        assert not torch.allclose(new.grad[j], detached)


def test_on_policy_the_gradient_is_rloo():
    new, _, mask, group, labels = random_rows(4)
    new.requires_grad_()
    scores = pacs_scores(new, new.detach(), mask, group)
    loss = pacs_loss(scores, labels, torch.ones_like(labels))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(new.grad, -leave_one_out(labels, group)[:, None] / len(labels) * mask)


def test_on_policy_both_classes_of_a_weighted_group_pull_alike():
    size, labels = 8, torch.tensor([1.0] + [0.0] * 7, dtype=F64)
    slope = pull(torch.zeros(size, dtype=F64), labels, pacs_weights(labels, zeros(size)), zeros(size))
    mass = size**2 / (4 * (size - 1) * size)
    assert slope[0].item() == pytest.approx(-mass)
    assert slope[1:].sum().item() == pytest.approx(mass)


def test_a_one_class_group_is_pulled_together_once_it_differs():
    ones = torch.ones(4, dtype=F64)
    at_start = pull(torch.zeros(4, dtype=F64), ones, ones, zeros(4))
    torch.testing.assert_close(at_start, torch.zeros(4, dtype=F64))
    later = pull(PROXIES, ones, ones, zeros(4))
    assert later[PROXIES.argmax()] > 0 > later[PROXIES.argmin()]


def test_the_grpo_score_is_tame_on_policy():
    noise = 1e-6 * tensor(0.3, -1.0, 0.5, 0.2)
    slope = pull(noise, LABELS, torch.ones(4, dtype=F64), zeros(4), score="grpo")
    assert slope.abs().max() < 1
    far = pull(noise * 1e6, LABELS, torch.ones(4, dtype=F64), zeros(4), score="grpo")
    assert torch.isfinite(far).all()
    assert far.abs().max() > 0


def test_bfloat16_log_probs_are_summed_as_float32_differences():
    tokens = 3000
    ref = torch.full((2, tokens), -1.0, dtype=torch.bfloat16)
    new = ref.clone()
    new[0] += 2**-7  # the smallest step of bfloat16 at 1
    mask = torch.ones(2, tokens, dtype=torch.bool)
    proxies = pacs_proxy(new, ref, mask)
    assert proxies.dtype == torch.float32
    assert proxies.tolist() == [tokens * 2**-7, 0.0]


def test_a_row_without_a_mask_is_no_sibling():
    new, ref, mask, group, _ = random_rows(6)
    mask[2] = False
    rest = [i for i in range(9) if i != 2]
    scores = pacs_scores(new, ref, mask, group)
    torch.testing.assert_close(scores[rest], pacs_scores(new[rest], ref[rest], mask[rest], group[rest]))
    assert scores[2] == 0
