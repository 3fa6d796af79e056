import math
from dataclasses import replace

import pytest
import torch

from llmrl.algos.pacs import PACS
from llmrl.batch import Needs
from llmrl.conformance import definitions as slow
from llmrl.conformance.cases import random_batch, random_output


def alive_rows(batch):
    return batch.mask.any(dim=1).nonzero()[:, 0]


@pytest.mark.parametrize(
    "algo",
    [
        PACS(),
        PACS(beta=0.5, score="drgrpo", weight="none", reference="model"),
        PACS(proxy="mean_logprob", score="naive", weight="only_positive"),
        PACS(score="grpo", weight="only_negative"),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_pacs_is_its_equation(algo, seed):
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss = algo.loss(out, algo.credit(batch))
    rows = alive_rows(batch)
    ref = batch.ref_logprobs if algo.reference == "model" else batch.old_logprobs
    group = batch.group[rows].tolist()
    scores = slow.pacs_scores(
        out.logprobs[rows].tolist(),
        ref[rows].tolist(),
        batch.mask[rows].tolist(),
        group,
        algo.beta,
        algo.proxy,
        algo.score,
    )
    labels = batch.score[rows].tolist()
    weights = slow.pacs_weights(labels, group, algo.weight)
    assert loss.value.item() == pytest.approx(slow.pacs_loss(scores, labels, weights), rel=1e-10)
    assert loss.metrics["policy_loss"].item() == pytest.approx(loss.value.item())
    right = sum((psi > 0) == (label == 1) for psi, label in zip(scores, labels, strict=True))
    assert loss.metrics["label_accuracy"].item() == pytest.approx(right / len(rows))
    psi_right = sum(psi * label for psi, label in zip(scores, labels, strict=True)) / sum(labels)
    assert (loss.metrics["psi_right"] / loss.metrics["right"]).item() == pytest.approx(psi_right)


def test_diagnostics_by_hand():
    batch = random_batch(0, sizes=(2, 2))
    mask = batch.mask & (torch.arange(batch.mask.shape[1]) == 4)
    mask = torch.where(mask.any(dim=1, keepdim=True), mask, torch.arange(batch.mask.shape[1]) == 4)
    batch = replace(
        batch,
        mask=mask,
        group=torch.tensor([0, 0, 1, 1]),
        score=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64),
        old_logprobs=torch.zeros_like(batch.logprobs),
        sequences_total=torch.tensor(4.0, dtype=torch.float64),
        tokens_total=torch.tensor(4.0, dtype=torch.float64),
    )
    proxies = torch.tensor([10.0, 1.0, 0.5, 1.5], dtype=torch.float64)  # psi: 9, -9, -1, 1
    out = replace(random_output(batch, 0), logprobs=proxies[:, None].expand(mask.shape))
    metrics = {name: value.item() for name, value in PACS().loss(out, batch).metrics.items()}
    expected = {
        "right": 3 / 4,
        "psi_right": (9 - 1 + 1) / 4,
        "psi_wrong": -9 / 4,
        "label_accuracy": 3 / 4,
        "saturated": 2 / 4,
        "drift": 13 / 4,
        "one_class": 2 / 4,
        "ratio": proxies.exp().mean().item(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name


def test_with_one_update_per_rollout_pacs_is_rloo_and_says_so():
    algo = PACS(weight="none")
    batch = replace(random_batch(1), old_logprobs=None)
    out = random_output(batch, 1)
    loss = algo.loss(out, batch)
    assert loss.value.item() == pytest.approx(math.log(2))
    loss.value.backward()
    rows = alive_rows(batch)
    leave_one_out = slow.leave_one_out(batch.score[rows].tolist(), batch.group[rows].tolist())
    expected = torch.zeros_like(out.logprobs)
    expected[rows] = -torch.tensor(leave_one_out, dtype=torch.float64)[:, None] / len(rows) * batch.mask[rows]
    torch.testing.assert_close(out.logprobs.grad, expected)
    (remark,) = algo.warnings(updates=1)
    assert "RLOO" in remark
    assert algo.warnings(updates=4) == PACS(reference="model").warnings(updates=1) == []


def test_the_score_function_term_pushes_every_answer_down_by_its_cross_entropy():
    batch = replace(random_batch(2), old_logprobs=None)
    gradients = []
    for score_function in (False, True):
        out = random_output(batch, 2)
        loss = PACS(weight="none", score_function=score_function).loss(out, batch)
        assert loss.value.item() == pytest.approx(math.log(2))
        loss.value.backward()
        gradients.append(out.logprobs.grad)
    rows = alive_rows(batch)
    torch.testing.assert_close(gradients[1] - gradients[0], batch.mask.to(torch.float64) * math.log(2) / len(rows))


def test_graded_scores_become_labels_by_the_threshold():
    batch = random_batch(3)
    out = random_output(batch, 3)
    graded = replace(batch, score=torch.where(batch.score == 1, 1.2, 0.2).to(torch.float64))
    torch.testing.assert_close(PACS().loss(out, graded).value, PACS().loss(out, batch).value)
    everything_right = PACS(label_above=0.1).loss(out, graded)
    assert everything_right.metrics["right"].item() == pytest.approx(1.0)


def test_needs_follow_the_reference():
    whole = Needs(siblings=True, whole_groups=True, old_logprobs=True)
    assert PACS().needs == whole
    assert PACS(reference="model").needs == replace(whole, ref_logprobs=True)
    unused = PACS(reference="model", proxy="mean_logprob")
    assert unused.needs == PACS().needs and "nothing" in unused.warnings(updates=4)[0]
    batch = replace(random_batch(0), ref_logprobs=None)
    with pytest.raises(ValueError, match="ref_logprobs"):
        PACS(reference="model").loss(random_output(batch, 0), batch)


def test_the_report_gives_the_mean_logit_of_each_class():
    batch = random_batch(4)
    out = random_output(batch, 4)
    algo = PACS()
    report = algo.derived_metrics({name: x.item() for name, x in algo.loss(out, batch).metrics.items()})
    rows = alive_rows(batch)
    mask = batch.mask[rows].tolist()
    psi = slow.pacs_scores(
        out.logprobs[rows].tolist(), batch.old_logprobs[rows].tolist(), mask, batch.group[rows].tolist(), 1.0,
        "log_ratio", "rloo",
    )  # fmt: skip
    for name, label in (("psi_right_mean", 1.0), ("psi_wrong_mean", 0.0)):
        of_class = [x for x, score in zip(psi, batch.score[rows].tolist(), strict=True) if score == label]
        assert report[name] == pytest.approx(sum(of_class) / len(of_class))


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_senseless_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        PACS(beta=beta)
