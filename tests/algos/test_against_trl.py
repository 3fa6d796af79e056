"""TRL's GRPO and RLOO losses as the judge, on the same tensors, with their forward pass replaced."""

import importlib
import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmrl.algos.cispo import CISPO
from llmrl.algos.grpo import GRPO
from llmrl.algos.gspo import GSPO
from llmrl.algos.rloo import RLOO
from llmrl.conformance.algorithms import build
from llmrl.conformance.cases import random_batch, random_output

LONGEST = 12


def trl_trainer(module, name):
    """The trainer class. Its loss needs no engine, and importing vLLM would take half a minute."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_, **__: False)
        return getattr(importlib.import_module(f"trl.trainer.{module}"), name)


def bare_trainer(trainer_class, out, *, low, high):
    """A trainer that was never set up, with the forward pass replaced by `out`."""
    trainer = object.__new__(trainer_class)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (out.logprobs, out.entropy, None)
    trainer.accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.aux_loss_enabled = False
    trainer.epsilon_low, trainer.epsilon_high = low, high
    return trainer


def trl_inputs(batch):
    mask = batch.mask.to(batch.logprobs.dtype)
    return {
        "prompt_ids": batch.tokens[:, :0],
        "prompt_mask": batch.tokens[:, :0],
        "completion_ids": batch.tokens,
        "completion_mask": mask,
        "advantages": batch.advantages.sum(dim=1) / mask.sum(dim=1),
        "num_items_in_batch": mask.sum(),
    }


@pytest.fixture(scope="module")
def trl_loss():
    """(out, credited batch, **settings) -> the loss of TRL's GRPOTrainer, with its graph."""
    trainer_class = trl_trainer("grpo_trainer", "GRPOTrainer")

    def compute(
        out, batch, *, loss_type, low=0.2, high=0.28, beta=0.0, cap=None, delta=None, level="token", entropy=0.0
    ):
        trainer = bare_trainer(trainer_class, out, low=low, high=high)
        trainer.args = SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1)
        trainer.loss_type, trainer.importance_sampling_level, trainer.beta = loss_type, level, beta
        trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = cap is not None
        trainer._entropy_bonus_enabled, trainer.entropy_coef = entropy != 0, entropy
        trainer.use_adaptive_entropy = False
        trainer.max_completion_length = LONGEST
        trainer.current_gradient_accumulation_steps = 1
        old = {"old_per_token_logps": batch.old_logprobs, "ref_per_token_logps": batch.ref_logprobs}
        inputs = trl_inputs(batch) | old
        if cap is not None:
            inputs["importance_sampling_ratio"] = (batch.old_logprobs - batch.logprobs).exp().clamp(max=cap)
        return trainer._compute_loss(None, inputs)

    return compute


@pytest.fixture(scope="module")
def trl_rloo_loss():
    """(out, credited batch, clip) -> the loss of TRL's RLOOTrainer, with its graph."""
    trainer_class = trl_trainer("rloo_trainer", "RLOOTrainer")

    def compute(out, batch, clip):
        trainer = bare_trainer(trainer_class, out, low=clip, high=clip)
        return trainer._compute_loss(None, trl_inputs(batch) | {"old_logps": (batch.old_logprobs * batch.mask).sum(1)})

    return compute


def whole_rows(seed):
    """TRL counts every row as a sequence: leave out the one without any mask."""
    batch = random_batch(seed, graded=seed % 2 == 1)
    return batch.select(batch.mask.any(dim=1).nonzero()[:, 0])


def assert_same_loss_and_gradient(algo, trl_loss, seed, **settings):
    batch = algo.credit(whole_rows(seed))
    ours, theirs = random_output(batch, seed, spread=0.6), random_output(batch, seed, spread=0.6)
    loss = algo.loss(ours, batch).value
    judge = trl_loss(theirs, batch, **settings)
    torch.testing.assert_close(loss, judge, rtol=1e-10, atol=1e-12)
    loss.backward()
    judge.backward()
    torch.testing.assert_close(ours.logprobs.grad, theirs.logprobs.grad, rtol=1e-10, atol=1e-12)
    assert ours.logprobs.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        (GRPO(importance_cap=None, normalize="sequence"), {"loss_type": "grpo"}),
        (build("dapo"), {"loss_type": "dapo"}),
        (build("dr_grpo", constant_tokens=LONGEST), {"loss_type": "dr_grpo", "high": 0.2}),
        (GRPO(importance_cap=1.3), {"loss_type": "dapo", "cap": 1.3}),
        (
            GRPO(importance_cap=2.0, kl_coef=0.1, normalize="sequence"),
            {"loss_type": "grpo", "cap": 2.0, "beta": 0.1},
        ),
        (GRPO(importance_cap=None, dual_clip=1.5), {"loss_type": "dapo", "delta": 1.5}),
        (
            GRPO(importance_cap=None, entropy_coef=0.05, normalize="sequence"),
            {"loss_type": "grpo", "entropy": 0.05},
        ),
        (GRPO(importance_cap=None, clip_low=0.1, clip_high=0.1), {"loss_type": "dapo", "low": 0.1, "high": 0.1}),
    ],
    ids=["sequence", "dapo", "dr_grpo", "importance", "importance and KL", "dual clip", "entropy", "narrow clip"],
)
def test_grpo_equals_trl(algo, settings, trl_loss, seed):
    assert_same_loss_and_gradient(algo, trl_loss, seed, **settings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        (GSPO(clip_low=0.1, clip_high=0.15), {"low": 0.1, "high": 0.15}),
        (GSPO(), {"low": 3e-4, "high": 4e-4}),
        (GSPO(clip_low=0.2, clip_high=0.2, kl_coef=0.1, importance_cap=1.5), {"high": 0.2, "beta": 0.1, "cap": 1.5}),
    ],
    ids=["wide", "default", "importance and KL"],
)
def test_gspo_equals_trl(algo, settings, trl_loss, seed):
    assert_same_loss_and_gradient(algo, trl_loss, seed, loss_type="grpo", level="sequence", **settings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        (CISPO(), {"high": 5.0}),
        (CISPO(ratio_cap=1.1), {"high": 1.1}),
        (CISPO(ratio_cap=1.5, kl_coef=0.1, importance_cap=1.5), {"high": 1.5, "beta": 0.1, "cap": 1.5}),
    ],
    ids=["default", "tight", "importance and KL"],
)
def test_cispo_equals_trl(algo, settings, trl_loss, seed):
    assert_same_loss_and_gradient(algo, trl_loss, seed, loss_type="cispo", **settings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clip", [0.2, 0.8])
def test_rloo_equals_trl(trl_rloo_loss, seed, clip):
    algo = RLOO(clip_low=clip, clip_high=clip)
    batch = algo.credit(whole_rows(seed))
    ours, theirs = random_output(batch, seed, spread=0.2), random_output(batch, seed, spread=0.2)
    loss, judge = algo.loss(ours, batch).value, trl_rloo_loss(theirs, batch, clip)
    torch.testing.assert_close(loss, judge, rtol=1e-10, atol=1e-12)
    loss.backward()
    judge.backward()
    torch.testing.assert_close(ours.logprobs.grad, theirs.logprobs.grad, rtol=1e-10, atol=1e-12)
    assert ours.logprobs.grad.abs().sum() > 0


def test_grpo_equals_trl_without_old_logprobs(trl_loss):
    algo = GRPO(importance_cap=None)
    batch = algo.credit(replace(whole_rows(0), old_logprobs=None))
    ours, theirs = random_output(batch, 0), random_output(batch, 0)
    algo.loss(ours, batch).value.backward()
    trl_loss(theirs, batch, loss_type="dapo").backward()
    torch.testing.assert_close(ours.logprobs.grad, theirs.logprobs.grad)
