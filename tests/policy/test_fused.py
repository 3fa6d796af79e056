"""Fused decoding: which models get it, and that its rounding is no worse than the model's own.

tests/rollout/test_native.py holds the engine that uses it to the reference engine.
"""

import pytest
import torch

from llmrl.policy.decode import KVCache, decoding_attention
from llmrl.policy.fused import FusedDecoder
from tests.tiny import random_model


def decoded(model, prompts, rows, newest, *, fused):
    """Log-probabilities [steps, rows, V] of a prompt's rows that are given `newest` [steps, rows] one by one."""
    device = torch.device("cpu")
    cache, packed, positions = KVCache.of_prompts(prompts, rows, device=device)
    lengths = torch.tensor([len(p) for p in prompts]).repeat_interleave(torch.tensor(rows))
    found = []
    with torch.no_grad(), decoding_attention(model.config):
        base = model.base_model
        base(input_ids=packed[None], position_ids=positions[None], use_cache=False, decoding=cache)
        decoder = FusedDecoder.of(model) if fused else None
        for step, tokens in enumerate(newest):
            cache.extend()
            if decoder is not None:
                hidden = decoder(tokens, lengths + step, cache)
            else:
                where = (lengths + step)[None]
                hidden = base(input_ids=tokens[None], position_ids=where, use_cache=False, decoding=cache)[0][0]
            found.append(model.lm_head(hidden).float().log_softmax(-1))
    return torch.stack(found)


def test_what_prompts_begin_with_alike_is_read_once():
    prompts, rows, cpu = [(5, 6, 8), (5, 6), (5, 6, 7)], [1, 2, 1], torch.device("cpu")
    cache, tokens, positions = KVCache.of_prompts(prompts, rows, device=cpu)
    assert (tokens.tolist(), positions.tolist()) == ([5, 6, 7, 8], [0, 1, 2, 2])
    assert cache.index.tolist() == [[0, 1, 3], [0, 1, -1], [0, 1, 2]] and cache.first.tolist() == [0, 1, 8, 2]
    _, tokens, positions = KVCache.of_prompts(prompts, rows, device=cpu, whole=[2])  # it has a picture
    assert (tokens.tolist(), positions.tolist()) == ([5, 6, 5, 6, 7, 5, 6, 8], [0, 1, 0, 1, 2, 0, 1, 2])


def example(steps=40):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 90, (size,), generator=generator).tolist() for size in (5, 9, 2)]
    return prompts, [3, 1, 4], torch.randint(3, 90, (steps, 8), generator=generator)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_numbers_are_the_models(kind, dtype):
    changes = {"sliding_window": None} if kind == "mistral" else {}
    model = random_model(kind, dtype=dtype, **changes).eval()
    assert FusedDecoder.of(model) is not None
    torch.testing.assert_close(
        decoded(model, *example(), fused=True), decoded(model, *example(), fused=False), rtol=0, atol=2e-5
    )


def test_in_bfloat16_it_is_no_further_from_float32_than_the_model():
    gaps = {False: [], True: []}
    for seed in range(4):
        exact = random_model(dtype=torch.float32, seed=seed).eval()
        rounded = random_model(dtype=torch.float32, seed=seed).eval().bfloat16()
        with torch.no_grad():
            for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
                one.copy_(other)
        truth = decoded(exact, *example(), fused=False)
        for fused, found in gaps.items():
            found.append(float((decoded(rounded, *example(), fused=fused) - truth).abs().mean()))
    assert 0 < sum(gaps[True]) < 1.2 * sum(gaps[False])


def test_other_layers_are_left_to_the_model():
    assert FusedDecoder.of(random_model("granite")) is None  # scales its residual sums
    assert FusedDecoder.of(random_model("gemma2", attn_logit_softcapping=None)) is None
    gelu = random_model()
    gelu.config.hidden_act = "gelu"
    assert FusedDecoder.of(gelu) is None


def test_wrapped_projections_are_left_to_the_model():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(random_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert FusedDecoder.of(adapted.get_base_model()) is None
