"""The reference of every code question, given in the form its prompt asks for, gets full marks in both prompt modes."""

import os
from pathlib import Path

import pytest

from llmrl.eval.load import load_questions
from llmrl.eval.prompts import response_of
from llmrl.eval.tasks import find_task
from llmrl.rewards.scoring import load_reward, score_one
from llmrl.rewards.validation import trajectory_of

DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))
TASKS = ["cruxeval", "humaneval", "mbpp", "mbpp_hidden", "mbppplus", "programs"]
SOLUTION = "```python\n{answer}\n```"
CHAT = {
    "cruxeval": "It returns\n<answer> {answer} </answer>",
    "humaneval": SOLUTION,
    "mbpp": SOLUTION,
    "mbpp_hidden": SOLUTION,
    "mbppplus": SOLUTION,
    "programs": SOLUTION,
}


def plain_completion(task, question):
    """What a base model that knows the reference writes, and goes on writing."""
    text = question.answer
    if task.name == "humaneval":
        text = text.removeprefix(question.columns["prompt"])
    if task.name == "cruxeval":
        text = f" {text}\nassert f(1) == 2"
    if task.name.startswith("mbpp") and task.name != "mbppplus":
        text = f"{text}\n[DONE]\n\nYou are an expert"
    return text


def marks(name, mode, limit):
    """Ids of the questions whose reference does not get full marks, with the reason."""
    if not DATA.exists():
        pytest.skip(f"no benchmark files in {DATA}; set LLMRL_DATA")
    task = find_task(name)
    reward = load_reward(task.verifier, dict(task.options))
    wrong = {}
    for question in load_questions(task, data_dir=DATA, limit=limit).questions:
        prompt = trajectory_of("", question.answer, columns=question.columns).prompt
        said = CHAT[name].replace("{answer}", question.answer) if mode == "chat" else plain_completion(task, question)
        response = response_of(task, prompt, said, mode=mode)
        score = score_one(reward, trajectory_of(response, question.answer, columns=question.columns))
        if score.value != 1.0:
            wrong[question.id] = score.error or score.reason
    return wrong


@pytest.mark.parametrize("mode", ["chat", "plain"])
@pytest.mark.parametrize(
    ("name", "limit"),
    [("cruxeval", 800), ("humaneval", 6), ("mbpp", 6), ("mbpp_hidden", 3), ("mbppplus", 3), ("programs", 6)],
)
def test_references_of_a_sample_get_full_marks(name, limit, mode):
    assert marks(name, mode, limit) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chat", "plain"])
@pytest.mark.parametrize("name", TASKS)
def test_all_references_get_full_marks(name, mode):
    assert marks(name, mode, None) == {}


@pytest.mark.parametrize(
    ("number", "program"),
    [
        (32, "def poly(xs, x): return 0\ndef find_zero(xs): return 1\n"),
        (38, "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s\n"),
        (50, "def encode_shift(s): return s\ndef decode_shift(s): return s\n"),
    ],
)
def test_a_helper_that_humaneval_s_prompt_gives_is_not_the_program_s(number, program):
    if not DATA.exists():
        pytest.skip(f"no benchmark files in {DATA}; set LLMRL_DATA")
    task = find_task("humaneval")
    (question,) = [q for q in load_questions(task, data_dir=DATA).questions if q.id == f"HumanEval/{number}"]
    reward = load_reward(task.verifier, dict(task.options))
    said = SOLUTION.replace("{answer}", program)
    assert score_one(reward, trajectory_of(said, columns=question.columns)).value == 0.0


def test_the_hub_s_form_of_mbppplus_runs_with_numpy():
    row = {
        "task_id": 7,
        "prompt": "Write a function to halve numbers.",
        "code": "def halve(xs):\n    return [x / 2 for x in xs]\n",
        "test": (
            "import numpy as np\nfrom math import inf\n\n"
            "def close(out, exp):\n    assert out == exp or np.allclose(out, exp, rtol=1e-07, atol=1e-6), (out, exp)\n\n"
            "for xs, exp in zip([[[1, 2]], [[]], [[inf]]], [[0.5, 1.0], [], [inf]]):\n    close(halve(*xs), exp)\n"
        ),
    }
    task = find_task("mbppplus")
    question = task.read(row, 0)
    reward = load_reward(task.verifier, dict(task.options))
    for answer, value in (
        (question.answer, 1.0),
        ("import numpy as np\ndef halve(xs):\n    return np.array(xs) / 3\n", 0.0),
    ):
        said = SOLUTION.replace("{answer}", answer)
        assert score_one(reward, trajectory_of(said, columns=question.columns)).value == value
    numpy_answer = SOLUTION.replace(
        "{answer}", "import numpy as np\ndef halve(xs):\n    return list(np.array(xs) / 2)\n"
    )
    assert score_one(reward, trajectory_of(numpy_answer, columns=question.columns)).value == 1.0
