"""Engines that see: the reference, the native engine and vLLM give the same completions under the same pictures."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from llmrl.data.pictures import load_pictures
from llmrl.errors import EngineError
from llmrl.policy.forward import forward
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings, seen_through
from llmrl.rollout.process import ProcessEngine
from llmrl.rollout.roll import single_turn
from llmrl.rollout.verify import sync
from llmrl.train.collate import collate
from llmrl.types import Completion, Prompt, Request, Sampling, Score, Status, StatusKind
from tests.tiny import picture, save_vlm

NATS = 1e-4


@pytest.fixture(scope="module")
def reader(tiny_vlm):
    return load_pictures(str(tiny_vlm))


def settings(folder, kind):
    return EngineSettings(
        kind=kind, model=str(folder), dtype="float32", max_length=128, max_sequences=16, kv_cache_gib=1.0
    )


def requests(reader, **more):
    """The same text under three pictures, under none, and two pictures in one prompt; siblings of the first."""
    media = [(picture(0),), (picture(1),), (picture(2, (50, 20)),), (), (picture(0), picture(1)), (picture(0),)]
    return [
        Request(
            tokens=reader.expand((5, *(reader.token for _ in shown), 60, 61, 62), shown), media=shown,
            sampling=Sampling(**{"max_tokens": 12, "seed": number, "temperature": 0.0, **more}),
        )
        for number, shown in enumerate(media)
    ]  # fmt: skip


def same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert one.tokens == other.tokens and one.status == other.status
        assert one.logprobs == pytest.approx(other.logprobs, abs=NATS)


def test_the_native_engine_and_the_reference_agree_and_pictures_tell_siblings_apart(tiny_vlm, reader):
    native, reference = (build_engine(settings(tiny_vlm, kind)) for kind in ("native", "hf"))
    greedy = native.generate(requests(reader))
    same(greedy, reference.generate(requests(reader)))
    assert len({made.logprobs[:1] for made in greedy[:5]}) == 5 and greedy[5].tokens == greedy[0].tokens
    drawn = native.generate(requests(reader, temperature=1.0))
    prompts = [Prompt(id=str(n), tokens=r.tokens, text="", media=r.media) for n, r in enumerate(requests(reader))]
    rows = [single_turn(prompt, made, sample=0, version=0) for prompt, made in zip(prompts, drawn, strict=True)]
    batch = collate([replace(row, scores=(Score(value=0.0),)) for row in rows], reader=reader)
    with torch.no_grad():
        scored = forward(native._model, batch, mode="packed").logprobs
    torch.testing.assert_close(scored, batch.logprobs * batch.mask, rtol=1e-4, atol=1e-4)


def test_engines_refuse_pictures_that_the_model_cannot_see_and_a_written_placeholder_fails(tiny_model, reader):
    for kind in ("native", "hf"):
        with pytest.raises(EngineError, match=r"5 of 6 prompts show images, and .* reads text only"):
            build_engine(settings(tiny_model, kind)).generate(requests(reader))
    made = Completion(tokens=(5, reader.token), logprobs=(0.0, 0.0), text="", status=Status.done())
    assert seen_through(made, reader).status.reason == "the policy wrote <image>, which stands for an image"
    assert seen_through(made, None) == made and seen_through(replace(made, tokens=(5,)), reader).status == Status.done()


def test_a_row_in_which_the_policy_wrote_the_placeholder_trains_nothing_and_breaks_nothing(tiny_vlm, reader):
    (request, *_) = requests(reader)
    prompt = Prompt(id="a", tokens=request.tokens, text="", media=request.media)
    made = Completion(tokens=(70, reader.token, 71), logprobs=(0.0,) * 3, text="", status=Status.done())
    rows = [
        single_turn(prompt, seen_through(one, reader), sample=0, version=0)
        for one in (made, replace(made, tokens=(70, 72, 71)))
    ]
    rows = [replace(row, scores=(Score(value=1.0),)) for row in rows]
    assert [row.status.kind for row in rows] == [StatusKind.ERROR, StatusKind.DONE]
    model = build_engine(settings(tiny_vlm, "native"))._model
    batch = collate(rows, reader=reader)
    assert batch.mask.any(1).tolist() == [False, True]
    for mode in ("packed", "plain"):
        both, alone = (forward(model, part, mode=mode).logprobs for part in (batch, collate(rows[1:], reader=reader)))
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm")
def test_vllm_sees_what_the_reference_sees_also_after_new_weights_of_every_part(tiny_vlm, reader, tmp_path):
    engine = ProcessEngine(settings(tiny_vlm, "vllm"), log=tmp_path / "engine.log", stall_timeout_s=60.0)
    reference = build_engine(settings(tiny_vlm, "hf"))
    try:
        first = engine.generate(requests(reader))
        same(first, reference.generate(requests(reader)))
        other = build_engine(settings(save_vlm(tmp_path, seed=5), "hf"))._model
        weights = [(name, p.detach()) for name, p in other.named_parameters()]
        assert sync(engine, weights, version=1, verify="full") > 0.9
        reference.load(weights, version=1)
        second = engine.generate(requests(reader))
        same(second, reference.generate(requests(reader)))
        assert [made.tokens for made in first] != [made.tokens for made in second]
    finally:
        engine.close()
