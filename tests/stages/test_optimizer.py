"""AdamW on float32 copies against AdamW on float32 weights."""

import io

import torch
from torch import nn

from llmrl.stages.optimizer import MasterAdamW

SETTINGS = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def gradients(seed):
    """All of one sign, so that small steps add up."""
    return torch.rand(64, generator=torch.Generator().manual_seed(seed)).bfloat16()


def stepped(optimizer, parameter, seeds):
    for seed in seeds:
        parameter.grad = gradients(seed).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_small_steps_of_a_bfloat16_weight_are_those_of_float32_rounded_at_the_end():
    exact = nn.Parameter(torch.ones(64))
    rounded = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    stepped(torch.optim.AdamW([exact], **SETTINGS, fused=True), exact, range(50))
    stepped(MasterAdamW([rounded], **SETTINGS), rounded, range(50))
    assert torch.equal(rounded.detach(), exact.detach().bfloat16())
    lost = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    stepped(torch.optim.AdamW([lost], **SETTINGS, fused=True), lost, range(50))
    assert torch.equal(lost.detach(), torch.ones(64).bfloat16()) and (rounded < 1).all()


def test_state_stored_in_the_middle_and_loaded_without_pickle_goes_on_bit_for_bit():
    whole = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    stepped(MasterAdamW([whole], **SETTINGS), whole, range(10))
    half = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = MasterAdamW([half], **SETTINGS)
    stepped(optimizer, half, range(5))
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    stored.seek(0)
    again = nn.Parameter(half.detach().clone())
    other = MasterAdamW([again], **SETTINGS)
    other.load_state_dict(torch.load(stored, weights_only=True))
    stepped(other, again, range(5, 10))
    assert torch.equal(again, whole)
    assert all(m.dtype == torch.float32 for m in other.state_dict()["masters"])
