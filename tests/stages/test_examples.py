"""Rows become completions and pairs, and those the tokens that the rest of the project uses."""

import json
import random

import pytest

from llmrl.errors import DataError
from llmrl.rewards.reward_model import RewardModel
from llmrl.settings.load import parse_recipe
from llmrl.stages.examples import load_examples, scored_text
from llmrl.stages.pairs import load_stage_rows, named, wrong_answer
from llmrl.train.problems import load_problems, problems_of
from llmrl.types import Status, Trajectory
from tests.tiny import tiny_tokenizer


def recipe(kind="sft", *, data=None, chat="auto", max_length=128, **stage):
    own = {"source": "addition", "limit": 20, "max_prompt_tokens": 100, "chat": chat}
    model = kind == "reward_model"
    scored = {"name": "llmrl.rewards.reward_model:RewardModel", "args": {"model": "stage:reward_model"}}
    return parse_recipe(
        {
            "name": "x",
            "model": {"path": "none", "max_length": max_length},
            "data": own,
            "rollout": {"max_tokens": 8},
            "reward": {"r": scored if model else {"name": "llmrl.rewards.exact_number:ExactNumber"}},
            "algo": {"name": "grpo"},
            "train": {"steps": 1},
            "eval": {"data": {"n": 5}},
            "stages": [{"kind": kind, "train": {"steps": 1}, **({"data": data} if data else {}), **stage}],
        }
    )


def examples(made, tokenizer=None):
    """The pairs of the recipe's stage."""
    return load_examples(made.before[0], made, tokenizer or tiny_tokenizer())


def learnt(made, tokenizer=None):
    """The completions of the recipe's supervised stage."""
    with named(made.before[0]):
        rows = load_stage_rows(made.before[0], made)
        return problems_of(*rows, tokenizer or tiny_tokenizer(), gold=True, length=made.model.max_length)


def whole(row):
    return tiny_tokenizer().decode(row.tokens)


def own(row):
    return tiny_tokenizer().decode(row.tokens[row.mask])


def stored(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(file), "chat": True}


def many(make):
    return [make(number) for number in range(60)]


@pytest.mark.parametrize("chat", [True, False])
def test_the_prompt_tokens_are_those_the_reinforcement_learning_samples_from(chat):
    tokenizer, made = tiny_tokenizer(), recipe(chat=chat)
    problems, found = load_problems(made, tokenizer), learnt(made)
    assert len(found.gold) == 20 and len(found.held_out_gold) == 5
    for prompts, parts in ((problems.train, found.gold), (problems.held_out, found.held_out_gold)):
        for prompt, row in zip(prompts, parts.values(), strict=True):
            answer = [*tokenizer(prompt.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            assert row.tokens.tolist() == [*prompt.tokens, *answer]
            assert row.mask.tolist() == [False] * len(prompt.tokens) + [True] * len(answer)


def test_a_reward_model_is_trained_on_the_text_that_the_reward_reads():
    tokenizer, made = tiny_tokenizer(), recipe("reward_model")
    prompt = load_problems(made, tokenizer).train[0]
    row = Trajectory(
        prompt=prompt, tokens=prompt.tokens, mask=[False] * len(prompt.tokens), logprobs=[0.0] * len(prompt.tokens),
        step=[-1] * len(prompt.tokens), text=prompt.answer, status=Status.done(),
    )  # fmt: skip
    text = RewardModel(model="none")._text(row, tokenizer)
    assert scored_text(prompt, prompt.answer, tokenizer) == text
    assert examples(made).train[0]["chosen_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_pair_of_a_generator_is_the_answer_and_a_wrong_one():
    tokenizer, made = tiny_tokenizer(), recipe("dpo")
    prompts = load_problems(made, tokenizer).train
    for prompt, example in zip(prompts, examples(made).train, strict=True):
        assert example["prompt_ids"] == list(prompt.tokens)
        chosen, rejected = (tokenizer.decode(example[name][:-1]) for name in ("chosen_ids", "rejected_ids"))
        assert chosen == prompt.answer != rejected and int(rejected) >= 0
        assert example["chosen_ids"][-1] == example["rejected_ids"][-1] == tokenizer.eos_token_id
    assert examples(made).train == examples(made).train


def test_wrong_answers_are_never_right_and_keep_the_look_of_right_ones():
    draw = random.Random(0)
    for answer in ["0", "7", "10", "-3", "-10", "99", "100"]:
        for _ in range(50):
            wrong = wrong_answer(answer, [], draw)
            assert int(wrong) != int(answer) and str(int(wrong)) == wrong
    assert wrong_answer("(1 + 2)", ["(1 + 2)", "3 * 4"], draw) == "3 * 4"
    with pytest.raises(DataError, match="no row has another answer"):
        wrong_answer("x", ["x"], draw)


def test_every_turn_of_the_assistant_in_a_conversation_is_learnt_after_what_came_before(tmp_path):
    def conversation(number):
        contents = [("user", f"a{number}"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        return {"messages": [{"role": role, "content": content} for role, content in contents]}

    found = learnt(recipe(data=stored(tmp_path, *many(conversation))))
    texts = {whole(row): own(row) for row in found.gold.values()}
    number = next(text for text in texts if text.count("<|assistant|>") == 1)[len("<|user|>a") :].split("<")[0]
    first = f"<|user|>a{number}<|end|><|assistant|>b<|end|>"
    assert texts[first] == "b<|end|>"
    assert texts[f"{first}<|user|>c<|end|><|assistant|>d<|end|>"] == "d<|end|>"
    assert len(texts) == 2 * len({text.split("<|end|>")[0] for text in texts})


def test_pairs_come_as_text_as_messages_and_as_whole_conversations(tmp_path):
    said = lambda role, content: {"role": role, "content": content}  # noqa: E731
    forms = [
        lambda n: {"prompt": f"q{n}", "chosen": "good", "rejected": "bad"},
        lambda n: {"prompt": [said("user", f"q{n}")], "chosen": [said("assistant", "good")],
                   "rejected": [said("assistant", "bad")]},
        lambda n: {"chosen": [said("user", f"q{n}"), said("assistant", "good")],
                   "rejected": [said("user", f"q{n}"), said("assistant", "bad")]},
    ]  # fmt: skip
    found = [examples(recipe("dpo", data=stored(tmp_path, *many(form)))).train for form in forms]
    assert found[0] == found[1]
    assert sorted(map(str, found[0])) == sorted(map(str, found[2]))
    assert tiny_tokenizer().decode(found[0][0]["chosen_ids"]) == "good<|end|>"


BAD = {
    "no completion": ("sft", {"prompt": "q"}, r"rows\.jsonl:3: no column 'completion' or 'answer'"),
    "empty completion": ("sft", {"prompt": "q", "completion": " "}, r"rows\.jsonl:3: column 'completion' must be text"),
    "no rejected": ("dpo", {"prompt": "q", "chosen": "a"}, r"rows\.jsonl:3: no column 'rejected'"),
    "equal pair": ("dpo", {"prompt": "q", "chosen": "a", "rejected": "a"}, r"rows\.jsonl:3: chosen and rejected are"),
    "no content": ("sft", {"messages": [{"role": "user"}]}, r"rows\.jsonl:3: column 'messages': message 0 must have"),
    "ends with the user": (
        "sft",
        {"messages": [{"role": "user", "content": "q"}]},
        r"rows\.jsonl:3: column 'messages': the last message is the user's",
    ),
}


@pytest.mark.parametrize("why", BAD)
def test_a_malformed_row_is_an_error_with_stage_file_and_line(tmp_path, why):
    kind, row, message = BAD[why]
    good = [{"prompt": f"g{n}", "completion": "c", "chosen": "c", "rejected": "d"} for n in range(60)]
    with pytest.raises(DataError, match=f"stage {kind}: .*{message}"):
        (learnt if kind == "sft" else examples)(recipe(kind, data=stored(tmp_path, *good[:2], row, *good[2:])))


def test_other_column_names_are_mapped_and_a_typo_in_them_is_told(tmp_path):
    data = stored(tmp_path, *many(lambda n: {"question": f"q{n}", "reply": "fine"}))
    found = learnt(recipe(data={**data, "columns": {"completion": "reply"}}))
    assert all(whole(row).endswith("fine<|end|>") for row in found.gold.values())
    with pytest.raises(DataError, match=r"no column 'replay'.*did you mean 'reply'"):
        learnt(recipe(data={**data, "columns": {"completion": "replay"}}))
    with pytest.raises(DataError, match=r"no column 'completion' or 'answer'.*data\.columns\.completion"):
        learnt(recipe(data=data))


def test_examples_that_are_too_long_are_dropped_and_counted(tmp_path):
    data = stored(tmp_path, *many(lambda n: {"prompt": f"q{n}", "completion": "x" * (200 if n % 2 else 3)}))
    found = learnt(recipe(data=data))
    assert {prompt.id for prompt in found.train} == set(found.gold)
    assert all(len(row.tokens) <= 128 for row in found.gold.values())
    assert any("examples dropped as too long" in note for note in found.notes)
    with pytest.raises(DataError, match=r"longer than model\.max_length=128"):
        learnt(recipe(data=stored(tmp_path, *many(lambda n: {"prompt": f"q{n}", "completion": "x" * 200}))))


def test_a_stage_may_not_learn_what_the_run_is_measured_on(tmp_path):
    made = recipe()
    held_out = load_problems(made, tiny_tokenizer()).held_out
    rows = [{"prompt": p.messages[0]["content"], "completion": p.answer} for p in held_out]
    rows += many(lambda n: {"prompt": f"q{n}", "completion": "c"})
    with pytest.raises(DataError, match="that the held-out data also poses"):
        learnt(recipe(data=stored(tmp_path, *rows)))


def test_a_template_without_an_end_of_turn_still_teaches_to_stop():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
    assert all(row.tokens[-1] == tokenizer.eos_token_id for row in learnt(recipe(), tokenizer).gold.values())
