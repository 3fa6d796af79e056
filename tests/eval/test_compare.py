"""Comparing two folders of results, and finding benchmark questions in training data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmrl.errors import EvalError
from llmrl.eval.compare import compare
from llmrl.eval.contamination import check_tasks, find_overlaps, ngrams, words
from llmrl.eval.metrics import mcnemar_exact
from llmrl.eval.records import Record, Sample, open_records, to_line
from llmrl.eval.tables import comparison_table, contamination_table


def _folder(path: Path, scores: dict[str, float | None], *, temperature: float = 0.0, task: str = "toy") -> Path:
    data = {"origin": path.name, "sha256": "a"}
    settings = {"model": path.name, "sampling": {"temperature": temperature}, "data": data}
    with open_records(path / f"{task}.jsonl", settings) as (file, _):
        for i, (name, value) in enumerate(scores.items()):
            sample = Sample(text="", tokens=1, logprob=-1.0, status="done", value=value)
            file.write(
                to_line(
                    Record(index=i, question=name, prompt="", prompt_tokens=1, gold="", columns={}, samples=(sample,))
                )
            )
    return path


def test_only_questions_that_both_scored_are_paired(tmp_path: Path) -> None:
    a = _folder(tmp_path / "a", {**{f"q{i}": float(i < 12) for i in range(20)}, "only a": 1.0, "unscored": None})
    b = _folder(tmp_path / "b", {**{f"q{i}": float(i < 2) for i in reversed(range(20))}, "unscored": 1.0, "x": 1.0})
    (found,) = compare(a, b)
    assert (found.score_a, found.score_b) == (0.6, 0.1)
    assert found.result.questions == 20
    assert (found.only_a, found.only_b) == (1, 2)
    assert found.result.p_value == pytest.approx(mcnemar_exact(10, 0))
    assert found.verdict.startswith("A is better (p = 0.00195")
    assert found.warnings == ()
    (back,) = compare(b, a)
    assert back.verdict.startswith("B is better")
    said = found.sentence("big", "small")
    assert said.startswith("toy: A (big) is really better than B (small): A - B = +50.0 points, 95 % [+30.0, +70.0]")
    assert said.endswith("p = 0.00195 (mcnemar exact, 20 questions)")
    assert "toy: B (big) is really better than A (small): A - B = -50.0" in back.sentence("small", "big")
    shown = comparison_table([found], "a", "b")
    assert "| toy | 20 | 60.0 | 10.0 | +50.0 [+30.0, +70.0] | 10 / 0 | A is better" in shown


def test_equal_answers_show_no_difference_and_other_settings_are_told(tmp_path: Path) -> None:
    a = _folder(tmp_path / "a", {"q0": 1.0, "q1": 0.0})
    b = _folder(tmp_path / "b", {"q0": 1.0, "q1": 0.0}, temperature=0.6)
    (found,) = compare(a, b)
    assert found.verdict == "no significant difference (p = 1)"
    assert found.warnings == ("sampling.temperature differs: 0.0 and 0.6",)


def test_nothing_to_compare_says_why(tmp_path: Path) -> None:
    a = _folder(tmp_path / "a", {"q0": 1.0})
    with pytest.raises(EvalError, match=r"share no task"):
        compare(a, _folder(tmp_path / "b", {"q0": 1.0}, task="other"))
    with pytest.raises(EvalError, match=r"no task\) share no task"):
        compare(a, tmp_path / "nowhere")
    with pytest.raises(EvalError, match="no scored question in common"):
        compare(a, _folder(tmp_path / "c", {"q1": 1.0}))


def test_ngrams_of_words_ignore_case_and_punctuation() -> None:
    assert words("The  Cat, the-cat 3.5!") == ("the", "cat", "the", "cat", "3", "5")
    assert list(ngrams(("a", "b", "c"), 2)) == [("a", "b"), ("b", "c")]
    assert list(ngrams(("a",), 2)) == [("a",)]
    assert list(ngrams((), 2)) == []


def test_overlap_is_the_share_of_a_questions_ngrams() -> None:
    question = " ".join(f"w{i}" for i in range(10))  # 8 trigrams
    training = [("t0", "w0 w1 w2 W3!"), ("t1", "x w5 w6 w7 y"), ("t2", "nothing")]
    (found,) = find_overlaps([("q", question), ("other", "a b c d")], training, n=3, threshold=0.3)
    assert (found.question, found.share, found.training) == ("q", 3 / 8, "t0")
    assert find_overlaps([("q", question)], training, n=3, threshold=0.5) == []
    assert find_overlaps([("q", "w1 w0 w2")], training, n=5, threshold=0.5) == []
    (short,) = find_overlaps([("q", "Nothing.")], training, n=5)
    assert short.share == 1.0
    with pytest.raises(ValueError, match="n=0"):
        find_overlaps([], [], n=0)
    with pytest.raises(ValueError, match="threshold=2"):
        find_overlaps([], [], threshold=2)


def test_a_task_file_is_checked_against_a_training_file(tmp_path: Path) -> None:
    text = "Ann has three apples and gives one of them to Ben, so how many apples does Ann have left now?"
    rows = [{"id": "bad", "problem": text, "answer": "2"}, {"id": "good", "problem": "What is 2 + 2?", "answer": "4"}]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "Q: " + text.upper(), "answer": "2"}) + "\n")
    (found,) = check_tasks([str(tmp_path / "bench.jsonl")], str(tmp_path / "train.jsonl"))
    assert [overlap.question for overlap in found.overlaps] == ["bad"]
    assert found.overlaps[0].training.endswith("train.jsonl:1")
    shown = contamination_table([found])
    assert "| bench | 2 | 1 | 1 | 50.00 % |" in shown
    assert "| bench | bad | 100 % |" in shown
    with pytest.raises(EvalError, match="no task"):
        check_tasks([], "x")


DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark files in {DATA}; set LLMRL_DATA")
def test_real_training_data_is_told_from_attempts_at_the_test_questions() -> None:
    (clean,) = check_tasks(["gsm8k"], str(DATA / "gsm8k" / "train.jsonl"), data_dir=DATA)
    assert [overlap.question for overlap in clean.overlaps] == ["gsm8k/test/602"]  # reworded in the training split
    attempts = str(DATA / "gsm8k_model_solutions" / "test.jsonl")
    (leaked,) = check_tasks(["gsm8k"], attempts, data_dir=DATA)
    assert (leaked.questions, len(leaked.overlaps)) == (1319, 1319)
    assert all(overlap.share == 1 for overlap in leaked.overlaps)
