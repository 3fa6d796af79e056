"""Rows -> token ids that TRL's trainers take as they are.

The prompt's tokens are those the reinforcement learning will sample from, because the same function makes them; a
completion ends as the chat template ends an assistant's turn, so that a model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmrl.data.gold import answered, completion_ids, plain_ids
from llmrl.data.prompts import to_prompts
from llmrl.data.rows import Row
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import Supervised
from llmrl.stages.pairs import examples_of, load_stage_rows, named
from llmrl.types import Prompt

IGNORED = -100  # the label of a token that is no part of the loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Token ids of a stage's examples, by TRL's column names, and what a user should know about them."""

    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    notes: tuple[str, ...]


def load_examples(stage: Supervised, recipe: Recipe, tokenizer: Any) -> Examples:
    """The stage's training and held-out examples. Raises DataError that names the stage."""
    notes: list[str] = []
    with named(stage):
        train_rows, eval_rows, data, held_out = load_stage_rows(stage, recipe)
        train = _tokenized(stage, recipe, train_rows, tokenizer, data, notes)
        evals = _tokenized(stage, recipe, eval_rows, tokenizer, held_out, notes)
    return Examples(train=train, held_out=evals, notes=tuple(notes))


def _tokenized(
    stage: Supervised, recipe: Recipe, rows: list[Row], tokenizer: Any, config: DataConfig, notes: list[str]
) -> list[dict[str, list[int]]]:
    longest = recipe.model.max_length
    texts = examples_of(stage, rows, recipe.seed)
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
        chosen, rejected = (plain_ids(tokenizer, scored_text(prompt, text, tokenizer)) for text in texts)
        return {"chosen_ids": chosen, "rejected_ids": rejected}
    completions = [completion_ids(prompt, text, tokenizer) for text in texts]
    if kind == "dpo":
        return {"prompt_ids": tokens, "chosen_ids": completions[0], "rejected_ids": completions[1]}
    return {"input_ids": tokens + completions[0], "labels": [IGNORED] * len(tokens) + completions[0]}


def _length(example: Mapping[str, list[int]]) -> int:
    """Tokens of the longest sequence that the example becomes."""
    completions = max(len(ids) for name, ids in example.items() if name != "prompt_ids")
    return len(example.get("prompt_ids", ())) + completions


def scored_text(prompt: Prompt, text: str, tokenizer: Any) -> str:
    """The conversation as the reward `RewardModel` reads it."""
    if prompt.messages and tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(answered(prompt, text), tokenize=False))
    return prompt.text + text
