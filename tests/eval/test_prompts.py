"""Templates, worked examples, chat and plain mode, and what the verifier reads of a completion."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmrl.errors import EvalError
from llmrl.eval.prompts import build_prompts, choose_mode, response_of
from llmrl.eval.task import Question
from llmrl.eval.tasks import find_task
from llmrl.eval.voting import literal, maths, number
from tests.eval.fakes import byte_tokenizer, prompt

GSM8K = find_task("gsm8k")
ASKED = Question(id="a", answer="4", columns={"problem": "What is {2} + 2?", "solution": "It is 4.\n#### 4"})
SHOT = Question(id="s", answer="2", columns={"problem": "1 + 1?", "solution": "It is 2.\n#### 2"})


def test_a_chat_prompt_is_the_template_within_the_chat_template() -> None:
    (made,) = build_prompts(GSM8K, [ASKED], byte_tokenizer(), mode="chat")
    wanted = (
        "<user>What is {2} + 2?\n\nPlease reason step by step, and put your final answer within \\boxed{}.\n<assistant>"
    )
    assert made.text == wanted
    assert byte_tokenizer().decode(made.tokens) == wanted
    assert (made.id, made.answer, made.columns["problem"]) == ("a", "4", "What is {2} + 2?")


def test_worked_examples_are_turns_in_chat_mode_and_text_in_plain_mode() -> None:
    (chat,) = build_prompts(GSM8K, [ASKED], byte_tokenizer(), mode="chat", shots=[SHOT], system="Be brief.")
    assert chat.text.startswith("<system>Be brief.\n<user>1 + 1?\n\nPlease")
    assert "<assistant>It is 2.\n#### 2\n<user>What is {2} + 2?" in chat.text
    (plain,) = build_prompts(GSM8K, [ASKED], byte_tokenizer(), mode="plain", shots=[SHOT])
    assert plain.text == "Question: 1 + 1?\nAnswer: It is 2.\n#### 2\n\nQuestion: What is {2} + 2?\nAnswer:"
    assert plain.messages == ()


def test_the_verifier_gets_every_column_of_the_row() -> None:
    task = find_task("humaneval")
    row = {"prompt": "def f():", "entry_point": "f", "canonical_solution": " pass", "test": "def check(c): pass"}
    question = task.read(row, 0)
    (made,) = build_prompts(task, [question], byte_tokenizer(), mode="plain")
    assert dict(made.columns) == dict(question.columns)
    assert made.text == "def f():"


def test_a_model_without_chat_template_runs_in_plain_mode_and_says_so() -> None:
    chat, bare = byte_tokenizer(), byte_tokenizer(chat=False)
    assert choose_mode(GSM8K, chat) == ("chat", "")
    assert choose_mode(GSM8K, chat, "plain") == ("plain", "")
    mode, note = choose_mode(GSM8K, bare)
    assert mode == "plain"
    assert "gsm8k: the model has no chat template" in note
    with pytest.raises(EvalError, match="the tokenizer has no chat template"):
        choose_mode(GSM8K, bare, "chat")
    with pytest.raises(EvalError, match="system message needs chat mode"):
        build_prompts(GSM8K, [ASKED], bare, mode="plain", system="x")


def test_a_plain_completion_is_cut_at_its_first_stop_and_framed_for_the_verifier() -> None:
    code = find_task("humaneval")
    asked = prompt(0, prompt="def f():\n")
    said = "    return {}\n\ndef g():\n    pass\nprint(1)"
    assert response_of(code, asked, said, mode="plain") == "```python\ndef f():\n    return {}\n\n```"
    assert response_of(code, asked, said, mode="chat") == said
    late = replace(GSM8K, plain_stop=("zzz", "Question:"))
    assert response_of(late, asked, " 4\nQuestion: zzz", mode="plain") == " 4\n"


def test_votes_class_equal_answers_together_and_abstain_without_one() -> None:
    assert number(["It is 7.", "so 7.00", "14/2", "eight", ""]) == ["7", "7", "7", None, None]
    assert literal(["<answer>a</answer> no <answer> b\n c </answer>", "b c", "<answer> </answer>"]) == [
        "b c",
        None,
        None,
    ]


def test_maths_votes_are_classed_by_the_checker_and_not_by_their_spelling() -> None:
    said = [r"so \boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{2}", "The answer is 2.", "", r"\boxed{\dfrac12}"]
    found = maths(said)
    assert found[0] == found[1] == found[5] is not None
    assert found[2] == found[3] == "2"
    assert found[4] is None
    assert maths([]) == []


def test_maths_votes_do_not_depend_on_the_order_of_responses_and_not_knowing_abstains() -> None:
    said = [
        "\\boxed{0.333}",
        "\\boxed{\\frac13}",
        "The answer is 1/3.",
        "I don't know.",
        "\\boxed{\\frac{2}{6}}",
        "I'm not sure.",
    ]
    by_order = set()
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 4, 5, 2, 3]):
        classes = maths([said[place] for place in order])
        by_order.add(tuple(classes[order.index(place)] for place in range(6)))
    assert by_order == {("0.333", "1/3", "1/3", None, "1/3", None)}
