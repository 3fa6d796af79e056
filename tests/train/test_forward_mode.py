"""Which forward pass a run uses, and models that no forward pass of ours is right for."""

import pytest

from llmrl.errors import ConfigError
from llmrl.settings.load import parse_recipe
from llmrl.train.models import forward_mode
from tests.tiny import random_batch, random_model


def recipe(forward="auto", max_length=256):
    return parse_recipe(
        {
            "name": "x",
            "model": {"path": "tiny", "dtype": "float32", "forward": forward, "max_length": max_length},
            "data": {"source": "addition", "max_prompt_tokens": 10},
            "rollout": {"max_tokens": 10},
            "reward": {"exact": {"name": "llmrl.rewards.exact_number:ExactNumber"}},
            "algo": {"name": "grpo"},
            "train": {"steps": 1},
        }
    )


def test_a_supported_model_is_packed_without_a_note():
    notes = []
    assert forward_mode(recipe(), random_model(), random_batch(0), notes) == "packed"
    assert notes == []


def test_a_model_that_cannot_be_packed_runs_plain_and_says_why():
    notes = []
    model = random_model("stablelm")
    assert forward_mode(recipe(), model, random_batch(0), notes) == "plain"
    assert len(notes) == 1 and "using plain" in notes[0] and "pass extra arguments" in notes[0]


def test_a_window_that_the_model_tells_its_attention_is_packed_however_short():
    notes = []
    assert forward_mode(recipe(), random_model("mistral", sliding_window=4), random_batch(0), notes) == "packed"
    assert notes == []


@pytest.mark.parametrize(("key", "said"), [("sliding_window", "sliding window"), ("attention_chunk_size", "in chunks")])
def test_a_window_longer_than_the_probe_that_attention_is_not_told_is_not_packed(key, said):
    notes = []
    model = random_model()
    setattr(model.config, key, 64)  # Llama's attention hears of neither
    assert forward_mode(recipe(max_length=64), model, random_batch(0), notes) == "packed"
    assert forward_mode(recipe(max_length=65), model, random_batch(0), notes) == "plain"
    assert said in notes[0]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("forward", ["auto", "flex", "packed", "plain"])
def test_a_model_whose_logits_are_not_what_its_configuration_says_is_refused_in_every_mode(forward):
    model = random_model()
    model.config.logits_scaling = 4.0  # Llama does not divide by it
    with pytest.raises(ConfigError, match=f"model.forward={forward}.*differ by"):
        forward_mode(recipe(forward), model, random_batch(0), [])


def test_a_forced_mode_is_checked_too():
    model = random_model("stablelm")
    with pytest.raises(ConfigError, match="pass extra arguments"):
        forward_mode(recipe("packed"), model, random_batch(0), [])
    assert forward_mode(recipe("plain"), model, random_batch(0), []) == "plain"
