"""Learning rates of their own for output layer and adapter."""

import pytest
import torch

from llmrl.errors import ConfigError
from llmrl.policy.model import load_policy
from llmrl.settings.model import LoraConfig, ModelConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.backends.build import share
from llmrl.train.world import World
from tests.tiny import random_model, save_model


def moved(source, groups, lora=None):
    """How far one step of AdamW moves each trained parameter at most: with equal gradients, its learning rate."""
    config = ModelConfig(path="x", dtype="float32", lora=lora)
    policy = load_policy(config, source=str(source), device=torch.device("cpu"), seed=0)
    train = TrainConfig(steps=1, lr=1e-3, lr_groups=groups, max_grad_norm=1e9)
    shared = share("ddp", train, policy, None, World())  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in policy.trainable()}
    shared.optimizer.backward(sum(p.sum() for _, p in policy.trainable()))
    shared.optimizer.step(1e-3)
    return {name: float((p.detach() - before[name]).abs().max()) for name, p in policy.trainable()}


def test_the_output_layer_learns_at_its_own_rate(tiny_model):
    for name, distance in moved(tiny_model, {"head": 1e-5}).items():
        assert distance == pytest.approx(1e-5 if name == "lm_head.weight" else 1e-3, rel=2e-2), name


def test_an_adapter_and_a_head_beside_it_learn_at_their_own_rates(tiny_model):
    found = moved(tiny_model, {"adapter": 1e-2, "head": 1e-4}, LoraConfig(r=4, modules_to_save=["lm_head"]))
    assert {round(d, 5) for name, d in found.items() if ".lora_" in name} == {0.01}
    assert [round(d, 6) for name, d in found.items() if "lm_head" in name] == [0.0001]


@pytest.mark.parametrize(("group", "tied"), [("adapter", False), ("vision_tower", False), ("head", True)])
def test_a_group_that_the_policy_has_not_says_so(tmp_path, group, tied):
    source = save_model(tmp_path / "m", random_model(tie_word_embeddings=tied))
    with pytest.raises(ConfigError, match=rf"train\.lr_groups\.{group}: the policy trains no such part"):
        moved(source, {group: 1e-5})
