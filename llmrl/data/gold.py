"""Gold completions: what a policy would have sampled, had it written the text that the data gives.

A completion ends as the chat template ends an assistant's turn, so that a model learns to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmrl.data.rows import PROMPT_NAMES, Row
from llmrl.errors import DataError
from llmrl.types import Prompt, Role, Score, Status, Trajectory

COLUMN = "completion"
SEVERAL = "solutions"  # a list of them


def gold_rows(prompts: Sequence[Prompt], tokenizer: Any, *, max_length: int) -> tuple[dict[str, Trajectory], list[str]]:
    """(the gold trajectory of each prompt by its id, the ids of those longer than `max_length` tokens with their prompt).

    It is the column `completion` (data.columns can name another), else the answer. Nobody sampled it, so it has no
    log-probabilities; its score is 0. Raises DataError for prompts without any, and if all are too long.
    """
    found, too_long = {}, []
    for prompt in prompts:
        text = str(prompt.columns.get(COLUMN) or prompt.answer)
        if not text:
            raise DataError(
                f"{prompt.id} has no gold completion; name its column with data.columns.completion, or give it an answer"
            )
        row = given(prompt, text, tokenizer)
        if row.length > max_length:
            too_long.append(prompt.id)
        else:
            found[prompt.id] = replace(row, scores=(Score(value=0.0),))
    if prompts and not found:
        raise DataError(f"all {len(too_long)} examples are longer than model.max_length={max_length}; raise it")
    return found, too_long


def reference_rows(
    prompts: Sequence[Prompt], tokenizer: Any, *, max_length: int
) -> tuple[dict[str, list[Trajectory]], list[str]]:
    """(every given completion of each prompt that has one, by its id, without a score; what a user should know).

    They are the texts of the column `solutions`, else `completion`, else the answer. Those that are longer than
    `max_length` tokens with their prompt are left out and counted. Raises DataError if nothing is left.
    """
    found: dict[str, list[Trajectory]] = {}
    long = 0
    for prompt in prompts:
        texts = prompt.columns.get(SEVERAL) or [prompt.columns.get(COLUMN) or prompt.answer]
        rows = [given(prompt, str(text), tokenizer) for text in texts if text]
        kept = [row for row in rows if row.length <= max_length]
        long += len(rows) - len(kept)
        if kept:
            found[prompt.id] = [replace(row, sample=number) for number, row in enumerate(kept)]
    if not found:
        raise DataError(
            f"none of {len(prompts)} prompts has a reference ({SEVERAL}, {COLUMN} or answer) of at most "
            f"model.max_length={max_length} tokens with its prompt; name the column with data.columns.{COLUMN}, or set "
            "algo.ce_coef=0"
        )
    without = len(prompts) - len(found)
    notes = [f"{long} references are longer than model.max_length={max_length} and left out"] if long else []
    return found, notes + ([f"{without} of {len(prompts)} prompts have no reference"] if without else [])


def given(prompt: Prompt, text: str, tokenizer: Any) -> Trajectory:
    """A completion that nobody sampled: no log-probabilities and no score."""
    own = completion_ids(prompt, text, tokenizer)
    before = len(prompt.tokens)
    return Trajectory(
        prompt=prompt,
        tokens=[*prompt.tokens, *own],
        mask=[False] * before + [True] * len(own),
        logprobs=None,
        step=[-1] * before + [0] * len(own),
        text=text,
        status=Status.done(),
        role=Role.GIVEN,
    )


def completion_ids(prompt: Prompt, text: str, tokenizer: Any) -> list[int]:
    """Tokens of `text` as a policy would sample them after `prompt`, with the end of the turn.

    The end is what the chat template writes after an assistant's message; without a template it is the end-of-sequence
    token.
    """
    rest = text
    if prompt.messages and prompt.messages[-1]["role"] != "assistant":
        whole = tokenizer.apply_chat_template(answered(prompt, text), tokenize=False)
        if whole.startswith(prompt.text):
            rest = whole[len(prompt.text) :].rstrip()
        elif text.strip() in whole:  # the prompt opens a thought, say, which a whole conversation does not
            rest = text + whole.rpartition(text.strip())[2].rstrip()
    ids = plain_ids(tokenizer, rest)
    if rest.strip() == text.strip() and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids


def answered(prompt: Prompt, text: str) -> list[Mapping[str, str]]:
    """The prompt's messages and the assistant's answer."""
    return [*(dict(message) for message in prompt.messages), {"role": "assistant", "content": text}]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` as it stands."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_from_chat(columns: Mapping[str, str]) -> Callable[[Any, str], Any]:
    """A function that gives a record without a prompt column the prompt with which its conversation starts."""

    def shape(record: Any, place: str) -> Any:
        if not isinstance(record, Mapping) or any(name in record for name in (*PROMPT_NAMES, columns.get("prompt"))):
            return record
        for ours in ("messages", "chosen"):
            name = columns.get(ours, ours)
            if isinstance(record.get(name), list):
                return {**record, "prompt": messages_of(record[name], f"{place}: column {name!r}")[:-1]}
        return record

    return shape


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """A conversation whose last message is the assistant's. Raises DataError."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} must be a list of chat messages, got {value!r:.80}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(f"{where}: message {number} must have role and content, got {message!r:.80}")
        if not isinstance(message["content"], str):
            raise DataError(f"{where}: message {number} has {type(message['content']).__name__} content, not text")
    if value[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last message is the {value[-1]['role']}'s; it must be the assistant's")
    return [dict(message) for message in value]


def with_completions(rows: Sequence[Row]) -> list[Row]:
    """Every row with its completion in the column `completion`; of a conversation, a row for every assistant's turn.

    Raises DataError for a row without a completion or with an empty one, and if there is no turn to learn at all.
    """
    found: list[Row] = []
    for row in rows:
        messages = row.columns.get("messages")
        if COLUMN in row.columns or messages is None:
            found.append(_completed(row, text_of(row, COLUMN, "answer")))
            continue
        turns = messages_of(messages, f"{row.origin}: column 'messages'")
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and place:
                before = tuple({"role": m["role"], "content": m["content"]} for m in turns[:place])
                found.append(_completed(replace(row, id=f"{row.id}#{place}", prompt=before), turn["content"]))
    if rows and not found:
        raise DataError(f"{rows[0].origin} and the rows after it hold no turn of an assistant to learn")
    return found


def _completed(row: Row, text: str) -> Row:
    return replace(row, columns={**row.columns, COLUMN: text})


def text_of(row: Row, *names: str) -> str:
    """The first of the row's columns `names` as text: of messages, the last one's content."""
    name = next((name for name in names if name in row.columns), None)
    if name is None and not (names[-1] == "answer" and row.answer):
        wanted = " or ".join(repr(name) for name in names)
        raise DataError(
            f"{row.origin}: no column {wanted} (the row has {', '.join(row.columns)}); say which one it is with "
            f"data.columns.{names[0]}"
        )
    value = row.answer if name is None or name == "answer" else row.columns[name]
    if isinstance(value, list):
        value = messages_of(value, f"{row.origin}: column {name!r}")[-1]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.origin}: column {name or 'answer'!r} must be text, not {value!r:.80}")
    return value
