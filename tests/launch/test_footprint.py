"""The memory plan against numbers worked out by hand and against published parameter counts."""

import pytest

from llmrl.launching.footprint import adapter_parameters, advice, footprint
from llmrl.launching.show import capacity
from llmrl.launching.sizes import config_of, find_size
from llmrl.launching.topology import Topology
from llmrl.plan import GIB, ModelSize
from llmrl.settings.load import load_recipe, recipes_folder
from llmrl.settings.model import CriticConfig, LoraConfig

TINY = ModelSize(
    parameters=1000, layers=2, kv_width=16, vocabulary=50, hidden=8, heads=2, intermediate=24
)  # not a real shape: every number is easy
RECIPE = load_recipe(recipes_folder() / "math" / "grpo.yaml")
CHEAP = frozenset[str]()


@pytest.mark.parametrize(
    ("name", "published"),  # from the models' cards and safetensors indices
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_shapes_of_hub_models_give_their_published_parameter_counts(name, published):
    size = find_size(name)
    assert size is not None
    assert size.parameters == pytest.approx(published, rel=1e-3)  # attention biases are not counted


def test_a_model_that_is_neither_here_nor_listed_is_unknown_and_asks_no_network():
    assert find_size("nobody/has-this-model") is None


def test_a_local_folder_is_read_from_its_config(tiny_model):
    size = find_size(str(tiny_model))
    assert size is not None and size.layers == 2 and size.hidden == 64
    assert config_of(str(tiny_model))["vocab_size"] == size.vocabulary


@pytest.mark.parametrize(
    ("backend", "weights", "gradients", "states"),
    # bfloat16: 2 bytes a weight, 4 a gradient, 12 for master and two moments; 4 devices
    [("ddp", 2000, 4000, 12000), ("zero2", 2000, 1000, 3000), ("zero3", 500, 1000, 3000), ("fsdp2", 500, 1000, 3000)],
)
def test_each_back_end_shares_out_what_it_says(backend, weights, gradients, states):
    found = footprint(RECIPE, TINY, Topology(backend=backend, gpus_per_node=4), CHEAP, capacity=80 * GIB)
    assert (found.trainer["weights"], found.trainer["gradients"], found.trainer["masters and Adam"]) == (
        weights,
        gradients,
        states,
    )


def test_a_reference_and_a_value_model_of_its_own_are_counted_when_needed():
    needs = frozenset({"ref_logprobs", "values"})
    separate = RECIPE.model_copy(update={"critic": CriticConfig(kind="separate")})
    found = footprint(separate, TINY, Topology(), needs, capacity=None)
    assert found.trainer["reference model"] == 2000
    assert found.trainer["value model"] == 18000
    assert "value model" not in footprint(RECIPE, TINY, Topology(), needs, capacity=None).trainer  # a head is small


def test_engines_elsewhere_take_nothing_of_the_trainers_devices():
    served = RECIPE.model_copy(update={"rollout": RECIPE.rollout.model_copy(update={"placement": "server"})})
    assert footprint(served, TINY, Topology(gpus_per_node=8), CHEAP, capacity=80 * GIB).engine == {}


def test_lora_trains_and_keeps_states_of_the_adapter_only():
    lora = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"lora": LoraConfig(r=4)})})
    found = footprint(lora, TINY, Topology(), frozenset({"ref_logprobs"}), capacity=None)
    adapter = adapter_parameters(TINY, 4)
    # q and o: 8+8 each; k and v: 8 and half of kv_width 16; three of 8 and 24; rank 4, two layers
    assert adapter == 2 * 4 * (2 * 16 + 2 * 16 + 3 * 32)
    assert found.trainer["masters and Adam"] == 12 * adapter
    assert "reference model" not in found.trainer  # the model without its adapter is one


def test_the_engine_of_a_gpu_takes_its_share_and_the_cache_is_what_weights_leave():
    found = footprint(RECIPE, TINY, Topology(gpus_per_node=8), CHEAP, capacity=80 * GIB)
    assert sum(found.engine.values()) == pytest.approx(RECIPE.rollout.gpu_memory * 80 * GIB, abs=2)
    assert found.kv_tokens == found.engine["engine: KV cache"] // (2 * 16 * 2)
    assert found.kv_wanted == min(128 * 8 // 8, 128) * RECIPE.model.max_length


def test_what_does_not_fit_gets_changes_that_end_in_a_fit():
    size = find_size("Qwen/Qwen2.5-7B")
    chosen = Topology(gpus_per_node=8)

    def estimate(recipe, where):
        return footprint(recipe, size, where, CHEAP, capacity=capacity(where, None))

    assert not estimate(RECIPE, chosen).fits
    changes = advice(RECIPE, chosen, estimate)
    totals = [change.total for change in changes]
    assert totals == sorted(totals, reverse=True) and changes[-1].fits
    assert "--backend fsdp2" in [change.what for change in changes]


def test_a_cache_too_small_for_one_request_does_not_fit_however_small_the_total():
    size = find_size("Qwen/Qwen2.5-7B")
    small = RECIPE.model_copy(update={"rollout": RECIPE.rollout.model_copy(update={"gpu_memory": 0.2})})
    found = footprint(small, size, Topology(backend="fsdp2", gpus_per_node=8), CHEAP, capacity=80 * GIB)
    assert found.kv_tokens == 0 and not found.fits
