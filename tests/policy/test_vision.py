"""A vision-language policy: its forward passes, what trains, what is saved."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llmrl.data.pictures import load_pictures
from llmrl.errors import ConfigError
from llmrl.policy.forward import check_forward, forward
from llmrl.policy.model import load_policy
from llmrl.policy.vision import load_lm
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings
from llmrl.settings.model import LoraConfig, ModelConfig
from llmrl.train.collate import collate
from llmrl.types import Prompt, Request, Sampling
from tests.tiny import picture, trajectory

CPU = torch.device("cpu")


def policy(folder, **changes):
    config = ModelConfig(path=str(folder), dtype="float32", **changes)
    return load_policy(config, source=str(folder), device=CPU, seed=1)


def rows(reader, shown=((0,), (1, 2), ())):
    """Groups of two under different pictures, the last under none."""
    found = []
    for group, numbers in enumerate(shown):
        media = tuple(picture(number) for number in numbers)
        tokens = reader.expand((5, *(token for _ in media for token in (reader.token, 30)), 6 + group), media)
        prompt = Prompt(id=f"g{group}", tokens=tokens, text="", media=media)
        for sample, turn in enumerate(([40, 41, 42], [50 + group])):
            made = trajectory(tokens, [turn], group=f"g{group}", sample=sample, reward=1.0 - sample)
            found.append(replace(made, prompt=prompt))
    return found


def test_packed_plain_and_the_models_own_log_probabilities_are_the_same_under_pictures(tiny_vlm):
    made = policy(tiny_vlm)
    batch = collate(rows(made.pictures), reader=made.pictures)
    packed, plain = (forward(made.model, batch, mode=mode).logprobs for mode in ("packed", "plain"))
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
    assert check_forward(made.model, batch, mode="packed", tolerance=1e-4) is None
    for number, row in enumerate(rows(made.pictures)):  # each alone, through the processor's own batch
        processor = AutoProcessor.from_pretrained(tiny_vlm)
        images = [media.open() for media in row.prompt.media]
        shown = processor(images=images, text="<image>" * len(images), return_tensors="pt") if images else {}
        extra = {name: shown[name] for name in ("pixel_values", "pixel_attention_mask") if images}
        logits = made.model(input_ids=torch.tensor([row.tokens.tolist()]), **extra).logits[0]
        own = logits[:-1].log_softmax(-1).gather(1, torch.tensor(row.tokens.tolist())[1:, None]).squeeze(1)
        mask = torch.from_numpy(row.mask.copy())
        torch.testing.assert_close(plain[number, : row.length][mask], own[mask[1:]], rtol=1e-4, atol=1e-5)


def test_the_policy_looks_and_order_and_cuts_of_the_batch_do_not_matter(tiny_vlm):
    made = policy(tiny_vlm)
    reader = made.pictures
    batch = collate(rows(reader), reader=reader)
    values = forward(made.model, batch, mode="packed").logprobs.detach()
    other = collate(rows(reader, ((3,), (2, 1), ())), reader=reader)
    gap = (forward(made.model, other, mode="packed").logprobs.detach() - values).abs().amax(1)
    assert gap[:4].min() > 0.01 and gap[4:].max() < 1e-5
    order = torch.tensor([5, 2, 0])
    for mode in ("packed", "plain"):
        part = forward(made.model, batch.select(order), mode=mode).logprobs.detach()
        torch.testing.assert_close(part, values[order][:, : part.shape[1]], rtol=1e-4, atol=1e-5)


def gradients(made, mode="packed"):
    batch = collate(rows(made.pictures), reader=made.pictures)
    forward(made.model, batch, mode=mode).logprobs.sum().backward()
    found = {name: p.grad for name, p in made.model.named_parameters() if p.requires_grad}
    return {name for name, grad in found.items() if grad is not None and bool((grad != 0).any())}


@pytest.mark.parametrize("mode", ["packed", "plain"])
def test_language_part_and_projector_learn_and_the_tower_if_it_is_asked_to(tiny_vlm, mode):
    learning = gradients(policy(tiny_vlm), mode)
    assert "model.connector.modality_projection.proj.weight" in learning
    assert any("text_model.layers.0" in name for name in learning)
    assert not any("vision_model" in name for name in learning)
    assert any("vision_model.encoder.layers.0" in name for name in gradients(policy(tiny_vlm, vision_tower=True), mode))


def test_adapters_leave_the_tower_out_unless_asked(tiny_vlm, tiny_model):
    for asked in (False, True):
        made = policy(tiny_vlm, lora=LoraConfig(r=2), vision_tower=asked)
        owners = {name.partition(".lora_")[0] for name, _ in made.trainable()}
        assert any("text_model" in name for name in owners) and any("connector" in name for name in owners)
        assert any("vision_model" in name for name in owners) == asked
        names = {name for name, _ in made.weights()}
        assert names == {name for name, _ in load_lm(str(tiny_vlm), dtype=torch.float32).named_parameters()}
    with pytest.raises(ConfigError, match="has no vision tower"):
        policy(tiny_model, vision_tower=True)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_saved_policy_opens_as_a_whole_with_its_processor(tiny_vlm, tmp_path, lora):
    made = policy(tiny_vlm, lora=lora)
    with torch.no_grad():
        for _, parameter in made.trainable():
            parameter.add_(0.01)
    made.save(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    reader = load_pictures(str(tmp_path / "saved"))
    assert reader.token == made.pictures.token
    batch = collate(rows(reader), reader=reader)
    mine, theirs = (forward(model, batch, mode="plain").logprobs for model in (made.causal_lm, again))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def save_llava(folder, text):
    """A random LLaVA: CLIP tower, 4 + 1 patches of which the class token is dropped, around the Llama in `text`."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32, **sizes},
        text_config={**AutoConfig.from_pretrained(text).to_dict(), "vocab_size": 272},
        image_token_id=image, image_seq_length=4, vision_feature_layer=-1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_llava_goes_through_the_same_adapter(tiny_model, tmp_path):
    folder = save_llava(tmp_path, tiny_model)
    made = policy(folder, vision_tower=True)
    reader = made.pictures
    assert len(reader.tokens(picture(0))) == 4
    batch = collate(rows(reader), reader=reader)
    assert check_forward(made.model, batch, mode="packed", tolerance=1e-4) is None
    assert any("vision_tower" in name for name in gradients(made))
    assert not any("vision_tower" in name for name, _ in policy(folder).trainable())
    native, reference = (
        build_engine(EngineSettings(kind=kind, model=str(folder), dtype="float32", max_length=64))
        for kind in ("native", "hf")
    )
    asked = [
        Request(tokens=row.prompt.tokens, media=row.prompt.media, sampling=Sampling(max_tokens=6, temperature=0.0))
        for row in rows(reader)
    ]
    for one, other in zip(native.generate(asked), reference.generate(asked), strict=True):
        assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_an_architecture_whose_pictures_have_positions_of_their_own_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    with pytest.raises(ConfigError, match="qwen2_vl, whose pictures llmrl cannot train on; known are idefics3"):
        load_lm(str(tmp_path), dtype=torch.float32)
