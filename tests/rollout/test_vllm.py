"""A real vLLM engine in a child process, against the reference engine and against being killed."""

import importlib.util
import os
import signal
import time

import pytest
import torch

from llmrl.errors import EngineError
from llmrl.policy.model import load_policy
from llmrl.policy.resize import resized
from llmrl.rollout.engine import ChecksumRequest, EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.process import EngineFaults, ProcessEngine
from llmrl.rollout.verify import checksum, sync
from llmrl.settings.model import LoraConfig, ModelConfig
from llmrl.types import Request, Sampling, StatusKind
from tests.tiny import random_model, save_model, tiny_tokenizer

# find_spec and not importorskip: importing vllm changes this process, which has other tests to run
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm")]
NATS = 1e-4  # float32 through other kernels; 4e-6 was measured


def settings(model, kind="vllm"):
    return EngineSettings(
        kind=kind, model=str(model), dtype="float32", max_length=128, max_sequences=16, kv_cache_gib=1.0
    )


@pytest.fixture(scope="module")
def engine(tiny_model, tmp_path_factory):
    made = ProcessEngine(
        settings(tiny_model), log=tmp_path_factory.mktemp("engine") / "engine.log", stall_timeout_s=60.0
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(tiny_model):
    return HFEngine(settings(tiny_model, "hf"))


def requests(count=8, **more):
    tokenizer = tiny_tokenizer()
    return [
        Request(
            tokens=tuple(tokenizer(f"What is {n} + {7 * n}?"[: 4 + 2 * n])["input_ids"]),
            sampling=Sampling(**{"max_tokens": 16, "seed": n, **more}),
        )
        for n in range(count)
    ]


def weights(seed):
    return [(name, p.detach()) for name, p in random_model(seed=seed).named_parameters()]


def assert_agree(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert one.tokens == other.tokens and one.status == other.status
        assert one.logprobs == pytest.approx(other.logprobs, abs=NATS)


def test_both_engines_agree_on_greedy_tokens_and_log_probs_also_after_new_weights(engine, reference):
    greedy = requests(temperature=0.0)
    first = engine.generate(greedy)
    assert_agree(first, reference.generate(greedy))
    for made in (engine, reference):
        made.load(weights(1), version=1)
    second = engine.generate(greedy)
    assert_agree(second, reference.generate(greedy))
    assert [made.tokens for made in first] != [made.tokens for made in second]


def test_the_same_seed_gives_the_same_completion_and_another_gives_another(engine):
    first, again = engine.generate(requests()), engine.generate(requests())
    assert first == again
    assert [made.tokens for made in engine.generate(requests(seed=99))] != [made.tokens for made in first]


def test_truncation_and_stop_strings(engine):
    for made in engine.generate(requests(max_tokens=2)):
        assert (made.status.kind is StatusKind.TRUNCATED) == (2 not in made.tokens)
    (whole,) = engine.generate(requests(1, max_tokens=60, seed=5))
    letter = next(char for char in whole.text if char.isascii() and char.isprintable())
    (stopped,) = engine.generate(requests(1, max_tokens=60, seed=5, stop=(letter,)))
    assert stopped.status.kind is StatusKind.DONE and stopped.text.endswith(letter)
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]


def test_texts_hold_special_tokens_and_stops_may_be_such(engine):
    """huggingface/trl#2897, verl#1724: rewards could not see them, and a stop that is one was never met."""
    tokenizer = tiny_tokenizer()
    for made in engine.generate(requests(32, max_tokens=60)):
        whole = made.tokens[:-1] if made.tokens[-1] == 2 else made.tokens
        assert "\ufffd" in made.text or made.text == tokenizer.decode(whole, skip_special_tokens=False)
    found = engine.generate(requests(32, max_tokens=60, stop=("<|assistant|>", "<|system|>")))
    stopped = [made for made in found if made.tokens[-1] in (3, 4)]
    assert stopped and all(made.text.endswith("|>") and made.status.kind is StatusKind.DONE for made in stopped)
    assert not any({3, 4} & set(made.tokens[:-1]) for made in found)


@pytest.mark.slow
def test_vllm_opens_a_checkpoint_of_a_grown_model_with_an_adapter(tmp_path):
    """OpenRLHF#920, verl#4761, #4553: folders that vLLM could not open, or that lacked the adapter."""
    small = random_model(vocab_size=259, tie_word_embeddings=True)
    grown = resized(str(save_model(tmp_path / "m", small)), cache_dir=tmp_path / "cache")
    config = ModelConfig(path="x", dtype="float32", lora=LoraConfig(r=4, alpha=8, dora=True))
    policy = load_policy(config, source=grown, device=torch.device("cpu"), seed=0)
    with torch.no_grad():
        for name, parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    policy.save(tmp_path / "saved")
    own = NativeEngine(settings(grown, "native"), model=policy.causal_lm, tokenizer=policy.tokenizer)
    opened = ProcessEngine(settings(tmp_path / "saved"), log=tmp_path / "engine.log", stall_timeout_s=60.0)
    try:
        assert_agree(opened.generate(requests(temperature=0.0)), own.generate(requests(temperature=0.0)))
    finally:
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_and_a_stopped_child_are_replaced_with_their_weights_and_nothing_is_lost(engine, how):
    engine.load(weights(2), version=2)
    asked = [*requests(1, max_tokens=1, temperature=0.0), *requests(6, max_tokens=100, temperature=0.0)]
    wanted = engine.generate(asked)
    assert engine.take_faults() == EngineFaults()
    pid = engine.pid
    stream = engine.stream(asked)
    found = dict([next(item for item in stream if item is not None)])  # the short one; the others are under way
    os.kill(pid, how)
    found |= dict(item for item in stream if item is not None)
    faults = engine.take_faults()
    assert faults.restarts == 1 and 1 <= faults.regenerated <= 6 and engine.pid != pid
    assert_agree([found[number] for number in range(7)], wanted)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_that_cannot_start_says_why_with_its_log(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    made = ProcessEngine(settings(tmp_path / "model"), log=tmp_path / "engine.log")
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"engine\.log"):
        made.generate(requests(1))
    made.close()
    assert time.monotonic() - start < 120


def test_vllm_shows_every_weight_it_computes_with_and_those_that_are_not_the_ones_sent(engine):
    changed = dict(weights(3))
    assert sync(engine, changed.items(), version=3, verify="full") == 1.0
    assert sync(engine, changed.items(), version=4, verify="sampled") == 1.0
    shapes = {name: tuple(tensor.shape) for name, tensor in changed.items()}
    request = ChecksumRequest(shapes=shapes, dtypes=dict.fromkeys(shapes, "float32"), version=4, full=True)
    found = engine.checksums(request)
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        changed[name] = changed[name] * 1.01
    assert {name for name, tensor in changed.items() if found[name] != checksum(tensor)} == {
        "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    }  # fmt: skip
