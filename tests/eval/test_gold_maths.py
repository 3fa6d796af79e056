"""The gold answer of every question of maths, choice and countdown, given as its prompt asks, gets full marks."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llmrl.eval.load import load_questions
from llmrl.eval.prompts import response_of
from llmrl.eval.task import Generated
from llmrl.eval.tasks import TASKS, find_task
from llmrl.rewards.scoring import load_reward, score_one
from llmrl.rewards.validation import trajectory_of

DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))
NAMES = sorted(set(TASKS) - {"cruxeval", "humaneval", "mbpp", "mbpp_hidden", "mbppplus", "programs"})


def said(task, question, mode):
    """What a model that knows the gold answers: the form is the one that the mode's prompt or its examples show."""
    answer = question.answer
    template = task.template if mode == "chat" else task.plain_template
    if "<answer>" in template:
        return f"So <answer>{answer}</answer>"
    if "boxed" in template:
        return f"We find the answer.\n\n\\boxed{{{answer}}}"
    if isinstance(task.source, Generated):  # their prompts ask for the answer alone
        return answer
    if "####" in task.shot_response.format(**{**question.columns, "answer": answer, "solution": "#### 1"}):
        return f" We add them up.\n#### {answer}\n\n\nQuestion: How many apples are 3 apples?\nAnswer: 3"
    return f" Let us see.\nThe answer is {answer if task.shot_response else f'${answer}$'}."


def unmarked(name, mode, limit):
    """Ids of the questions whose gold does not get full marks, with the gold and the reason."""
    task = find_task(name)
    if not isinstance(task.source, Generated) and not DATA.exists():
        pytest.skip(f"no benchmark files in {DATA}; set LLMRL_DATA")
    reward = load_reward(task.verifier, dict(task.options))
    wrong = {}
    for question in load_questions(task, data_dir=DATA, limit=limit).questions:
        asked = trajectory_of(
            "", question.answer, question=task.template.format(**question.columns), columns=question.columns
        )
        response = response_of(task, asked.prompt, said(task, question, mode), mode=mode)
        score = score_one(reward, replace(asked, text=response))
        if score.value != 1.0:
            wrong[question.id] = (question.answer, score.error or score.reason)
    return wrong


@pytest.mark.parametrize("mode", ["chat", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_golds_of_a_sample_get_full_marks(name, mode):
    assert unmarked(name, mode, 40) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chat", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_all_golds_get_full_marks(name, mode):
    assert unmarked(name, mode, None) == {}
