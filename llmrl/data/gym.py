"""reasoning-gym's procedural tasks as a data source, `reasoning_gym:<task>` (optional extra `gym`).

The package seeds row i with seed + i, so the data sets of seeds 0 and 1 share all rows but one, and some tasks (acre,
list_functions) draw from their declared size. Here rows come in blocks of fixed size whose seeds are keyed, so that row
i depends on the run's seed and on i alone, and two seeds have nothing in common but chance. A few tasks draw from the
global random state (list_functions, pool_matrix; it is lent to them with a keyed seed and given back) or walk through
sets of strings, whose order Python changes from process to process (those need PYTHONHASHSEED).
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmrl.data.generators import RawRow
from llmrl.errors import DataError
from llmrl.nearest import nearest
from llmrl.seeding import key

PREFIX = "reasoning_gym:"
BLOCK = 1000  # rows of one underlying data set
# Rows differ between PYTHONHASHSEED=1 and 2 (all 105 tasks of 0.1.25 compared at their default settings, 20 rows each).
HASH_ORDERED = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")


def gym_rows(source: str, args: dict[str, Any], seed: int) -> Callable[[int], RawRow]:
    """index -> row of the task that `source` names, with the task's own configuration fields as knobs.

    A row has id, problem, answer (empty where the task has many right answers), identity, and what a scorer needs: `task`,
    `args` and `entry`, the package's own row, for `create_dataset(task, **args).score_answer(answer, entry)`. Raises
    DataError: package missing, unknown task or knob (with the nearest names), values that the task refuses.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise DataError(f"{source} needs a package that is missing ({error.name}): pip install 'llmrl[gym]'") from error
    task = source.removeprefix(PREFIX)
    if task not in DATASETS:
        raise DataError(f"reasoning-gym has no task {task!r}; {nearest(task, DATASETS)}")
    knobs = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in ("seed", "size")]
    for knob in args:
        if knob not in knobs:
            raise DataError(f"{source} has no knob {knob!r}; {nearest(knob, knobs)}")
    if task in HASH_ORDERED and not os.environ.get("PYTHONHASHSEED", "").isdigit():
        raise DataError(
            f"{source} makes other rows in every process unless Python's hash seed is fixed, so a run could not be "
            "repeated or resumed; start with PYTHONHASHSEED=0 in the environment"
        )
    blocks: dict[int, Any] = {}

    def row(index: int) -> RawRow:
        number, offset = divmod(index, BLOCK)
        if number not in blocks:
            blocks.clear()
            block_seed = key(seed, "reasoning_gym", task, number) % 2**31
            try:  # the package checks settings with assert
                blocks[number] = reasoning_gym.create_dataset(task, seed=block_seed, size=BLOCK, **args)
            except (AssertionError, TypeError, ValueError) as error:
                raise DataError(f"{source} refuses {args}: {error}") from error
        with _keyed_global_draws(key(seed, "reasoning_gym", task, "row", index)):
            entry = blocks[number][offset]
        return {
            "id": f"{task}/{seed}/{index}",
            "problem": entry["question"],
            "answer": entry["answer"] or "",
            "task": task,
            "args": args,
            "entry": entry,
            "identity": " ".join(entry["question"].casefold().split()),
        }

    return row


@contextmanager
def _keyed_global_draws(seed: int) -> Iterator[None]:
    """Lend the global random states to code that uses them, and put them back as they were."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
