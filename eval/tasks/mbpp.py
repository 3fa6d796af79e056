"""MBPP: 500 test problems, a sentence and three asserts each. Austin et al. 2021 (2108.07732).

Plain mode is the paper's few-shot prompt with problems 2, 3 and 4 of the prompt split worked out between [BEGIN] and
[DONE]. `mbpp_hidden` shows one assert and judges by the others, so that samples may be filtered by what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.data.programming import tested_name
from llmrl.eval.task import Question, Source, Task, items, text


def read(row: Mapping[str, Any], number: int) -> Question:
    """Every assert is a test; `test_setup_code` runs before them."""
    tests = [str(test) for test in items(row, "test_list")]
    setup = str(row.get("test_setup_code") or "").replace("\r\n", "\n")
    code = text(row, "code").replace("\r\n", "\n")
    columns = {
        "problem": text(row, "text"),
        "asserts": "\n".join(tests),
        "tests": tests,
        "setup": setup,
        "code": code,
        "entry_point": tested_name(code, tests),
    }
    return Question(id=f"mbpp/{text(row, 'task_id')}", answer=code, columns=columns)


def read_hidden(row: Mapping[str, Any], number: int) -> Question:
    """The first assert is shown, the others are hidden."""
    whole = read(row, number)
    shown, hidden = whole.columns["tests"][:1], whole.columns["tests"][1:]
    if not hidden:
        raise ValueError("column 'test_list' holds one test; one is shown, and at least one must be hidden")
    return replace(whole, columns={**whole.columns, "asserts": shown[0], "example_tests": shown, "tests": hidden})


HUB = "google-research-datasets/mbpp"

TASK = Task(
    name="mbpp",
    source=Source(file="mbpp/mbpp.jsonl", hub=HUB, config="full", split="test", where={"split": "test"}),
    read=read,
    verifier="llmrl.rewards.code_tests:CodeTests",
    options={"timeout_s": 30.0},  # the reference of problem 123 needs several seconds on an idle core
    template="{problem} Your code should pass these tests:\n\n{asserts}\n\nAnswer with one Python code block.",
    plain_template=(
        "You are an expert Python programmer, and here is your task: {problem} Your code should pass these tests:\n\n"
        "{asserts}\n[BEGIN]\n"
    ),
    plain_stop=("[DONE]",),
    plain_response="```python\n{response}\n```",
    shot_source=Source(
        file="mbpp/mbpp.jsonl", hub=HUB, config="full", split="prompt", where={"split": "prompt"}, skip=1
    ),
    shot_response="{code}\n[DONE]\n\n",
    plain_shots=3,
    max_tokens=1024,
    temperature=0.8,
)
HIDDEN = replace(TASK, name="mbpp_hidden", read=read_hidden)
