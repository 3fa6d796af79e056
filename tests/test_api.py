"""llmrl from Python, as a notebook uses it: one call trains, another measures."""

import json
import os
import signal
from datetime import date

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

import llmrl
from llmrl.api import _written
from llmrl.errors import ConfigError
from llmrl.train.folder import read_metrics

ROWS = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(1, 7) for b in range(1, 7)]


def ascii_share(completions, answer, **columns):
    """TRL's form: chat messages in, one number each out."""
    assert len(answer) == len(completions)
    return [sum(c.isascii() for c in turn[-1]["content"]) / max(1, len(turn[-1]["content"])) for turn in completions]


def small(folder, **more):
    return {
        "runs_dir": str(folder), "model.dtype": "float32", "model.max_length": 128, "rollout.prompts_per_step": 2,
        "rollout.group_size": 2, "rollout.max_tokens": 4, "eval.data": {"n": 2}, "limits.max_mismatch": 5.0, **more,
    }  # fmt: skip


def test_a_dataset_and_a_reward_of_trls_form_train_a_model_ready_for_generate(tiny_model, tmp_path, capsys):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    trained = llmrl.train(
        str(tiny_model), Dataset.from_list(ROWS), ascii_share, steps=2, settings=small(tmp_path, **{"train.threads": 1})
    )
    said = capsys.readouterr().out
    assert "step 2/2" in said and not set(said) & {"\x1b", "\r"}  # no control characters
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert trained.model is trained.model and not trained.model.training
    rows = trained.tokenizer(["What is 1 + 1?", "2?"], padding=True, return_tensors="pt")
    assert rows["attention_mask"][1, 0] == 0  # padded on the left
    made = trained.model.generate(**rows, max_new_tokens=3, do_sample=False)
    assert made.shape[0] == 2 and made.shape[1] > rows["input_ids"].shape[1]


def test_a_run_that_is_begun_anew_has_another_model(tiny_model, tmp_path):
    how = {"steps": 1, "settings": small(tmp_path, **{"train.lr": 1e-2})}
    first = llmrl.train(str(tiny_model), ROWS, ascii_share, **how)
    before = first.model.get_output_embeddings().weight.clone()
    second = llmrl.train(str(tiny_model), ROWS, ascii_share, **{**how, "steps": 2}, fresh=True)
    assert second.policy.parent.name == "step-000002"
    third = llmrl.train(str(tiny_model), ROWS, ascii_share, **how, algo="reinforce_pp", fresh=True)
    assert third.policy == first.policy
    assert not torch.equal(third.model.get_output_embeddings().weight, before)


def test_an_interrupt_saves_and_the_same_call_goes_on(tiny_model, tmp_path):
    calls = []

    def reward(completions, **columns):
        calls.append(1)
        if len(calls) == 2:  # of the first training step; the first was the evaluation
            os.kill(os.getpid(), signal.SIGINT)
        return ascii_share(completions, **columns)

    how = {"steps": 3, "name": "cut", "settings": small(tmp_path)}
    with pytest.raises(KeyboardInterrupt, match="saved; go on with resume=True"):
        llmrl.train(str(tiny_model), ROWS, reward, **how)
    trained = llmrl.train(str(tiny_model), ROWS, reward, **how, resume=True)
    steps = [row["step"] for row in read_metrics(trained.run) if row["kind"] == "train"]
    assert steps == [1, 2, 3] and trained.summary["status"] == "finished"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        (DatasetDict({"train": Dataset.from_list(ROWS[:3])}), r"several splits \(train\)"),
        (
            [ROWS[0], {"prompt": "?", "image": object()}],
            "row 1 of data cannot be stored: a object is no JSON; give text",
        ),
    ],
)
def test_data_that_is_none_says_so(tiny_model, tmp_path, data, message):
    with pytest.raises(ConfigError, match=message):
        llmrl.train(str(tiny_model), data, ascii_share, settings=small(tmp_path))


def test_numbers_and_arrays_of_numpy_stay_what_they_are(tmp_path):
    row = {"prompt": "?", "answer": np.int64(7), "tests": np.array([1, 2]), "on": date(2026, 1, 2)}
    stored = json.loads(_written([row], tmp_path, "x").read_text())
    assert stored == {"prompt": "?", "answer": 7, "tests": [1, 2], "on": "2026-01-02"}


def test_a_model_is_measured_on_a_task_of_ones_own(tiny_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    results = llmrl.evaluate(
        str(tiny_model), str(tmp_path / "rows.jsonl"), out=tmp_path / "out", engine="hf", limit=4, max_tokens=4
    )
    assert results.tasks[0].questions == 4
    with pytest.raises(ConfigError, match="no option 'limt'; did you mean 'limit'"):
        llmrl.evaluate(str(tiny_model), "gsm8k", limt=4)
