"""Faults that users of other frameworks reported, tried on llmrl: data, tokenizers, ends, adapters, checkpoints.

Each test names the report it is after. Those that other tests cover already are in the list of the changelog's pages.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrl.data.conversation import Renderer
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import make_row
from llmrl.errors import DataError
from llmrl.policy.model import load_policy, load_tokenizer
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.roll import single_turn
from llmrl.settings.data import DataConfig
from llmrl.settings.model import LoraConfig, ModelConfig
from llmrl.train.collate import collate
from llmrl.types import Completion, Prompt, Request, Sampling, Score, Status
from tests.tiny import EOS, random_model, save_model, tiny_tokenizer

ENGINES = {"native": NativeEngine, "hf": HFEngine}


def opened(folder, **more):
    config = ModelConfig(path="x", dtype="float32", **more)
    return load_policy(config, source=str(folder), device=torch.device("cpu"), seed=0)


def changed(folder, name, **values):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def settings(folder, kind="native"):
    return EngineSettings(kind=kind, model=str(folder), dtype="float32", max_length=128, max_sequences=8)


def requests(**sampling):
    return [Request(tokens=(70, 71, 72), sampling=Sampling(max_tokens=40, seed=seed, **sampling)) for seed in range(8)]


def test_an_end_of_sequence_that_is_also_the_padding_is_trained(tmp_path):
    """huggingface/trl#4970: a mask that is read off token values hides the end token when it pads too."""
    folder = save_model(tmp_path / "m", random_model())
    changed(folder, "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made = Completion(tokens=(80, tokenizer.eos_token_id), logprobs=(-1.0, -1.0), text="", status=Status.done())
    row = single_turn(Prompt(id="p", tokens=(70, 71), text=""), made, sample=0, version=0)
    longer = single_turn(Prompt(id="q", tokens=(70, 71, 72, 73), text=""), made, sample=0, version=0)
    batch = collate([one.with_outcome(Score(value=1.0)) for one in (row, longer)])
    assert batch.mask.tolist() == [[False, False, True, True, False, False], [False] * 4 + [True, True]]


@pytest.mark.parametrize("kind", ENGINES)
def test_completions_end_at_every_end_of_the_generation_config_and_at_the_tokenizers(tmp_path, kind):
    """huggingface/trl#7039 (several ends), #3046 (an end of the tokenizer alone), #2387 (no end at all)."""
    folder = save_model(tmp_path / "m", random_model())
    changed(folder, "generation_config.json", eos_token_id=list(range(100, 180)))
    tokenizer_end = tiny_tokenizer().convert_tokens_to_ids(EOS)
    ends = {*range(100, 180), tokenizer_end}
    found = ENGINES[kind](settings(folder, kind)).generate(requests(temperature=1.0))
    assert all(made.status.kind.value == "done" for made in found)
    for made in found:
        assert made.tokens[-1] in ends and not ends & set(made.tokens[:-1])
    policy = opened(folder)
    policy.save(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert stored["eos_token_id"] == list(range(100, 180))


@pytest.mark.parametrize("kind", ENGINES)
def test_a_models_own_sampling_defaults_change_neither_samples_nor_probabilities(tmp_path, kind):
    """OpenPipe/ART#140, modelscope/ms-swift#8442, huggingface/trl#3494: top_k, top_p of generation_config.json."""
    found = []
    for name, defaults in (("plain", {}), ("tuned", {"top_k": 2, "top_p": 0.5, "repetition_penalty": 1.5})):
        folder = save_model(tmp_path / name, random_model())
        changed(folder, "generation_config.json", do_sample=True, temperature=0.3, **defaults)
        found.append(ENGINES[kind](settings(folder, kind)).generate(requests(temperature=0.8)))
    assert [(made.tokens, made.logprobs) for made in found[0]] == [(made.tokens, made.logprobs) for made in found[1]]


def test_a_checkpoint_is_written_whatever_the_models_generation_config_says(tmp_path):
    """Sampling settings without do_sample are what transformers refuses to save (reported for several trainers)."""
    folder = save_model(tmp_path / "m", random_model())
    changed(folder, "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    policy = opened(folder)
    assert "do_sample is set" in policy.notes[0]
    policy.save(tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.top_p == 0.9


def test_a_template_that_ends_turns_with_another_token_than_completions_is_said(tmp_path):
    """A base model with its chat model's template never stops (reported for TRL and OpenRLHF with Qwen2.5 base models)."""
    folder = save_model(tmp_path / "m", random_model())
    assert opened(folder).notes == ()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|pad|>"
    tokenizer.add_special_tokens({"additional_special_tokens": [EOS]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    changed(folder, "generation_config.json", eos_token_id=0)
    (note,) = opened(folder).notes
    assert "ends a turn with <|end|>, at which completions do not end" in note and "rollout.stop" in note


def test_a_template_that_knows_no_system_message_says_so():
    """google/gemma's templates raise; other trainers end in a traceback of jinja2."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    row = make_row({"prompt": "a"}, columns={}, origin="x", default_id="x")
    with pytest.raises(DataError, match=r"roles system, user: System role not supported.*data\.template"):
        to_prompts([row], tokenizer, DataConfig(source="x", system="Be brief."))


def test_thinking_that_a_template_drops_from_earlier_turns_stays_in_the_tokens_that_were_sampled():
    """verl#5576, #6854, #3720, prime-rl#1334, ART#726: re-rendering changes what the policy is said to have written."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = Renderer(tokenizer)
    first, _ = renderer.first([{"role": "user", "content": "Hi"}])
    sampled = tuple(tokenizer("<think>x</think>Yes<|end|>")["input_ids"])
    made = Completion(tokens=sampled, logprobs=(0.0,) * len(sampled), text="", status=Status.done())
    after = renderer.following(made, [{"role": "user", "content": "And?"}])
    whole = tokenizer.decode([*first, *sampled, *after])
    assert whole == "<|user|>Hi<|end|><|assistant|><think>x</think>Yes<|end|><|user|>And?<|end|><|assistant|>"


def test_target_layers_given_as_a_pattern_are_refused():
    """verl#7413: a regular expression for target_modules was mangled into layer names."""
    with pytest.raises(ValueError, match="target"):
        LoraConfig(target=r"model\..*q_proj")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ENGINES)
def test_a_stop_string_ends_a_completion_that_counts_as_done(tmp_path, kind):
    """huggingface/trl#2820, open-r1#271: base models need stop strings; what they end is not truncated."""
    folder = save_model(tmp_path / "m", random_model())
    letters = [chr(code) for code in range(97, 123)]
    found = ENGINES[kind](settings(folder, kind)).generate(requests(temperature=1.0, stop=tuple(letters)))
    stopped = [made for made in found if made.tokens[-1] != 2]
    assert stopped and all(made.status.kind.value == "done" and made.text[-1] in letters for made in stopped)
    assert all(not set(made.text[:-1]) & set(letters) for made in stopped)


def test_added_tokens_are_one_token_in_prompts_and_in_the_saved_tokenizer(tmp_path):
    """huggingface/trl#3425: a token that was added after loading; here it comes with the model and stays with it."""
    folder = save_model(tmp_path / "m", random_model(vocab_size=262))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<search>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    policy = opened(folder)
    assert policy.notes == () and policy.tokenizer("<search>")["input_ids"] == [261]
    policy.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a<search>b")["input_ids"][1] == 261
