"""The reference: the first policy, the policy of some steps ago, or an average; the policy itself stays untouched."""

import pytest
import torch

from llmrl.settings.model import ReferenceConfig
from llmrl.train.logprob_model import LogprobModel
from llmrl.train.reference import Reference
from llmrl.train.updater import Updater
from tests.tiny import random_batch, random_model


def setting(dtype=torch.float32, **config):
    """(reference, its policy, optimizer) of a tiny model in train mode."""
    model = random_model(dtype=dtype).train()
    named = list(model.named_parameters())
    updater = Updater(named, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9)
    logprob_model = LogprobModel(model=model, mode="packed", temperature=1.0, tokens_per_microbatch=4096)
    return Reference(ReferenceConfig(**config), updater, updater), logprob_model, updater


def learn(logprob_model, updater):
    for parameter in logprob_model.model.parameters():
        parameter.square().sum().backward()
    assert updater.step(1e-2)[1]


def test_a_fixed_reference_stays_the_first_policy_and_asking_it_changes_nothing():
    batch = random_batch(1)
    reference, logprob_model, updater = setting()
    first = logprob_model.logprobs(batch)
    for step in (1, 2):
        learn(logprob_model, updater)
        reference.follow(step)
        before = {name: p.detach().clone() for name, p in logprob_model.model.named_parameters()}
        assert torch.equal(reference.logprobs(logprob_model, batch), first)
        assert all(torch.equal(p, before[name]) for name, p in logprob_model.model.named_parameters())
    assert not torch.equal(logprob_model.logprobs(batch), first) and reference.state() == {}


def test_the_policy_comes_back_when_the_reference_fails():
    reference, logprob_model, updater = setting()
    learn(logprob_model, updater)
    batch = random_batch(1)
    policy = logprob_model.logprobs(batch)
    bad = batch.select(torch.arange(batch.rows))
    bad.mask[:, 0] = True
    with pytest.raises(ValueError, match="empty prompt"):
        reference.logprobs(logprob_model, bad)
    assert torch.equal(logprob_model.logprobs(batch), policy)


@pytest.mark.parametrize("reset_optimizer", [False, True])
def test_a_reset_takes_the_policy_of_that_step_and_may_restart_adam(reset_optimizer):
    batch = random_batch(1)
    reference, logprob_model, updater = setting(kind="reset_every", every=2, reset_optimizer=reset_optimizer)
    seen = [logprob_model.logprobs(batch)]
    for step in (1, 2, 3):
        learn(logprob_model, updater)
        reference.follow(step)
        seen.append(logprob_model.logprobs(batch))
        assert torch.equal(reference.logprobs(logprob_model, batch), seen[0 if step < 2 else 2])
        if step == 2:
            assert any(name.startswith("exp_avg/") for name in updater.state()) != reset_optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_is_the_decayed_mean_of_all_policies(dtype):
    reference, logprob_model, updater = setting(dtype, kind="ema", decay=0.75)
    wanted = {name: p.detach().float().clone() for name, p in logprob_model.model.named_parameters()}
    for step in (1, 2, 3):
        learn(logprob_model, updater)
        reference.follow(step)
        wanted = {n: 0.75 * wanted[n] + 0.25 * p.detach().float() for n, p in logprob_model.model.named_parameters()}
    for name, average in reference.state().items():
        assert average.dtype == torch.float32  # bfloat16 would lose small moves
        torch.testing.assert_close(average, wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", [{"kind": "reset_every", "every": 2}, {"kind": "ema", "decay": 0.5}])
def test_a_restored_reference_is_the_stored_one_bit_for_bit(config):
    batch = random_batch(1)
    reference, logprob_model, updater = setting(torch.bfloat16, **config)
    for step in (1, 2, 3):
        learn(logprob_model, updater)
        reference.follow(step)
    again, its_own, _ = setting(torch.bfloat16, **config)
    assert not torch.equal(again.logprobs(its_own, batch), reference.logprobs(logprob_model, batch))
    again.load({name: tensor.clone() for name, tensor in reference.state().items()})
    assert torch.equal(again.logprobs(its_own, batch), reference.logprobs(logprob_model, batch))
    with pytest.raises(ValueError, match="another model"):
        again.load({"other": torch.zeros(1)})
