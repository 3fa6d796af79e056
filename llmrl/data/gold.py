"""Gold completions: what a policy would have sampled, had it written the text that the data gives.

A completion ends as the chat template ends an assistant's turn, so that a model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrl.errors import DataError
from llmrl.types import Prompt, Score, Status, Trajectory

COLUMN = "completion"


def gold_rows(prompts: Sequence[Prompt], tokenizer: Any, *, max_length: int) -> dict[str, Trajectory]:
    """The gold trajectory of each prompt by its id: the column `completion` (data.columns can name another), else the answer.

    Nobody sampled it, so it has no log-probabilities; its score is 0. Raises DataError for prompts without any, and if one
    is longer than `max_length` tokens with its prompt.
    """
    found = {}
    for prompt in prompts:
        text = str(prompt.columns.get(COLUMN) or prompt.answer)
        if not text:
            raise DataError(
                f"{prompt.id} has no gold completion; name its column with data.columns.completion, or give it an answer"
            )
        own = completion_ids(prompt, text, tokenizer)
        length = len(prompt.tokens) + len(own)
        if length > max_length:
            raise DataError(
                f"{prompt.id}: prompt and completion have {length} tokens, more than model.max_length={max_length}; raise "
                "it, or drop such rows"
            )
        found[prompt.id] = Trajectory(
            prompt=prompt,
            tokens=[*prompt.tokens, *own],
            mask=[False] * len(prompt.tokens) + [True] * len(own),
            logprobs=None,
            step=[-1] * len(prompt.tokens) + [0] * len(own),
            text=text,
            status=Status.done(),
            scores=(Score(value=0.0),),
        )
    return found


def completion_ids(prompt: Prompt, text: str, tokenizer: Any) -> list[int]:
    """Tokens of `text` as a policy would sample them after `prompt`, with the end of the turn.

    The end is what the chat template writes after an assistant's message; without one, or if the template renders the
    prompt another way in a whole conversation, it is the end-of-sequence token.
    """
    rest = text
    if prompt.messages and prompt.messages[-1]["role"] != "assistant":
        whole = tokenizer.apply_chat_template(answered(prompt, text), tokenize=False)
        if whole.startswith(prompt.text):
            rest = whole[len(prompt.text) :].rstrip()
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
