"""Packed = plain = the model's own logits, for values and gradients; and models that cannot be packed are noticed."""

from dataclasses import replace

import pytest
import torch

from llmrl.policy.forward import check_forward, forward
from llmrl.policy.model import load_policy
from llmrl.settings.model import LoraConfig
from llmrl.settings.recipe import ModelConfig
from llmrl.train.collate import collate
from tests.tiny import random_batch, random_model, random_trajectories, save_model, trajectory

CPU = torch.device("cpu")
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {
    "llama, one key-value head": ("llama", {}),
    "llama, as many key-value heads as heads": ("llama", {"num_key_value_heads": 2}),
    "llama, four heads of 16 on two": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, attention biases": ("llama", {"attention_bias": True}),
    "qwen2, biases on q, k and v": ("qwen2", {}),
    "qwen3, q and k norms": ("qwen3", {}),
    "qwen3, mixture of experts": ("qwen3_moe", MOE),
    "mistral, long window": ("mistral", {"sliding_window": 64}),
}


def by_the_model(model, batch, temperature=1.0):
    """Row by row through the model's own forward, no padding, no mask: [B, T] log-probs and entropies."""
    logprobs, entropies = [], []
    for row in range(batch.rows):
        tokens = batch.tokens[row, : batch.length[row]]
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1] / temperature
        table = logits.log_softmax(-1)
        pad = (1, batch.tokens.shape[1] - len(tokens))
        chosen = table.gather(1, tokens[1:, None]).squeeze(1)
        logprobs.append(torch.nn.functional.pad(chosen, pad))
        entropies.append(torch.nn.functional.pad(-(table.exp() * table).sum(-1), pad))
    return torch.stack(logprobs).where(batch.mask, 0.0), torch.stack(entropies).where(batch.mask, 0.0)


def gradients(model, values, weights):
    model.zero_grad()
    (values * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(mine, yours, tolerance):
    assert mine.keys() == yours.keys()
    size = max(float(grad.abs().max()) for grad in yours.values())
    assert size > 0
    for name, grad in yours.items():
        gap = float((mine[name] - grad).abs().max())
        assert gap <= tolerance * max(size * 1e-2, float(grad.abs().max())), f"{name}: {gap}"


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_plain_are_the_models_own_numbers_in_float64(name):
    kind, changes = MODELS[name]
    wide = kind != "qwen3_moe"  # torch has no float64 kernel for experts
    model = random_model(kind, dtype=torch.float64 if wide else torch.float32, **changes)
    batch = random_batch(3, branching=True)
    weights = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(1))
    expected, expected_entropy = by_the_model(model, batch, temperature=0.8)
    wanted = gradients(model, expected + 0.1 * expected_entropy, weights)
    for mode in ("packed", "plain"):
        out = forward(model, batch, mode=mode, temperature=0.8, entropy=True)
        # transformers keeps norms in float32 even here, hence no tighter
        torch.testing.assert_close(out.logprobs, expected, rtol=1e-5, atol=1e-5 if wide else 3e-5)
        torch.testing.assert_close(out.entropy, expected_entropy, rtol=1e-5, atol=1e-5 if wide else 3e-5)
        assert_same(gradients(model, out.logprobs + 0.1 * out.entropy, weights), wanted, 1e-4 if wide else 1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_packed_is_the_models_own_in_float32_on_many_layouts(seed):
    model = random_model()
    sizes = [(4, 3, 1), (1,), (6,), (2, 5, 3, 1), (1, 1, 1)][seed]
    batch = random_batch(seed, groups=sizes, branching=True)
    expected, _ = by_the_model(model, batch)
    weights = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(seed))
    wanted = gradients(model, expected, weights)
    out = forward(model, batch, mode="packed")
    torch.testing.assert_close(out.logprobs, expected, rtol=1e-5, atol=3e-5)
    assert out.entropy is None
    assert_same(gradients(model, out.logprobs, weights), wanted, 1e-3)


def test_row_order_and_a_split_group_change_nothing():
    model = random_model(dtype=torch.float64)
    batch = random_batch(5, groups=(5, 3))
    whole = forward(model, batch, mode="packed").logprobs
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(0))
    moved = forward(model, batch.select(order), mode="packed").logprobs
    torch.testing.assert_close(moved, whole[order][:, : moved.shape[1]], rtol=1e-6, atol=1e-6)
    for part in order.split(3):  # pieces of groups, mixed
        cut = forward(model, batch.select(part), mode="packed").logprobs
        torch.testing.assert_close(cut, whole[part][:, : cut.shape[1]], rtol=1e-6, atol=1e-6)


def test_an_environments_tokens_are_seen_but_not_scored():
    model = random_model(dtype=torch.float64)
    before = collate([trajectory((7, 8), [[20, 21], [30, 31], [22]])])
    other = collate([trajectory((7, 8), [[20, 21], [30, 99], [22]])])
    first, second = (forward(model, batch, mode="packed").logprobs[0] for batch in (before, other))
    assert before.mask[0].tolist() == [False, False, True, True, False, False, True]
    assert (first != 0).tolist() == before.mask[0].tolist()
    assert torch.equal(first[:4], second[:4])
    assert float((first[6] - second[6]).detach().abs()) > 1e-3  # the reply is read before the second turn


def test_nothing_outside_the_mask_and_nothing_for_rows_without_one():
    model = random_model()
    batch = random_batch(2)
    empty = ~batch.mask.any(1)
    assert int(empty.sum()) == 1
    out = forward(model, batch, mode="packed", entropy=True)
    assert bool((out.logprobs[~batch.mask] == 0).all()) and bool((out.entropy[~batch.mask] == 0).all())
    without = batch.select((~empty).nonzero().squeeze(1))
    alone = forward(model, without, mode="packed").logprobs
    torch.testing.assert_close(out.logprobs[~empty][:, : alone.shape[1]], alone, rtol=1e-5, atol=1e-5)


def test_a_batch_without_any_mask_gives_zeros():
    batch = collate([trajectory((5, 6), [[7]], reward=None)])
    for mode in ("packed", "plain"):
        assert forward(random_model(), batch, mode=mode).logprobs.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_a_sampled_first_token_is_refused(mode):
    rows = [trajectory((5, 6), [[7]]), trajectory((), [[5, 6, 7]], group="x")]
    with pytest.raises(ValueError, match="nothing before it"):
        forward(random_model(), collate(rows), mode=mode)


def test_bfloat16_stays_near_float32():
    batch = random_batch(4)
    exact = forward(random_model(), batch, mode="plain").logprobs
    rounded = forward(random_model(dtype=torch.bfloat16), batch, mode="packed").logprobs
    assert rounded.dtype == torch.float32
    gap = (rounded - exact).detach().abs()
    assert float(gap.max()) < 0.25 and float(gap.mean()) < 0.05


def test_the_models_attention_is_left_as_it_was():
    model = random_model()
    before = model.config._attn_implementation
    forward(model, random_batch(0), mode="packed")
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, lora):
    batch = random_batch(6)
    found = []
    for checkpointing in (False, True):
        config = ModelConfig(path="x", dtype="float32", gradient_checkpointing=checkpointing, lora=lora)
        model = load_policy(config, source=str(tiny_model), device=CPU, seed=0).causal_lm
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide half of the gradients
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        out = forward(model, batch, mode="packed")
        found.append(gradients(model, out.logprobs, batch.mask.float()))
    assert_same(found[1], found[0], 1e-4)


def test_supported_models_pass_the_check():
    for kind, changes in MODELS.values():
        for mode in ("packed", "plain"):
            assert check_forward(random_model(kind, **changes), random_batch(0), mode=mode, tolerance=1e-3) is None


def test_the_rounding_of_large_logits_is_no_reason_not_to_pack_and_wrong_rows_still_are():
    model, batch = random_model(dtype=torch.bfloat16), collate(random_trajectories(1))
    with torch.no_grad():
        logits = model(input_ids=batch.tokens).logits
        model.lm_head.weight.mul_(40 / logits.abs().max())
    assert check_forward(model, batch, mode="packed", tolerance=1e-3) is None
    assert "differ by" in check_forward(
        model, replace(batch, prompt_length=batch.prompt_length + 1), mode="packed", tolerance=1e-3
    )


CAPS_AND_WINDOWS = {
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "granite": {"logits_scaling": 4.0},
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("mode", ["packed", "plain", "flex"])
@pytest.mark.parametrize("kind", CAPS_AND_WINDOWS)
def test_windows_caps_and_scales_are_the_models_own(kind, mode):
    model = random_model(kind, **CAPS_AND_WINDOWS[kind])
    model.config._attn_implementation = "eager"  # the default leaves Gemma 2's cap on scores out
    assert check_forward(model, random_batch(0), mode=mode, tolerance=1e-3) is None


@pytest.mark.parametrize("kind", CAPS_AND_WINDOWS)
def test_gradients_through_windows_caps_and_scales_are_those_of_the_plain_forward(kind):
    batch, found = random_batch(0), {}
    for mode in ("packed", "plain"):
        model = random_model(kind, **CAPS_AND_WINDOWS[kind])
        model.config._attn_implementation = "eager"
        forward(model, batch, mode=mode).logprobs.sum().backward()
        found[mode] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found["packed"].keys() == found["plain"].keys()
    for name, gradient in found["packed"].items():
        torch.testing.assert_close(gradient, found["plain"][name], rtol=1e-3, atol=1e-3)


def test_a_model_that_ignores_the_packing_is_noticed():
    """A recurrent model reads all siblings as one text; only the numbers can tell."""
    model = random_model("mamba", state_size=8, expand=2, num_attention_heads=2)
    assert check_forward(model, random_batch(0), mode="packed", tolerance=1e-3) is not None


def test_rows_that_do_not_share_what_they_claim_to_are_noticed():
    batch = collate(random_trajectories(1))
    shorter = replace(batch, prompt_length=(batch.prompt_length - 1).clamp_min(1))
    longer = replace(batch, prompt_length=batch.prompt_length + 1)
    assert check_forward(random_model(), shorter, mode="packed", tolerance=1e-3) is None  # also true, if wasteful
    assert "differ by" in check_forward(random_model(), longer, mode="packed", tolerance=1e-3)


def test_saved_folders_reopen(tmp_path):
    folder = save_model(tmp_path / "m", random_model("qwen2"))
    policy = load_policy(ModelConfig(path="x", dtype="float32"), source=str(folder), device=CPU, seed=0)
    batch = random_batch(1)
    expected, _ = by_the_model(random_model("qwen2"), batch)
    got = forward(policy.causal_lm, batch, mode="packed").logprobs
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=3e-5)


def test_completions_of_one_token_are_packed_too():
    rows = [
        trajectory((7, 8, 9 + group), [[20 + sample]], group=f"g{group}") for group in (0, 1) for sample in range(3)
    ]
    packed, plain = (forward(random_model(), collate(rows), mode=mode).logprobs for mode in ("packed", "plain"))
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
