"""Pairs -> token ids that TRL's trainers take as they are.

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
from llmrl.data.source import held_out_config
from llmrl.errors import DataError
from llmrl.seeding import key
from llmrl.settings.data import DataConfig
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import PairStage
from llmrl.stages.pairs import load_stage_rows, named, with_pairs
from llmrl.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Token ids of a stage's examples, by TRL's column names, and what a user should know about them."""

    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    notes: tuple[str, ...]


def load_examples(stage: PairStage, recipe: Recipe, tokenizer: Any) -> Examples:
    """The stage's training and held-out examples. Raises DataError that names the stage."""
    notes: list[str] = []
    with named(stage):
        train_rows, eval_rows, data, held_out = load_stage_rows(stage, recipe)
        train = _tokenized(stage, recipe, train_rows, tokenizer, data, notes)
        evals = _tokenized(stage, recipe, eval_rows, tokenizer, held_out_config(held_out, data), notes)
    return Examples(train=train, held_out=evals, notes=tuple(notes))


def _tokenized(
    stage: PairStage, recipe: Recipe, rows: list[Row], tokenizer: Any, config: DataConfig, notes: list[str]
) -> list[dict[str, list[int]]]:
    longest = recipe.model.max_length
    of = {row.id: (better, worse) for row, better, worse in with_pairs(rows, seed=key(recipe.seed, "wrong answers"))}
    prompts, _ = to_prompts(rows, tokenizer, config)
    kept, dropped = [], len(rows) - len(prompts)
    for prompt in prompts:
        example = _example(stage.kind, prompt, of[prompt.id], tokenizer)
        if _length(example) > longest:
            dropped += 1
        else:
            kept.append(example)
    if not kept:
        raise DataError(
            f"all {len(rows)} examples of {config.source} are longer than model.max_length={longest}; raise it"
        )
    if dropped:
        notes.append(f"stage {stage.title}: {dropped} of {len(rows)} examples dropped as too long")
    return kept


def _example(kind: str, prompt: Prompt, texts: tuple[str, str], tokenizer: Any) -> dict[str, list[int]]:
    tokens = list(prompt.tokens)
    if kind == "reward_model":
        chosen, rejected = (plain_ids(tokenizer, scored_text(prompt, text, tokenizer)) for text in texts)
        return {"chosen_ids": chosen, "rejected_ids": rejected}
    completions = [completion_ids(prompt, text, tokenizer) for text in texts]
    return {"prompt_ids": tokens, "chosen_ids": completions[0], "rejected_ids": completions[1]}


def _length(example: Mapping[str, list[int]]) -> int:
    """Tokens of the longest sequence that the example becomes."""
    completions = max(len(ids) for name, ids in example.items() if name != "prompt_ids")
    return len(example.get("prompt_ids", ())) + completions


def scored_text(prompt: Prompt, text: str, tokenizer: Any) -> str:
    """The conversation as the reward `RewardModel` reads it."""
    if prompt.messages and tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(answered(prompt, text), tokenize=False))
    return prompt.text + text
