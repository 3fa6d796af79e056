"""Stored programs: what a row may hold, what is left out and counted, what is refused with its place."""

import json

import pytest

from llmrl.data.stored import stored_rows
from llmrl.errors import DataError
from llmrl.types import Prompt, Role
from tests.tiny import tiny_tokenizer

PROMPT = Prompt(id="p", tokens=(5, 6), text="say", messages=({"role": "user", "content": "say"},))


def read(tmp_path, *rows, max_length=40):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return stored_rows(str(file), [PROMPT], tiny_tokenizer(), max_length=max_length)


def test_rows_keep_their_tokens_or_are_encoded_once(tmp_path):
    found, notes = read(
        tmp_path,
        {"prompt_id": "p", "text": "no", "greedy": True},
        {"prompt_id": "p", "text": "yes", "tokens": [9, 2], "logprobs": [-1.0, -0.5]},
        {"prompt_id": "p", "text": "yes"},
        {"prompt_id": "q", "text": "other"},
        {"prompt_id": "p", "text": "long" * 20},
    )
    exact, encoded, greedy = found["p"]
    assert exact.tokens.tolist() == [5, 6, 9, 2] and exact.logprobs.tolist() == [0, 0, -1.0, -0.5]
    assert encoded.logprobs is None and encoded.text == "yes" and encoded.tokens[-1] == tiny_tokenizer().eos_token_id
    assert [row.role for row in found["p"]] == [Role.SAMPLED, Role.SAMPLED, Role.BASELINE] and greedy.text == "no"
    assert "3 programs of 1 prompts" in notes[0] and "1 stored programs are of other prompts" in notes[1]
    assert "1 stored programs are longer" in notes[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt_id": "p"}, r"x\.jsonl:1: a stored program needs the columns prompt_id and text"),
        ({"prompt_id": "p", "text": "a", "logprobs": [-1.0]}, "logprobs without tokens"),
        ({"prompt_id": "p", "text": "a", "tokens": [1, 2], "logprobs": [-1.0]}, "2 tokens and 1 logprobs"),
        ({"prompt_id": "p", "text": "a", "tokens": []}, "store at least one token"),
        ({"prompt_id": "q", "text": "a"}, "has no program for any of 1 prompts"),
        ({"prompt_id": "p", "text": "a", "greedy": True}, "has no program for any of 1 prompts"),
        ([1], "a row must be an object"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)
