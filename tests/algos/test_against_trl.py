"""TRL's GRPO loss as the judge, on the same tensors: its `_compute_loss` runs with the forward pass replaced."""

import importlib
import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmrl.algos.grpo import GRPO
from llmrl.conformance.cases import random_batch, random_output

LONGEST = 12


@pytest.fixture(scope="module")
def trl_loss():
    """(out, credited batch, **settings) -> TRL's loss with the graph attached."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        # Its loss needs no engine, and importing vLLM would take half a minute.
        patch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda *_, **__: False)
        from trl.trainer.grpo_trainer import GRPOTrainer

    def compute(
        out, batch, *, loss_type, low=0.2, high=0.28, beta=0.0, cap=None, delta=None, level="token", entropy=0.0
    ):
        trainer = object.__new__(GRPOTrainer)
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (out.logprobs, out.entropy, None)
        trainer.accelerator = SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
        )
        trainer.args = SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1)
        trainer.model = SimpleNamespace(training=True)
        trainer._metrics = {"train": defaultdict(list)}
        trainer.loss_type, trainer.importance_sampling_level = loss_type, level
        trainer.epsilon_low, trainer.epsilon_high, trainer.beta = low, high, beta
        trainer.top_entropy_quantile, trainer.aux_loss_enabled, trainer.off_policy_mask_threshold = 1.0, False, None
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = cap is not None
        trainer._entropy_bonus_enabled, trainer.entropy_coef = entropy != 0, entropy
        trainer.use_adaptive_entropy = False
        trainer.max_completion_length = LONGEST
        trainer.current_gradient_accumulation_steps = 1
        mask = batch.mask.to(out.logprobs.dtype)
        inputs = {
            "prompt_ids": batch.tokens[:, :0],
            "prompt_mask": batch.tokens[:, :0],
            "completion_ids": batch.tokens,
            "completion_mask": mask,
            "advantages": batch.advantages.sum(dim=1) / mask.sum(dim=1),
            "old_per_token_logps": batch.old_logprobs,
            "ref_per_token_logps": batch.ref_logprobs,
            "num_items_in_batch": mask.sum(),
        }
        if cap is not None:
            inputs["importance_sampling_ratio"] = (batch.old_logprobs - batch.logprobs).exp().clamp(max=cap)
        return trainer._compute_loss(None, inputs)

    return compute


def whole_rows(seed):
    """TRL counts every row as a sequence: leave out the one without any mask."""
    batch = random_batch(seed, graded=seed % 2 == 1)
    return batch.select(batch.mask.any(dim=1).nonzero()[:, 0])


def same_loss_and_gradient(algo, trl_loss, seed, **settings):
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
        (GRPO(importance_cap=None), {"loss_type": "dapo"}),
        (
            GRPO(importance_cap=None, normalize="constant", constant_tokens=LONGEST, advantage="center"),
            {"loss_type": "dr_grpo"},
        ),
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
    ids=["sequence", "token", "constant", "importance", "importance and KL", "dual clip", "entropy", "narrow clip"],
)
def test_grpo_equals_trl(algo, settings, trl_loss, seed):
    same_loss_and_gradient(algo, trl_loss, seed, **settings)


def test_grpo_equals_trl_without_old_logprobs(trl_loss):
    algo = GRPO(importance_cap=None)
    batch = algo.credit(replace(whole_rows(0), old_logprobs=None))
    ours, theirs = random_output(batch, 0), random_output(batch, 0)
    algo.loss(ours, batch).value.backward()
    trl_loss(theirs, batch, loss_type="dapo").backward()
    torch.testing.assert_close(ours.logprobs.grad, theirs.logprobs.grad)
