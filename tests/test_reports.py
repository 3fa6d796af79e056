"""Faults that users of other frameworks reported, tried on llmrl: data, tokenizers, ends, adapters, checkpoints.

Each test names the report it is after. REPORTS.md lists them all, with those that other tests cover.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrl.algos.ppo import PPO
from llmrl.data.conversation import Renderer
from llmrl.data.gold import gold_rows, with_completions
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import make_row
from llmrl.errors import DataError
from llmrl.policy.model import load_policy, load_tokenizer
from llmrl.policy.resize import resized
from llmrl.rollout.engine import EngineSettings, written
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.roll import single_turn
from llmrl.rollout.servers import completion_body, completion_of
from llmrl.settings.data import DataConfig
from llmrl.settings.model import LoraConfig, ModelConfig
from llmrl.train.collate import collate
from llmrl.types import Completion, Prompt, Request, Sampling, Score, Status
from tests.tiny import EOS, random_model, save_model, tiny_tokenizer, trajectory

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
    """verl#5576, #6854, #3720, prime-rl#947, #1334, ART#726: re-rendering changes what the policy is said to have written."""
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


@pytest.mark.parametrize("kind", ENGINES)
def test_a_reward_sees_special_tokens_but_not_the_one_that_ends(tmp_path, kind):
    """huggingface/trl#2897, verl#1724, #3958: tags of thoughts or tool calls that are special tokens were cut out."""
    engine = ENGINES[kind](settings(save_model(tmp_path / "m", random_model()), kind))
    found = engine.generate([replace(one, sampling=replace(one.sampling, max_tokens=100)) for one in requests()])
    tokenizer, end = tiny_tokenizer(), tiny_tokenizer().convert_tokens_to_ids(EOS)
    assert any(made.tokens[-1] == end for made in found) and any(set(made.tokens) & {3, 4} for made in found)
    for made in found:
        whole = made.tokens[:-1] if made.tokens[-1] == end else made.tokens
        assert made.text == tokenizer.decode(whole, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_stop_string_may_be_a_special_token(tmp_path, kind):
    """The mend that the note about the template's end advises; other engines match stops on text without such tokens."""
    engine = ENGINES[kind](settings(save_model(tmp_path / "m", random_model()), kind))
    found = engine.generate(requests(temperature=1.0, stop=("<|assistant|>", "<|system|>")))
    stopped = [made for made in found if made.tokens[-1] in (3, 4)]
    assert stopped and all(made.status.kind.value == "done" for made in stopped)
    assert all(made.text.endswith(("<|assistant|>", "<|system|>")) for made in stopped)
    assert not any({3, 4} & set(made.tokens[:-1]) for made in found)


def test_text_ends_with_the_stop_string_where_its_last_token_goes_on():
    """NovaSky-AI/SkyRL#778: with ".." as stop and the token "...", what a reward reads was one character too long."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["..."])
    tokens = tokenizer("Yes...")["input_ids"]
    assert len(tokens) == 4
    sampling = Sampling(max_tokens=9, stop=("..",))
    assert written(tokenizer, tokens, sampling, ended=False) == "Yes.."
    assert written(tokenizer, [*tokens, tokenizer.eos_token_id], replace(sampling, stop=()), ended=True) == "Yes..."


def test_a_servers_text_ends_with_the_stop_string_it_met():
    """Servers leave it out, unless asked to put the end of a sequence into the text as well."""
    request = Request(tokens=(1,), sampling=Sampling(max_tokens=9, stop=("\n",)))
    body = completion_body(request, "m")
    assert body["stop"] == ["\n"] and body["skip_special_tokens"] is False and "include_stop_str_in_output" not in body
    choice = {"text": "5", "token_ids": [80, 81], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "stop"}
    assert completion_of(choice | {"stop_reason": "\n"}).text == "5\n"
    assert completion_of(choice | {"stop_reason": None}).text == "5"


def test_a_completion_that_was_cut_is_trained_as_it_is_and_gets_no_end(tmp_path):
    """OpenRLHF#238: the last token of a cut completion was replaced by an end that the policy had not sampled."""
    engine = NativeEngine(settings(save_model(tmp_path / "m", random_model())))
    found = engine.generate([replace(one, sampling=replace(one.sampling, max_tokens=5)) for one in requests()])
    cut = [made for made in found if made.status.kind.value == "truncated"]
    assert cut and all(len(made.tokens) == 5 and made.tokens[-1] != tiny_tokenizer().eos_token_id for made in cut)
    prompt = Prompt(id="p", tokens=(70, 71, 72), text="")
    rows = [single_turn(prompt, made, sample=n, version=0) for n, made in enumerate(cut)]
    batch = collate([row.with_outcome(Score(value=1.0)) for row in rows])
    assert (
        batch.tokens[0].tolist() == [70, 71, 72, *cut[0].tokens] and batch.mask[0].tolist() == [False] * 3 + [True] * 5
    )


def test_the_reward_is_on_the_last_token_that_was_sampled_and_not_on_the_padding_after_it():
    """huggingface/trl#3750, #5338: PPO's score was added to the first pad token, which the loss leaves out."""
    rows = [trajectory((70, 71), [own], group=name, reward=value) for name, own, value in
            (("a", [80, 81, 2], 1.0), ("b", [80, 81, 82, 83, 84, 2], -1.0))]  # fmt: skip
    batch = collate(rows)
    batch = replace(batch, values=torch.zeros(batch.tokens.shape))
    credited = PPO(gamma=1.0, lam=1.0, whiten_advantages=False).credit(batch)
    assert batch.rewards.sum(1).tolist() == [1.0, -1.0]
    assert [(row != 0).nonzero().flatten().tolist() for row in batch.rewards] == [[4], [7]]
    assert credited.returns[0][batch.mask[0]].tolist() == [1.0] * 3


def qwen_like(tokenizer):
    """A template that puts a system message of its own before a conversation that has none, and wants a user's turn."""
    tokenizer.chat_template = (
        "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
        "{{ raise_exception('No user query found in messages.') }}{% endif %}"
        "{% if messages[0].role != 'system' %}<|system|>Be good.<|end|>{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def test_a_templates_own_system_message_appears_once_however_long_the_conversation():
    """huggingface/trl#1930, NeMo-RL#4185: turns that are rendered apart got the default system block each."""
    tokenizer = qwen_like(tiny_tokenizer())
    renderer = Renderer(tokenizer)
    first, _ = renderer.first([{"role": "user", "content": "Hi"}])
    made = Completion(tokens=(80, 2), logprobs=(0.0, 0.0), text="", status=Status.done())
    after = renderer.following(made, [{"role": "tool", "content": "7"}, {"role": "user", "content": "And?"}])
    whole = tokenizer.decode([*first, *made.tokens, *after])
    assert whole.count("Be good.") == 1 and whole.endswith("<|tool|>7<|end|><|user|>And?<|end|><|assistant|>")
    rows = with_completions([make_row(chat("Hi", "Yes", "And?", "No"), columns={}, origin="x", default_id="x")])
    prompts, _ = to_prompts(rows, tokenizer, DataConfig(source="x"))
    gold, _ = gold_rows(prompts, tokenizer, max_length=200)
    assert [tokenizer.decode(row.tokens).count("Be good.") for row in gold.values()] == [1, 1]


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"prompt": messages[:1], "messages": messages}


def test_a_conversation_with_a_system_message_is_learnt_under_a_template_that_wants_a_user():
    """NeMo-RL#2863: each turn was rendered with those before it alone, and the system's turn alone raises."""
    tokenizer = qwen_like(tiny_tokenizer())
    record = chat("Hi", "Yes")
    record["messages"].insert(0, {"role": "system", "content": "Short."})
    prompts, _ = to_prompts(
        with_completions([make_row(record, columns={}, origin="x", default_id="x")]), tokenizer, DataConfig(source="x")
    )
    (row,) = gold_rows(prompts, tokenizer, max_length=200)[0].values()
    assert tokenizer.decode(row.tokens) == "<|system|>Short.<|end|><|user|>Hi<|end|><|assistant|>Yes<|end|>"
    assert tokenizer.decode(row.tokens[row.mask]) == "Yes<|end|>"


def test_supervised_completions_learn_their_end_where_it_is_the_padding_too(tmp_path):
    """huggingface/trl#1623, #3091, #6357: labels that were found by the pad id hid the end of every completion."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = EOS
    rows = [
        make_row({"prompt": text, "answer": "7"}, columns={}, origin=text, default_id=text) for text in ("Hi", "Hello")
    ]
    prompts, _ = to_prompts(rows, tokenizer, DataConfig(source="x"))
    gold, _ = gold_rows(prompts, tokenizer, max_length=99)
    batch = collate(list(gold.values()))
    for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
        assert tokenizer.decode(tokens[mask]) == "7<|end|>"


def test_a_prompt_that_opens_a_thought_is_followed_by_the_completion_and_the_templates_end():
    """huggingface/trl#5213, #6105: the template of a whole conversation does not start as the prompt's."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|pad|>"  # as base models have, whose template ends turns with another
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    row = make_row({"prompt": "Hi", "completion": "Hm.</think>Yes"}, columns={}, origin="x", default_id="x")
    prompts, _ = to_prompts([row], tokenizer, DataConfig(source="x"))
    (gold,) = gold_rows(prompts, tokenizer, max_length=200)[0].values()
    assert tokenizer.decode(gold.tokens) == "<|user|>Hi<|end|>\n<|assistant|><think>Hm.</think>Yes<|end|>"


def test_columns_that_a_data_set_filled_with_none_are_no_part_of_messages():
    """huggingface/datasets#7617: messages with different keys come back with each other's keys as None."""
    told = [
        {"role": "system", "content": "Short.", "name": None, "tool_calls": None},
        {"role": "user", "content": "Hi"},
    ]
    row = make_row({"prompt": told, "answer": "1"}, columns={}, origin="x", default_id="x")
    assert row.prompt == ({"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"})


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_a_grown_model_is_what_the_saved_folder_computes(tmp_path, tied):
    """huggingface/transformers#45127, NeMo Automodel#2941: with tied embeddings the merged model forgot the new rows."""
    small = random_model(vocab_size=259, tie_word_embeddings=tied)
    grown = resized(str(save_model(tmp_path / "m", small)), cache_dir=tmp_path / "cache")
    whole = [] if tied else ["embed_tokens", "lm_head"]
    policy = opened(grown, lora=LoraConfig(r=4, alpha=8, modules_to_save=whole))
    with torch.no_grad():
        for name, parameter in policy.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    policy.save(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokens = torch.tensor([[5, 260, 9, 259]])
    torch.testing.assert_close(again(tokens).logits, policy.model.eval()(tokens).logits, atol=1e-4, rtol=1e-4)
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    assert not any("lora" in name or "base_model" in name for name in load_file(tmp_path / "saved/model.safetensors"))


def test_merging_a_bfloat16_adapter_again_and_again_leaves_the_model_as_it_is(tmp_path):
    """huggingface/trl#6688: merge and unmerge at every step moved a bfloat16 model by two thirds in 1,000 steps."""
    config = ModelConfig(path="x", dtype="bfloat16", lora=LoraConfig(r=4, alpha=8))
    folder = str(save_model(tmp_path / "m", random_model()))
    policy = load_policy(config, source=folder, device=torch.device("cpu"), seed=0)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.01)
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    sent = [dict(policy.weights()) for _ in range(20)]
    assert all(torch.equal(sent[0][name], sent[-1][name]) for name in sent[0])
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.model.named_parameters())


def test_a_step_of_an_adapter_below_the_bfloat16_grid_reaches_the_native_engine(tmp_path):
    """NeMo-RL#3696: W + s B A in bfloat16 rounds small updates away; the native engine computes with the adapter itself."""
    config = ModelConfig(path="x", dtype="bfloat16", lora=LoraConfig(r=4, alpha=4))
    folder = str(save_model(tmp_path / "m", random_model(dtype=torch.bfloat16)))
    policy = load_policy(config, source=folder, device=torch.device("cpu"), seed=0)
    engine = NativeEngine(settings(folder), model=policy.causal_lm, tokenizer=policy.tokenizer)
    merged, told = [], []
    for step in (0.0, 1e-5):
        with torch.no_grad():
            for name, parameter in policy.trainable():
                if ".lora_B." in name:
                    parameter.fill_(step)
        merged.append(dict(policy.weights()))
        told.append([made.logprobs for made in engine.generate(requests(temperature=0.0))])
    same = torch.cat([(merged[0][name] == merged[1][name]).flatten() for name in merged[0] if "proj" in name])
    assert 0.9 < same.float().mean() < 1 and told[0] != told[1]
