"""From rows to what a run asks or teaches: prompts, and the completions that the data gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmrl.data.gold import gold_rows, prompt_from_chat, with_completions
from llmrl.data.pictures import PictureReader
from llmrl.data.prompts import PromptReport, to_prompts
from llmrl.data.rows import Row
from llmrl.data.source import each_source, held_out_config, load_train_eval
from llmrl.data.stored import stored_rows
from llmrl.seeding import key
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.settings.recipe import Recipe
from llmrl.types import Prompt, Trajectory

FEW = 20  # held-out problems
ANSWERS = (
    "solution",
    "target",
    "label",
    "ground_truth",
    "final_answer",
    "expected_answer",
    "gold",
    "output",
    "response",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """What a run asks or teaches: prompts, given completions by prompt id if there are any, and what a user should know."""

    train: list[Prompt]
    held_out: list[Prompt]
    notes: tuple[str, ...]
    gold: Mapping[str, Trajectory] = field(default_factory=dict)
    held_out_gold: Mapping[str, Trajectory] = field(default_factory=dict)


def load_problems(
    recipe: Recipe, tokenizer: Any, *, gold: bool = False, reader: PictureReader | None = None
) -> Problems:
    """The recipe's problems, with `gold` also their completions."""
    shape = prompt_from_chat if gold else None
    rows = load_train_eval(recipe.data, recipe.eval.held_out, seed=key(recipe.seed, "data"), shape=shape)
    train_rows, eval_rows = (with_completions(part) for part in rows) if gold else rows
    return problems_of(
        train_rows, eval_rows, recipe.data, recipe.eval.data, tokenizer, gold=gold, length=recipe.model.max_length,
        reader=reader,
    )  # fmt: skip


def problems_of(
    train_rows: Sequence[Row], eval_rows: Sequence[Row], data: DataConfig, held_out: EvalDataConfig, tokenizer: Any, *,
    gold: bool, length: int, reader: PictureReader | None = None,
) -> Problems:  # fmt: skip
    """Rows as prompts; with `gold` also their completions, of at most `length` tokens together with the prompt."""
    kept: tuple[list[Prompt], list[Prompt]] = ([], [])
    golds: tuple[dict[str, Trajectory], dict[str, Trajectory]] = ({}, {})
    notes: list[str] = []
    if data.chat == "auto" and not tokenizer.chat_template:
        notes.append("the tokenizer has no chat template: prompts are plain text (data.chat=false says so on purpose)")
    for name, (own, its_held_out) in each_source(data, held_out).items():
        configs = {"training": own, "held-out": held_out_config(its_held_out, own)}
        for place, (rows, (part, config)) in enumerate(zip((train_rows, eval_rows), configs.items(), strict=True)):
            mine = [row for row in rows if row.source == name]
            if place and not mine:  # the recipe wants none
                continue
            about = f"{part}, {name}" if name else part
            prompts, report = to_prompts(mine, tokenizer, config, reader=reader)
            notes += [_prompt_note(report, about), *([] if place or gold else answer_notes(mine))]
            found, too_long = gold_rows(prompts, tokenizer, max_length=length) if gold else ({}, [])
            if too_long:
                notes.append(f"{about}: {len(too_long)} of {len(prompts)} examples dropped as too long")
                prompts = [prompt for prompt in prompts if prompt.id in found]
            kept[place].extend(prompts)
            golds[place].update(found)
    if few := few_problems(len(kept[1]), gold=gold):
        notes.append(few)
    return Problems(train=kept[0], held_out=kept[1], notes=tuple(notes), gold=golds[0], held_out_gold=golds[1])


def few_problems(count: int, *, gold: bool = False) -> str:
    """A warning for held-out problems that are too few to tell accuracies apart, or an empty text."""
    if gold or not 0 < count < FEW:
        return ""
    return f"accuracy on {count} held-out problems means little: one problem more or less is {100 / count:.0f} points"


def answer_notes(rows: Sequence[Row]) -> list[str]:
    """A warning if no row has an answer and one of its columns is called as answers are."""
    found = [name for name in ANSWERS if rows and name in rows[0].columns]
    if not found or any(row.answer for row in rows):
        return []
    return [f"no row has an `answer`, and there is a column {found[0]!r}: data.columns.answer={found[0]} makes it one"]


def _prompt_note(report: PromptReport, part: str) -> str:
    dropped = f", {len(report.too_long)} dropped as too long" if report.too_long else ""
    return f"{part}: {report.kept} prompts of {report.mean_tokens:.0f} tokens on average, {report.longest} at most{dropped}"


def with_stored(
    problems: Problems, recipe: Recipe, source: str
) -> tuple[Problems, Mapping[str, Sequence[Trajectory]] | None]:
    """(the problems of which `rollout.stored` has programs, those programs by prompt id); all of them, if nothing is stored.

    `source` has the policy's tokenizer.
    """
    if recipe.rollout.stored is None:
        return problems, None
    from llmrl.policy.model import load_tokenizer  # brings torch, which a plan does without

    tokenizer, length = load_tokenizer(source), recipe.model.max_length
    stored, notes = stored_rows(recipe.rollout.stored, problems.train, tokenizer, max_length=length)
    kept = [prompt for prompt in problems.train if prompt.id in stored]
    return replace(problems, train=kept, notes=(*problems.notes, *notes)), stored
