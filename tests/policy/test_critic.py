"""Values: the head on the right hidden states, privileged text that shifts nothing, targets that move no value."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from llmrl.errors import ConfigError
from llmrl.policy.critic import HEAD_FILE, Critic, ValueHead, load_critic, with_privileged
from llmrl.policy.forward import forward, forward_values
from llmrl.policy.model import Policy, load_policy
from llmrl.settings.model import CriticConfig, LoraConfig
from llmrl.settings.recipe import ModelConfig
from tests.tiny import random_batch, random_model, save_model, tiny_tokenizer

CPU = torch.device("cpu")


def random_head(width=64, *, dtype=torch.float64, **options):
    head = ValueHead(width, **options)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(width, generator=draw))
        head.bias.copy_(torch.tensor(0.3))
    return head.to(dtype)


def by_definition(model, head, tokens, mask):
    """Row by row: the state before token t is the hidden state at t - 1."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    head = head.requires_grad_(False)
    values = [float(hidden[t - 1] @ head.weight + head.bias) if mask[t] else 0.0 for t in range(len(tokens))]
    return head.mean + head.deviation * torch.tensor(values, dtype=torch.float64) * mask


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_a_value_is_the_head_on_the_state_before_its_token(mode):
    model, head, batch = random_model(dtype=torch.float64), random_head(), random_batch(3)
    with torch.no_grad():
        out = forward(model, batch, mode=mode, value_head=head)
        alone = forward_values(model, batch, mode=mode, value_head=head)
        bare = forward(model, batch, mode=mode)
    assert bare.values is None and torch.equal(out.logprobs, bare.logprobs)
    assert torch.equal(out.values, alone)
    for row in range(batch.rows):
        length = int(batch.length[row])
        wanted = by_definition(model, head, batch.tokens[row, :length], batch.mask[row, :length])
        torch.testing.assert_close(out.values[row, :length], wanted, rtol=1e-5, atol=1e-5)
        assert not out.values[row, length:].any()


def test_the_values_gradient_is_the_same_packed_and_plain_and_stops_where_told():
    batch, grads = random_batch(4), {}
    for mode in ("packed", "plain"):
        model, head = random_model(dtype=torch.float64), random_head()
        forward_values(model, batch, mode=mode, value_head=head).square().sum().backward()
        grads[mode] = {
            n: p.grad for n, p in [*model.named_parameters(), *head.named_parameters()] if p.grad is not None
        }
    assert grads["packed"].keys() == grads["plain"].keys()
    assert not any(name.startswith("lm_head") for name in grads["plain"])
    for name, grad in grads["plain"].items():
        torch.testing.assert_close(grads["packed"][name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))
    model, head = random_model(dtype=torch.float64), random_head(stop_gradient=True)
    forward_values(model, batch, mode="packed", value_head=head).square().sum().backward()
    torch.testing.assert_close(head.weight.grad, grads["packed"]["weight"])
    assert all(p.grad is None for p in model.parameters())


def test_moving_the_targets_moves_no_value_but_the_units_of_the_output():
    head = random_head()
    hidden = torch.randn(9, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, raw = head(hidden), hidden @ head.weight + head.bias
    head.move_targets(torch.tensor(0.7), torch.tensor(0.25))
    torch.testing.assert_close(head(hidden), before)
    torch.testing.assert_close(hidden @ head.weight + head.bias, (raw - 0.7) / 0.25)
    head.move_targets(torch.tensor(-2.0), torch.tensor(3.0))
    torch.testing.assert_close(head(hidden), before)


def with_prefixes(batch, lengths=(0, 5, 2)):
    """Every group gets its own privileged tokens, of different lengths, one of them none."""
    prefix = torch.full((batch.rows, max(lengths)), -1)
    for row in range(batch.rows):
        group = int(batch.group[row])
        count = lengths[group % len(lengths)]
        prefix[row, :count] = torch.arange(count) + 20 + 7 * group
    return replace(batch, privileged=prefix)


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_a_separate_value_model_reads_privileged_tokens_before_the_row(mode):
    model, head, batch = random_model(dtype=torch.float64), random_head(), with_prefixes(random_batch(3))
    own = Policy(model=model, tokenizer=tiny_tokenizer(), source="", lora=False)
    critic = Critic(head=head, model=own, mode=mode)
    with torch.no_grad():
        values = critic.values(batch)
        plain = critic.values(replace(batch, privileged=None))
    for row in range(batch.rows):
        length, prefix = int(batch.length[row]), batch.privileged[row][batch.privileged[row] >= 0]
        tokens = torch.cat([prefix, batch.tokens[row, :length]])
        mask = torch.cat([torch.zeros(len(prefix), dtype=torch.bool), batch.mask[row, :length]])
        wanted = by_definition(model, head, tokens, mask)[len(prefix) :]
        torch.testing.assert_close(values[row, :length], wanted, rtol=1e-5, atol=1e-5)
        differs = len(prefix) > 0 and bool(batch.mask[row].any())
        assert torch.allclose(values[row], plain[row]) != differs


def test_the_policy_never_sees_privileged_tokens():
    model, batch = random_model(dtype=torch.float64), random_batch(3)
    for mode in ("packed", "plain"):
        plain = forward(model, batch, mode=mode, entropy=True)
        for lengths in ((0, 5, 2), (4, 1, 3)):
            told = forward(model, with_prefixes(batch, lengths), mode=mode, entropy=True)
            assert torch.equal(told.logprobs, plain.logprobs) and torch.equal(told.entropy, plain.entropy)


def test_selected_rows_keep_their_privileged_tokens():
    batch = with_prefixes(random_batch(3), lengths=(40, 41, 42))  # longer than any row
    rows = torch.tensor([3, 1])
    part, shift = with_privileged(batch.select(rows))
    assert shift.tolist() == [int((batch.privileged[row] >= 0).sum()) for row in rows]
    for place, row in enumerate(rows):
        whole = torch.cat([batch.privileged[row][batch.privileged[row] >= 0], batch.tokens[row, : batch.length[row]]])
        assert part.tokens[place, : part.length[place]].tolist() == whole.tolist()


def policy_at(folder):
    return load_policy(ModelConfig(path=str(folder), dtype="float32"), source=str(folder), device=CPU, seed=0)


def load(config, folder, source, **base):
    settings = ModelConfig(path=str(folder), dtype="float32", **base)
    return load_critic(config, settings, policy_at(folder), source=str(source), device=CPU, seed=0)


def test_an_exported_critic_is_a_model_folder_that_brings_its_head_along(tmp_path, tiny_model):
    critic = load(CriticConfig(kind="separate"), tiny_model, tiny_model)
    assert "lm_head.weight" not in dict(critic.trainable())  # it would only gather zeros
    with torch.no_grad():
        critic.head.weight.normal_()
        critic.head.move_targets(torch.tensor(0.5), torch.tensor(2.0))
        critic.model.causal_lm.base_model.norm.weight.add_(0.5)
    critic.save(tmp_path / "critic")
    again = load(CriticConfig(kind="separate"), tiny_model, tmp_path / "critic")
    batch = random_batch(1)
    with torch.no_grad():
        assert torch.equal(again.values(batch), critic.values(batch)) and bool(critic.values(batch).any())


def test_a_shared_head_is_exported_alone(tmp_path, tiny_model):
    critic = load(CriticConfig(), tiny_model, tiny_model)
    assert [name for name, _ in critic.trainable()] == ["value_head.weight", "value_head.bias"]
    critic.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [HEAD_FILE]
    assert load_file(tmp_path / HEAD_FILE).keys() == {"weight", "bias", "mean", "deviation"}
    with pytest.raises(ValueError, match="no model of its own"):
        critic.values(random_batch(1))


def test_an_adapted_value_model_trains_its_adapter_and_head_only(tiny_model):
    critic = load(CriticConfig(kind="separate", lora=LoraConfig(r=2, alpha=4)), tiny_model, tiny_model)
    names = [name for name, _ in critic.trainable()]
    assert all(".lora_" in name or name.startswith("value_head.") for name in names) and len(names) > 4
    with torch.no_grad():
        critic.head.weight.fill_(0.1)
    critic.values(random_batch(2)).sum().backward()
    assert any(bool(p.grad.any()) for name, p in critic.trainable() if ".lora_B" in name)


def test_a_value_model_with_another_tokenizer_is_refused(tmp_path, tiny_model):
    other = save_model(tmp_path / "other", random_model())
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match="another tokenizer"):
        load(CriticConfig(kind="separate"), tiny_model, other)
