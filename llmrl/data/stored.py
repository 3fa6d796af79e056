"""Programs that were written before: a JSONL file in the place of rollouts, for offline training (never pickle).

    {"prompt_id": "mbpp/601", "text": "def f(): ...", "tokens": [...], "logprobs": [...], "greedy": false}

`prompt_id` is the id of a row of `data`; `text` is all that is needed. With `tokens` (ids of the completion) nothing is
encoded anew; with `logprobs` (nats, one a token) losses can correct for the policy that wrote it. `greedy` marks a
prompt's baseline. Rewards judge the programs again: a stored outcome is not believed. `llmrl programs` writes such files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmrl.data.files import read_files
from llmrl.data.gold import given
from llmrl.errors import DataError
from llmrl.types import Prompt, Role, Trajectory


def stored_rows(
    source: str, prompts: Sequence[Prompt], tokenizer: Any, *, max_length: int
) -> tuple[dict[str, list[Trajectory]], list[str]]:
    """(the stored programs of each prompt that has any, by its id, without a score; what a user should know).

    Baselines come last. Rows of other prompts, and those longer than `max_length` tokens with their prompt, are left out
    and counted. Raises DataError, with the place, for a row that cannot be read, and if none is left.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    found: dict[str, list[Trajectory]] = {}
    other = long = 0
    for place, _, record in read_files(source):
        if not isinstance(record, Mapping):
            raise DataError(f"{place}: a row must be an object with named columns, not {type(record).__name__}")
        if not isinstance(record.get("text"), str) or "prompt_id" not in record:
            raise DataError(
                f"{place}: a stored program needs the columns prompt_id and text; it has {', '.join(record)}"
            )
        prompt = by_id.get(str(record["prompt_id"]))
        if prompt is None:
            other += 1
            continue
        row = _row(record, prompt, tokenizer, place)
        if row.length > max_length:
            long += 1
            continue
        mine = found.setdefault(prompt.id, [])
        mine.append(replace(row, sample=len(mine)))
    found = {name: rows for name, rows in found.items() if any(row.role is Role.SAMPLED for row in rows)}
    if not found:
        raise DataError(
            f"{source} has no program for any of {len(by_id)} prompts ({other} rows are of other prompts, {long} longer "
            f"than model.max_length={max_length}); prompt_id must be the ids of the recipe's data"
        )
    notes = [f"{source}: {sum(map(len, found.values()))} programs of {len(found)} prompts"]
    notes += [f"{other} stored programs are of other prompts, and left out"] if other else []
    notes += [f"{long} stored programs are longer than model.max_length={max_length}, and left out"] if long else []
    return {name: sorted(rows, key=lambda row: row.role is Role.BASELINE) for name, rows in found.items()}, notes


def _row(record: Mapping[str, Any], prompt: Prompt, tokenizer: Any, place: str) -> Trajectory:
    role = Role.BASELINE if record.get("greedy") else Role.SAMPLED
    tokens, logprobs = record.get("tokens"), record.get("logprobs")
    if tokens is None:
        if logprobs is not None:
            raise DataError(f"{place}: logprobs without tokens: whose they are is not known; store both")
        return replace(given(prompt, record["text"], tokenizer), role=role)
    if not tokens or (logprobs is not None and len(logprobs) != len(tokens)):
        count = "none" if logprobs is None else len(logprobs)
        raise DataError(
            f"{place}: {len(tokens)} tokens and {count} logprobs; store at least one token, and a number for each"
        )
    before = len(prompt.tokens)
    row = given(prompt, record["text"], tokenizer)
    return replace(
        row,
        tokens=[*prompt.tokens, *tokens],
        mask=[False] * before + [True] * len(tokens),
        logprobs=None if logprobs is None else [0.0] * before + list(logprobs),
        step=[-1] * before + [0] * len(tokens),
        role=role,
    )
