import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrl.errors import ConfigError
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.groups import parameter_groups
from tests.tiny import random_model

RECORDS, TOKENS = 4, 9
APART = torch.arange(RECORDS)


def losses_of(model, rows):
    """Mean negative log-likelihood of each row by itself; token 0 is padding."""
    positions = torch.arange(rows.shape[1]).expand_as(rows)
    logits = model(input_ids=rows, attention_mask=(rows > 0).long(), position_ids=positions, use_cache=False).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    real = (rows[:, 1:] > 0).float()
    return -(logprobs * real).sum(1) / real.sum(1).clamp(min=1)


def records(seed=0, vocabulary=261):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(5, vocabulary, (RECORDS, TOKENS), generator=draw)
    rows[0, 3], rows[0, 4] = rows[0, 1], rows[0, 1]  # the same token several times in one record
    rows[1, 4:] = 0
    return rows


def lora(kind, **more):
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) if kind == "gpt2" else {}
    model = random_model(kind, **still)
    targets = {"llama": "all-linear", "gpt2": ["c_attn", "c_proj"]}[kind]
    model = get_peft_model(model, LoraConfig(r=3, target_modules=targets, fan_in_fan_out=kind == "gpt2", **more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    return model


MODELS = {
    "llama": lambda: random_model("llama"),
    "llama, tied": lambda: random_model("llama", tie_word_embeddings=True),
    "qwen2, biases": lambda: random_model("qwen2"),
    "gpt2, tied": lambda: random_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama, LoRA": lambda: lora("llama"),
    "gpt2, LoRA": lambda: lora("gpt2"),
    "llama, LoRA and output layer": lambda: lora("llama", modules_to_save=["lm_head"]),
}


def trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def one_by_one(model, rows):
    """[records, parameters] gradients of each record, by a backward pass of its own."""
    found = []
    for row in rows:
        model.zero_grad()
        losses_of(model, row[None]).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    model.zero_grad()
    return found


@pytest.mark.parametrize("grouping", ["flat", "layer", "tensor"])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_clipped_sums_are_those_of_one_record_at_a_time(name, grouping):
    model, rows = MODELS[name](), records()
    groups = parameter_groups(trained(model), grouping)
    alone = one_by_one(model, rows)
    norms = torch.tensor(
        [[math.sqrt(sum(float(g[n].square().sum()) for n in group)) for group in groups] for g in alone]
    )
    thresholds = norms.median(0).values.clamp(min=1e-3).tolist()  # about half of them are clipped
    sums, found = RecordGradients(model, groups).clipped(losses_of(model, rows), thresholds, APART)
    torch.testing.assert_close(found.float(), norms, rtol=1e-4, atol=1e-5)
    for number, group in enumerate(groups):
        factors = (thresholds[number] / norms[:, number]).clamp(max=1)
        for parameter in group:
            expected = sum(f * g[parameter] for f, g in zip(factors, alone))
            torch.testing.assert_close(sums[parameter], expected, rtol=1e-4, atol=2e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", ["llama, LoRA", "gpt2, LoRA"])
def test_opacus_agrees(name):
    grad_sample = pytest.importorskip("opacus").GradSampleModule
    model, rows = MODELS[name](), records()
    sums, norms = RecordGradients(model, parameter_groups(trained(model), "flat")).clipped(
        losses_of(model, rows), [0.5], APART
    )
    theirs = grad_sample(model.train(), loss_reduction="sum")
    losses_of(theirs, rows).sum().backward()
    samples = {n: p.grad_sample for n, p in model.named_parameters() if p.requires_grad}
    expected = torch.stack([s.flatten(1).norm(dim=1) for s in samples.values()]).norm(dim=0)
    torch.testing.assert_close(norms[:, 0].float(), expected, rtol=1e-4, atol=1e-6)
    factors = (0.5 / expected).clamp(max=1)
    for parameter, sample in samples.items():
        torch.testing.assert_close(sums[parameter], torch.tensordot(factors, sample, 1), rtol=1e-4, atol=1e-6)


def test_the_rows_of_a_user_are_one_record():
    model, rows = MODELS["llama"](), records()
    alone = one_by_one(model, rows)
    groups = parameter_groups(trained(model), "layer")
    users_of_rows = ((1, 3), (0,), (2,))  # not next to each other, and not equally many
    group_of_row = torch.tensor([5, 4, 7, 4])
    sums, norms = RecordGradients(model, groups).clipped(
        losses_of(model, rows).sum(), [0.3] * len(groups), group_of_row
    )
    for number, group in enumerate(groups):
        users = [{n: sum(alone[row][n] for row in own) for n in group} for own in users_of_rows]
        expected = torch.tensor([math.sqrt(sum(float(x.square().sum()) for x in user.values())) for user in users])
        torch.testing.assert_close(norms[:, number].float(), expected, rtol=1e-4, atol=1e-6)
        for n in group:
            total = sum(min(1.0, 0.3 / float(e)) * user[n] for e, user in zip(expected, users))
            torch.testing.assert_close(sums[n], total, rtol=1e-4, atol=1e-6)


def test_micro_batches_sum_to_the_whole():
    model, rows = MODELS["llama, LoRA"](), records()
    gradients = RecordGradients(model, parameter_groups(trained(model), "pair"))
    thresholds = [0.1] * len(gradients.groups)
    whole, _ = gradients.clipped(losses_of(model, rows), thresholds, APART)
    parts = [
        gradients.clipped(losses_of(model, part), thresholds, APART[: len(part)])[0] for part in rows.split([1, 3])
    ]
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-6)


def test_another_record_does_not_change_what_a_record_contributes():
    """The transformers loss over a batch divides by all its tokens, which couples records; ours does not."""
    model, rows = MODELS["llama, LoRA"](), records()
    gradients = RecordGradients(model, parameter_groups(trained(model), "flat"))
    _, before = gradients.clipped(losses_of(model, rows), [1.0], APART)
    rows[3, 1:] = 7
    _, after = gradients.clipped(losses_of(model, rows), [1.0], APART)
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_a_record_that_is_not_finite_contributes_nothing():
    model, rows = MODELS["llama, LoRA"](), records()
    gradients = RecordGradients(model, parameter_groups(trained(model), "flat"))
    expected, _ = gradients.clipped(losses_of(model, rows[1:]), [0.5], APART[1:])
    losses = losses_of(model, rows) * torch.tensor([math.inf, 1, 1, 1])
    sums, norms = gradients.clipped(losses, [0.5], APART)
    assert not norms[0].isfinite().any() and norms[1:].isfinite().all()
    for name, tensor in sums.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_automatic_clipping_brings_every_record_close_to_its_threshold():
    model, rows = MODELS["llama, LoRA"](), records()
    gradients = RecordGradients(model, parameter_groups(trained(model), "flat"))
    for row in rows:
        sums, norms = gradients.clipped(losses_of(model, row[None]), [2.0], APART[:1], automatic=True)
        size = math.sqrt(sum(float(x.square().sum()) for x in sums.values()))
        assert size == pytest.approx(2.0 * float(norms) / (float(norms) + 0.02), rel=1e-4) and size < 2.0


def test_layers_that_mix_records_are_refused():
    model, rows = MODELS["gpt2, tied"](), records()
    gradients = RecordGradients(model, parameter_groups(trained(model), "flat"))
    logits = model(input_ids=rows, use_cache=False).logits  # GPT-2 looks up positions once for all rows
    with pytest.raises(ConfigError, match="does not keep records apart"):
        gradients.clipped(logits.square().mean((1, 2)), [1.0], APART)


def test_a_parameter_that_takes_no_part_is_refused():
    model, rows = MODELS["llama"](), records()
    with pytest.raises(ConfigError, match="no trained parameter"):
        RecordGradients(model, [("model.missing",)])
    gradients = RecordGradients(model, [("model.embed_tokens.weight",), ("lm_head.weight",)])
    with pytest.raises(ConfigError, match="took no part"):
        gradients.clipped(model.model(input_ids=rows).last_hidden_state.sum((1, 2)), [1.0, 1.0], APART)


def test_groups_by_name():
    names = [
        "base.layers.0.q.lora_A.default.weight",
        "base.layers.0.q.lora_B.default.weight",
        "base.layers.1.q.lora_A.default.weight",
        "base.layers.1.q.lora_B.default.weight",
        "head.weight",
    ]
    assert [len(group) for group in parameter_groups(names, "flat")] == [5]
    assert [len(group) for group in parameter_groups(names, "pair")] == [2, 2, 1]
    assert [len(group) for group in parameter_groups(names, "layer")] == [2, 2, 1]
    assert [len(group) for group in parameter_groups(names, "tensor")] == [1] * 5
    with pytest.raises(ConfigError, match=r"privacy\.groups=module"):
        parameter_groups(names, "module")
