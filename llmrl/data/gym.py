"""reasoning-gym's procedural tasks as a data source, `reasoning_gym:<task>` (optional extra `gym`).

The package seeds row i with seed + i, so the data sets of seeds 0 and 1 share all rows but one, and some tasks (acre,
list_functions) draw from their declared size. Here rows come in blocks of fixed size whose seeds are keyed, so that row
i depends on the run's seed and on i alone, and two seeds have nothing in common but chance.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from llmrl.data.errors import DataError
from llmrl.data.generators import RawRow
from llmrl.seeding import key

PREFIX = "reasoning_gym:"
BLOCK = 1000  # rows of one underlying data set


def gym_rows(source: str, args: dict[str, Any], seed: int) -> Callable[[int], RawRow]:
    """index -> row of the task that `source` names, with the task's own configuration fields as knobs.

    A row has id, problem, answer (empty where the task has many right answers), and what a scorer needs: `task`, `args`
    and `entry`, the package's own row, for `create_dataset(task, **args).score_answer(answer, entry)`. Raises
    DataError: package missing, unknown task or knob (with the nearest names), values that the task refuses.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise DataError(f"{source} needs a package that is missing ({error.name}): pip install 'llmrl[gym]'") from error
    task = source.removeprefix(PREFIX)
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3)
        guess = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(DATASETS))}"
        raise DataError(f"reasoning-gym has no task {task!r}; {guess}")
    knobs = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in ("seed", "size")]
    for knob in args:
        if knob not in knobs:
            near = difflib.get_close_matches(knob, knobs, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise DataError(f"{source} has no knob {knob!r}; {guess}It has {', '.join(knobs)}")
    blocks: dict[int, Any] = {}

    def row(index: int) -> RawRow:
        number, offset = divmod(index, BLOCK)
        if number not in blocks:
            blocks.clear()
            block_seed = key(seed, "reasoning_gym", task, number) % 2**31
            try:
                blocks[number] = reasoning_gym.create_dataset(task, seed=block_seed, size=BLOCK, **args)
            except (AssertionError, TypeError, ValueError) as error:
                raise DataError(f"{source} refuses {args}: {error}") from error
        entry = blocks[number][offset]
        return {
            "id": f"{task}/{seed}/{index}",
            "problem": entry["question"],
            "answer": entry["answer"] or "",
            "task": task,
            "args": args,
            "entry": entry,
        }

    return row
