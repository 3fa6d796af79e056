"""The outcome critic: the head on the right states, a folder that transformers opens, honest numbers about predictions."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForTokenClassification

from llmrl.errors import ConfigError
from llmrl.losses import pooled_logits
from llmrl.policy.model import load_policy
from llmrl.policy.outcome_critic import (
    BINARY,
    OUTCOMES,
    OutcomeCritic,
    OutcomeHead,
    load_outcome_critic,
    open_outcome_critic,
    quality,
)
from llmrl.settings.model import LoraConfig, ModelConfig, OutcomeCriticConfig
from tests.tiny import random_batch, random_model, save_model, tiny_tokenizer

CPU = torch.device("cpu")


def policy_of(folder, **more):
    return load_policy(ModelConfig(path=str(folder), dtype="float32", **more), source=str(folder), device=CPU, seed=0)


def random_head(classes=4, width=64):
    head = OutcomeHead(width, classes)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, width, generator=draw))
        head.bias.copy_(torch.randn(classes, generator=draw))
    return head


def by_definition(model, head, tokens):
    with torch.no_grad():
        return head(model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0])


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_a_tokens_logits_are_those_of_the_state_that_has_read_it(tiny_model, mode):
    own, head, batch = policy_of(tiny_model), random_head(), random_batch(3)
    critic = OutcomeCritic(head=head, model=own, mode=mode)
    with torch.no_grad():
        logits = critic.logits(batch)
    assert logits.shape == (*batch.tokens.shape, 4)
    for row in range(batch.rows):
        length = int(batch.length[row])
        wanted = by_definition(own.causal_lm, head, batch.tokens[row, :length])
        inside = batch.mask[row, :length]
        torch.testing.assert_close(logits[row, :length][inside], wanted[inside], rtol=1e-4, atol=1e-4)


def test_padding_changes_no_logit_and_no_prediction(tiny_model):
    critic = OutcomeCritic(head=random_head(), model=policy_of(tiny_model), mode="plain")
    batch = random_batch(4)
    wide = replace(
        batch,
        tokens=torch.nn.functional.pad(batch.tokens, (0, 5), value=7),
        mask=torch.nn.functional.pad(batch.mask, (0, 5)),
    )
    with torch.no_grad():
        one, other = critic.logits(batch), critic.logits(wide)
    for pool in ("max", "mean", "last"):
        torch.testing.assert_close(
            pooled_logits(one, batch.mask, pool=pool), pooled_logits(other, wide.mask, pool=pool), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("tie", [True, False])
def test_an_exported_critic_opens_as_it_is_and_says_the_same(tmp_path, kind, tie):
    changes = {"tie_word_embeddings": tie}
    if kind == "gpt2":
        changes |= {"n_embd": 64, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    own = policy_of(save_model(tmp_path / "lm", random_model(kind, **changes)))
    head, folder = random_head(classes=2), tmp_path / "critic"
    OutcomeCritic(head=head, model=own, pool="mean").save(folder, own)
    tokens = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    wanted = by_definition(own.causal_lm, head, tokens[0])
    theirs = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == dict(enumerate(BINARY))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits[0], wanted, rtol=1e-5, atol=1e-5)
    opened = open_outcome_critic(str(folder), dtype="float32", device=CPU)
    assert opened.pool == "mean" and opened.classes == BINARY
    torch.testing.assert_close(by_definition(opened.model.causal_lm, opened.head, tokens[0]), wanted)


def test_a_shared_critic_is_exported_with_the_policys_weights(tmp_path, tiny_model):
    policy = policy_of(tiny_model, lora=LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B" in name:
                parameter.add_(0.05)
    head = random_head()
    OutcomeCritic(head=head).save(tmp_path / "critic", policy)
    tokens = torch.arange(5, 14)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    with torch.no_grad():
        found = theirs(tokens[None]).logits[0]
    torch.testing.assert_close(found, by_definition(policy.causal_lm, head, tokens), rtol=1e-4, atol=1e-4)


def test_training_goes_on_from_an_exported_critic_and_refuses_what_does_not_fit(tmp_path, tiny_model):
    policy, base = policy_of(tiny_model), ModelConfig(path=str(tiny_model), dtype="float32")
    head, folder = random_head(), tmp_path / "critic"
    OutcomeCritic(head=head, model=policy).save(folder, policy)

    def load(source, **config):
        return load_outcome_critic(OutcomeCriticConfig(**config), base, policy, source=str(source), device=CPU, seed=0)

    again = load(folder, lora=LoraConfig(r=2))
    assert torch.equal(again.head.weight, head.weight) and again.classes == OUTCOMES
    assert all("lora" in name or "outcome_head" in name for name, _ in again.trainable())
    assert not load(tiny_model).head.weight.any()
    with pytest.raises(ConfigError, match=r"set outcome_critic\.binary"):
        load(folder, binary=True)
    with pytest.raises(ConfigError, match="pool=max, and the recipe asks for"):
        load(folder, pool="last")
    with pytest.raises(ConfigError, match="is no outcome critic"):
        open_outcome_critic(str(tiny_model), dtype="float32", device=CPU)


def test_a_critic_of_another_tokenizer_is_refused(tmp_path, tiny_model):
    other = save_model(tmp_path / "other", random_model())
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    policy = policy_of(tiny_model)
    with pytest.raises(ConfigError, match="another tokenizer"):
        load_outcome_critic(
            OutcomeCriticConfig(path=str(other)), ModelConfig(path=str(tiny_model), dtype="float32"), policy,
            source=str(other), device=CPU, seed=0,
        )  # fmt: skip


def test_quality_by_hand():
    logits = [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    found = quality(logits, [0, 1, 2, 0], ["a", "b", "c"])
    assert found["accuracy"] == 0.75 and found["majority"] == 0.5  # of equal logits the first class is said
    assert (found["accuracy/a"], found["accuracy/b"], found["accuracy/c"]) == (1.0, 1.0, 0.0)
    assert found["confusion/c/b"] == 0.25 and found["confusion/a/a"] == 0.5 and found["confusion/b/c"] == 0.0
    chances = [torch.tensor(row).softmax(-1) for row in logits]
    nll = -sum(float(chances[i][k].log()) for i, k in enumerate([0, 1, 2, 0])) / 4
    assert found["nll"] == pytest.approx(nll)
    confidence = [float(row.max()) for row in chances]  # 0.79, 0.91, 0.58, 0.33: a bin each
    gaps = [abs(1 - confidence[0]), abs(1 - confidence[1]), confidence[2], abs(1 - confidence[3])]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 4)
    assert quality([], [], ["a"]) == {}


def test_a_perfectly_calibrated_critic_has_no_calibration_error():
    even = [[0.0, 0.0]] * 4
    assert quality(even, [0, 1, 0, 1], ["a", "b"])["calibration_error"] == pytest.approx(0.0)
