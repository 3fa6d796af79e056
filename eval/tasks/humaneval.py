"""HumanEval: 164 Python functions to complete from signature and docstring. Chen et al. 2021 (2107.03374).

Plain mode is the paper's: the model continues the file, and stops at the next top-level statement. In chat mode it is
asked for the whole function in a code block.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from llmrl.eval.task import Question, Source, Task, identity, text

CODE_TEMPERATURE = 0.8  # the paper's for pass@100; 0.2 for pass@1


def _given(prompt: str, solution: str, entry_point: str) -> str:
    """The imports and finished functions of a prompt: what its test may use beside the function that is asked for."""
    lines = prompt.count("\n") + 1
    body = [n for n in ast.parse(prompt + solution).body if n.end_lineno is not None and n.end_lineno < lines]
    kept = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom)) or getattr(n, "name", "") != entry_point]
    return ast.unparse(ast.Module(kept, [])) if any(isinstance(n, ast.FunctionDef) for n in kept) else ""


def read(row: Mapping[str, Any], number: int) -> Question:
    """The test defines `check(candidate)`; it is called on the entry point."""
    entry_point = text(row, "entry_point")
    columns = {
        "prompt": text(row, "prompt"),
        "entry_point": entry_point,
        "setup": _given(text(row, "prompt"), text(row, "canonical_solution"), entry_point),
        "tests": [f"{text(row, 'test')}\ncheck({entry_point})"],
    }
    answer = text(row, "prompt") + text(row, "canonical_solution")
    return Question(id=identity(row, number, "humaneval"), answer=answer, columns=columns)


TASK = Task(
    name="humaneval",
    source=Source(file="humaneval/test.jsonl", hub="openai/openai_humaneval", split="test"),
    read=read,
    verifier="llmrl.rewards.code_tests:CodeTests",
    template=(
        "Complete this Python function. Answer with the whole function, with its imports, in one Python code block.\n\n"
        "```python\n{prompt}```"
    ),
    plain_template="{prompt}",
    plain_stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    plain_response="```python\n{prompt}{response}\n```",
    max_tokens=1024,
    temperature=CODE_TEMPERATURE,
)
