from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from llmrl.algos.grpo import GRPO
from llmrl.batch import Needs
from llmrl.conformance.cases import random_batch, random_output


def gold_loss(algo, out, batch):
    """GRPO's equation, one token at a time, in Python floats."""
    total = 0.0
    for i in range(batch.rows):
        if not batch.mask[i].any():
            continue
        siblings = [
            batch.score[j].item() for j in range(batch.rows) if batch.group[j] == batch.group[i] and batch.mask[j].any()
        ]
        mean = sum(siblings) / len(siblings)
        std = (sum((s - mean) ** 2 for s in siblings) / max(len(siblings) - 1, 1)) ** 0.5
        advantage = batch.score[i].item() - mean
        if algo.advantage == "zscore":
            advantage /= std + 1e-4
        length = int(batch.mask[i].sum())
        denominator = {
            "token": float(batch.tokens_total),
            "sequence": length * float(batch.sequences_total),
            "constant": (algo.constant_tokens or 0) * float(batch.sequences_total),
        }[algo.normalize]
        for t in range(batch.mask.shape[1]):
            if not batch.mask[i, t]:
                continue
            new, old = out.logprobs[i, t].item(), batch.old_logprobs[i, t].item()
            ratio = torch.tensor(new - old, dtype=torch.float64).exp().item()
            clipped = min(max(ratio, 1 - algo.clip_low), 1 + algo.clip_high)
            loss = -min(ratio * advantage, clipped * advantage)
            if algo.importance_cap is not None:
                weight = torch.tensor(old - batch.logprobs[i, t].item(), dtype=torch.float64).exp().item()
                loss *= min(weight, algo.importance_cap)
            log_ratio = batch.ref_logprobs[i, t].item() - new
            k3 = torch.tensor(log_ratio, dtype=torch.float64).exp().item() - log_ratio - 1
            total += (loss + algo.kl_coef * k3) / denominator
            total -= algo.entropy_coef * out.entropy[i, t].item() / float(batch.tokens_total)
    return total


VARIANTS = [
    GRPO(),
    GRPO(advantage="center", normalize="constant", constant_tokens=12, importance_cap=None),
    GRPO(normalize="sequence", kl_coef=0.1, clip_high=0.2),
    GRPO(entropy_coef=0.01, kl_coef=0.05, importance_cap=1.2),
]


@pytest.mark.parametrize("algo", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_grpo_is_its_equation(algo, seed):
    batch = random_batch(seed, graded=seed == 2)
    out = random_output(batch, seed)
    loss = algo.loss(out, algo.credit(batch)).value
    assert loss.item() == pytest.approx(gold_loss(algo, out, batch), rel=1e-10)


def test_a_row_dropped_as_an_error_does_not_count_in_its_group():
    batch = random_batch(0)
    dead = ~batch.mask.any(dim=1)
    assert dead.sum() == 1
    assert torch.isnan(batch.score[dead]).all()
    credited = GRPO().credit(batch)
    without = GRPO().credit(batch.select((~dead).nonzero()[:, 0]))
    torch.testing.assert_close(credited.advantages[~dead][:, : without.mask.shape[1]], without.advantages)
    assert (credited.advantages[dead] == 0).all()


def test_a_uniform_group_has_exactly_zero_advantage_and_gradient():
    batch = random_batch(0)
    batch = replace(batch, score=torch.full_like(batch.score, 0.1))
    credited = GRPO().credit(batch)
    assert (credited.advantages == 0).all()
    out = random_output(batch, 0)
    GRPO().loss(out, credited).value.backward()
    assert (out.logprobs.grad == 0).all()


def test_without_old_logprobs_the_gradient_is_the_plain_policy_gradient():
    algo = GRPO(importance_cap=None)
    batch = algo.credit(replace(random_batch(1), old_logprobs=None))
    out = random_output(batch, 1)
    loss = algo.loss(out, batch)
    loss.value.backward()
    torch.testing.assert_close(out.logprobs.grad, -batch.advantages / batch.tokens_total)
    assert loss.metrics["ratio"].item() == pytest.approx(1.0)
    assert loss.metrics["clip_low"].item() == loss.metrics["clip_high"].item() == 0.0


def test_metrics_are_token_means():
    algo = GRPO(kl_coef=0.1, entropy_coef=0.1, importance_cap=1.1)
    batch = algo.credit(random_batch(4))
    out = random_output(batch, 4)
    metrics = algo.loss(out, batch).metrics
    where = batch.mask
    ratio = (out.logprobs - batch.old_logprobs).exp()[where]
    advantages = batch.advantages[where]
    weights = (batch.old_logprobs - batch.logprobs).exp()[where]
    expected = {
        "ratio": ratio.mean(),
        "clip_low": ((ratio < 0.8) & (advantages < 0)).double().mean(),
        "clip_high": ((ratio > 1.28) & (advantages > 0)).double().mean(),
        "importance": weights.clamp(max=1.1).mean(),
        "importance_capped": (weights >= 1.1).double().mean(),
        "entropy": out.entropy[where].mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), msg=lambda text, name=name: f"{name}: {text}")
    assert metrics["clip_low"] > 0
    assert metrics["clip_high"] > 0
    assert not any(value.requires_grad for value in metrics.values())


def test_needs_follow_the_coefficients():
    assert GRPO().needs == Needs(siblings=True, old_logprobs=True)
    assert GRPO(kl_coef=0.1).needs == Needs(siblings=True, old_logprobs=True, ref_logprobs=True)
    assert GRPO(entropy_coef=0.1).needs == Needs(siblings=True, old_logprobs=True, entropy=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"clip_low": -0.1},
        {"clip_low": 1.5},
        {"clip_high": -1.0},
        {"dual_clip": 1.0},
        {"kl_coef": -0.1},
        {"importance_cap": 0.0},
        {"entropy_coef": -1.0},
        {"normalize": "constant"},
        {"constant_tokens": 128},
        {"constant_tokens": 0, "normalize": "constant"},
        {"clip_low": float("nan")},
    ],
    ids=str,
)
def test_senseless_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        GRPO(**bad)


def test_the_dataclass_is_a_config_schema():
    adapter = TypeAdapter(GRPO)
    assert adapter.validate_python({"clip_high": 0.2, "normalize": "sequence"}) == GRPO(
        clip_high=0.2, normalize="sequence"
    )
    with pytest.raises(ValidationError, match="clip_low"):
        adapter.validate_python({"clip_low": -1.0})
    with pytest.raises(ValidationError):
        adapter.validate_python({"advantage": "rank"})


def test_loss_says_what_is_missing():
    batch = random_batch(0)
    out = random_output(batch, 0)
    with pytest.raises(ValueError, match="credit"):
        GRPO().loss(out, batch)
    with pytest.raises(ValueError, match="ref_logprobs"):
        GRPO(kl_coef=0.1).loss(out, GRPO().credit(replace(batch, ref_logprobs=None)))
    with pytest.raises(ValueError, match="entropy"):
        GRPO(entropy_coef=0.1).loss(replace(out, entropy=None), GRPO().credit(batch))
