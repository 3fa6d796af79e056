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
    model = random_model("gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=None)
    assert forward_mode(recipe(), model, random_batch(0), notes) == "plain"
    assert len(notes) == 1 and "using plain" in notes[0] and "caps attention" in notes[0]


def test_a_window_longer_than_the_probe_and_shorter_than_the_rows_is_not_packed():
    notes = []
    model = random_model("mistral", sliding_window=64)
    assert forward_mode(recipe(max_length=64), model, random_batch(0), notes) == "packed"
    assert forward_mode(recipe(max_length=65), model, random_batch(0), notes) == "plain"
    assert "sliding window" in notes[0]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("forward", ["auto", "flex", "packed", "plain"])
def test_a_model_that_caps_its_logits_is_refused_in_every_mode(forward):
    model = random_model("gemma2", attn_logit_softcapping=None, final_logit_softcapping=2.0)
    with pytest.raises(ConfigError, match=f"model.forward={forward}.*differ by"):
        forward_mode(recipe(forward), model, random_batch(0), [])


def test_a_forced_mode_is_checked_too():
    model = random_model("gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=None)
    with pytest.raises(ConfigError, match="caps attention"):
        forward_mode(recipe("packed"), model, random_batch(0), [])
    assert forward_mode(recipe("plain"), model, random_batch(0), []) == "plain"
