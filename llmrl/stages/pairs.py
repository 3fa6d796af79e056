"""Rows -> pairs of a better and a worse completion.

A row says it in the conventions of `datasets`: `prompt`, `chosen` and `rejected`, each text or messages; `chosen` and
`rejected` as whole conversations. A row of a generator or of a task with an `answer` says it too: a wrong one is made
for it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmrl.data.gold import prompt_from_chat, text_of, with_completions
from llmrl.data.rows import Row, check_disjoint
from llmrl.data.source import is_remote, load_train_eval
from llmrl.errors import DataError
from llmrl.seeding import generator, key
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import RLStage, Stage


@contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Name the stage in errors about its data."""
    try:
        yield
    except DataError as error:
        raise DataError(f"stage {stage.title}: {error}") from error


def load_stage_rows(stage: Stage, recipe: Recipe) -> tuple[list[Row], list[Row], DataConfig, EvalDataConfig]:
    """(training rows, held-out rows, and where each come from) of a stage.

    They are disjoint, and no training row poses a problem that the recipe's own held-out data poses: DataError.
    """
    if isinstance(stage, RLStage):
        own = recipe.of_stage(stage)
        data, held_out, shape = own.data, own.eval.held_out, None
    else:
        data, held_out = stage.data or recipe.data, stage.eval.data
        if stage.data is None:
            held_out = recipe.eval.data.model_copy(update=held_out.model_dump(exclude_unset=True))
        held_out = None if not recipe.eval.enabled and stage.kind == "sft" else held_out
        shape = prompt_from_chat
        if data.sources and stage.kind != "sft":
            raise DataError(f"{stage.kind} learns every pair of one source alike; give the stage a `data` of its own")
    seed = key(recipe.seed, "data")
    train_rows, eval_rows = load_train_eval(data, held_out, seed=seed, shape=shape)
    if data != recipe.data:
        check_disjoint(train_rows, load_train_eval(recipe.data, recipe.eval.held_out, seed=seed)[1])
    if stage.kind == "sft":
        train_rows, eval_rows = with_completions(train_rows), with_completions(eval_rows)
    return train_rows, eval_rows, data, held_out or EvalDataConfig()


def stage_data(stage: Stage, recipe: Recipe) -> str:
    """A stage's data in the words of `llmrl plan`; a data set on the hub is not fetched. Raises DataError for rows from
    which nothing can be learnt.
    """
    own = recipe.of_stage(stage).data if isinstance(stage, RLStage) else stage.data or recipe.data
    if is_remote(own) or is_remote(recipe.data):
        return f"{own.called}, looked at when the stage starts"
    with named(stage):
        train_rows, eval_rows, *_ = load_stage_rows(stage, recipe)
        if stage.kind in ("reward_model", "dpo"):
            with_pairs([*train_rows, *eval_rows], seed=key(recipe.seed, "wrong answers"))
    return f"{own.called}: {len(train_rows):,} to train on, {len(eval_rows):,} held out"


def with_pairs(rows: Sequence[Row], *, seed: int) -> list[tuple[Row, str, str]]:
    """(row, the better completion, the worse one) of every row; `seed` keys the wrong answers that are made.

    Raises DataError: a row without a pair, or whose two are equal.
    """
    found, others = [], [row.answer for row in rows]
    for row in rows:
        if "chosen" in row.columns or "rejected" in row.columns:
            chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
        else:
            chosen = text_of(row, "chosen", "answer")
            rejected = wrong_answer(chosen, others, generator(seed, "wrong answer", row.id))
        if chosen == rejected:
            raise DataError(f"{row.origin}: chosen and rejected are the same text, {chosen!r:.80}")
        found.append((row, chosen, rejected))
    return found


def wrong_answer(answer: str, others: Sequence[str], draw: random.Random) -> str:
    """A wrong answer that looks like a right one: a whole number with one digit changed, else another row's answer.

    >>> wrong_answer("100", [], random.Random(0)) not in ("100", "0100")
    True
    """
    if re.fullmatch(r"-?\d+", answer):
        first = answer.startswith("-")
        place = draw.randrange(first, len(answer))
        leading = place == first and len(answer) - first > 1
        digits = [d for d in "0123456789"[leading:] if d != answer[place]]
        changed = answer[:place] + draw.choice(digits) + answer[place + 1 :]
        return "1" if changed == "-0" else changed
    for _ in range(100):
        if others and (other := draw.choice(others)) != answer:
            return other
    raise DataError(
        f"no row has another answer than {answer!r:.80}, so no wrong one can be made; add a column 'rejected'"
    )
