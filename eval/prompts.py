"""Questions into prompts: a task's templates filled, worked examples added; `llmrl.data` applies the chat template.

Also the way back: what the verifier reads of a completion (`response_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrl.data.prompts import to_prompts
from llmrl.data.rows import Row
from llmrl.errors import EvalError
from llmrl.eval.task import Mode, Question, Task
from llmrl.settings.data import DataConfig
from llmrl.types import Prompt

ANY_LENGTH = 2**31


def choose_mode(task: Task, tokenizer: Any, wanted: Mode | None = None) -> tuple[Mode, str]:
    """The mode to run in, and a note for the user where it is not the task's own (a base model has no chat template).

    EvalError if chat is wanted by name and the tokenizer has no chat template.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if wanted == "chat" and not has_template:
        raise EvalError("mode=chat, but the tokenizer has no chat template; leave --mode out or set it to plain")
    if wanted is not None:
        return wanted, ""
    if task.mode == "chat" and not has_template:
        return "plain", f"{task.name}: the model has no chat template, so it runs in plain mode"
    return task.mode, ""


def default_shots(task: Task, mode: Mode) -> int:
    """How many worked examples the task shows in that mode."""
    return task.shots if mode == "chat" else task.plain_shots


def build_prompts(
    task: Task,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    mode: Mode,
    shots: Sequence[Question] = (),
    system: str | None = None,
) -> list[Prompt]:
    """One prompt per question, in order, tokenised as `tokenizer` (of transformers) does.

    In chat mode a worked example is a user's and an assistant's turn, in plain mode text before the question.
    EvalError for a system message in plain mode.
    """
    if system is not None and mode == "plain":
        raise EvalError("a system message needs chat mode")
    config = DataConfig.model_validate(
        {
            "source": task.name,
            "chat": mode == "chat",
            "system": system,
            "columns": {"prompt": "prompt of the row"},  # a name no row has: the verifier gets every column
            "max_prompt_tokens": ANY_LENGTH,
        }
    )
    rows = [
        Row(
            id=question.id,
            prompt=_messages(task, question, shots) if mode == "chat" else _plain(task, question, shots),
            answer=question.answer,
            columns=question.columns,
            identity=question.id,
            origin=f"{task.name} {question.id}",
        )
        for question in questions
    ]
    prompts, _ = to_prompts(rows, tokenizer, config)
    return prompts


def _messages(task: Task, question: Question, shots: Sequence[Question]) -> tuple[dict[str, str], ...]:
    turns: list[dict[str, str]] = []
    for shot in shots:
        turns.append({"role": "user", "content": _fill(task.template, shot)})
        turns.append({"role": "assistant", "content": _fill(task.shot_response, shot).strip()})
    return (*turns, {"role": "user", "content": _fill(task.template, question)})


def _plain(task: Task, question: Question, shots: Sequence[Question]) -> str:
    worked = [_fill(task.plain_template, shot) + _fill(task.shot_response, shot) for shot in shots]
    return "".join([*worked, _fill(task.plain_template, question)])


def _fill(template: str, question: Question) -> str:
    return template.format(**{**question.columns, "answer": question.answer})


def response_of(task: Task, prompt: Prompt, text: str, *, mode: Mode) -> str:
    """What the verifier reads: the completion, in plain mode cut at its stop and put into `task.plain_response`."""
    if mode == "chat":
        return text
    ends = [place for stop in task.plain_stop if (place := text.find(stop)) >= 0]
    cut = text[: min(ends)] if ends else text
    return task.plain_response.format(**{**prompt.columns, "response": cut})
