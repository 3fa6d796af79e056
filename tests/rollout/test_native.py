"""The native engine against the reference engine and the packed forward; its draws against their definition."""

from dataclasses import replace

import pytest
import torch

from llmrl.errors import EngineError
from llmrl.policy.forward import forward
from llmrl.rollout.draw import draw_tokens, uniforms
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.roll import single_turn
from llmrl.train.collate import collate
from llmrl.types import Prompt, Request, Sampling, StatusKind
from tests.tiny import random_model, save_model, tiny_tokenizer

KINDS = {
    "llama, one key-value head": ("llama", {}),
    "llama, four heads on two": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
    "qwen2, biases": ("qwen2", {}),
    "qwen3, q and k norms": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "granite, by the model's own layers": ("granite", {}),
}


def settings(model="", **more):
    return EngineSettings(**{"kind": "native", "model": str(model), "dtype": "float32", "max_length": 128, **more})


def native(model, **more):
    model.generation_config.eos_token_id = 2
    return NativeEngine(settings(**more), model=model, tokenizer=tiny_tokenizer())


def requests(groups=(3, 1, 4, 2), **more):
    """Groups of requests with one prompt each, prompts of different lengths, samples not adjacent."""
    tokenizer = tiny_tokenizer()
    made = []
    for sample in range(max(groups)):
        for number, size in enumerate(groups):
            if sample < size:
                tokens = tuple(tokenizer(f"What is {number} + {7 * number}?"[: 4 + 3 * number])["input_ids"])
                values = {"max_tokens": 12 + sample, "seed": 100 * number + sample, **more}
                made.append(Request(tokens=tokens, sampling=Sampling(**values)))
    return made


def scored_again(model, asked, made, temperature=1.0):
    """The packed forward's log-probabilities of what was sampled, request by request."""
    prompts = [Prompt(id=str(request.tokens), tokens=request.tokens, text="") for request in asked]
    rows = [single_turn(prompt, done, sample=0, version=0) for prompt, done in zip(prompts, made, strict=True)]
    batch = collate([replace(row, scores=()) for row in rows])
    mask = torch.zeros_like(batch.mask)
    for number, row in enumerate(rows):
        mask[number, : row.length] = torch.from_numpy(row.mask.copy())
    with torch.no_grad():
        values = forward(model, replace(batch, mask=mask), mode="packed", temperature=temperature).logprobs
    return [values[number][mask[number]].tolist() for number in range(len(rows))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [128, 5, 4])
def test_greedy_tokens_and_log_probs_are_those_of_the_reference_engine(tmp_path, kind, most):
    name, changes = KINDS[kind]
    folder = save_model(tmp_path, random_model(name, **changes))
    asked = requests(temperature=0.0)
    mine = NativeEngine(settings(folder, max_sequences=most)).generate(asked)
    theirs = HFEngine(settings(folder)).generate(asked)
    for one, other in zip(mine, theirs, strict=True):
        assert one.tokens == other.tokens and one.status == other.status and one.text == other.text
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"top_k": 7, "temperature": 1.3}], ids=str)
def test_log_probs_are_those_that_training_computes(changes):
    model = random_model(dtype=torch.float64)
    asked = requests((5, 3, 8), **changes)
    made = native(model).generate(asked)
    assert len({done.tokens for done in made}) > 12
    again = scored_again(model, asked, made, temperature=changes.get("temperature", 1.0))
    for done, values in zip(made, again, strict=True):
        if "top_k" in changes:
            assert all(mine >= other - 1e-5 for mine, other in zip(done.logprobs, values, strict=True))
        else:
            assert done.logprobs == pytest.approx(values, abs=1e-4)


def test_a_completion_depends_on_its_seed_and_on_nothing_else_in_the_batch():
    engine = native(random_model(dtype=torch.float64))
    asked = requests((5, 3, 8))
    whole = engine.generate(asked)
    assert engine.generate(asked) == whole
    backwards = engine.generate(asked[::-1])[::-1]
    alone = [engine.generate([request])[0] for request in asked]
    narrow = native(random_model(dtype=torch.float64), max_sequences=3).generate(asked)
    for other in (backwards, alone, narrow):
        assert [done.tokens for done in other] == [done.tokens for done in whole]
    changed = engine.generate([replace(r, sampling=replace(r.sampling, seed=r.sampling.seed + 1)) for r in asked])
    assert [done.tokens for done in changed] != [done.tokens for done in whole]


def test_the_trainers_own_weights_are_used_as_they_change_and_its_mode_is_left():
    model = random_model(dtype=torch.float64).train()
    engine, asked = native(model), requests()
    before = engine.generate(asked)
    engine.load([], version=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = engine.generate(asked)
    assert [done.tokens for done in after] != [done.tokens for done in before]
    assert all(part.training for part in model.modules()) and model.config._attn_implementation != "llmrl_decoding"
    for done, values in zip(after, scored_again(model, asked, after), strict=True):
        assert done.logprobs == pytest.approx(values, abs=1e-4)


def test_weights_are_copied_into_a_model_of_its_own(tmp_path):
    folder = save_model(tmp_path, random_model())
    engine, asked = NativeEngine(settings(folder)), requests(temperature=0.0)
    before = engine.generate(asked)
    other = random_model(seed=1)
    engine.load([(name, p.detach()) for name, p in other.named_parameters()], version=1)
    assert engine.generate(asked) == native(other).generate(asked) != before
    with pytest.raises(EngineError, match="does not fit"):
        engine.load([("model.norm.weight", torch.ones(3))], version=2)


def test_ends_limits_stops_and_minimum():
    engine = native(random_model())
    for done in engine.generate(requests(max_tokens=3)):
        assert len(done.tokens) <= 3
        assert (done.status.kind is StatusKind.TRUNCATED) == (done.tokens[-1] != 2)
    for done in engine.generate(requests(max_tokens=6, min_tokens=6)):
        assert len(done.tokens) == 6 and 2 not in done.tokens[:-1]
    (whole,) = engine.generate(requests((1,), max_tokens=60, seed=5))
    letter = next(char for char in whole.text if char.isascii() and char.isprintable())
    (stopped,) = engine.generate(requests((1,), max_tokens=60, seed=5, stop=(letter,)))
    assert stopped.status.kind is StatusKind.DONE and stopped.text.endswith(letter)
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    short = NativeEngine(settings(max_length=20), model=engine._model, tokenizer=tiny_tokenizer())
    (cut,) = short.generate(
        [Request(tokens=tuple(range(5, 22)), sampling=Sampling(max_tokens=9, min_tokens=9, seed=0))]
    )
    assert len(cut.tokens) == 3 and cut.status.kind is StatusKind.TRUNCATED
    with pytest.raises(EngineError, match="leaves no room"):
        short.generate([Request(tokens=tuple(range(5, 25)), sampling=Sampling(max_tokens=9))])


def test_long_completions_outgrow_the_first_cache():
    model = random_model(dtype=torch.float64)
    asked = requests((3, 2), max_tokens=100)
    engine = native(model)
    engine._ends = []
    made = engine.generate(asked)
    assert {len(done.tokens) for done in made} == {100}
    for done, values in zip(made, scored_again(model, asked, made), strict=True):
        assert done.logprobs == pytest.approx(values, abs=1e-4)


def test_draws_follow_the_distribution_and_their_log_probs_are_its_own():
    logits = 2 * torch.randn(1, 700, generator=torch.Generator().manual_seed(0))
    logits[0, ::3] = float("-inf")
    count = 60_000
    asked = [Sampling(max_tokens=1, seed=seed) for seed in range(count)]
    tokens, logprobs = draw_tokens(logits.expand(count, -1), asked, [0] * count, ends=())
    wanted = logits[0].double().softmax(-1)
    found = torch.bincount(torch.tensor(tokens), minlength=700).double() / count
    deviation = (wanted * (1 - wanted) / count).sqrt()
    assert bool((found[::3] == 0).all())
    assert float(((found - wanted).abs() / deviation.clamp_min(1e-12))[wanted * count > 20].max()) < 5
    exact = wanted.log()[torch.tensor(tokens)]
    torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), exact, rtol=0, atol=1e-5)


def test_every_point_of_the_unit_interval_gives_the_token_of_the_inverse_cdf():
    from llmrl.rollout import draw

    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(1))
    points = torch.cat([torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1], torch.tensor([1 - 2.0**-53]).double()])
    greedy = torch.zeros(len(points), dtype=torch.bool)
    tokens, _ = draw._drawn(logits.expand(len(points), -1).clone(), points, greedy)
    cumulative = (logits[0] - logits[0].max()).exp().double().cumsum(0)
    wanted = torch.searchsorted(cumulative, points * cumulative[-1], right=True)
    assert float((tokens != wanted).float().mean()) < 1e-3  # float32 block sums move a border by 1e-7
    assert int((tokens - wanted).abs().max()) <= 1


def test_uniforms_are_uniform_and_keyed():
    draws = uniforms(list(range(20_000)) + [7] * 20_000, [0] * 20_000 + list(range(20_000)))
    assert float(draws.min()) >= 0 and float(draws.max()) < 1 and len(draws.unique()) >= 39_998
    for half in draws.split(20_000):
        assert abs(float(half.mean()) - 0.5) < 0.01 and abs(float(half.var()) - 1 / 12) < 0.003
    assert uniforms([3, 2**63 - 1], [5, 0]).tolist() == uniforms([3, 2**63 - 1], [5, 0]).tolist()
