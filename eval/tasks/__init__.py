"""The benchmarks by name. `TASKS[name]` is an import path; `find_task` imports only the one that is asked for."""

from __future__ import annotations

from pathlib import Path

from llmrl.errors import EvalError
from llmrl.eval.task import Task
from llmrl.importing import load
from llmrl.nearest import nearest

TASKS = {
    "addition": "generated:ADDITION",
    "aime24": "competition_math:AIME24",
    "aime25": "competition_math:AIME25",
    "amc23": "competition_math:AMC23",
    "aqua": "aqua:TASK",
    "arithmetic": "generated:ARITHMETIC",
    "chains": "generated:CHAINS",
    "countdown": "countdown:TASK",
    "countdown_easy": "countdown:EASY",
    "countdown_generated": "generated:COUNTDOWN",
    "countdown_hard": "countdown:HARD",
    "cruxeval": "cruxeval:TASK",
    "gsm8k": "gsm8k:TASK",
    "gsm_hard": "gsm_hard:TASK",
    "humaneval": "humaneval:TASK",
    "math": "competition_math:MATH",
    "math500": "competition_math:MATH500",
    "mbpp": "mbpp:TASK",
    "mbpp_hidden": "mbpp:HIDDEN",
    "mbppplus": "mbppplus:TASK",
    "programs": "generated:PROGRAMS",
    "olympiadbench": "olympiadbench:TASK",
    "svamp": "svamp:TASK",
}


def find_task(name: str) -> Task:
    """The task called `name`, or the one that a task file (.yaml, .yml) or a JSONL file describes.

    EvalError, with the nearest names, if there is none.
    """
    if name.endswith((".yaml", ".yml", ".jsonl")):
        from llmrl.eval.tasks.from_file import task_from_file

        return task_from_file(Path(name))
    if name not in TASKS:
        raise EvalError(f"unknown task {name!r}; {nearest(name, TASKS)}")
    task: Task = load(f"llmrl.eval.tasks.{TASKS[name]}")
    return task
