"""The GPU's block-sparse attention: its mask against our blocks, its numbers against the packed forward's.

On a CPU FlexAttention runs forward only, so gradients are compared with dense attention under the same mask.
"""

import pytest
import torch

from llmrl.policy.flex import block_mask, flex_attention, sees
from llmrl.policy.forward import check_forward, forward
from llmrl.policy.packing import block_attention, pack
from tests.tiny import random_batch, random_model

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
LAYOUTS = [(4, 3, 1), (1,), (6,), (2, 5, 3, 1)]


def dense_mask(packing):
    index = torch.arange(packing.length)
    return sees(packing)(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])


def tensors(packing, dtype, heads=4, kv_heads=2, width=16):
    made = [torch.randn(n, packing.length, width, dtype=dtype) for n in (heads, kv_heads, kv_heads)]
    return [tensor.requires_grad_(True) for tensor in made]


def test_the_mask_by_hand():
    packing = pack(random_batch(0, groups=(2,)))
    size, (first, second) = int((packing.prompt >= 0).sum()), (packing.continuation[0, s] for s in range(2))
    mask = dense_mask(packing)
    assert packing.owner[:size].tolist() == [-1] * size
    assert mask[:size, :size].equal(torch.ones(size, size, dtype=torch.bool).tril())
    for own, other in ((first, second), (second, first)):
        own, other = own[own >= 0], other[other >= 0]
        assert mask[own][:, :size].all() and not mask[own][:, other].any()
        assert mask[own][:, own].equal(torch.ones(len(own), len(own), dtype=torch.bool).tril())


@pytest.mark.parametrize("groups", LAYOUTS, ids=str)
def test_dense_attention_under_the_mask_is_our_block_attention_with_its_gradients(groups):
    torch.manual_seed(0)
    packing = pack(random_batch(1, groups=groups, branching=True))
    query, key, value = tensors(packing, torch.float64)
    weights = torch.randn(4, packing.length, 16, dtype=torch.float64)
    wide = [x.repeat_interleave(2, 0) for x in (key, value)]
    dense = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=dense_mask(packing), scale=0.3)
    wanted = torch.autograd.grad((dense * weights).sum(), (query, key, value))
    blocks = block_attention(query, key, value, packing, scale=0.3)
    torch.testing.assert_close(blocks, dense)
    for mine, other in zip(torch.autograd.grad((blocks * weights).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("window", "cap"), [(None, None), (4, None), (3, 1.5)])
@pytest.mark.parametrize("groups", LAYOUTS, ids=str)
def test_flex_attention_gives_our_block_attention(groups, window, cap):
    torch.manual_seed(0)
    packing = pack(random_batch(1, groups=groups, branching=True))
    query, key, value = (x.detach() for x in tensors(packing, torch.float32))
    torch.testing.assert_close(
        flex_attention(query, key, value, block_mask(packing, window), scale=0.3, cap=cap),
        block_attention(query, key, value, packing, scale=0.3, window=window, cap=cap),
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_gives_the_same_log_probabilities_as_packed(kind):
    model = random_model(kind)
    batch = random_batch(3, groups=(4, 3, 1), branching=True)
    with torch.no_grad():
        flex, packed = (forward(model, batch, mode=mode).logprobs for mode in ("flex", "packed"))
    torch.testing.assert_close(flex, packed, rtol=1e-5, atol=1e-5)
    assert check_forward(model, batch, mode="flex", tolerance=1e-3) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_it_is_compiled_and_has_the_gradients_of_our_blocks(dtype):
    torch.manual_seed(0)
    packing = pack(random_batch(1, groups=(4, 3, 1))).to(torch.device("cuda"))
    query, key, value = (
        torch.randn(n, packing.length, 64, dtype=dtype, device="cuda", requires_grad=True) for n in (4, 2, 2)
    )
    found = {}
    for name in ("flex", "blocks"):
        if name == "flex":
            out = flex_attention(query, key, value, block_mask(packing), scale=0.125)
        else:
            out = block_attention(query, key, value, packing, scale=0.125)
        found[name] = [out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))]
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for mine, other in zip(found["flex"], found["blocks"], strict=True):
        torch.testing.assert_close(mine, other, **close)
