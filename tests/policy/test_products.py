"""float32 linear layers by oneDNN: the same numbers as torch's own within rounding, and everything else left alone."""

import pytest
import torch
from torch.nn.functional import linear

from llmrl import hardware
from llmrl.policy import prepacked, products
from llmrl.policy.forward import forward
from tests.tiny import random_batch, random_model

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN for linear layers"
)


@pytest.fixture
def preferred(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(prepacked, "onednn_is_faster", lambda packed: True)
    monkeypatch.setattr(products, "WORTH_IT", 0)


def example(*shape, outputs=24, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    x, weight = (torch.randn(*size, generator=generator, dtype=dtype) for size in (shape, (outputs, shape[-1])))
    own = torch.randn(outputs, generator=generator, dtype=dtype) if bias else None
    return [one if one is None else one.requires_grad_() for one in (x, weight, own)]


@pytest.mark.parametrize("shape", [(5, 8), (1, 300), (2, 3, 16), (40, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_float64(preferred, shape, bias):
    inputs = example(*shape, bias=bias)
    exact = [None if one is None else one.detach().double().requires_grad_() for one in inputs]
    with products.float32_products():
        out = linear(*inputs)
    assert "_Linear" in type(out.grad_fn).__name__
    wanted = linear(*exact)
    direction = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(direction.float())
    wanted.backward(direction)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(inputs, exact, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient(preferred):
    x, weight, bias = example(6, 8)
    weight.requires_grad_(False)
    with products.float32_products():
        linear(x, weight, bias).sum().backward()
    assert weight.grad is None and x.grad is not None and bias.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_types_stay_with_torch(preferred, dtype):
    inputs = example(5, 8, dtype=dtype)
    with products.float32_products():
        out = linear(*inputs)
    assert "_Linear" not in type(out.grad_fn).__name__
    assert torch.equal(out, linear(*inputs))


def test_products_of_few_numbers_stay_with_torch(preferred, monkeypatch):
    monkeypatch.setattr(products, "WORTH_IT", 2 * 5 * 8 * 24 + 1)
    with products.float32_products():
        assert "_Linear" not in type(linear(*example(5, 8)).grad_fn).__name__


def test_per_record_gradients_of_torch_func_still_work(preferred):
    x, weight, _ = example(6, 3, 8)
    with products.float32_products():
        per_record = torch.func.vmap(torch.func.grad(lambda w, row: linear(row, w).square().sum()), in_dims=(None, 0))
        found = per_record(weight.detach(), x.detach())
    alone = torch.stack(
        [torch.func.grad(lambda w, r=row: linear(r, w).square().sum())(weight.detach()) for row in x.detach()]
    )
    torch.testing.assert_close(found, alone)


def test_who_multiplies_is_told_by_vendor_and_instructions(monkeypatch):
    def found(vendor, *flags):
        monkeypatch.setattr(hardware, "cpu_vendor", lambda: vendor)
        monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
        return [hardware.onednn_is_faster.__wrapped__(packed=packed) for packed in (False, True)]

    both = torch.backends.mkl.is_available()
    assert found("GenuineIntel", "avx2", "avx512f") == found("", "avx2") == [False, False]
    assert found("AuthenticAMD", "avx2", "avx512f") == [both, both]
    assert found("AuthenticAMD", "avx2") == [False, both]


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_a_models_log_probabilities_and_gradients_are_the_same(preferred, monkeypatch, mode):
    model, batch = random_model(dtype=torch.float32), random_batch(seed=3)

    def found():
        model.zero_grad()
        out = forward(model, batch, mode=mode)
        out.logprobs.sum().backward()
        return out.logprobs.detach(), [p.grad.clone() for p in model.parameters()]

    ours, gradients = found()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    theirs, wanted = found()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for mine, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_packed_float32_weights_give_the_same_numbers(preferred):
    layer = torch.nn.Linear(16, 24)
    x = torch.randn(7, 16)
    with torch.no_grad():
        own = layer(x)
        with prepacked.prepacked_linears(layer):
            assert "forward" in layer.__dict__
            torch.testing.assert_close(layer(x), own)
        assert "forward" not in layer.__dict__
