"""Loading, LoRA, and the folders a policy leaves behind."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrl.errors import ConfigError
from llmrl.policy.forward import check_forward, forward
from llmrl.policy.model import check_vocabulary, load_policy, model_length
from llmrl.policy.resize import resized
from llmrl.settings.model import LoraConfig
from llmrl.settings.recipe import ModelConfig
from tests.tiny import random_batch, random_model, save_model

CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 77, 120, 9, 30, 200, 41]])


def load(source, *, dtype="float32", lora=None, seed=0, **more):
    policy = load_policy(
        ModelConfig(path="x", dtype=dtype, lora=lora, **more), source=str(source), device=CPU, seed=seed
    )
    if lora is not None:  # B starts at zero; give the adapter something to say
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return policy


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.float()


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=8.0)])
def test_a_saved_policy_reopens_with_the_same_logits(tmp_path, kind, lora):
    model = random_model(kind.partition("-")[0], tie_word_embeddings=kind.endswith("tied"))
    policy = load(save_model(tmp_path / "base", model), lora=lora)
    if lora is not None:
        assert float((logits(policy.causal_lm) - logits(model)).abs().max()) > 0.1
    policy.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(policy.causal_lm), rtol=1e-5, atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert tokenizer("a b")["input_ids"] == policy.tokenizer("a b")["input_ids"]
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert load(tmp_path / "saved").source == str(tmp_path / "saved")


def test_a_full_bfloat16_policy_is_saved_bit_for_bit(tiny_model, tmp_path):
    policy = load(tiny_model, dtype="bfloat16")
    policy.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert torch.equal(logits(again), logits(policy.causal_lm))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


def test_full_weights_have_the_models_own_names(tiny_model):
    policy = load(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    mine = dict(policy.weights())
    assert mine.keys() == dict(base.named_parameters()).keys()
    assert not any(tensor.requires_grad for tensor in mine.values())
    assert all(torch.equal(mine[name], tensor) for name, tensor in base.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"]])
def test_merged_weights_are_those_of_peft(tmp_path, dtype, target):
    source = save_model(tmp_path / "base", random_model("qwen2"))  # its q, k and v have biases
    policy = load(source, dtype=dtype, lora=LoraConfig(r=4, alpha=8.0, target=target))
    mine = {name: tensor.clone() for name, tensor in policy.weights()}
    before = dict(AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).named_parameters())
    merged = policy.model.merge_and_unload()
    theirs = dict(merged.named_parameters())
    assert mine.keys() == theirs.keys()
    changed = {name for name in mine if not torch.equal(mine[name], before[name])}
    wanted = {
        name
        for name in mine
        if name.endswith("proj.weight") and (target == "all-linear" or any(t in name for t in target))
    }
    assert changed == wanted
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        exact = 1e-6 if dtype == "float32" else 8e-3
        torch.testing.assert_close(mine[name], tensor, rtol=exact, atol=exact)


def test_weights_can_be_taken_again_and_again_without_merging_twice(tiny_model):
    policy = load(tiny_model, lora=LoraConfig(r=4))
    first = {name: tensor.clone() for name, tensor in policy.weights()}
    before = logits(policy.causal_lm)
    second = dict(policy.weights())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(policy.causal_lm), before)


def test_the_adapter_folder_loads_with_peft(tiny_model, tmp_path):
    from peft import PeftModel

    policy = load(tiny_model, lora=LoraConfig(r=4, alpha=8.0))
    policy.save(tmp_path / "saved")
    files = sorted(file.name for file in (tmp_path / "saved" / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    again = PeftModel.from_pretrained(base, tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(again), logits(policy.causal_lm), rtol=1e-6, atol=1e-6)


LORA_OPTIONS = [
    {"rslora": True}, {"dora": True}, {"init": "gaussian"}, {"init": "orthogonal"},
    {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed"]},
    {"rslora": True, "dora": True, "modules_to_save": ["embed", "lm_head"]},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # gpt2's layers hold their weights transposed
@pytest.mark.parametrize("options", LORA_OPTIONS, ids=str)
def test_every_option_of_an_adapter_is_exact_in_weights_and_folders(tmp_path, kind, options):
    from peft import PeftModel

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256} if kind == "gpt2" else {}
    base = save_model(tmp_path / "base", random_model(kind, tie_word_embeddings=False, **sizes))
    names = {"embed": "wte" if kind == "gpt2" else "embed_tokens"}
    options = {k: [names.get(n, n) for n in v] if isinstance(v, list) else v for k, v in options.items()}
    policy = load(base, lora=LoraConfig(r=4, alpha=8, **options))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    mine = logits(policy.causal_lm)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert float((mine - logits(plain)).abs().max()) > 0.1
    assert dict(policy.weights()).keys() == dict(plain.named_parameters()).keys()
    policy.save(tmp_path / "saved")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), mine, rtol=1e-5, atol=3e-5
    )
    again = PeftModel.from_pretrained(plain, tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(again), mine, rtol=1e-5, atol=1e-5)


def test_modules_trained_whole_are_what_the_packed_forward_reads_and_trains(tiny_model):
    policy = load(tiny_model, lora=LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        for name, parameter in policy.trainable():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    batch = random_batch(0)
    assert check_forward(policy.causal_lm, batch, mode="packed", tolerance=1e-3) is None
    forward(policy.causal_lm, batch, mode="packed").logprobs.sum().backward()
    moved = [name for name, p in policy.trainable() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert sum("modules_to_save" in name for name in moved) == 2


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "kaiming"])
def test_starts_of_an_adapter_that_are_not_exact_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"init={name}: .*; use default, gaussian or orthogonal"):
        LoraConfig(init=name)


def test_modules_that_cannot_be_trained_whole_are_refused(tmp_path):
    tied = save_model(tmp_path / "m", random_model(tie_word_embeddings=True))
    with pytest.raises(ConfigError, match="embed_tokens shares its weight"):
        load(tied, lora=LoraConfig(modules_to_save=["embed_tokens"]))
    with pytest.raises(ConfigError, match=r"no module 'lm_heat'; did you mean .*lm_head"):
        load(tied, lora=LoraConfig(modules_to_save=["lm_heat"]))


def test_only_the_adapter_trains_and_it_starts_as_the_base_model(tiny_model):
    policy = load_policy(
        ModelConfig(path="x", dtype="float32", lora=LoraConfig(r=4)), source=str(tiny_model), device=CPU, seed=0
    )
    names = [name for name, _ in policy.trainable()]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert torch.equal(logits(policy.causal_lm), logits(random_model()))


def test_the_adapters_start_is_keyed_by_the_seed_and_leaves_the_global_state_alone(tiny_model):
    def start(seed):
        policy = load(tiny_model, lora=LoraConfig(r=4), seed=seed)
        return next(p.detach().clone() for name, p in policy.trainable() if "lora_A" in name)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = start(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, start(1))
    assert not torch.equal(first, start(2))


@pytest.mark.parametrize("target", [["lm_head"], ["q_proj", "embed_tokens"]])
def test_an_adapter_on_the_embedding_or_output_layer_is_refused(tiny_model, target):
    with pytest.raises(ConfigError, match=r"model\.lora\.target"):
        load(tiny_model, lora=LoraConfig(r=4, target=target))


def test_a_misspelt_target_says_so(tiny_model):
    with pytest.raises(ConfigError, match=r"model\.lora\.target.*q_prox"):
        load(tiny_model, lora=LoraConfig(r=4, target=["q_prox"]))


@pytest.mark.parametrize("setting", [{"attention_dropout": 0.1}, {"resid_pdrop": 0.2, "embd_pdrop": 0.1}])
def test_dropout_is_set_to_zero_and_said(tmp_path, setting):
    kind = "llama" if "attention_dropout" in setting else "gpt2"
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    policy = load(save_model(tmp_path / "m", random_model(kind, **sizes, **setting)))
    assert policy.model.training
    assert torch.equal(logits(policy.model), logits(policy.model))
    (note,) = policy.notes
    assert "set to 0" in note and all(f"{name} {value}" in note for name, value in setting.items())


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_said_and_refused_when_they_are_used(tmp_path):
    policy = load(save_model(tmp_path / "m", random_model(vocab_size=259)))
    assert "knows 261 tokens" in policy.notes[0] and "embeddings of 259" in policy.notes[0]
    check_vocabulary(policy, [5, 258])
    with pytest.raises(ConfigError, match=r"token 260 .* is used; model\.resize=true"):
        check_vocabulary(policy, [5, 260])


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_has_the_mean_in_its_new_rows_and_is_trained_and_saved(tmp_path, tied):
    small = random_model(vocab_size=259, tie_word_embeddings=tied)
    source = str(save_model(tmp_path / "m", small))
    grown = resized(source, cache_dir=tmp_path / "cache")
    assert resized(source, cache_dir=tmp_path / "cache") == grown != source
    assert resized(grown, cache_dir=tmp_path / "cache") == grown
    policy = load(grown)
    assert policy.notes == ()
    for layer, old in (
        (policy.model.get_input_embeddings(), small.get_input_embeddings()),
        (policy.model.get_output_embeddings(), small.get_output_embeddings()),
    ):
        assert torch.equal(layer.weight[:259], old.weight)
        for row in layer.weight[259:]:
            torch.testing.assert_close(row, old.weight.mean(0))
    assert (policy.model.get_input_embeddings().weight is policy.model.get_output_embeddings().weight) == tied
    torch.testing.assert_close(logits(policy.model)[..., :259], logits(small))
    tokens = torch.tensor([[5, 260, 9]])
    policy.model(input_ids=tokens, labels=tokens).loss.backward()
    assert float(policy.model.get_input_embeddings().weight.grad[260].abs().max()) > 0
    policy.save(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.vocab_size == 261


def test_a_tied_weight_is_trained_once(tmp_path):
    policy = load(save_model(tmp_path / "m", random_model(tie_word_embeddings=True)))
    names = [name for name, _ in policy.trainable()]
    assert names.count("model.embed_tokens.weight") == 1 and "lm_head.weight" not in names


def test_the_models_length_is_read_from_its_folder(tiny_model, tmp_path):
    assert model_length(str(tiny_model)) == 256
    assert model_length("org/name") is None
    shutil.copy(tiny_model / "config.json", tmp_path / "config.json")
    changed = {
        key: value for key, value in json.loads((tmp_path / "config.json").read_text()).items() if "max_pos" not in key
    }
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert model_length(str(tmp_path)) is None
