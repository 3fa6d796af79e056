"""A vision-language model made from a text model: the same for a seed, the text part untouched, and it learns to see."""

import io
from functools import partial

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from llmrl.commands import build_model
from llmrl.data.frames import make_frame
from llmrl.errors import CatalogError
from llmrl.policy.build_vlm import Eyes, build_vlm
from llmrl.policy.catalog import list_models, resolve
from llmrl.policy.eyes import teach_words
from llmrl.seeding import generator

SMALL = Eyes(image=64, patch=16, scale=2, width=32, layers=1, heads=1)


def test_the_seed_makes_the_model_and_text_is_read_as_before(tiny_model, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        build_vlm(tiny_model, tmp_path / name, seed=seed, eyes=SMALL)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    text = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokens = torch.tensor([[5, 6, 70, 71]])
    theirs = text(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits[..., : theirs.shape[-1]], theirs)
    assert str(tiny_model) not in (tmp_path / "one" / "config.json").read_text()
    processor = AutoProcessor.from_pretrained(tmp_path / "one")
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": " b "}]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    written = processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert written == "<|system|>s<|end|><|user|>a<image> b <|end|><|assistant|>"


def test_first_lessons_teach_tower_and_projector_and_leave_the_rest(tiny_model, tmp_path):
    build_vlm(tiny_model, tmp_path, seed=0, eyes=SMALL)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    before = {name: p.clone() for name, p in model.named_parameters()}

    def lesson(step):
        frames = [make_frame(generator(0, "t", step % 2, n), most=1) for n in range(8)]
        return [frame.image() for frame in frames], [frame.words(2) for frame in frames]

    seen = []
    teach_words(model, processor, lesson, steps=80, lr=3e-3, report=lambda step, loss, right: seen.append(right))
    assert sum(seen[-10:]) / 10 > 0.6 > 0.3 > sum(seen[:3]) / 3
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("vision_model" in name or "connector" in name for name in moved)


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_the_command_builds_a_model_that_recipes_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRL_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(build_model, "pull", lambda name, report: tiny_model)
    with pytest.raises(CatalogError, match="llmrl models build vlm-135m"):
        resolve("vlm-135m")
    quick = ["train.steps=2", "train.warmup_steps=0", "data.limit=40", "eval.data.n=4", "model.max_length=200"]
    quick += ["train.threads=1", "data.max_prompt_tokens=150", "model.dtype=float32"]
    threads, found = torch.get_num_threads(), []
    build = partial(
        build_model.build, "vlm-135m", seed=0, lessons=2, console=Console(file=io.StringIO()), overrides=quick
    )
    for number in range(2):
        if number:  # the second is stopped after its first lessons, and goes on from there
            with monkeypatch.context() as patch:
                patch.setattr(build_model, "_answering", stop)
                with pytest.raises(KeyboardInterrupt):
                    build()
            monkeypatch.setattr(build_model, "first_lessons", None)
        folder = build()
        found.append((folder / "model.safetensors").read_bytes())
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    assert found[0] == found[1] and resolve("vlm-135m") == folder
    assert {row.name: row.cached for row in list_models()}["vlm-135m"]
    assert sorted(item.name for item in (tmp_path / "models").iterdir()) == [".vlm-135m.lock", "vlm-135m"]
    with pytest.raises(CatalogError, match="'vlm' is not made here; known: vlm-135m"):
        build_model.build("vlm", seed=0, lessons=1, console=Console(file=io.StringIO()))
