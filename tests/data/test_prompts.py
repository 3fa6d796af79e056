"""Rows -> prompts: templates, chat templates, special tokens, length."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmrl.data.prompts import to_prompts
from llmrl.data.rows import make_row
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BOS = 0


def a_tokenizer(chat: str | None) -> PreTrainedTokenizerFast:
    """One token a byte, special tokens for the chat markers, and a BOS put before every plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocab = {token: number for number, token in enumerate(special + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", additional_special_tokens=special[1:])
    tokenizer.chat_template = chat
    return tokenizer


def rows(*records, **columns):
    return [
        make_row(record, columns=columns, origin=f"data:{number}", default_id=f"d/{number}")
        for number, record in enumerate(records)
    ]


def config(**more) -> DataConfig:
    return DataConfig(source="addition", **more)


def test_a_chat_prompt_has_one_bos_and_ends_where_the_answer_begins():
    (prompt,), report = to_prompts(rows({"prompt": "hi", "answer": "1"}), a_tokenizer(CHAT), config())
    assert prompt.text == "<s><|user|>hi<|end|><|assistant|>"
    assert prompt.tokens.count(BOS) == 1
    assert len(prompt.tokens) == 6  # bos, user, h, i, end, assistant
    assert prompt.messages == ({"role": "user", "content": "hi"},)
    assert (prompt.answer, report.kept, report.longest, report.mean_tokens) == ("1", 1, 6, 6.0)


def test_a_plain_prompt_gets_the_tokenizers_own_bos():
    for tokenizer, chat in ((a_tokenizer(None), "auto"), (a_tokenizer(CHAT), False)):
        (prompt,), _ = to_prompts(rows({"prompt": "hi"}), tokenizer, config(chat=chat))
        assert prompt.text == "hi"
        assert len(prompt.tokens) == 3
        assert prompt.tokens[0] == BOS
        assert prompt.messages == ()


def test_tokens_are_those_of_transformers_own_chat_tokenisation():
    tokenizer = a_tokenizer(CHAT)
    turns = [{"role": "system", "content": "é"}, {"role": "user", "content": "12 + 7\n?"}]
    (prompt,), _ = to_prompts(rows({"prompt": turns}), tokenizer, config())
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert list(prompt.tokens) == expected["input_ids"]


def test_system_template_and_columns_meet_in_the_prompt():
    record = {"problem": "1+1", "answer": "2", "level": 3, "id": "x", "tests": ["t"]}
    (prompt,), _ = to_prompts(
        rows(record), a_tokenizer(CHAT), config(system="Be brief.", template="[{level}] {problem} \\boxed{{}}{id}")
    )
    assert prompt.text == "<s><|system|>Be brief.<|end|><|user|>[3] 1+1 \\boxed{}x<|end|><|assistant|>"
    assert prompt.columns == {"answer": "2", "level": 3, "tests": ["t"]}
    assert prompt.id == "x"


def test_template_text_from_the_data_is_never_a_template():
    (prompt,), _ = to_prompts(
        rows({"prompt": "{answer} {0} {{ bos_token }}", "answer": "SECRET"}),
        a_tokenizer(CHAT),
        config(template="Q {prompt}"),
    )
    assert prompt.text == "<s><|user|>Q {answer} {0} {{ bos_token }}<|end|><|assistant|>"


def test_an_unfinished_assistant_turn_is_continued():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so far"}]
    (prompt,), _ = to_prompts(rows({"prompt": turns}), a_tokenizer(CHAT), config())
    assert prompt.text == "<s><|user|>a<|end|><|assistant|>so far"


def test_long_prompts_are_dropped_and_counted_and_none_left_is_an_error():
    records = [{"prompt": "x" * length} for length in (1, 6, 7, 50)]
    prompts, report = to_prompts(rows(*records), a_tokenizer(CHAT), config(max_prompt_tokens=10))
    assert [prompt.id for prompt in prompts] == ["d/0", "d/1"]
    assert (report.rows, report.kept, report.too_long, report.longest) == (4, 2, ("d/2", "d/3"), 54)
    with pytest.raises(DataError, match=r"all 4 prompts are longer than max_prompt_tokens=4 \(the longest has 54\)"):
        to_prompts(rows(*records), a_tokenizer(CHAT), config(max_prompt_tokens=4))
    with pytest.raises(DataError, match="no rows"):
        to_prompts([], a_tokenizer(CHAT), config())


@pytest.mark.parametrize(
    ("record", "chat", "settings", "reason"),
    [
        ({"prompt": "a"}, None, {"chat": True}, "has no chat template"),
        ({"prompt": "a"}, None, {"system": "s"}, "system needs a chat template"),
        ({"prompt": [{"role": "user", "content": "a"}]}, None, {}, "data:0: .*no chat template is applied"),
        (
            {"prompt": [{"role": "user", "content": "a"}]},
            CHAT,
            {"template": "{prompt}"},
            "data:0: data.template cannot",
        ),
        (
            {"prompt": [{"role": "system", "content": "a"}]},
            CHAT,
            {"system": "s"},
            "data:0: .*system message of its own",
        ),
        ({"prompt": "a"}, CHAT, {"template": "{problm}"}, "data:0: column 'problm' .*does not exist"),
        ({"prompt": "a", "hint": None}, CHAT, {"template": "{hint}"}, "data:0: column 'hint' .*is empty"),
    ],
)
def test_prompts_that_cannot_be_made_are_explained(record, chat, settings, reason):
    with pytest.raises(DataError, match=reason):
        to_prompts(rows(record), a_tokenizer(chat), config(**settings))
