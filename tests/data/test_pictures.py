"""Images from data rows and observations to tokens: read, expanded, counted, refused."""

import json

import numpy as np
import pytest
from PIL import Image

from llmrl.data.conversation import Renderer, Talk
from llmrl.data.pictures import load_pictures
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import check_disjoint, make_row
from llmrl.data.source import load_rows
from llmrl.errors import ConfigError, DataError
from llmrl.policy.model import load_tokenizer
from llmrl.settings.data import DataConfig
from llmrl.types import Completion, Media, Observation, Prompt, Status
from tests.tiny import picture

RED = np.zeros((4, 6, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


@pytest.fixture(scope="module")
def reader(tiny_vlm):
    return load_pictures(str(tiny_vlm))


@pytest.fixture(scope="module")
def tokenizer(tiny_vlm):
    return load_tokenizer(str(tiny_vlm))


def test_a_picture_is_the_same_from_an_array_an_image_a_file_and_its_bytes(tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    Image.fromarray(RED).save(tmp_path / "red.bmp")
    given = [
        RED,
        Image.fromarray(RED),
        tmp_path / "red.png",
        str(tmp_path / "red.bmp"),
        (tmp_path / "red.png").read_bytes(),
    ]
    found = [Media.image(one) for one in given]
    assert len({one.hash for one in found}) == 1 and Media.image(255 - RED).hash != found[0].hash
    assert (np.asarray(found[0].open()) == RED).all() and Media.of(found[0].data) == found[0]
    for wrong, error in ((RED.astype(np.float32), ValueError), (3, TypeError), (tmp_path / "none.png", OSError)):
        with pytest.raises(error):
            Media.image(wrong)


def test_a_placeholder_becomes_the_pictures_tokens_and_back(reader, tokenizer):
    around, image, whole = (
        tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("fake_token_around_image", "image", "global-img")
    )
    media = (picture(0), picture(1, (9, 9)))
    expanded = reader.expand((7, image, 8, image), media)
    one = (around, whole, image, image, image, image, around)
    assert expanded == (7, *one, 8, *one) and reader.token == image
    assert reader.collapse(expanded, media) == (7, image, 8, image)
    with pytest.raises(DataError, match="2 places for images and 1 images"):
        reader.expand((7, image, 8, image), media[:1])
    with pytest.raises(ValueError, match="image 1"):
        reader.collapse(expanded[:9], media)


def test_what_is_read_is_what_the_processor_makes(reader):
    media = picture(3, (16, 48))
    (read,) = reader.read([media])
    pixels = np.asarray(media.open().resize((32, 10), Image.LANCZOS).resize((32, 32), Image.LANCZOS), np.float32)
    expected = (pixels / 255 - 0.5) / 0.5
    np.testing.assert_allclose(read.tensors["pixel_values"][0, 0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert read.hash == media.hash


def test_rows_with_images_become_prompts_that_show_them(reader, tokenizer, tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    stored = {"bytes": picture(0).data, "path": None}
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
    ]
    records = [
        {"prompt": "What is it?", "images": ["red.png"], "answer": "red"},
        {"prompt": [{"role": "system", "content": "Look."}, {"role": "user", "content": "hm"}], "image": stored},
        {"prompt": parts, "images": [RED]},
        {"prompt": "no picture", "images": None},
    ]  # fmt: skip
    rows = [
        make_row(record, columns={}, origin="t", default_id=str(n), folder=tmp_path) for n, record in enumerate(records)
    ]
    prompts, _ = to_prompts(rows, tokenizer, DataConfig(source="none"), reader=reader)
    assert [prompt.text for prompt in prompts] == [
        "<|user|><image>What is it?<|end|><|assistant|>",
        "<|system|>Look.<|end|><|user|><image>hm<|end|><|assistant|>",
        "<|user|>a<image>b<|end|><|assistant|>",
        "<|user|>no picture<|end|><|assistant|>",
    ]
    assert [len(prompt.media) for prompt in prompts] == [1, 1, 1, 0]
    assert prompts[0].media == prompts[2].media == (Media.image(RED),) and prompts[1].media == (picture(0),)
    assert all(reader.collapse(p.tokens, p.media) == tuple(tokenizer(p.text)["input_ids"]) for p in prompts)
    assert all("image" not in name for prompt in prompts for name in prompt.columns)
    with pytest.raises(DataError, match="t shows images and the model reads text only"):
        to_prompts(rows, tokenizer, DataConfig(source="none"))


def test_the_same_question_under_another_picture_is_another_problem(tmp_path):
    lines = [{"prompt": "what?", "images": [f"{n}.png"]} for n in (0, 1, 0)]
    for number in (0, 1):
        (tmp_path / f"{number}.png").write_bytes(picture(number).data)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_rows(DataConfig(source=str(tmp_path / "rows.jsonl"), shuffle=False), seed=0)
    check_disjoint(rows[:1], rows[1:2])
    with pytest.raises(DataError, match="1 training rows pose a problem"):
        check_disjoint(rows[:1], rows[2:])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "what?", "images": ["gone.png"]}))
    with pytest.raises(DataError, match=r"rows.jsonl:1: column 'images': .*gone.png"):
        load_rows(DataConfig(source=str(tmp_path / "rows.jsonl")), seed=0)


def said(tokenizer, text):
    return Completion(tokens=tuple(tokenizer(text)["input_ids"]), logprobs=(), text=text, status=Status.done())


@pytest.mark.parametrize("chat", [True, False])
def test_a_conversation_with_pictures_grows_by_what_is_new_and_a_window_forgets(chat, reader, tokenizer):
    seen = [Observation.of(f"frame {n}", media=(picture(n),)) for n in range(3)]
    talks = {}
    for window in (None, 1, 2):
        talk = talks[window] = Talk(
            Renderer(tokenizer, chat=chat, reader=reader), Prompt(id="a", tokens=(1,), text=""), window
        )
        contexts = []
        for observation in seen:
            talk.shows(observation)
            contexts.append(talk.context())
            talk.said.append(said(tokenizer, "go"))
        talks[window] = contexts
    for before, after in zip(talks[None], talks[None][1:]):
        assert after.tokens[: len(before.tokens)] == before.tokens
    assert [[m.hash for m in c.media] for c in talks[1]] == [[picture(n).hash] for n in range(3)]
    assert [len(c.media) for c in talks[2]] == [1, 2, 2] and [len(c.media) for c in talks[None]] == [1, 2, 3]
    for contexts in talks.values():
        for context in contexts:
            assert context.tokens.count(reader.token) == 4 * len(context.media)
            assert reader.collapse(context.tokens, context.media)
    if chat:
        written = "".join(
            f"<|user|><image>frame {n}<|end|><|assistant|>" + ("go<|end|>" if n < 2 else "") for n in range(3)
        )
        assert talks[None][-1].tokens == reader.expand(tokenizer(written)["input_ids"], [picture(n) for n in range(3)])


def test_images_for_a_model_without_eyes_and_text_that_pretends_are_refused(reader, tokenizer):
    with pytest.raises(ConfigError, match="1 images are shown to a model that reads text only"):
        Renderer(tokenizer).first(Observation.of("x", media=(picture(0),)).messages, (picture(0),))
    with pytest.raises(DataError, match="must not contain <image>"):
        Renderer(tokenizer, reader=reader).first(Observation.of("see <image>").messages)
