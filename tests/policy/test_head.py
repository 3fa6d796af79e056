"""Log-probabilities and entropies of the output layer against their definition in float64."""

import pytest
import torch

from llmrl.policy import head
from llmrl.policy.head import OutputScaling, output_logits, token_logprobs
from tests.tiny import random_model


def inputs(positions=7, width=5, vocabulary=11, *, dtype=torch.float64, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=draw, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=draw, dtype=dtype)
    offset = torch.randn(vocabulary, generator=draw, dtype=dtype) if bias else None
    targets = torch.randint(0, vocabulary, (positions,), generator=draw)
    leaves = [tensor.requires_grad_() if tensor is not None else None for tensor in (hidden, weight, offset)]
    return *leaves, targets


def definition(hidden, weight, bias, targets, temperature, factor=1.0, cap=None):
    """softmax(cap tanh(factor (h W^T + b) / cap) / temperature), position by position and in plain words."""
    logprobs, entropies = [], []
    for row, target in zip(hidden, targets, strict=True):
        logits = factor * (weight @ row if bias is None else weight @ row + bias)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        probabilities = (logits / temperature).exp() / (logits / temperature).exp().sum()
        logprobs.append(probabilities[target].log())
        entropies.append(-(probabilities * probabilities.log()).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_definition(temperature, bias, factor, cap):
    ours, theirs = inputs(bias=bias), inputs(bias=bias)
    outputs = token_logprobs(*ours, temperature=temperature, scaling=OutputScaling(factor=factor, cap=cap))
    expected = definition(*theirs, temperature, factor, cap)
    mix = torch.linspace(-1, 1, 7, dtype=torch.float64)
    (outputs[0] @ mix + 0.3 * outputs[1] @ mix.flip(0)).backward()
    (expected[0] @ mix + 0.3 * expected[1] @ mix.flip(0)).backward()
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for mine, yours in zip(ours[:3], theirs[:3], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck_over_several_chunks(monkeypatch, temperature):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 2 * 11)  # 7 positions: chunks of 2, 2, 2, 1
    hidden, weight, bias, targets = inputs()

    def run(h, w, b):
        return token_logprobs(h, w, b, targets, temperature=temperature)

    assert torch.autograd.gradcheck(run, (hidden, weight, bias))


@pytest.mark.parametrize("elements", [1, 11, 12, 33, 76, 77, 78])
def test_chunk_borders_change_nothing(monkeypatch, elements):
    whole = inputs()
    value, entropy = token_logprobs(*whole)
    (value.sum() + entropy.square().sum()).backward()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    cut = inputs()
    value_cut, entropy_cut = token_logprobs(*cut)
    (value_cut.sum() + entropy_cut.square().sum()).backward()
    torch.testing.assert_close(value_cut, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(entropy_cut, entropy, rtol=1e-13, atol=1e-13)
    for mine, yours in zip(cut[:3], whole[:3], strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("elements", [1, 12, 33, 76])
@pytest.mark.parametrize("entropy", [True, False])
def test_slice_borders_inside_chunks_change_nothing(monkeypatch, elements, entropy):
    found = []
    for size in (elements, 10**6):
        monkeypatch.setattr(head, "SLICE_ELEMENTS", size)
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", 44)
        leaves = inputs()
        value, spread = token_logprobs(*leaves, temperature=0.7, entropy=entropy)
        (value.square().sum() + spread.sum()).backward()
        found.append([value, spread, *(leaf.grad for leaf in leaves[:3])])
    for mine, yours in zip(*found, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-13, atol=1e-14)
    assert bool((found[0][1] != 0).all()) == entropy


def test_entropy_alone_has_its_own_gradient():
    hidden, weight, bias, targets = inputs()
    token_logprobs(hidden, weight, bias, targets)[1].sum().backward()
    probabilities = torch.softmax(hidden.detach() @ weight.detach().T + bias.detach(), -1)
    entropy = -(probabilities * probabilities.log()).sum(-1, keepdim=True)
    by_hand = -probabilities * (probabilities.log() + entropy)
    torch.testing.assert_close(bias.grad, by_hand.sum(0), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(hidden.grad, by_hand @ weight.detach(), rtol=1e-10, atol=1e-13)


def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_do():
    hidden, weight, _, targets = inputs(bias=False)
    frozen = weight.detach()
    token_logprobs(hidden, frozen, None, targets)[0].sum().backward()
    assert frozen.grad is None
    assert float(hidden.grad.abs().sum()) > 0


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    weight = torch.tensor([[30.0], [-30.0], [0.0]], requires_grad=True)
    value, entropy = token_logprobs(hidden, weight, None, torch.tensor([1, 1]))
    assert value.tolist() == [-6000.0, 0.0]
    assert entropy.tolist() == [0.0, 0.0]
    (value.sum() + entropy.sum()).backward()
    assert bool(hidden.grad.isfinite().all()) and bool(weight.grad.isfinite().all())
    assert hidden.grad.tolist() == [[-60.0], [0.0]]  # W[1] - W[0], and nothing left to learn


def test_bfloat16_input_gives_float32_output_close_to_the_float64_definition():
    hidden, weight, bias, targets = inputs(64, 32, 50, dtype=torch.bfloat16)
    value, entropy = token_logprobs(hidden, weight, bias, targets)
    wide = [tensor.detach().double() for tensor in (hidden, weight, bias)]
    expected, expected_entropy = definition(*wide, targets, 1.0)
    assert value.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=0.15)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=0.15)
    value.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.bfloat16


def test_no_positions_give_no_values_and_zero_gradients():
    hidden, weight, bias, _ = inputs()
    value, entropy = token_logprobs(hidden[:0], weight, bias, torch.zeros(0, dtype=torch.int64))
    assert value.shape == entropy.shape == (0,)
    (value.sum() + entropy.sum()).backward()
    assert weight.grad.abs().sum() == 0 and bias.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("kind", "changes", "scaling"),
    [
        ("granite", {"logits_scaling": 4.0}, OutputScaling(factor=0.25)),
        ("cohere", {"logit_scale": 0.5}, OutputScaling(factor=0.5)),
        ("gemma2", {"final_logit_softcapping": 3.0}, OutputScaling(cap=3.0)),
        ("llama", {}, OutputScaling()),
    ],
)
def test_a_models_own_scaling_is_read_from_its_configuration_and_gives_its_logits(kind, changes, scaling):
    model = random_model(kind, **changes)
    assert OutputScaling.of(model) == scaling
    tokens = torch.tensor([[5, 77, 120, 9]])
    with torch.no_grad():
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(output_logits(model, hidden), model(input_ids=tokens).logits[0])
