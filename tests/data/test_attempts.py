"""Attempts with known correctness: three shapes of files, balance, and what is wrong is told; real ones where they are."""

import json
import os
from pathlib import Path

import pytest

from llmrl.data.source import load_rows, load_train_eval
from llmrl.errors import DataError
from llmrl.rewards.critique_reward import CritiqueReward
from llmrl.settings.data import DataConfig, EvalDataConfig
from llmrl.types import Prompt, Status, Trajectory

DATA = Path(os.environ.get("LLMRL_DATA", "../shared/data"))
OURS = {"question": "2 + 2?", "answer": "4", "attempt": "It is 5", "correct": False}


def attempts(tmp_path, *records, **settings):
    file = tmp_path / "attempts.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records))
    return load_rows(DataConfig(source=f"attempts:{file}", **settings), seed=0)


@pytest.mark.parametrize(
    "record",
    [
        OURS,
        {"question": "2 + 2?", "answer": "4", "origin_response": "It is 5", "correctness-origin": False, "idx": 7},
        {"input": "2 + 2?", "target": "4", "answer": "5", "steps": ["It is 5"], "mistake_index": 0},
        {"problem": "2 + 2?", "gold_solution": "4", "attempt": "It is 5", "correct": 0},
    ],
)
def test_three_shapes_are_one(tmp_path, record):
    (row,) = attempts(tmp_path, record)
    assert (row.prompt, row.answer) == ("2 + 2?", "4")
    assert row.columns["attempt"] == "It is 5" and row.columns["correct"] is False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attempt": ""}, "the attempt must be text"), ({"attempt": 5}, "the attempt must be text"),
        ({"correct": "yes"}, "correct must be true or false"), ({"correct": None}, "needs a column correct"),
        ({"question": None}, "needs a column question"),
    ],
)  # fmt: skip
def test_what_is_no_attempt_is_refused_with_its_line(tmp_path, change, reason):
    with pytest.raises(DataError, match=rf"attempts.jsonl:1: .*{reason}"):
        attempts(tmp_path, OURS | change)


def test_balance_keeps_as_many_right_as_wrong(tmp_path):
    rows = [OURS | {"question": f"{number} + 0?", "correct": number < 3} for number in range(20)]
    found = attempts(tmp_path, *rows, args={"balance": True})
    assert sorted(row.columns["correct"] for row in found) == [False] * 3 + [True] * 3
    assert [row.id for row in found] == [row.id for row in attempts(tmp_path, *rows, args={"balance": True})]
    assert len(attempts(tmp_path, *rows)) == 20
    with pytest.raises(DataError, match="20 attempts are right and 0 wrong"):
        attempts(tmp_path, *[row | {"correct": True} for row in rows], args={"balance": True})


def test_attempts_at_one_question_stay_on_one_side(tmp_path):
    file = tmp_path / "attempts.jsonl"
    rows = [OURS | {"question": f"{number // 4} + 0?", "attempt": f"try {number}"} for number in range(400)]
    file.write_text("\n".join(map(json.dumps, rows)))
    train, held_out = load_train_eval(DataConfig(source=f"attempts:{file}"), EvalDataConfig(n=None), seed=0)
    assert len(train) + len(held_out) == 400 and held_out
    assert not {row.identity for row in train} & {row.identity for row in held_out}


def judged(row):
    """Whether the checker calls the row's attempt right."""
    prompt = Prompt(id=row.id, tokens=(5,), text="?", answer=row.answer, columns={})
    info = {"draft": row.columns["attempt"], "critique": "Correctness of the final answer: Correct"}
    empty = Trajectory(
        prompt=prompt, tokens=[5], mask=[0], logprobs=[0], step=[-1], text="", status=Status.done(), info=info
    )
    return CritiqueReward(stage=1)(empty).parts["draft_right"] == 1.0


@pytest.mark.skipif(not (DATA / "gsm8k_model_solutions").is_dir(), reason="LLMRL_DATA has no such folder")
def test_real_attempts_at_gsm8k_are_as_right_as_they_are_said_to_be():
    source = f"attempts:{DATA}/gsm8k_model_solutions/test.jsonl"
    rows = load_rows(DataConfig(source=source, limit=400), seed=0)
    agree = [judged(row) == row.columns["correct"] for row in rows]
    assert sum(agree) / len(agree) > 0.97
    found = load_rows(DataConfig(source=source, args={"balance": True}), seed=0)
    assert sum(row.columns["correct"] for row in found) * 2 == len(found) > 2000


@pytest.mark.skipif(not (DATA / "bigbench_mistake").is_dir(), reason="LLMRL_DATA has no such folder")
@pytest.mark.parametrize(
    "name", ["multistep_arithmetic", "word_sorting", "tracking_shuffled_objects", "dyck_languages"]
)
def test_real_attempts_of_big_bench_mistake_are_read(name):
    rows = load_rows(DataConfig(source=f"attempts:{DATA}/bigbench_mistake/{name}.jsonl", shuffle=False), seed=0)
    assert len(rows) >= 300 and 0.05 < sum(row.columns["correct"] for row in rows) / len(rows) < 0.95
    assert all(row.columns["attempt"].count("\n") + 1 == len(row.columns["steps"]) for row in rows)
    if name == "multistep_arithmetic":
        assert all(judged(row) == row.columns["correct"] for row in rows[:100])
