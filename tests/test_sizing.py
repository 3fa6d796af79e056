"""The memory estimate against numbers worked out by hand, transformers' own models, and what autograd really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from llmrl.batch import Needs
from llmrl.cli import app
from llmrl.commands.memory_table import capacity
from llmrl.launcher.topology import Topology
from llmrl.policy.forward import forward
from llmrl.policy.packing import pack
from llmrl.settings.env import PartnerConfig
from llmrl.settings.load import load_recipe, recipes_folder
from llmrl.settings.model import CriticConfig, LoraConfig
from llmrl.sizing import GIB, ModelSize, adapter_parameters, advice, footprint, model_size, size_of
from tests.bench.limits import uneven_batch
from tests.tiny import random_model

TINY = ModelSize(
    parameters=1000, layers=2, kv_width=16, vocabulary=50, hidden=8, heads=2, intermediate=24
)  # not a real shape: every number is easy
RECIPE = load_recipe(recipes_folder() / "math" / "grpo.yaml")
CHEAP = Needs()


def changed(section: str, **values: object):
    return RECIPE.model_copy(update={section: getattr(RECIPE, section).model_copy(update=values)})


@pytest.mark.parametrize(
    "recipe", ["arithmetic/grpo.yaml", "math_large/grpo.yaml", "math_large/ppo.yaml", "mbpp/grpo.yaml"]
)
def test_plan_and_launch_print_one_estimate(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    file = str(recipes_folder() / recipe)
    planned = CliRunner().invoke(app, ["plan", file])
    launched = CliRunner().invoke(app, ["launch", file, "--gpus-per-node", "0", "--dry-run"])
    assert planned.exit_code == launched.exit_code == 0, planned.output + launched.output
    tables = [
        out[out.index("memory of each") :].split("it fits")[0].split("┤") for out in (planned.output, launched.output)
    ]
    assert tables[0][0] == tables[1][0]  # every part
    assert "together" in tables[0][1] and tables[0][1] == tables[1][1]


@pytest.mark.parametrize(
    ("name", "published"),  # from the models' cards and safetensors indices
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-Coder-32B", 32_763_876_352),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_shapes_of_hub_models_give_their_published_parameter_counts(name: str, published: int) -> None:
    size = model_size(name)
    assert size is not None and size.parameters == published


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("llama", {"attention_bias": False, "tie_word_embeddings": False}),
        ("mistral", {"num_key_value_heads": 2, "head_dim": 24}),
        ("qwen2", {"num_key_value_heads": 1}),
    ],
)
def test_parameters_are_those_of_the_model_that_transformers_builds(kind: str, changes: dict[str, object]) -> None:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 131,
    }
    config = AutoConfig.for_model(kind, **shape, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = size_of(config.to_dict())
    assert size is not None and size.parameters == model.num_parameters()


def test_models_of_unknown_or_sparse_shape_are_unknown_and_ask_no_network() -> None:
    assert model_size("nobody/has-this-model") is None
    dense = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 9,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    assert size_of(dense) is not None and size_of({**dense, "num_experts": 8}) is None
    assert size_of({"hidden_size": 8}) is None


def test_a_local_folder_is_read_from_its_config(tiny_model: Path) -> None:
    size = model_size(str(tiny_model))
    assert size is not None and size.layers == 2 and size.hidden == 64


@pytest.mark.parametrize("mode", ["packed", "plain"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_what_autograd_keeps_for_the_backward_pass(mode: str, dtype: str) -> None:
    shape = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    completion, prompt = 64, 64
    batch = uneven_batch(2, 8, prompt, completion, 200)
    row = int(batch.length.max())
    kept, sizes = [], []
    for layers in (1, 3):
        model = random_model("llama", dtype=getattr(torch, dtype), num_hidden_layers=layers, **shape)
        sizes.append(size_of(model.config.to_dict()))
        own, storages = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def keep(tensor: torch.Tensor, own=own, storages=storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = forward(model, batch, mode=mode)
        kept.append(sum(size for size, _ in storages.values()))
        assert out.logprobs.requires_grad
    tokens = len(pack(batch).tokens) if mode == "packed" else batch.tokens.numel()
    recipe = changed("model", dtype=dtype, forward=mode)
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"tokens_per_microbatch": tokens}),
            "data": recipe.data.model_copy(update={"max_prompt_tokens": prompt}),
            "rollout": recipe.rollout.model_copy(update={"max_tokens": row - prompt}),
        }
    )
    one, three = (footprint(recipe, size, Topology(), CHEAP).passing for size in sizes)
    estimated = sum(three.values()) - sum(one.values())
    assert estimated == pytest.approx(kept[1] - kept[0], rel=0.08)


@pytest.mark.parametrize(
    ("backend", "weights", "gradients", "states"),
    # bfloat16: 2 bytes a weight, 4 a gradient, 12 for master and two moments; 4 devices
    [("ddp", 2000, 4000, 12000), ("zero2", 2000, 1000, 3000), ("zero3", 500, 1000, 3000), ("fsdp2", 500, 1000, 3000)],
)
def test_each_back_end_shares_out_what_it_says(backend: str, weights: int, gradients: int, states: int) -> None:
    kept = footprint(RECIPE, TINY, Topology(backend=backend, gpus_per_node=4), CHEAP, capacity=80 * GIB).kept
    assert (kept["weights"], kept["gradients"], kept["masters and Adam"]) == (weights, gradients, states)


def test_a_reference_and_a_value_model_of_its_own_are_counted_when_needed() -> None:
    needs = Needs(ref_logprobs=True, values=True)
    separate = RECIPE.model_copy(update={"critic": CriticConfig(kind="separate")})
    found = footprint(separate, TINY, Topology(), needs)
    assert found.kept["reference model"] == 2000
    assert found.kept["value model"] == 18000
    half = footprint(separate, TINY, Topology(), needs, critic=ModelSize(**{
        name: getattr(TINY, name) for name in ("layers", "kv_width", "vocabulary", "hidden", "heads", "intermediate")
    }, parameters=500))  # fmt: skip
    assert half.kept["value model"] == 9000 and half.kept["weights"] == 2000
    assert "value model" not in footprint(RECIPE, TINY, Topology(), needs).kept  # a head is small


def test_partner_engines_are_counted_unless_they_are_elsewhere() -> None:
    def kept(**partner: object) -> dict[str, int]:
        both = RECIPE.model_copy(update={"engines": {"actor": PartnerConfig(**partner)}})
        return dict(footprint(both, TINY, Topology(), CHEAP).kept)

    cache = 4 * RECIPE.model.max_length * 2 * 16 * 2
    assert kept(model="m", max_sequences=4)["engine actor, and its cache"] == 2000 + cache
    assert kept(model="m", max_sequences=4, engine="vllm")["engine actor, and its cache"] > GIB
    for elsewhere in ({"model": "base"}, {"model": "m", "urls": ["http://localhost:1"]}):
        assert not any("engine" in name for name in kept(**elsewhere))


def test_engines_elsewhere_or_asleep_or_native_take_what_they_really_take() -> None:
    chosen = Topology(gpus_per_node=8)
    beside = footprint(RECIPE, TINY, chosen, CHEAP, capacity=80 * GIB)
    assert footprint(changed("rollout", placement="server"), TINY, chosen, CHEAP, capacity=80 * GIB).engine == {}
    asleep = footprint(changed("rollout", sleep=True), TINY, chosen, CHEAP, capacity=80 * GIB)
    assert asleep.total == beside.total - sum(beside.passing.values())  # the engine is the larger of the two
    native = footprint(changed("rollout", engine="native"), TINY, Topology(), CHEAP)
    assert native.engine == {"engine: KV cache": native.kv_wanted * 2 * 16 * 2}  # the weights are the trainer's


def test_lora_trains_and_keeps_states_of_the_adapter_only() -> None:
    found = footprint(changed("model", lora=LoraConfig(r=4)), TINY, Topology(), Needs(ref_logprobs=True))
    adapter = adapter_parameters(TINY, 4)
    # q and o: 8+8 each; k and v: 8 and half of kv_width 16; three of 8 and 24; rank 4, two layers
    assert adapter == 2 * 4 * (2 * 16 + 2 * 16 + 3 * 32)
    assert found.kept["masters and Adam"] == 12 * adapter
    assert "reference model" not in found.kept  # the model without its adapter is one


def test_the_engine_of_a_gpu_takes_its_share_and_the_cache_is_what_weights_leave() -> None:
    found = footprint(RECIPE, TINY, Topology(gpus_per_node=8), CHEAP, capacity=80 * GIB)
    assert sum(found.engine.values()) == pytest.approx(RECIPE.rollout.gpu_memory * 80 * GIB, abs=2)
    assert found.kv_tokens == found.engine["engine: KV cache"] // (2 * 16 * 2)
    assert found.kv_wanted == min(128 * 8 // 8, 128) * RECIPE.model.max_length


def test_what_does_not_fit_gets_changes_that_end_in_a_fit() -> None:
    chosen = Topology(gpus_per_node=8)

    def estimate(recipe, where):
        return footprint(recipe, model_size("Qwen/Qwen2.5-7B"), where, CHEAP, capacity=capacity(where, None))

    assert not estimate(RECIPE, chosen).fits
    changes = advice(RECIPE, chosen, estimate)
    totals = [change.total for change in changes]
    assert totals == sorted(totals, reverse=True) and changes[-1].fits
    assert "--backend fsdp2" in [change.what for change in changes]


def test_a_cache_too_small_for_one_request_does_not_fit_however_small_the_total() -> None:
    small = changed("rollout", gpu_memory=0.2)
    size = model_size("Qwen/Qwen2.5-7B")
    found = footprint(small, size, Topology(backend="fsdp2", gpus_per_node=8), CHEAP, capacity=80 * GIB)
    assert found.kv_tokens == 0 and not found.fits
