"""The optimizer: torch's AdamW in float32, float32 masters under bfloat16, clipping, refusal, exact round trips."""

import math

import pytest
import torch
from torch import nn

from llmrl.train.updater import Updater, learning_rate

SETTINGS = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def network(dtype=torch.float32, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def updater(model, *, max_grad_norm=1e9, **more):
    return Updater(list(model.named_parameters()), max_grad_norm=max_grad_norm, **{**SETTINGS, **more})


def data(step, rows=12):
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(rows, 6, generator=draw)


def backward(model, x, scale=1.0):
    out = model(x.to(next(model.parameters()).dtype)).float()
    (scale * out.square().sum()).backward()


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_in_float32_it_is_torchs_adamw_with_torchs_clipping():
    mine, theirs = network(), network()
    ours = updater(mine, max_grad_norm=0.5)
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.0, **SETTINGS)
    for step in range(6):
        lr = 0.01 * (step + 1)
        backward(mine, data(step))
        backward(theirs, data(step))
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        adam.zero_grad()
        size, applied = ours.step(lr)
        assert applied and size == pytest.approx(float(norm), rel=1e-5)
        for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_bfloat16_parameters_follow_their_float32_masters():
    """Steps far below bfloat16's resolution add up in the master and move the parameter in the end."""
    model = network(torch.bfloat16)
    ours = updater(model, weight_decay=0.0)
    start, moved_at = snapshot(model), None
    for step in range(200):
        backward(model, data(0))
        ours.step(1e-5)
        masters = {name: value for name, value in ours.state().items() if name.startswith("master/")}
        for name, p in model.named_parameters():
            assert masters[f"master/{name}"].dtype == torch.float32
            assert torch.equal(p, masters[f"master/{name}"].to(torch.bfloat16))
        if moved_at is None and any(not torch.equal(p, start[name]) for name, p in model.named_parameters()):
            moved_at = step
        if step == 0:
            gaps = [(masters[f"master/{name}"] - start[name].float()).abs().max() for name in start]
            assert 0.9e-5 < float(max(gaps)) < 1.1e-5  # Adam's first step, though the parameter cannot show it
    big = float((ours.state()["master/0.weight"] - start["0.weight"].float()).abs().max())
    assert moved_at is not None and big > 1e-3


def test_splitting_a_batch_leaves_the_float32_gradient_of_bfloat16_parameters():
    """Twelve micro-batches give the sum of their gradients in float32, not a sum rounded to bfloat16 twelve times."""
    model = network(torch.bfloat16)
    ours = updater(model)
    exact = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for x in data(0).split(1):
        grads = torch.autograd.grad(model(x.bfloat16()).float().square().sum(), list(model.parameters()))
        for total, grad in zip(exact.values(), grads, strict=True):
            total += grad.float()
    for x in data(0).split(1):
        backward(model, x)
        assert all(p.grad is None for p in model.parameters())
    norm, _ = ours.step(0.0)
    assert norm == pytest.approx(math.sqrt(sum(float(g.double().square().sum()) for g in exact.values())), rel=1e-6)


def test_the_norm_is_of_the_gradient_before_clipping_and_clipping_scales_all_of_it():
    first, second = network(), network()
    free, clipped = updater(first, betas=(0.0, 0.999)), updater(second, max_grad_norm=0.25, betas=(0.0, 0.999))
    backward(first, data(0))
    backward(second, data(0))
    size, _ = free.step(0.1)
    same, _ = clipped.step(0.1)
    assert size == same > 0.25
    for name in ("0.weight", "2.bias"):
        whole, small = free.state()[f"exp_avg/{name}"], clipped.state()[f"exp_avg/{name}"]
        torch.testing.assert_close(small, whole * (0.25 / size), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(dtype, bad):
    model = network(dtype)
    ours = updater(model)
    backward(model, data(0))
    ours.step(0.1)
    before = {name: value.clone() for name, value in ours.state().items()}
    parameters = snapshot(model)
    backward(model, data(1))
    backward(model, data(2), scale=bad)
    size, applied = ours.step(0.1)
    assert not applied and not math.isfinite(size)
    assert all(torch.equal(value, before[name]) for name, value in ours.state().items())
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    backward(model, data(3))  # and nothing of it is left for the next step
    alone = network(dtype)
    fresh = updater(alone)
    fresh.load(before)
    backward(alone, data(3))
    assert ours.step(0.1) == fresh.step(0.1)
    assert all(torch.equal(value, fresh.state()[name]) for name, value in ours.state().items())


def test_discard_forgets_gradients():
    model = network()
    ours = updater(model)
    backward(model, data(0))
    ours.discard()
    before = snapshot(model)
    size, applied = ours.step(0.0)
    assert (size, applied) == (0.0, True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_and_load_continue_bit_for_bit(dtype):
    straight, stopped = network(dtype), network(dtype)
    one, two = updater(straight), updater(stopped)
    for step in range(3):
        for model, optimizer in ((straight, one), (stopped, two)):
            backward(model, data(step))
            optimizer.step(0.03)
    saved = {name: value.clone() for name, value in two.state().items()}
    resumed = network(dtype, seed=9)
    three = updater(resumed)
    three.load(saved)
    assert three.state().keys() == saved.keys() == one.state().keys()
    assert {name.partition("/")[0] for name in saved} == {"master", "exp_avg", "exp_avg_sq", "step"}
    for step in range(3, 6):
        for model, optimizer in ((straight, one), (resumed, three)):
            backward(model, data(step))
            optimizer.step(0.03)
    assert all(torch.equal(value, three.state()[name]) for name, value in one.state().items())
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_state_of_another_model_is_refused_by_name():
    other = updater(nn.Sequential(nn.Linear(6, 8)))
    with pytest.raises(ValueError, match=r"another model: 2 weights differ, such as 2\.bias"):
        updater(network()).load(other.state())


def test_a_gradient_of_an_earlier_step_is_not_applied_again():
    model = network(torch.bfloat16)
    ours = updater(model, weight_decay=0.0)
    backward(model, data(0))
    ours.step(0.01)
    last = model[2]
    last.requires_grad_(False)  # nothing reaches the last layer in the second step
    backward(model, data(1))
    last.requires_grad_(True)
    size, _ = ours.step(0.01)
    expected = updater(network(torch.bfloat16))
    expected.load(ours.state())
    grads = [master.grad for name, master in ours._masters if name.startswith("0.")]
    assert size == pytest.approx(float(torch.stack([g.norm() for g in grads]).norm()), rel=1e-5)


def test_reduce_sees_every_gradient_before_the_norm():
    model, doubled = network(), network()
    plain = updater(model)
    seen = updater(doubled, reduce=lambda grad: grad.mul_(2))
    backward(model, data(0), scale=2.0)
    backward(doubled, data(0))
    assert seen.step(0.1) == plain.step(0.1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), doubled.parameters(), strict=True))


def test_a_parameter_without_gradient_is_only_decayed():
    model = network()
    ours = updater(model)
    model[0](data(0)).sum().backward()
    before = snapshot(model)
    ours.step(0.1)
    torch.testing.assert_close(model[2].weight.detach(), before["2.weight"] * (1 - 0.1 * 0.1))


RATES = {
    "constant": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.5, 1.0, 1.0, 0.75, 0.5, 0.25],
    "cosine": [0.5, 1.0, 1.0, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2)],
}


@pytest.mark.parametrize("schedule", RATES)
def test_learning_rates_by_hand(schedule):
    rates = [learning_rate(step, peak=1.0, total=6, warmup=2, schedule=schedule) for step in range(6)]
    assert rates == pytest.approx(RATES[schedule])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_warmup_starts_at_the_peak_and_no_step_has_a_rate_of_zero(schedule):
    rates = [learning_rate(step, peak=3e-6, total=50, warmup=0, schedule=schedule) for step in range(50)]
    assert rates[0] == 3e-6 and min(rates) > 0
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(3, peak=1.0, total=4, warmup=4, schedule=schedule) == 1.0
