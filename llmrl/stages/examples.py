"""Rows -> token ids that TRL's trainers take as they are.

The prompt's tokens are those the reinforcement learning will sample from, because the same function makes them; a
completion ends as the chat template ends an assistant's turn, so that a model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmrl.config import Recipe
from llmrl.data.config import DataConfig
from llmrl.data.errors import DataError
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import Row, check_disjoint
from llmrl.data.source import load_train_eval
from llmrl.seeding import key
from llmrl.stages.config import Supervised
from llmrl.stages.pairs import shaper, with_completions, with_pairs
from llmrl.types import Prompt

IGNORED = -100  # the label of a token that is no part of the loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Token ids of a stage's examples, by TRL's column names, and what a user should know about them."""

    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    notes: tuple[str, ...]


def load_examples(stage: Supervised, recipe: Recipe, tokenizer: Any) -> Examples:
    """The stage's training and held-out examples.

    They are disjoint, and the training examples pose no problem that the recipe's own held-out data poses. Raises
    DataError that names the stage.
    """
    data = stage.data or recipe.data
    held_out = stage.eval.data if stage.data else _over(stage, recipe)
    seed = key(recipe.seed, "data")
    try:
        train_rows, eval_rows = load_train_eval(data, held_out, seed=seed, shape=shaper(data.columns))
        if stage.data:
            check_disjoint(train_rows, load_train_eval(recipe.data, recipe.eval.data, seed=seed)[1])
        notes: list[str] = []
        parts = [
            _tokenized(stage, rows, tokenizer, config, recipe.model.max_length, seed, notes)
            for rows, config in ((train_rows, data), (eval_rows, held_out.over(data)))
        ]
    except DataError as error:
        raise DataError(f"stage {stage.title}: {error}") from error
    return Examples(train=parts[0], held_out=parts[1], notes=tuple(notes))


def _over(stage: Supervised, recipe: Recipe) -> Any:
    """The recipe's held-out data, changed by what the stage says of it."""
    return recipe.eval.data.model_copy(update=stage.eval.data.model_dump(exclude_unset=True))


def _tokenized(
    stage: Supervised, rows: list[Row], tokenizer: Any, config: DataConfig, longest: int, seed: int, notes: list[str]
) -> list[dict[str, list[int]]]:
    texts: list[tuple[Row, tuple[str, ...]]]
    if stage.kind == "sft":
        texts = [(row, (completion,)) for row, completion in with_completions(rows)]
    else:
        texts = [(row, (chosen, rejected)) for row, chosen, rejected in with_pairs(rows, seed=seed)]
    if not texts:
        raise DataError(f"{config.source} holds no turn of an assistant to learn")
    of = {row.id: found for row, found in texts}
    prompts, _ = to_prompts([row for row, _ in texts], tokenizer, config)
    kept, dropped = [], len(texts) - len(prompts)
    for prompt in prompts:
        example = _example(stage.kind, prompt, of[prompt.id], tokenizer)
        if _length(example) > longest:
            dropped += 1
        else:
            kept.append(example)
    if not kept:
        raise DataError(
            f"all {len(texts)} examples of {config.source} are longer than model.max_length={longest}; raise it"
        )
    if dropped:
        notes.append(f"stage {stage.title}: {dropped} of {len(texts)} examples dropped as too long")
    return kept


def _example(kind: str, prompt: Prompt, texts: tuple[str, ...], tokenizer: Any) -> dict[str, list[int]]:
    tokens = list(prompt.tokens)
    if kind == "reward_model":
        chosen, rejected = (_ids(tokenizer, scored_text(prompt, text, tokenizer)) for text in texts)
        return {"chosen_ids": chosen, "rejected_ids": rejected}
    completions = [completion_ids(prompt, text, tokenizer) for text in texts]
    if kind == "dpo":
        return {"prompt_ids": tokens, "chosen_ids": completions[0], "rejected_ids": completions[1]}
    return {"input_ids": tokens + completions[0], "labels": [IGNORED] * len(tokens) + completions[0]}


def _length(example: Mapping[str, list[int]]) -> int:
    """Tokens of the longest sequence that the example becomes."""
    completions = max(len(ids) for name, ids in example.items() if name != "prompt_ids")
    return len(example.get("prompt_ids", ())) + completions


def completion_ids(prompt: Prompt, text: str, tokenizer: Any) -> list[int]:
    """Tokens of `text` as a policy would sample them after `prompt`, with the end of the turn.

    The end is what the chat template writes after an assistant's message; without one, or if the template renders the
    prompt another way in a whole conversation, it is the end-of-sequence token.
    """
    rest = text
    if prompt.messages and prompt.messages[-1]["role"] != "assistant":
        whole = tokenizer.apply_chat_template(_answered(prompt, text), tokenize=False)
        if whole.startswith(prompt.text):
            rest = whole[len(prompt.text) :].rstrip()
    ids = _ids(tokenizer, rest)
    if rest.strip() == text.strip() and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids


def scored_text(prompt: Prompt, text: str, tokenizer: Any) -> str:
    """The conversation as the reward `RewardModel` reads it."""
    if prompt.messages and tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(_answered(prompt, text), tokenize=False))
    return prompt.text + text


def _answered(prompt: Prompt, text: str) -> list[Mapping[str, str]]:
    return [*(dict(message) for message in prompt.messages), {"role": "assistant", "content": text}]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
