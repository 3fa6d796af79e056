"""What the hf engine draws from: top-k, top-p and min-p by their definitions; and the engine itself."""

import math

import pytest
import torch

from llmrl.errors import EngineError
from llmrl.rollout.draw import processed_logprobs
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.store import read_rollouts, write_rollouts
from llmrl.types import Request, Sampling, StatusKind
from tests.tiny import random_model, random_trajectories, tiny_tokenizer


def definition(logits, *, temperature, top_k, top_p, min_p):
    """Token by token over plain lists."""
    weights = [math.exp(float(logit) / temperature) for logit in logits]
    alive = list(range(len(weights)))
    if top_k > 0:
        alive = sorted(alive, key=lambda token: -weights[token])[:top_k]
    if top_p < 1:
        total, reached, kept = sum(weights[token] for token in alive), 0.0, []
        for token in sorted(alive, key=lambda token: -weights[token]):
            if reached >= top_p:
                break
            kept.append(token)
            reached += weights[token] / total
        alive = kept
    if min_p > 0:
        best = max(weights[token] for token in alive)
        alive = [token for token in alive if weights[token] >= min_p * best]
    total = sum(weights[token] for token in alive)
    return [math.log(weights[t] / total) if t in alive else float("-inf") for t in range(len(weights))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.1},
        {"top_k": 999},
    ],
    ids=str,
)
def test_processed_log_probs_are_those_of_the_definition(seed, temperature, cut):
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(seed))
    settings = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, **cut, "temperature": temperature}
    got = processed_logprobs(logits, Sampling(max_tokens=1, **settings))
    assert got.tolist() == pytest.approx(definition(logits, **settings), rel=1e-4, abs=1e-5)
    assert float(got.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_greedy_log_probs_are_those_at_temperature_one():
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0))
    got = processed_logprobs(logits, Sampling(max_tokens=1, temperature=0.0, top_k=2))
    assert torch.equal(got, logits.log_softmax(-1))


@pytest.fixture(scope="module")
def engine(tiny_model):
    return HFEngine(EngineSettings(kind="hf", model=str(tiny_model), dtype="float32", max_length=64, max_sequences=4))


def requests(count=6, *, seed=0, **more):
    texts = ["hi", "What is 3 + 4?", "abc", "a longer prompt, to be padded", "x", "yy"]
    settings = {"max_tokens": 12, **more}
    return [
        Request(tokens=tuple(tiny_tokenizer()(texts[n])["input_ids"]), sampling=Sampling(seed=seed + n, **settings))
        for n in range(count)
    ]


def test_log_probs_are_the_models_own_of_the_tokens_drawn(engine):
    model = random_model()
    for request, made in zip(requests(temperature=0.7), engine.generate(requests(temperature=0.7)), strict=True):
        tokens = torch.tensor([[*request.tokens, *made.tokens]])
        with torch.no_grad():
            table = (model(tokens).logits[0, :-1] / 0.7).log_softmax(-1)
        own = table.gather(1, tokens[0, 1:, None]).squeeze(1)[len(request.tokens) - 1 :]
        assert made.logprobs == pytest.approx(own.tolist(), abs=1e-4)


def test_a_completion_does_not_depend_on_its_batch(engine):
    together = engine.generate(requests())
    alone = [engine.generate([request])[0] for request in requests()]
    assert [made.tokens for made in together] == [made.tokens for made in alone]
    assert [made.tokens for made in engine.generate(requests(seed=50))] != [made.tokens for made in together]


def test_the_ends_of_completions(tiny_model, engine):
    for made in engine.generate(requests(max_tokens=3)):
        ended = 2 in made.tokens
        assert (made.status.kind is StatusKind.DONE) == ended
        assert (made.status.kind is StatusKind.TRUNCATED) == (not ended and len(made.tokens) == 3)
        assert 2 not in made.tokens[:-1]
    made = engine.generate(requests(1, max_tokens=40))[0]
    letter = next(char for char in made.text if char.isascii() and char.isprintable())
    stopped = engine.generate(requests(1, max_tokens=40, stop=(letter,)))[0]
    assert stopped.status.kind is StatusKind.DONE and letter in stopped.text
    assert stopped.tokens == made.tokens[: len(stopped.tokens)] and letter not in tiny_tokenizer().decode(
        stopped.tokens[:-1]
    )


def test_a_full_prompt_leaves_no_room(engine):
    full = Request(tokens=tuple(range(5, 69)), sampling=Sampling(max_tokens=5))
    made = engine.generate([full, *requests(1)])
    assert (made[0].tokens, made[0].status.kind) == ((), StatusKind.TRUNCATED) and made[1].tokens


def test_loaded_weights_are_the_ones_generated_from_and_wrong_ones_are_refused(tiny_model):
    settings = EngineSettings(kind="hf", model=str(tiny_model), dtype="float32", max_length=64)
    engine, other = HFEngine(settings), random_model(seed=1)
    before = engine.generate(requests(temperature=0.0))
    engine.load([(name, p.detach()) for name, p in other.named_parameters()], version=1)
    after = engine.generate(requests(temperature=0.0))
    assert [made.tokens for made in before] != [made.tokens for made in after]
    with torch.no_grad():
        first = other(torch.tensor([requests()[0].tokens])).logits[0, -1].argmax()
    assert after[0].tokens[0] == int(first)
    with pytest.raises(EngineError, match="does not fit"):
        engine.load([("model.norm.weight", torch.zeros(3))], version=2)
    with pytest.raises(EngineError, match=r"no\.such"):
        engine.load([("no.such", torch.zeros(3))], version=2)


def test_stored_rollouts_come_back_as_they_were(tmp_path):
    rows = random_trajectories(4)
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows, [0.5] * len(rows))
    again = read_rollouts(tmp_path / "rollouts" / "step-000001.parquet")
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["step-000001.parquet"]
    for one, other in zip(rows, again, strict=True):
        for name in ("tokens", "mask", "logprobs", "step"):
            mine, yours = getattr(one, name), getattr(other, name)
            assert mine.dtype == yours.dtype and mine.tolist() == yours.tolist()
        assert (one.prompt.id, one.prompt.tokens, one.status, one.version, one.sample) == (
            other.prompt.id, other.prompt.tokens, other.status, other.version, other.sample,
        )  # fmt: skip
        assert one.scores == other.scores and one.reward == other.reward
